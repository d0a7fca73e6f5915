"""The words of the field, each defined once: rows, prompts, completions, rollouts and their scores.

Three outcomes of a reward are kept apart: a score, an abstention (`Score(None)`: this row cannot be
judged, it leaves its group's mean), and a `Fault` (the reward itself failed; never mixed up with a
low score). Imports nothing of torch, and nothing of ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

Row = dict[str, Any]
"""One record: of a data set, a saved evaluation, a ledger or a batch; values by column."""
Message = Mapping[str, Any]
"""A chat's message: `role` and `content`."""
Prompt = str | list[dict[str, str]]
"""What a model is asked, rendered: a text, or a chat."""
Completion = str | Sequence[Message]
"""What a model wrote: a text, or a chat's messages."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled completion: its text, its length in tokens, whether it was cut off at the limit.

    The length is None where a server does not tell it; that of the prompt is what a server counts.
    `episode` is what an environment gave it (`rl_reasoner.rollout.episodes`), as the column that
    rewards see; None without one. `policy_text` is what the policy itself wrote, where tools or an
    environment may answer in the middle; None where the text is all its own.
    """

    text: str
    tokens: int | None
    truncated: bool
    prompt_tokens: int | None = None
    episode: dict[str, Any] | None = None
    policy_text: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict of a reward on one completion.

    `value` None means abstention: the row cannot be judged. `reason` says in words why; `parts`
    are named sub-scores for the ledger. Scalars of numpy and torch become floats, a reason None is
    none; what is no number or no text raises TypeError here, in the reward that made it, and not
    where the score is used. `seconds` is what the call took, set by whoever measured it.
    """

    value: float | None
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.value is not None:
            object.__setattr__(self, "value", _number(self.value, "value of a Score"))
        reason: object = self.reason
        object.__setattr__(self, "reason", "" if reason is None else _text(reason, "reason"))
        parts = {
            _text(name, "name of a part"): _number(part, f"part {name!r} of a Score")
            for name, part in self.parts.items()
        }
        object.__setattr__(self, "parts", parts)


def _number(value: object, what: str) -> float:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"the {what} is {type(value).__name__} ({value!r:.80}), not a number")
    return float(cast(float, value))


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(
            f"the {what} of a Score is {type(value).__name__} ({value!r:.80}), not a text"
        )
    return value


@dataclass(frozen=True, slots=True)
class Fault:
    """A reward that failed on one row: kept apart from every score.

    `kind`: it raised ("exception"), gave no number or not one a row ("value"), ran past its
    deadline ("timeout"), or its process ended ("crash").
    """

    message: str
    kind: Literal["exception", "value", "timeout", "crash"] = "exception"
    seconds: float = field(default=0.0, compare=False, repr=False, kw_only=True)


Outcome = Score | Fault


def text_of(completion: Completion) -> str:
    """The plain text of a completion or prompt: itself, or a chat's message contents joined.

    Of a content in parts, as policies that see have it, those that are text.
    """
    if isinstance(completion, str):
        return completion
    return "\n".join(_content_text(message.get("content")) for message in completion)


def _content_text(content: object) -> str:
    if not isinstance(content, (list, tuple)):
        return str(content or "")
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "".join(text for text in texts if isinstance(text, str))


def own_text_of(completion: Completion) -> str:
    """`text_of` what the policy wrote: without messages that a tool or an environment gave."""
    if isinstance(completion, str):
        return completion
    return text_of([one for one in completion if one.get("role", "assistant") == "assistant"])
