"""What tests of tasks share: the reward of countdown."""

import pytest

from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward


@pytest.fixture(scope="session")
def countdown() -> Reward:
    """The shipped reward, as a recipe loads it."""
    reward = load_reward("countdown")
    assert isinstance(reward, Reward)
    return reward
