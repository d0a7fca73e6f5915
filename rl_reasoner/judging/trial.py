"""A judge is asked before it is relied on: does it answer, how soon, and with a verdict?

Two short questions that it has never seen, so that no kept reply stands for it: the first waits for
whatever has to be loaded, the second is timed. Told is also what it gives a right and a wrong sum.
Whether it agrees with people is another question (`evaluation/calibration.py`).
"""

import math
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.outcome import usable
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.types import Fault, Outcome, Score

OPINIONS = ("judge", "judge_ranking")
"""Shipped rewards that ask a model: it costs, and may think otherwise each time."""
_SLOW_S = 5.0
_SHIPPED = "rl_reasoner.rewards."


@dataclass(frozen=True)
class Trial:
    """What a judge said of a right and a wrong sum, and the seconds that a question took it."""

    right: Outcome
    wrong: Outcome
    seconds: float

    def told(self) -> tuple[Literal["passed", "warned", "failed"], str]:
        """How it went, in a word and in a sentence."""
        for outcome in (self.right, self.wrong):
            if isinstance(outcome, Fault):
                return "failed", f"it does not answer: {outcome.message}"
            if isinstance(outcome, Score) and outcome.value is None:
                return "warned", f"no verdict on a sum ({outcome.reason}): it will abstain"
        right, wrong = usable(self.right), usable(self.wrong)
        took = f"{self.seconds:.2g} s a question"
        said = f"{took}; a right sum gets {right:.3g}, a wrong one {wrong:.3g}"
        if math.isnan(right - wrong) or right <= wrong:
            return "warned", f"{said}: measure it with rl-reasoner check judge --labelled FILE"
        return ("warned" if self.seconds > _SLOW_S else "passed"), said


def is_judge(fn: Any) -> TypeGuard[Reward]:
    """Whether a reward is one of the shipped ones that ask a model."""
    return isinstance(fn, Reward) and fn.name in OPINIONS and fn.__module__.startswith(_SHIPPED)


def try_judge(fn: Reward) -> Trial:
    """Ask the judge `fn` about a right and a wrong sum."""
    first = time.time_ns() % 900_000 + 100_000
    if fn.group:
        right, wrong = _ask(fn, first, (0, 1))
        started = time.perf_counter()
        if isinstance(right, Fault):  # the second question would wait as long
            return Trial(right, wrong, 0.0)
        right, wrong = _ask(fn, first + 1, (0, 1))
    else:
        [right] = _ask(fn, first, (0,))
        started = time.perf_counter()
        if isinstance(right, Fault):
            return Trial(right, right, 0.0)
        [wrong] = _ask(fn, first + 1, (1,))
    return Trial(right, wrong, time.perf_counter() - started)


def _ask(fn: Reward, number: int, off: tuple[int, ...]) -> list[Outcome]:
    """What it says of sums that are `off` from the right one."""
    texts = [f"{number} + 17 = {number + 17 + by}. The answer is {number + 17 + by}." for by in off]
    columns = {"prompts": [f"What is {number} + 17?"], "answer": [str(number + 17)]}
    return score_batch(fn, texts, {key: value * len(texts) for key, value in columns.items()})
