"""Is this maths answer right? Public: `verify`, `verify_many`."""

from collections.abc import Sequence

from rl_reasoner.answers.verdict import fast_verdict
from rl_reasoner.reward import Score

__all__ = ["verify", "verify_many"]


def verify(completion: str, answer: str, *, timeout_s: float = 5.0) -> Score:
    """Whether `completion` answers with `answer`."""
    verdict = fast_verdict(completion, answer)
    return Score(verdict.value, verdict.reason)


def verify_many(
    completions: Sequence[str],
    answers: Sequence[str],
    *,
    timeout_s: float = 5.0,
    workers: int | None = None,
) -> list[Score]:
    """`verify` on each pair."""
    return [verify(c, a) for c, a in zip(completions, answers, strict=True)]
