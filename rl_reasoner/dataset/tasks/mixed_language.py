"""Chains of thought in words of two languages, for policies that learn to mix them.

A chain of the maths tasks is steps of signs, `3+4=7;7*2=4`. Worded it reads `3 plus 4=7 times 2=4`
in English and `3加4=7乘2=4` in Chinese: numbers are common to both, the operators are the words. In
a mixed chain each step is told in one of the two, by chance. Pure text; knows nothing of rows.
"""

import random
import re

_WORDS = {"+": ("plus", "加"), "-": ("minus", "减"), "*": ("times", "乘")}
_STEP = re.compile(r"(-?\d+)([-+*])(-?\d+)=(-?\d+)")


def put_into_words(chain: str, chinese: float, rng: random.Random) -> str:
    """Write `chain` in words, each step in Chinese with probability `chinese`, else in English.

    Raises ValueError for a chain that has other steps than sums, differences and products.
    """
    steps = [_STEP.fullmatch(step) for step in chain.split(";")] if chain else []
    sentences = []
    for number, step in enumerate(steps):
        if step is None:
            raise ValueError(f"no step of signs: {chain.split(';')[number]!r}")
        first, operator, second, result = step.groups()
        english, characters = _WORDS[operator]
        word = characters if rng.random() < chinese else f" {english} "
        sentences.append(f"{'' if number else first}{word}{second}={result}")
    return "".join(sentences)
