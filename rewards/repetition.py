"""Repetition penalty: from 0 for a text that goes on, down to -1 for one that goes round.

Two signs, the worse of which counts: the share of n-grams that stood in the text before, as far as
it is above what ordinary text has, and the part of the text that its loop at the end takes.
"""

from rl_reasoner import Score, reward
from rl_reasoner.errors import UserError
from rl_reasoner.language.repetition import ending_loop, repeated_share


@reward(policy_text=True)
def repetition(completion: str, size: int = 4, free: float = 0.3) -> Score:
    """The penalty, from 0.0 down to -1.0, for n-grams of `size` words and loops at the end.

    A share of repeated n-grams up to `free` costs nothing: chains of thought name the same things
    again. From there the penalty grows in proportion, to -1 where all n-grams are repeated. A loop
    costs its share of the text's characters.
    """
    _check_options(size, free)
    share = repeated_share(completion, size)
    loop, period = ending_loop(completion)
    part = loop / max(1, len(completion.rstrip()))
    value = max((share - free) / (1.0 - free), part, 0.0)
    reason = f"{share:.0%} of the {size}-grams repeated"
    if loop:
        reason += f"; the last {loop} characters repeat every {period}"
    return Score(0.0 - value, reason, {"repeated": share, "looped": part})


@repetition.checks
def _check_options(size: int, free: float) -> None:
    numbers = isinstance(size, int) and isinstance(free, int | float)
    if not numbers or size < 1 or not 0.0 <= free < 1.0:
        raise UserError(
            f"repetition: size {size!r} must be 1 or more, free {free!r} from 0 to below 1"
        )
