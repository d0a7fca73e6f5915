"""Columns of a set that are called as those of a result: rewards read them, and none is lost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import EvalResult, Policy, evaluate, open_policy
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.judging import as_given

NAMES = (
    "completions", "tokens", "truncated", "scores", "reasons", "outcomes", "classes", "lenient",
    "lenient_reasons", "episodes", "policy_texts", "set", "overlap", "opened_from", "own_columns",
)  # fmt: skip
NEEDED = """
from rl_reasoner import reward


@reward
def reads(completion: str, {columns}) -> float:
    return float({{{names}}} == {{"hard"}})
"""
OPTIONAL = NEEDED.replace("import", "import Column,")
OF_TRL = """
def reads(prompts, completions, {columns}, **rest):
    return [float({{*values}} == {{"hard"}}) for values in zip({names})]
"""
FORMS = [(NEEDED, "{}: str"), (OPTIONAL, "{}: str = Column()"), (OF_TRL, "{}")]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return open_policy("scratch:dense-tiny", device="cpu")


def evaluated(policy: Policy, folder: Path, code: str, row: dict[str, Any]) -> EvalResult:
    """The row and another one, judged by `reads`, saved and read again."""
    (folder / "mine.py").write_text(code, encoding="utf-8")
    file, other = folder / "set.jsonl", {"problem": "two?", "answer": "2"}
    plain = {**other, **dict.fromkeys((name for name in row if name not in other), "easy")}
    file.write_text(f"{json.dumps(row)}\n{json.dumps(plain)}\n", encoding="utf-8")
    judge = f"{folder / 'mine.py'}:reads"
    made = evaluate(policy, [str(file)], 2, max_tokens=2, reward=judge, trained_on=[row])
    made.save(folder / "result.json")
    read = EvalResult.load(folder / "result.json")
    assert read.rows == made.rows
    return read


def code_of(form: str, column: str, names: Sequence[str]) -> str:
    """A reward that pays where all these columns are `hard`."""
    return form.format(columns=", ".join(map(column.format, names)), names=", ".join(names))


def again(saved: EvalResult) -> EvalResult:
    """Judged again by the reward that the result names, which is this test's own."""
    return replay(saved, run_its_code=True)


@pytest.mark.parametrize(("form", "column"), FORMS, ids=["needed", "optional", "trl"])
def test_columns_are_read_whatever_they_are_called(
    form: str, column: str, policy: Policy, tmp_path: Path
) -> None:
    names = [name for name in NAMES if form is not OF_TRL or name != "completions"]  # its own
    row = {"problem": "one?", "answer": "1", **dict.fromkeys(names, "hard")}
    saved = evaluated(policy, tmp_path, code_of(form, column, names), row)
    [label] = [one for one in saved.rows if not one.endswith("@clean")]
    for result in (saved, again(saved), again(again(saved))):
        assert [row["scores"] for row in result.rows[label]] == [[1.0, 1.0], [0.0, 0.0]]
        assert result.rows[label][0]["overlap"]["contaminated"]
        assert as_given(result.rows[label][0]) == row
    assert again(saved).rows == saved.rows


def test_results_of_before_are_judged_by_what_they_have(policy: Policy, tmp_path: Path) -> None:
    """They had a set's own column beside the others, where it was not in the way."""
    row = {"problem": "one?", "answer": "1", "overlap": "hard"}
    saved = evaluated(policy, tmp_path, code_of(*FORMS[0], ["overlap"]), row)
    [label] = [one for one in saved.rows if not one.endswith("@clean")]
    for one in saved.rows[label]:
        one["overlap"] = one.pop("own_columns")["overlap"]
    del saved.sets[label]["contamination"]
    judged = again(saved).rows[label]
    assert [row["scores"] for row in judged] == [[1.0, 1.0], [0.0, 0.0]]
    assert as_given(judged[0]) == row


def test_rows_without_such_columns_are_saved_as_ever(policy: Policy, tmp_path: Path) -> None:
    row = {"problem": "one?", "answer": "1", "level": "hard"}
    saved = evaluated(policy, tmp_path, code_of(*FORMS[0], ["level"]), row)
    assert not any("own_columns" in one for rows in saved.rows.values() for one in rows)
