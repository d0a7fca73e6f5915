"""Examines a reward before it costs a run. Imports rewards and rows; no models.

Public: `check_reward`, for a test of one's own.
"""

from rl_reasoner.testing.kit import check_reward

__all__ = ["check_reward"]
