"""Numbers that a problem gives in words, or by its units."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.language.spoken_numbers import spoken_numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Three hundred and five apples", {305}),
        ("twenty-five or seventy", {25, 70}),
        ("two thousand five hundred", {2500}),
        ("a hundred, then a dozen", {100, 12}),
        ("five ten", {5, 10}),
        ("two and three", {2, 3}),
        ("thrice in two hours", {3, 2, 60, 24}),
        ("a someone's tenement", set()),
        ("", set()),
    ],
)
def test_numbers_in_words(text: str, numbers: set[int]) -> None:
    assert spoken_numbers(text) == numbers


@pytest.mark.parametrize(
    ("text", "some"),
    [
        ("half of them", {Fraction(1, 2), 2}),
        ("two thirds", {Fraction(1, 3), 3, 2}),
        ("20% of a week", {100, 1, 7}),
        ("twice as many minutes", {2, 60}),
    ],
)
def test_what_words_imply(text: str, some: set[Fraction]) -> None:
    assert some <= spoken_numbers(text)


WORDS = {"one": 1, "four": 4, "nine": 9, "eleven": 11, "nineteen": 19}
SIZES = {"hundred": 100, "thousand": 1000}


@given(st.sampled_from([*WORDS]), st.sampled_from([*SIZES]), st.sampled_from([*WORDS]))
def test_sums_of_words(many: str, size: str, more: str) -> None:
    wanted = WORDS[many] * SIZES[size] + WORDS[more]
    assert spoken_numbers(f"{many} {size} and {more} of them") == {wanted}


@given(st.text(max_size=200))
def test_any_text_gives_numbers(text: str) -> None:
    assert all(number >= 0 for number in spoken_numbers(text))
