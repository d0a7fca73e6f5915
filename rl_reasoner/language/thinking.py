"""The parts of a completion that thinks: its chain of thought, and its answer.

    <think>chain</think>answer        <think>chain</think><answer>answer</answer>

Without tags all is answer. A chain that is never closed leaves no answer. The tags are spelled
here and nowhere else. Pure text; never raises.
"""

OPEN_THINK, CLOSE_THINK, OPEN_ANSWER, CLOSE_ANSWER = TAGS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
NO_CHAIN = OPEN_THINK + CLOSE_THINK
"""How a direct answer begins in the form with tags."""


def with_tags(chain: object, answer: object) -> str:
    """The completion that has this chain of thought and this answer, both between their tags."""
    return f"{OPEN_THINK}{chain}{CLOSE_THINK}{OPEN_ANSWER}{answer}{CLOSE_ANSWER}"


def has_chain(completion: str) -> bool:
    """Whether a chain of thought is opened, and is not an empty one."""
    return OPEN_THINK in completion and NO_CHAIN not in completion


def chain_of(completion: str) -> str:
    """The chain of thought: up to the last </think>, or to the end where the tag never closes."""
    before, closed, _ = completion.rpartition(CLOSE_THINK)
    text = before if closed else completion
    _, opened, inside = text.partition(OPEN_THINK)
    return inside if opened else before


def answer_part(completion: str) -> str:
    """What is said after the chain of thought, without answer tags around all of it."""
    _, closed, after = completion.rpartition(CLOSE_THINK)
    if not closed and OPEN_THINK in completion:
        return ""
    text = after.strip()
    if text.startswith(OPEN_ANSWER) and text.endswith(CLOSE_ANSWER):
        inner = text.removeprefix(OPEN_ANSWER).removesuffix(CLOSE_ANSWER)
        return inner if OPEN_ANSWER not in inner else after
    return after if closed else completion


def behind_chain(completion: str) -> str | None:
    """What stands behind the chain of thought; None where it begins with one that never closes."""
    _, closed, after = completion.rpartition(CLOSE_THINK)
    return None if not closed and after.lstrip().startswith(OPEN_THINK) else after
