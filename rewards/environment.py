"""environment: what the recipe's environment paid for a completion.

The sum of the rewards of its turns (docs/environments.md). Where the environment failed, or gave no
reward, it abstains: the completion counts in no mean. In a ledger the reason says what cut an
episode that did not come to its end.
"""

from collections.abc import Mapping
from typing import Any

from rl_reasoner import Score, reward


@reward
def environment(completion: str, episode: Mapping[str, Any]) -> Score:
    """The environment's reward; `episode` is the column that an environment's completions have."""
    return Score(episode["reward"], str(episode["reason"]))
