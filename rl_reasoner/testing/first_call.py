"""The first call of a reward: one that does not answer is asked nothing else."""

from collections.abc import Callable
from typing import Any

from rl_reasoner.judging.trial import is_judge, try_judge
from rl_reasoner.scoring.batch import POLICY_TEXT
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.scoring.runner import Runner
from rl_reasoner.testing import probes
from rl_reasoner.testing.findings import Finding
from rl_reasoner.types import Fault, Row

_ALONE = "; no other check was made"


def first_call(fn: Callable[..., Any], row: Row, runner: Runner) -> list[Finding]:
    """What the first call shows; a failed finding is the last: each call would take as long."""
    if is_judge(fn):
        return [_trial(fn)]
    late = _late(row, runner)
    return [late] if late else []


def _trial(fn: Reward) -> Finding:
    """Does the model behind a judge answer, how soon, and with a verdict?"""
    status, message = try_judge(fn).told()
    return Finding("trial", status, message + _ALONE if status == "failed" else message)


def _late(row: Row, runner: Runner) -> Finding | None:
    """What is wrong with a reward that does not come back from a first row."""
    columns = {name: [value] for name, value in row.items() if name != "completion"}
    columns |= {"prompts": [str(row.get("problem", ""))], POLICY_TEXT: [probes.NEUTRAL]}
    [outcome] = runner.score([probes.NEUTRAL], columns)
    if not isinstance(outcome, Fault) or outcome.kind != "timeout":
        return None
    return Finding("answers", "failed", outcome.message + _ALONE, probes.NEUTRAL)
