"""Items of lists: which lines are some, beside code fences, and within one another."""

from typing import Any

import pytest

from rl_reasoner.scoring.registry import load_reward


def follows(response: str, name: str, **limits: Any) -> bool:
    wanted = [{"name": name, **limits}]
    return bool(load_reward("instructions")(response, instructions=wanted).value == 1.0)


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("```pip install x```\n- a\n- b\n- c", 3),  # a span of code in one line opens no block
        ("1. do\n    ```\n    - x\n    ```\n- a", 1),
        ("- a\n```\n- x\n```\n- b", 2),
        ("- a\n~~~~\n- x\n~~~\n- y\n~~~~\n- b", 2),
        ("````\n```\n- x\n```\n````\n- a", 1),
        ("- a\n```yaml\n- x\n- y", 1),
        ("```yaml\n- x\n- y```\n- a", 1),
        ("```\n- x\n```", 0),
    ],
)
def test_bullets_in_code_do_not_count(response: str, count: int) -> None:
    assert follows(response, "bullets", exactly=count)


@pytest.mark.parametrize(
    ("response", "count"),
    [
        ("1. a\n   1. x\n   2. y\n2. b", 2),
        ("1. a\n\t1) x\n\t2) y\n2. b\n\t1) z\n3. c", 3),
        ("   1. a\n   2. b\nand\n3. c", 3),
        ("So:\n   1. a\n   2. b", 2),
        ("1. a\n 2. b\n3. c", 3),  # a blank is no level
        ("1. a\n   ```\n   2. x\n   ```\n2. b", 2),
        ("1. a\n3. b", 0),
        ("1. a\n   1. x\n3. b", 0),
    ],
)
def test_numbered_items_are_those_of_the_outermost_list(response: str, count: int) -> None:
    assert follows(response, "numbered", exactly=count)
