"""Files of rows: every form opens, and what is wrong is told once, with its place."""

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, DatasetDict

from rl_reasoner.answers import verify
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.dataset.sets import set_data
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.data import FileData
from support.commands import Cli, stock

ROWS = [{"problem": "1+1=", "answer": "2"}, {"problem": "f(2; 3), g", "answer": "5"}]


def load(path: Path, **settings: Any) -> list[dict[str, Any]]:
    return load_rows(FileData(path=str(path), **settings))


def refused(path: Path, **settings: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, **settings)
    return [message.replace(f"{path.parent}/", "") for message in caught.value.messages]


def test_saved_folders_open_with_their_splits(tmp_path: Path, cli: Cli) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    made = Dataset.from_list(ROWS)
    made.save_to_disk(str(one))
    DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(str(many))
    assert load(one) == load(one, split="any") == load(many) == ROWS
    assert load(many, split="test") == ROWS[1:] == load_rows(set_data(str(many)))
    assert refused(many, split="tset") == ["many: no split 'tset'. Did you mean 'test'?"]
    (one / "state.json").write_text("{")
    assert refused(one)[0].startswith("one: not a saved data set")


@pytest.mark.slow
def test_a_run_on_a_saved_folder_says_what_it_was_made_with(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    rows = [{**row, "completion": "2"} for row in ROWS]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    ended = cli("train", "tiny.yaml", "--sft.data", "saved", "--until", "sft")
    assert ended.code == 0, ended.err
    lock = json.loads((tmp_path / "run" / "lock.json").read_text())
    assert len(lock["data"]["saved"]) == 64


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_list_of_objects_opens(tmp_path: Path, name: str, indent: int | None) -> None:
    (tmp_path / name).write_text("\n" + json.dumps(ROWS, indent=indent))
    assert load(tmp_path / name) == ROWS
    (tmp_path / name).write_text(json.dumps([ROWS[0], 3]))
    assert refused(tmp_path / name) == [f"{name}, entry 2: expected a JSON object, got 3"]
    (tmp_path / name).write_text('[\n{"problem": "q"},\n')
    assert refused(tmp_path / name)[0].startswith(f"{name}, line 3: not JSON")


@pytest.mark.parametrize(
    ("name", "between"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")]
)
def test_values_may_be_parted_otherwise(tmp_path: Path, name: str, between: str) -> None:
    text = [["problem", "answer"], ["1+1=", "2"], ['"f(2; 3), g"', "5"]]
    (tmp_path / name).write_text("".join(f"{between.join(line)}\n" for line in text))
    assert load(tmp_path / name) == ROWS


def test_endings_in_capitals_are_the_same_form(tmp_path: Path) -> None:
    (tmp_path / "a.CSV").write_text("problem,answer\n1+1=,2\n")
    (tmp_path / "a.Tsv").write_text("problem\tanswer\n1+1=\t2\n")
    Dataset.from_list(ROWS[:1]).to_parquet(str(tmp_path / "a.PARQUET"))
    for name in ("a.CSV", "a.Tsv", "a.PARQUET"):
        assert load(tmp_path / name) == ROWS[:1], name
    assert refused(tmp_path / "b.CSV")[0].startswith("there is no data file or set")


def test_a_column_named_twice_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("problem,answer,answer\n1+1=,1,2\n")
    said = "a.csv, line 1: two columns 'answer', expected one of each name"
    assert refused(tmp_path / "a.csv") == [said]
    (tmp_path / "b.csv").write_text("problem,answer,,\n1+1=,2,,\n")  # a spreadsheet's empty ones
    assert load(tmp_path / "b.csv")[0]["answer"] == "2"


def test_a_column_that_no_row_has_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"{n}", "answer": "1"}) + "\n" for n in range(40))
    )
    said = "a.jsonl: no column 'problem'. It has: question, answer. Set `columns` (--columns) to"
    for on_bad_row in ("stop", "skip"):
        messages = refused(path, on_bad_row=on_bad_row)
        assert messages[0].startswith(said)
        assert not any("row 2" in message for message in messages)


def test_what_to_do_about_a_column_that_lacks_is_true_of_the_sets_of_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": "1+1=", "answer": "2"}))
    with pytest.raises(UserError, match=r"sets of a recipe's `evals` have .* rename it in the fi"):
        load_rows(set_data("set.jsonl"))


@pytest.mark.parametrize(("wrong", "right"), [("promblem", "problem"), ("anwser", "answer")])
def test_a_column_that_columns_names_wrongly_is_told_by_its_right_name(
    tmp_path: Path, wrong: str, right: str
) -> None:
    path = tmp_path / "a.jsonl"
    row = {"problem": "1+1=", "answer": "2", "other": "x"}
    path.write_text(json.dumps({f"my {k}" if k == right else k: v for k, v in row.items()}))
    said = (
        f"a.jsonl: no column {right!r}, and `columns` names one {wrong!r}. Did you mean {right!r}?"
    )
    assert refused(path, columns={wrong: f"my {right}"}) == [said]
    [kept] = load(path, columns={right: f"my {right}", wrong: "other"})
    assert kept[wrong] == "x", "a reward may read it"


