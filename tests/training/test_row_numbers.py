"""Which row a completion is of, where prompts alone do not say it."""

from rl_reasoner.dataset.code_rows import as_dataset
from rl_reasoner.training.rollout_report import RowNumbers
from rl_reasoner.types import Row


def test_rows_of_one_prompt_are_told_apart_by_what_else_they_hold() -> None:
    """As rows are after they lay in a data set: with JSON for tests, None for what they lack."""
    chat = [{"role": "user", "content": "Write f."}]
    rows: list[Row] = [
        {"prompt": "Write f.", "tests": ["assert f(1) == 2"], "points": 1},
        {"prompt": "Write f.", "tests": ["assert f(1) == 3"], "points": 1},
        {"prompt": "Write f.", "tests": [{"call": "f", "args": (1,), "expected": 2.5}]},
        {"prompt": "Write g.", "tests": ["assert g(1)"]},
        {"prompt": "Write f.", "tests": ["assert f(1) == 3"], "points": 1},
    ]
    numbers = RowNumbers(rows)
    assert [numbers.of(row) for row in as_dataset(rows)] == [0, 1, 2, 3, 1]
    assert numbers.of({"prompt": "Write h."}) is None
    assert RowNumbers([{"prompt": chat}]).of({"prompt": chat, "answer": "7"}) == 0
