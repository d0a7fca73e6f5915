"""Recipes as Python scripts: read as Python reads them, and mistakes told with their lines."""

from pathlib import Path

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.load import load_recipe

SCRIPT = """from rl_reasoner import Recipe


def recipe():
    return Recipe(
        name="größe",
        policy="scratch:dense-tiny",
        data={"task": "modular"},
        rewards={"math_answer": 1},
        stages=[{"kind": "grpo", "steps": %s}],
    )
"""


@pytest.mark.parametrize(
    ("first", "encoding"), [("", "utf-8-sig"), ("# -*- coding: latin-1 -*-\n", "latin-1")]
)
def test_a_script_may_have_a_mark_or_an_encoding(tmp_path: Path, first: str, encoding: str) -> None:
    file = tmp_path / "mine.py"
    file.write_bytes(f"{first}{SCRIPT % 3}".encode(encoding))
    assert load_recipe(str(file)).name == "größe"
    file.write_bytes(f"{first}{SCRIPT % '-3'}".encode(encoding))
    with pytest.raises(UserError, match=rf"mine\.py:{10 + bool(first)}"):
        load_recipe(str(file))


def test_a_script_that_exits_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nsys.exit('it needs a GPU')\n")
    with pytest.raises(UserError, match=r"mine\.py:2: SystemExit: it needs a GPU"):
        load_recipe(str(tmp_path / "mine.py"))
