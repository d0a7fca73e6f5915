"""What a row is worth under several rewards: the one rule for faults and abstentions.

A fault, and a number that is none (NaN, infinite, 1e30 or more), takes its row out of its group: it
has no total, counts in no mean, and gets no advantage. So does an abstention of a `@reward`. What
adds nothing instead, so that the row has the sum of its other rewards:

- faults and abstentions of a reward that is `optional`;
- abstentions of a reward with `on_abstain` "ignore", and None of a function in trl's own form,
  which there means "not for this row" (`on_abstain` "leave" makes it an abstention as above);
- rewards that are not the row's own, and those of weight 0.

A row for which no reward with a weight has a number is out of its group too. Training, dynamic
sampling, the rehearsal of `check` and `why` all go by this module. Knows nothing of models.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rl_reasoner.scoring.outcome import NOT_ITS_ROW, failed, usable
from rl_reasoner.scoring.reward import OnAbstain, Reward
from rl_reasoner.types import Outcome


@dataclass(frozen=True)
class Rule:
    """What faults and abstentions of one reward do to their rows."""

    optional: bool = False
    on_abstain: OnAbstain = "leave"

    def takes_out(self, outcome: Outcome, weight: float) -> bool:
        """Whether `outcome`, of a reward with this weight, takes its row out of its group."""
        if weight == 0 or outcome == NOT_ITS_ROW:
            return False
        if failed(outcome):
            return not self.optional
        return math.isnan(usable(outcome)) and self.on_abstain == "leave"


def rule_of(
    fn: Callable[..., Any], optional: bool | None = None, on_abstain: OnAbstain | None = None
) -> Rule:
    """The rule of a reward; what is None is as the reward says (its attributes of these names)."""
    if optional is None:
        optional = bool(getattr(fn, "optional", False))
    on_abstain = on_abstain or getattr(fn, "on_abstain", None)
    if on_abstain is None:
        on_abstain = "leave" if isinstance(fn, Reward) and not optional else "ignore"
    return Rule(optional, on_abstain)


def total(outcomes: Sequence[Outcome], weights: Sequence[float], rules: Sequence[Rule]) -> float:
    """The weighted sum of one row's rewards; NaN where the row is out of its group."""
    judged = list(zip(outcomes, weights, rules, strict=True))
    if any(rule.takes_out(outcome, weight) for outcome, weight, rule in judged):
        return math.nan
    known = [w * usable(o) for o, w, _ in judged if w and not math.isnan(usable(o))]
    return sum(known) if known else math.nan
