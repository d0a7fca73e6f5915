"""Reward: is the final answer of a maths completion equal to the gold answer?

The first reward of most recipes, and the shortest way to write one: a function of a completion and
of the columns it needs (`answer`), with options that have defaults (`timeout_s`). What counts as
equal is told in `docs/verifier.md`.
"""

from rl_reasoner.answers import verify
from rl_reasoner.reward import Score, reward


@reward
def math_answer(completion: str, answer: str, timeout_s: float = 5.0) -> Score:
    """1.0 for a right final answer, 0.0 for a wrong or missing one, None for an unusable gold.

    `timeout_s` (seconds) bounds what a second opinion from sympy may take; most answers need none.
    """
    return verify(completion, answer, timeout_s=timeout_s)
