"""Length reward: nothing up to a limit, then a penalty that grows to -1.

The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), in characters, because a
reward sees text: 0 up to `limit - buffer`, falling linearly to -1 at `limit`, -1 beyond.
"""

from rl_reasoner.reward import Score, reward


@reward
def length(completion: str, limit: int = 2000, buffer: int = 500) -> Score:
    """The penalty for the completion's length in characters, from 0.0 down to -1.0."""
    over = len(completion) - (limit - buffer)
    value = -min(1.0, max(0.0, over / buffer)) if buffer else -float(over > 0)
    return Score(value, f"{len(completion)} characters, limit {limit}")
