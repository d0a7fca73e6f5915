"""What becomes of a reward's return value: a score, an abstention or a fault, and its number.

A leaf of the room: everything that reads outcomes (ledger, training, reports) stands on it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

from rl_reasoner.errors import error_text
from rl_reasoner.scoring.fault_places import location_of
from rl_reasoner.types import Fault, Outcome, Score

NOT_ITS_ROW = Score(None, "not a reward of this row")
"""What stands where a row does not get a reward."""


def as_score(value: object, name: str) -> Score:
    """`value` as a `Score`; raises TypeError naming the reward when it is no number or Score."""
    if isinstance(value, Score):
        return value
    if isinstance(value, Fault):  # a batch form's; here is no outcome but a score
        raise RuntimeError(value.message)
    if value is None:
        return Score(None, "the reward returned None")
    if not isinstance(value, (str, bytes)) and hasattr(value, "__float__"):
        return Score(float(value))  # numpy and torch scalars too
    raise TypeError(
        f"reward {name!r} returned {type(value).__name__} ({value!r:.80}); "
        "expected a float, a Score, or None to abstain"
    )


def faulted(
    name: str,
    error: BaseException,
    kind: Literal["exception", "value"] = "exception",
    fn: Callable[..., Any] | None = None,
) -> Fault:
    """The fault for an exception of the reward `name`, with its place in the user's code."""
    said = f"{type(error).__name__}: {error_text(error)}"
    return Fault(f"reward {name!r}: {said}{location_of(error, fn)}", kind)


def usable(outcome: Outcome) -> float:
    """The number that training uses: NaN for faults, abstentions, and what is not finite or huge.

    1e30 is the bound: the variance of larger rewards overflows in float32.
    """
    value = None if isinstance(outcome, Fault) else outcome.value
    return value if value is not None and abs(value) < 1e30 else float("nan")


def failed(outcome: Outcome) -> bool:
    """Whether the reward failed on the row: a fault, or a number that is none."""
    if isinstance(outcome, Fault):
        return True
    return outcome.value is not None and math.isnan(usable(outcome))


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values: value, reason, outcome ("score", "abstain", "fault"), parts.

    A number that is none (NaN, infinite, huge) is a fault, as it is in the metrics.
    """
    if isinstance(outcome, Fault):
        return {"value": None, "reason": outcome.message, "outcome": "fault"}
    number = usable(outcome)
    value = None if math.isnan(number) else number
    reason = outcome.reason
    if value is None and outcome.value is not None:
        reason = f"not a usable number: {outcome.value}. {reason}".strip()
    judged = "fault" if failed(outcome) else "abstain" if value is None else "score"
    row: dict[str, Any] = {"value": value, "reason": reason, "outcome": judged}
    parts = {name: part if math.isfinite(part) else None for name, part in outcome.parts.items()}
    return {**row, "parts": parts} if parts else row
