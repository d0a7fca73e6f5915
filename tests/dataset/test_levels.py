"""The levels of rows: numbers, texts, several tasks, and rows that have none."""

from typing import Any

import pytest

from rl_reasoner.dataset.levels import in_order, levels_of
from rl_reasoner.errors import UserError

Rows = list[dict[str, Any]]


def of(*levels: Any, **columns: Any) -> Rows:
    return [{"problem": "?", "level": level, **columns} for level in levels]


def test_levels_are_in_order_and_each_row_has_its_own() -> None:
    found = levels_of(of(10, 2, 2.0, "2", 9))
    assert found.names == ("2", "9", "10") and found.numbers == (2.0, 9.0, 10.0)
    assert found.of_rows == (2, 0, 0, 0, 1)


def test_texts_are_levels_with_the_number_they_end_with() -> None:
    found = levels_of(of("Level 5", "Level 1", "Level 10"))
    assert found.names == ("Level 1", "Level 5", "Level 10") and found.numbers == (1.0, 5.0, 10.0)
    assert levels_of(of("hard", "easy")).numbers is None
    assert levels_of(of("hard", "easy", "hard")).of_rows == (1, 0, 1)


def test_numbers_come_in_their_order_and_before_other_texts() -> None:
    found = sorted(["hard", "10", "9", "easy", "2"], key=in_order)
    assert found == ["2", "9", "10", "easy", "hard"]


def test_a_level_of_one_task_is_not_that_of_another() -> None:
    rows = of(2, 3, task="gcd") + of(2, task="base")
    assert levels_of(rows).names == ("base/2", "gcd/2", "gcd/3")
    assert levels_of(rows[:2]).names == ("2", "3"), "one task"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (of(3, 3, 3), "all rows have level 3.*at least two"),
        (
            of(2, None, 3, True),
            r"row 2 has no level, but None.*\(2 of 4 lack it\)",
        ),
        (of(2, float("nan")), "row 2 has no level"),
        (of(None, None), "the rows have no level"),
        (of(*(0.5 + n for n in range(101))), "101 levels, more than 100.*Round them"),
        ([{"problem": "?", "difficulty": 3}] * 2, "Is it .difficulty.*columns: {level: NAME}"),
        ([{"problem": "?", "levle": 3}] * 2, "Did you mean 'levle'"),
    ],
)
def test_rows_that_make_no_curriculum_say_why(rows: Rows, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        levels_of(rows)
