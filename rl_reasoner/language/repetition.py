"""How much a text repeats itself: repeated n-grams, loops at its end, how small it packs.

All take time linear in the text. Pure; raises nothing.
"""

import zlib
from collections.abc import Sequence

from rl_reasoner.language.units import words_of

_MOST = 400_000  # characters that are read, from the end: loops are there
_ROUNDS = 3  # from which on an end is a loop
_SHORTEST = 20  # characters of a loop in all
_LONG = 200  # bytes, from which on a text can be said to repeat itself


def repeated_share(text: str, size: int) -> float:
    """The share of a text's n-grams of `size` words that stood in it before; 0.0 for short texts.

    Each Chinese character is a word here.
    """
    units = words_of(text[-_MOST:].casefold())
    count = len(units) - size + 1
    if count < 1:
        return 0.0
    return 1.0 - len({tuple(units[at : at + size]) for at in range(count)}) / count


def ending_loop(text: str) -> tuple[int, int]:
    """(characters, period) of the loop that a text ends in; (0, 0) for none.

    A loop is the same characters three times or more, 20 characters or more in all; the last round
    may be cut off. Blanks at the end are left out.
    """
    backwards = text.rstrip()[: -_MOST - 1 : -1]
    longest, period = 0, 0
    for size, border in enumerate(_borders(backwards), 1):
        shift = size - border
        if size >= _SHORTEST and size >= _ROUNDS * shift:
            longest, period = size, shift
    return longest, period


def repeats_itself(text: str) -> bool:
    """Whether a long text says the same again and again: it packs to an eighth of its size."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data) >= _LONG and len(zlib.compress(data)) * 8 < len(data)


def _borders(units: Sequence[str]) -> list[int]:
    """For each prefix the length of its longest proper border (Knuth, Morris, Pratt 1977)."""
    borders = [0] * len(units)
    border = 0
    for at in range(1, len(units)):
        while border and units[at] != units[border]:
            border = borders[border - 1]
        border += units[at] == units[border]
        borders[at] = border
    return borders
