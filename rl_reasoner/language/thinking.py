"""The parts of a completion that thinks: its chain of thought, and its answer.

    <think>chain</think>answer        <think>chain</think><answer>answer</answer>

Without tags all is answer. A chain that is never closed leaves no answer. Pure text; never raises.
"""


def chain_of(completion: str) -> str:
    """The chain of thought: up to the last </think>, or to the end where the tag never closes."""
    before, closed, _ = completion.rpartition("</think>")
    text = before if closed else completion
    _, opened, inside = text.partition("<think>")
    return inside if opened else before


def answer_of(completion: str) -> str:
    """What is said after the chain of thought, without answer tags around all of it."""
    _, closed, after = completion.rpartition("</think>")
    if not closed and "<think>" in completion:
        return ""
    text = after.strip()
    if text.startswith("<answer>") and text.endswith("</answer>"):
        inner = text.removeprefix("<answer>").removesuffix("</answer>")
        return inner if "<answer>" not in inner else after
    return after if closed else completion
