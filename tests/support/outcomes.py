"""Outcomes of rewards, as tests write them down."""

from rl_reasoner.scoring.limits import Limits
from rl_reasoner.types import Fault, Outcome

QUICK = Limits(timeout_s=1.5, batch_timeout_s=20.0, memory_mb=512)


def shown(outcomes: list[Outcome]) -> list[float | str | None]:
    """The value of each row, or the kind of its fault."""
    return [o.kind if isinstance(o, Fault) else o.value for o in outcomes]
