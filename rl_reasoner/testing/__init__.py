"""Examines a reward before it costs a run.

May import `dataset`, `scoring` and what is below them; no models. Public: `check_reward`.
"""

from rl_reasoner.testing.kit import check_reward

__all__ = ["check_reward"]
