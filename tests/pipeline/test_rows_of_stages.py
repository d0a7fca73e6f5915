"""Rows of the stages beside grpo: what they cannot learn from, reused files, files that change."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import train
from rl_reasoner.dataset.templates import target_completion
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.inputs import read_inputs
from support.tiny import REWARD, grpo, recipe, rows, sft

PROBLEMS = [{"problem": f"{n}+1=", "answer": str(n + 1)} for n in range(4)]
LEARNED = [{**row, "completion": row["answer"]} for row in PROBLEMS]


def written(file: Path, some: list[dict[str, Any]]) -> str:
    """The path of a file of rows."""
    file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("column", "value"),
    [("chain", ["1+1=2", "so 2"]), ("solution", {"steps": 1}), ("completion", {"text": "2"})],
)
def test_what_is_learned_is_a_text(tmp_path: Path, column: str, value: Any) -> None:
    file = written(tmp_path / "rows.jsonl", [{**PROBLEMS[0], column: value}])
    with pytest.raises(UserError, match=rf"row '0\+1=': the {column} is .*: expected one text"):
        read_inputs(recipe(tmp_path, sft(data=file)))


def test_blank_cells_of_a_table_are_no_texts_to_learn(tmp_path: Path) -> None:
    table, wanted = tmp_path / "rows.csv", sft(data=str(tmp_path / "rows.csv"))
    table.write_text("problem,answer,chain,solution\n1+1=,2,,so 2\n1+2=,3,1+2=3,\n1+3=,4,,\n")
    read = read_inputs(recipe(tmp_path, wanted)).rows["sft"]
    learned = [target_completion(row) for row in read]
    assert [text.partition("<answer>")[0] for text in learned] == [
        "<think>so 2</think>",
        "<think>1+2=3</think>",
        "<think></think>",
    ]
    table.write_text("problem,answer,solution\n1+1=,2,so 2\n1+2=,3,\n")
    with pytest.raises(UserError, match=r"row '1\+2=' has no completion, chain or solution"):
        read_inputs(recipe(tmp_path, wanted))


def test_rows_behind_a_filter_are_known_to_have_nothing_to_learn(tmp_path: Path) -> None:
    stages = {"kind": "filter", "data": str(tmp_path / "rows.jsonl")}, sft(data=None)
    written(tmp_path / "rows.jsonl", PROBLEMS)
    with pytest.raises(UserError, match="has no completion, chain or solution"):
        read_inputs(recipe(tmp_path, sft(name="first"), *stages))
    written(tmp_path / "rows.jsonl", [*PROBLEMS[:3], *LEARNED[3:]])  # it may keep the last one
    read_inputs(recipe(tmp_path, sft(name="first"), *stages))


def test_a_table_is_reused_as_rows(tmp_path: Path) -> None:
    table = "problem;answer;completion\n" + "".join(f"{n}+1=;{n + 1};{n + 1}\n" for n in range(8))
    (tmp_path / "own.csv").write_text(table, encoding="utf-8")
    samples = {"kind": "sample", "data": {"task": "modular", "count": 4}}
    stages = [{**samples, "reuse": str(tmp_path / "own.csv")}, sft(data={"stage": "sample"})]
    folder = train(recipe(tmp_path, *stages), quiet=True).folder
    [made] = folder.glob("stages/1-sample/data.jsonl")
    assert rows(made)[0] == {"problem": "0+1=", "answer": "1", "completion": "1"}
    assert len(rows(made)) == 8


def test_a_file_that_changes_while_a_run_trains_is_kept_as_it_was_read(tmp_path: Path) -> None:
    file, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    written(other, LEARNED[:2])
    edit = f"    import shutil; shutil.copy({str(other)!r}, {str(file)!r})\n    if answer"
    stages = grpo(steps=1), sft(data=written(file, LEARNED), steps=1, batch=2)
    wanted = recipe(tmp_path, *stages, source=REWARD.replace("    if answer", edit))
    read = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = train(wanted, quiet=True).folder

    def recorded() -> str:
        lock = json.loads((folder / "stages" / "2-sft" / "lock.json").read_text())
        return str(lock["made_from"]["files"][str(file)])

    assert file.read_bytes() == other.read_bytes() and recorded() == read
    train(wanted, resume=folder, quiet=True)
    assert recorded() == hashlib.sha256(other.read_bytes()).hexdigest(), "it has run again"
    assert [*folder.glob("old/**/2-sft")]


@pytest.mark.parametrize("filtered", [False, True])
def test_distillation_of_fewer_rows_than_a_batch_would_train_nothing(
    tmp_path: Path, *, filtered: bool
) -> None:
    file = written(tmp_path / "rows.jsonl", PROBLEMS[:3])
    short = {"sampling": {"max_tokens": 4}}
    distill = {"kind": "distill", "teacher": "scratch:moe-tiny", "steps": 1, "batch": 4, **short}
    keep = {"kind": "filter", "data": file, "samples": 1, "keep": "0..1", **short}
    stages = [keep, distill] if filtered else [{**distill, "data": file}]
    with pytest.raises(UserError, match=r"3 rows cannot fill a step of 4 prompts.*smaller batch"):
        train(recipe(tmp_path, *stages), quiet=True)
    assert not [*tmp_path.glob("run/stages/*-distill/policy")]
    stages[-1] |= {"batch": 3}
    folder = train(recipe(tmp_path, *stages, run={"folder": str(tmp_path / "next")})).folder
    [metrics] = folder.glob("stages/*-distill/metrics.jsonl")
    assert len(rows(metrics)) == 1
