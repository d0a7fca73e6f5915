"""A mix of files: which task each row is of."""

from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.dataset.levels import levels_of
from rl_reasoner.dataset.rows import check_trained_on, load_rows
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.data import FileData, MixData


def written(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        (("a/train.jsonl", "b/train.jsonl"), ["a/train", "b/train"]),
        (("x/a/train.jsonl", "y/a/train.jsonl"), ["x/a/train", "y/a/train"]),
        (("a/train.jsonl", "b/test.jsonl"), ["train", "test"]),
        (("a/train.jsonl", "a/train.jsonl"), ["train", "train"]),
    ],
)
def test_files_called_alike_are_tasks_of_their_own(
    tmp_path: Path, names: tuple[str, ...], tasks: list[str]
) -> None:
    text = '{"problem": "1+1", "answer": "2", "level": 0}\n'
    files = [written(tmp_path, name, text) for name in names]
    rows = load_rows(MixData.model_validate({"mix": files}))
    assert [row["task"] for row in rows] == tasks


def test_their_levels_are_levels_of_their_own(tmp_path: Path) -> None:
    text = '{"problem": "1+1", "answer": "2", "level": 0}\n'
    files = [written(tmp_path, f"{name}/train.jsonl", text) for name in "ab"]
    levels = levels_of(load_rows(MixData.model_validate({"mix": files})))
    assert levels.names == ("a/train/0", "b/train/0") and levels.of_rows == (0, 1)


def test_files_that_differ_in_their_ending_alone_are_two_tasks(tmp_path: Path) -> None:
    files = [
        written(tmp_path, "t.jsonl", '{"problem": "1+1", "answer": "2"}\n'),
        written(tmp_path, "t.csv", "problem,answer\n1+2,3\n"),
    ]
    rows = load_rows(MixData.model_validate({"mix": files}))
    assert [row["task"] for row in rows] == files


@pytest.mark.parametrize("name", ["task", "level"])
def test_what_rows_are_told_apart_by_is_one_text(tmp_path: Path, name: str) -> None:
    row = f'{{"problem": "1+1", "answer": "2", "{name}": ["a", "b"]}}\n'
    file = written(tmp_path, "a.jsonl", row)
    said = rf"a\.jsonl, row 1: the {name} is \['a', 'b'\]: expected one text or number"
    with pytest.raises(UserError, match=said):
        load_rows(MixData.model_validate({"mix": [file, file]}))


def test_a_blank_task_is_the_files(tmp_path: Path) -> None:
    own = written(tmp_path, "own.csv", "problem,answer,task\n1+1,2,\n1+2,3,sums\n")
    other = written(tmp_path, "other.csv", "problem,answer\n2+2,4\n")
    rows = load_rows(MixData.model_validate({"mix": [own, other]}))
    assert [row["task"] for row in rows] == ["own", "sums", "other"]


def test_a_saved_folder_that_one_stands_in_is_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.from_list([{"problem": "1+1", "answer": "2"}]).save_to_disk(str(tmp_path / "saved"))
    other = written(tmp_path, "other.jsonl", '{"problem": "1+2", "answer": "3"}\n')
    monkeypatch.chdir(tmp_path / "saved")
    rows = load_rows(MixData.model_validate({"mix": [".", other]}))
    assert [row["task"] for row in rows] == [".", "other"]


def test_one_problem_under_two_templates_is_two_questions(tmp_path: Path) -> None:
    add = written(tmp_path, "add.jsonl", '{"problem": "3,5", "answer": "8"}\n')
    own = '{"problem": "3,5", "answer": "8"}\n{"problem": "3,5", "answer": "15", "template": "%s"}'
    times = written(tmp_path, "times.jsonl", own % "Multiply {problem}=")
    rows = load_rows(MixData.model_validate({"mix": [add, times]}))
    assert [row["answer"] for row in rows] == ["8", "8", "15"]
    asked = [{"path": add, "template": "Add {problem}="}, {"path": times, "limit": 1}]
    assert len(load_rows(MixData.model_validate({"mix": asked}))) == 2
    with pytest.raises(UserError, match="row 2: the same problem as row 1, but a different answer"):
        load_rows(MixData.model_validate({"mix": [{"path": times, "template": "Do {problem}="}]}))


def test_one_number_written_in_two_ways_is_one_answer(tmp_path: Path) -> None:
    rows = '{"problem": "1+1", "answer": 2}\n{"problem": "1+1", "answer": 2.0}\n'
    assert len(load_rows(FileData(path=written(tmp_path, "one.jsonl", rows)))) == 2
    other = rows.replace("2.0", '"2 m"')
    with pytest.raises(UserError, match="a different answer"):
        load_rows(FileData(path=written(tmp_path, "other.jsonl", other)))


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.lists(st.floats(1e-6, 1e6), min_size=5, max_size=5),
)
def test_the_number_of_rows_of_a_mix_stays(counts: list[int], shares: list[float]) -> None:
    tasks = [
        {"task": "modular", "count": count, "seed": seed, "share": share}
        for seed, (count, share) in enumerate(zip(counts, shares, strict=False))
    ]
    assert len(load_rows(MixData.model_validate({"mix": tasks}))) == sum(counts)


def test_a_name_that_stands_for_a_test_set_is_none_to_train_on() -> None:
    with pytest.raises(UserError, match=r"means modular_test\.jsonl.*\{task: modular\}"):
        check_trained_on(FileData(path="modular"))
    with pytest.raises(UserError, match="means modular_test"):
        check_trained_on(MixData.model_validate({"mix": [{"stage": "s"}, {"path": "modular"}]}))
    check_trained_on(FileData(path="modular_test"))  # whoever names it, means it


def test_a_problem_with_another_answer_in_another_file_of_the_mix_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = written(tmp_path, "one.jsonl", '{"problem": "1+1", "answer": "2"}\n')
    rows = '{"problem": "1+ 2", "answer": "3"}\n{"problem": "1+1 ", "answer": "3"}\n'
    other = written(tmp_path, "other.jsonl", rows)
    said = (
        r"other\.jsonl: the problem '1\+1 ' has another answer than in .*one\.jsonl \('3' against"
    )
    for mix in ([one, other], [{"path": one, "on_bad_row": "skip"}, other, one]):
        with pytest.raises(UserError, match=said):
            load_rows(MixData.model_validate({"mix": mix}))
    kept = {"path": other, "on_bad_row": "skip"}
    with caplog.at_level("WARNING"):
        assert len(load_rows(MixData.model_validate({"mix": [one, kept]}))) == 2
    assert "has another answer than in" in caplog.text and "1 bad rows are skipped" in caplog.text
    assert len(load_rows(MixData.model_validate({"mix": [one, {**kept, "limit": 1}]}))) == 2


def test_one_answer_that_is_written_in_two_ways_is_one(tmp_path: Path) -> None:
    """As JSON's 4 and a column of floats in Parquet, or a share and a fraction."""
    one = written(tmp_path, "one.jsonl", '{"problem": "a", "answer": 4}\n')
    other = '{"problem": "a", "answer": "4.0"}\n{"problem": "b", "answer": "1/2"}\n'
    third = written(tmp_path, "third.jsonl", '{"problem": "b", "answer": "0.5"}\n')
    mix = [one, written(tmp_path, "other.jsonl", other), third]
    assert len(load_rows(MixData.model_validate({"mix": mix}))) == 4