@pytest.mark.parametrize("column", ["problem", "answer", "completion"])
def test_a_text_without_end_is_told_by_its_row(tmp_path: Path, column: str) -> None:
    rows = [{**ROWS[0], "completion": "c"}, {**ROWS[1], "completion": "c", column: "x" * 5_000_000}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    [said, _] = refused(tmp_path / "a.jsonl")
    assert said == f"a.jsonl, row 2: the {column} has 5,000,000 characters, more than 1,000,000"
    assert len(load(tmp_path / "a.jsonl", on_bad_row="skip")) == 1


def test_a_long_value_in_csv_is_judged_as_in_json(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"problem,answer\n{'x' * 200_000},2\n{'y' * 1_000_001},3\n")
    [said, _] = refused(tmp_path / "a.csv")
    assert said == "a.csv, row 2: the problem has 1,000,001 characters, more than 1,000,000"
    assert len(load(tmp_path / "a.csv", on_bad_row="skip")) == 1


def test_an_object_around_the_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": ROWS}, indent=1))
    [said] = refused(tmp_path / "a.json")
    assert said.startswith("a.json: one object over several lines; expected a list of objects")


def test_an_evaluation_of_rows_without_an_answer_is_refused_before_it_samples(
    tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "a.jsonl").write_text('{"problem": "1+1=", "completion": "2"}\n')
    ended = cli("eval", "scratch:dense-tiny", "--sets", "a.jsonl", "--max-tokens", "4")
    assert ended.code == 2
    assert "a.jsonl: reward 'math_answer' needs the column 'answer'; the rows have" in ended.err


def test_values_of_parquet_are_those_of_json(tmp_path: Path) -> None:
    """Whatever a later stage or a worker does with rows, it writes them as JSON."""
    when = datetime(2024, 1, 2, 3)
    inner = {"at": [when], "raw": b"\xff\xfe", "text": "plain"}
    row = {"problem": b"1+1=", "answer": Decimal("2.50"), "when": when, "info": inner}
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist([row]), file)
    [loaded] = load(file)
    assert loaded == {
        "problem": "1+1=",
        "answer": "2.50",
        "when": "2024-01-02T03:00:00",
        "info": {"at": ["2024-01-02T03:00:00"], "raw": "//4=", "text": "plain"},
    }
    assert json.loads(json.dumps(loaded)) == loaded


def test_narrow_numbers_are_read_as_they_were_written(tmp_path: Path) -> None:
    """As Python's own, 0.1 in 32 bits is 0.10000000149: a gold that no answer equals."""
    table = arrow.table(
        {
            "problem": ["a", "b", "c"],
            "answer": arrow.array([0.1, 12.35, 1 / 3], arrow.float32()),
            "half": arrow.array([0.1, None, 2.0], arrow.float16()),
            "whole": arrow.array([0.1, 12.35, 1 / 3], arrow.float64()),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    Dataset(table).save_to_disk(str(tmp_path / "saved"))
    for place in ("a.parquet", "saved"):
        rows = load_rows(FileData(path=str(tmp_path / place)))
        assert [row["answer"] for row in rows] == ["0.1", "12.35", "0.33333334"]
        assert [row["half"] for row in rows] == [0.1, None, 2.0]
        assert [row["whole"] for row in rows] == [0.1, 12.35, 1 / 3]
        assert verify("\\boxed{12.35}", rows[1]["answer"]).value == 1.0


def test_a_saved_data_set_may_show_some_of_its_columns(tmp_path: Path) -> None:
    hard = arrow.array([0.1], arrow.float32())
    table = arrow.table({"problem": ["1+1="], "answer": ["2"], "hard": hard})
    shown = Dataset(table).with_format(None, columns=["problem", "answer"])
    shown.save_to_disk(str(tmp_path / "saved"))
    assert load_rows(FileData(path=str(tmp_path / "saved"))) == ROWS[:1]


def test_parquet_needs_no_cache_and_may_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", "/proc/none")
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(ROWS), file)
    assert load(file) == ROWS
    parquet.write_table(arrow.Table.from_pylist(ROWS).slice(0, 0), file)
    assert refused(file) == ["a.parquet is empty: there is no row in it"]
    late = arrow.array([4_000_000], arrow.date32())
    parquet.write_table(arrow.table({"problem": ["1+1"], "answer": ["2"], "at": late}), file)
    assert refused(file)[0].startswith("a.parquet: not Parquet: ")
    file.write_bytes(b"PAR1 and no more")
    assert refused(file)[0].startswith("a.parquet: not Parquet: ")
