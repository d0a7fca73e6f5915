"""Whether a reward tells right answers from wrong ones: by every row, not by the mean alone.

Numbers that are drawn at random have a higher mean on one of two lists, too. Pure.
"""

from collections.abc import Sequence

from rl_reasoner.scoring.outcome import usable
from rl_reasoner.types import Outcome

_MARGIN = 1e-6
_MOST_WORSE = 8  # a pair in so many may be the wrong way round: rewards of judges are noisy


def tell_apart(right: Sequence[Outcome], *wrong: Sequence[Outcome]) -> bool:
    """Whether right answers get more than wrong ones of the same rows: in half of the pairs at
    least, and hardly ever less. What was not judged is neither.
    """
    pairs = [(usable(a), usable(b)) for each in wrong for a, b in zip(right, each, strict=True)]
    better = sum(a > b + _MARGIN for a, b in pairs)
    worse = sum(a < b - _MARGIN for a, b in pairs)
    return 2 * better >= len(pairs) and worse * _MOST_WORSE <= len(pairs) - 1
