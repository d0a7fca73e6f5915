"""Which numbers a problem gives without digits: in words, and by the units that it speaks of.

"Twice as many" gives a 2, "three hundred and five" a 305, "a week" a 7, "20% of them" a 100 and a
1. What is asked is not read: the numbers that are there to calculate with are found, no more.
English alone. A pure function of a text.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

# fmt: off
_NUMBERS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}
# fmt: on
_SIZES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fifth": 5, "sixth": 6, "seventh": 7}
_PARTS |= {"eighth": 8, "ninth": 9, "tenth": 10}
# stems of words -> what they let one calculate with
_IMPLIED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("twice", "doubl", "coupl", "pair", "both", "halv", "twin", "averag"), (2,)),
    **dict.fromkeys(("tripl", "thric"), (3,)),
    **dict.fromkeys(("quadrupl", "fourth"), (4,)),
    **dict.fromkeys(("dozen", "inch", "feet", "foot"), (12,)),
    **dict.fromkeys(("minut", "second"), (60,)),
    **dict.fromkeys(("percent", "cent", "metre", "meter"), (100,)),
    **dict.fromkeys(("kilo", "gram", "litre", "liter", "milli"), (1000,)),
    **dict.fromkeys(("pound", "ounc"), (16,)),
    "hour": (60, 24),
    "day": (24, 7),
    "daily": (7,),
    "week": (7, 5, 2, 4, 52),
    "month": (30, 12, 4),
    "year": (12, 365, 52),
    "decad": (10,),
    "century": (100,),
    "yard": (3,),
    "gallon": (4,),
    "quart": (4,),
    "nickel": (5,),
    "dime": (10,),
}
_STEM = re.compile(rf"({'|'.join(sorted(_IMPLIED, key=len, reverse=True))})[a-z]{{0,9}}")
_WORD = re.compile(r"[a-z]{1,40}|%")


def spoken_numbers(text: str) -> set[Fraction]:
    """The numbers that `text` gives in words or implies by its units."""
    words = _WORD.findall(text.lower())
    found = {Fraction(number) for number in _said(words)}
    for word in words:
        if word == "%" or word.startswith("percent"):
            found |= {Fraction(1), Fraction(100)}
        if size := _PARTS.get(word.removesuffix("s")):
            found |= {Fraction(1), Fraction(size), Fraction(1, size)}
        if stem := _STEM.fullmatch(word):
            found |= {Fraction(number) for number in _IMPLIED[stem[1]]}
    return found


def _said(words: list[str]) -> Iterator[int]:
    """The numbers that runs of words say: "twenty", "five" is 25, "two", "hundred" 200."""
    whole, current, inside = 0, 0, False
    for word in [*words, ""]:
        if word in _NUMBERS:
            number = _NUMBERS[word]
            goes_on = not current % 100 or (number < 10 and not current % 10)
            if inside and not goes_on:  # "five ten": two numbers
                yield whole + current
                whole, current = 0, 0
            current, inside = current + number, True
        elif word in _SIZES:
            size, current, inside = _SIZES[word], current if inside else 1, True
            if size == 100:
                current *= size
            else:
                whole, current = whole + current * size, 0
        elif word != "and" or not inside:
            if inside:
                yield whole + current
            whole, current, inside = 0, 0, False
