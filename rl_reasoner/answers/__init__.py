"""Is this maths answer right? `verify` for one completion, `verify_many` for a batch.

What counts as right is described in `docs/verifier.md`. The path of an answer: `extraction` finds
its text, `parsing` reads it into a `tree`, `equality` compares it with the gold answer's, `verdict`
puts the result in words. All of that is plain, bounded work in this process. Only where letters
must be whole numbers, or sums and integrals are involved, is sympy asked (`second_opinion`,
`symbolic`), in a process that is killed at its deadline (`pool`, `worker`). `batch` spreads many
rows over such processes. May import only the ground and `language`; torch-free.
"""

from collections.abc import Sequence

from rl_reasoner.answers.batch import verify_rows
from rl_reasoner.answers.second_opinion import settle
from rl_reasoner.answers.verdict import fast_verdict, gold_text
from rl_reasoner.types import Score

__all__ = ["verify", "verify_many"]


def verify(completion: str, answer: str, *, timeout_s: float = 5.0) -> Score:
    """Whether the final answer of `completion` equals the gold `answer`.

    The value is 1.0 (equal), 0.0 (not equal, or no usable final answer) or None (the gold cannot be
    judged, or sympy does not start); the reason says what was extracted and which rule decided.
    `timeout_s` (seconds) bounds sympy's second opinion, which few rows need; not its start. Never
    raises on strings; works from any thread. An `answer` that is a number counts as its text, one
    that is neither as an empty gold.
    """
    return settle(fast_verdict(completion, gold_text(answer)), timeout_s)


def verify_many(
    completions: Sequence[str],
    answers: Sequence[str],
    *,
    timeout_s: float = 5.0,
    workers: int | None = None,
) -> list[Score]:
    """`verify` on each pair, in order, on `workers` processes (all cores by default).

    A small batch is done in this process, because that is quicker. `timeout_s` is a row's. A row
    whose worker dies is tried once more, then abstains with the reason. Raises ValueError where the
    two sequences differ in length.
    """
    pairs = zip(completions, map(gold_text, answers), strict=True)
    return verify_rows(list(pairs), timeout_s, workers)
