"""Length reward: nothing up to a limit, then a penalty; or 1 for the requested length.

The limit is the soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), in characters: 0
up to `limit - buffer`, falling linearly to -1 at `limit`, -1 beyond. DAPO's buffer is a fifth of
its limit; here it is a quarter unless it is given, and at most 500. For the token limit of the
sampling the trainer has it built in (`loss.overlong_share`): use one of them.

A target is the length control of L1 (arXiv 2503.04697), "think for n tokens": the row's column
`target_length`, or the option `target`, in tokens where the trainer counts them, else in words.
"""

from collections.abc import Sequence

from rl_reasoner import Column, Score, reward
from rl_reasoner.errors import UserError, check_one_of
from rl_reasoner.language.units import words_of

_MODES = ("exact", "most")
_UNITS = ("tokens", "words", "characters")
_LONGEST_BUFFER = 500


@reward(policy_text=True)
def length(
    completion: str,
    target_length: int | None = Column(),  # type: ignore[assignment]
    completion_ids: Sequence[int] | None = Column(),  # type: ignore[assignment]
    limit: int = 2000,
    buffer: int | None = None,
    target: int = 0,
    mode: str = "exact",
    unit: str = "tokens",
) -> Score:
    """The penalty for more characters than `limit`, or how near the length is to its target.

    The penalty begins `buffer` characters before the limit; by default that is a quarter of it, and
    at most 500.

    With a target t, a completion of n gets 1 - |n - t| / t in the mode "exact", and in the mode
    "most" 1 up to t, then as much less; never below 0. `unit` is "tokens" (words where no tokens
    are known), "words" or "characters".
    """
    _check_options(mode, unit, limit, buffer, target)
    aim = int(target_length or target)
    if aim < 0:
        raise ValueError(f"target_length is {target_length!r:.40}: expected a length, or nothing")
    if not aim:
        buffer = min(_LONGEST_BUFFER, limit // 4) if buffer is None else buffer
        over = len(completion) - (limit - buffer)
        value = -min(1.0, max(0.0, over / buffer)) if buffer else -float(over > 0)
        return Score(value, f"{len(completion)} characters, limit {limit}")
    if unit == "tokens" and completion_ids is not None:
        size = len(completion_ids)
    elif unit == "characters":
        size = len(completion)
    else:
        size = len(words_of(completion))
    off = abs(size - aim) if mode == "exact" else max(0, size - aim)
    return Score(max(0.0, 1.0 - off / aim), f"{size}, target {aim}")


@length.checks
def _check_options(mode: str, unit: str, limit: int, buffer: int | None, target: int) -> None:
    check_one_of("mode of length", mode, _MODES)
    check_one_of("unit of length", unit, _UNITS)
    numbers = all(isinstance(n, int) for n in (limit, target, 0 if buffer is None else buffer))
    if not numbers or limit < 1 or target < 0 or not 0 <= (buffer or 0) <= limit:
        raise UserError(
            f"length: limit {limit!r:.40} must be a whole number, 1 or more, buffer {buffer!r:.40} "
            f"one from 0 to the limit, and target {target!r:.40} one of 0 (none) or more"
        )
