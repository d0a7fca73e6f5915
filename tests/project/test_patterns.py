"""No regular expression takes time that grows faster than the text it reads."""

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from rl_reasoner.answers.parsing.units import canonical_unit
from rl_reasoner.dataset import code_rows
from rl_reasoner.language import units
from rl_reasoner.language.instructions import _sections
from rl_reasoner.recipe.adapter import Lora
from support.patterns import Used, ends, texts, used

PATTERNS, MAKERS = used()
SHORT, LONG = 1_500, 6_000


def compiled(text: str) -> None:
    """What a recipe names as layers; peft reads their names with it, and no text."""
    with suppress(ValueError):
        Lora(targets=text)


# Functions that make a pattern of what a recipe or a row says: how they read a text.
MADE: dict[str, Callable[[str], object]] = {
    "rl_reasoner.language.units.has_word": lambda text: units.has_word(text, "a"),
    "rl_reasoner.language.instructions._sections": lambda text: _sections(text, "a {n}"),
    "rl_reasoner.recipe.adapter._named_layers": compiled,
    "rl_reasoner.answers.parsing.units.canonical_unit": canonical_unit,
    "rl_reasoner.dataset.code_rows.code_row": lambda text: code_rows.code_row(
        {"problem": text, "tests": ["assert f(1) == 2"]}
    ),
    "rl_reasoner.dataset.code_rows.continue_program": lambda text: code_rows.continue_program(
        {"problem": f"{text}\ndef f(x):\n", "entry_point": "f"}, text
    ),
}


def seconds(read: Callable[[str], object], text: str, times: int) -> float:
    """The least processor time of `times` that reading `text` takes."""
    taken = []
    for _ in range(times):
        began = time.thread_time()
        read(text)
        taken.append(time.thread_time() - began)
    return min(taken)


def grows_too_fast(read: Callable[[str], object], start: str, body: str, end: str) -> bool:
    """Whether four times the text takes more than eight times as long: 4 is linear, 16 quadratic.

    What takes less than 12 ms is not measured closer, for a quadratic pattern takes that long; what
    takes a second for so few characters needs no second measure.
    """
    short, long = (start + body * (size // len(body)) + end for size in (SHORT, LONG))
    first = seconds(read, long, 1)
    if first < 0.012 or first > 1.0:
        return first > 1.0
    return seconds(read, long, 3) > max(0.012, 8 * seconds(read, short, 3))


@pytest.mark.parametrize("one", PATTERNS, ids=lambda one: one.place)
def test_the_time_of_a_pattern_grows_with_its_text(one: Used) -> None:
    for start, body in texts(one.pattern):
        for end in ends(one.pattern):
            slow = grows_too_fast(one.run, start, body, end)
            assert not slow, f"{one.pattern.pattern!r} on {start!r} + {body!r} * n + {end!r}"


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_time_of_a_pattern_made_of_a_setting_grows_with_its_text(name: str) -> None:
    for body in ("a", " ", "\n", "a ", "1", "*", "#", "(", "a\n"):
        assert not grows_too_fast(MADE[name], "", body, "\0"), body
