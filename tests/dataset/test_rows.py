"""Rows and prompts: every way in, the lint that names each bad row, and what is made of a row."""

import gzip
import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.dataset.rows import lint, load_rows
from rl_reasoner.dataset.sets import find_set, read_rows, set_data, set_names
from rl_reasoner.dataset.tasks.generate import generate_problems
from rl_reasoner.dataset.templates import render, target_completion
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.data import FileData, TaskData

ROWS = [{"problem": "1+1=", "answer": "2"}, {"problem": "2+3=", "answer": "5"}]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def refused(path: Path, **settings: Any) -> list[str]:
    """What the loader says about a file, without the folder's name."""
    with pytest.raises(UserError) as caught:
        load_rows(FileData(path=str(path), **settings))
    return [message.replace(f"{path.parent}/", "") for message in caught.value.messages]


# ----------------------------------------------------------------------------------------- files


def test_jsonl_csv_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    from datasets import Dataset

    jsonl = write(tmp_path / "a.jsonl", ROWS)
    csv, marked = tmp_path / "a.csv", tmp_path / "marked.csv"
    csv.write_text("problem,answer\n1+1=,2\n2+3=,5\n", encoding="utf-8")
    marked.write_text(csv.read_text(encoding="utf-8"), encoding="utf-8-sig")  # as spreadsheets do
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "a.parquet"))
    for path in (jsonl, csv, marked, tmp_path / "a.parquet"):
        assert load_rows(FileData(path=str(path))) == ROWS, path


def test_numbers_become_texts_blank_lines_are_no_rows_and_other_columns_stay(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"problem": 12, "answer": 3.5, "other": [1]}\n\n', encoding="utf-8")
    assert load_rows(FileData(path=str(path))) == [{"problem": "12", "answer": "3.5", "other": [1]}]


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    assert load_rows(FileData(path=str(path), limit=1)) == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "a.jsonl is empty: there is no row in it"),
        ("a.jsonl", b"\n \n", "a.jsonl is empty: there is no row in it"),
        ("a.jsonl", b'{"problem": "a", "answer": 1}\n{"problem"\n', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"problem": "a", "answer": 1}\n\n[1, 2]\n', "a.jsonl, line 3: expected a J"),
        ("a.jsonl", b'"caf\xe9"', "a.jsonl, line 1: not UTF-8 (byte 0xe9 at 4): save it as UTF-8"),
        ("a.json", b'[{"answer": "\xe9"}]', "a.json: not UTF-8 (byte 0xe9 at 13): save it as"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not JSON"),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"problem,answer\n", "a.csv is empty"),
        ("a.csv", b"problem,answer\na,1,2\n", "a.csv, line 2: more values than columns"),
        ("a.csv", b'problem,answer\n"a,1\n', "a.csv, line 2: not CSV"),
        ("a.xlsx", b"PK\x03\x04\xbd", "a.xlsx: no form of rows that is known: expected .jsonl,"),
        ("a.txt", b"1+1=\t2\n", "a.txt: no form of rows that is known: expected .jsonl,"),
        ("a.csv", b"problem,answer\n\xff,1\n", "a.csv: not UTF-8 (byte 0xff): save it as UTF-8"),
        ("a.csv", b"problem,answer\na\n", "a.csv, row 1: the answer is empty"),
        ("a.parquet", b"PAR1 or not", "a.parquet: not Parquet"),
    ],
)
def test_a_broken_file_is_told_with_its_line(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name)[0].startswith(says)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("/proc/self/mem")  # a regular file whose reading fails
    assert refused(tmp_path / "a.jsonl") == ["a.jsonl: cannot be read: Input/output error"]


@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".csv"]))
def test_no_bytes_break_the_reader(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        assert read_rows(str(path))
    except UserError as error:
        assert str(path) in str(error)


def test_columns_are_renamed_and_may_be_exchanged_or_shared(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a", "problem": "other"}])
    named = load_rows(FileData(path=str(path), columns={"problem": "question"}))
    assert named == [{"problem": "q", "answer": "a", "question": "q"}]
    swapped = FileData(path=str(path), columns={"problem": "answer", "answer": "problem"})
    assert load_rows(swapped) == [{"question": "q", "problem": "a", "answer": "other"}]
    both = FileData(path=str(path), columns={"problem": "question", "chain": "question"})
    assert {**load_rows(both)[0]}["chain"] == "q"


def test_a_mapped_column_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    assert refused(path, columns={"problem": "qestion"}) == [
        "a.jsonl: no column 'qestion', which columns names. Did you mean 'question'?"
    ]


# ------------------------------------------------------------------------------------------ lint


BAD: list[dict[str, Any]] = [
    {"problem": "a", "answer": "1"},
    {"problm": "b", "answer": "1"},  # a column with a typo
    {"problem": "c", "answer": " "},  # empty
    {"problem": "d", "answer": None},  # empty
    {"problem": "a ", "answer": "2"},  # row 1 again, with another answer
    {"problem": "a", "answer": "1"},  # row 1 again, with the same answer: allowed
    {"problem": " ", "answer": "2"},  # nothing asked
    {"problem": "c", "answer": "3"},  # right where row 3 was empty
]


def test_every_bad_row_is_named_and_the_good_ones_kept() -> None:
    good, problems = lint(BAD, "x")
    assert [row["answer"] for row in good] == ["1", "1", "3"]
    assert problems == [
        "x, row 2: no column 'problem'. Did you mean 'problm'?",
        "x, row 3: the answer is empty",
        "x, row 4: the answer is empty",
        "x, row 5: the same problem as row 1, but a different answer ('2' against '1')",
        "x, row 7: the problem is empty",
    ]


def test_problems_that_differ_in_case_or_system_prompt_are_not_the_same() -> None:
    rows = [
        {"problem": "A=1, a=2. What is A?", "answer": "1"},
        {"problem": "a=1, A=2. What is A?", "answer": "2"},
        {"problem": "Count on.", "system": "By 2.", "answer": "2"},
        {"problem": "Count on.", "system": "By 3.", "answer": "3"},
        {"problem": "Count  on.", "system": "By 3.", "answer": "4"},
    ]
    _, [said] = lint(rows, "x")
    assert said.startswith("x, row 5: the same problem as row 4, but a different answer")


def test_a_blank_answer_counts_as_none_where_a_row_is_judged_by_something_else() -> None:
    others: list[dict[str, Any]] = [
        {"tests": ["assert f(1) == 2"]},
        {"instructions": [{"name": "title"}]},
        {"completion": "c"},
    ]
    for other in others:
        for blank in ("", " ", None):
            good, problems = lint([{"problem": "Write `f`.", **other, "answer": blank}], "x")
            assert problems == [] and good[0]["answer"] is None
    assert lint([{"problem": "p", "answer": 0, "completion": "c"}], "x")[0][0]["answer"] == "0"


def test_an_answer_is_one_text_or_number() -> None:
    nan = float("nan")
    for answer, told in (
        (["2", "3"], "the answer is ['2', '3']: expected one text or number"),
        ({"value": 2}, "the answer is {'value': 2}: expected one text or number"),
        ([["2"]], "the answer is ['2']: expected one text or number"),
        (nan, "the answer is empty"),
        ([nan], "the answer is empty"),
        ([], "the answer is empty"),
    ):
        assert lint([{"problem": "1+1=", "answer": answer}], "x")[1] == [f"x, row 1: {told}"]
    assert [row["answer"] for row in lint([{**ROWS[0], "answer": ["2"]}], "x")[0]] == ["2"]
    coded = {"problem": "Write `f`.", "tests": ["assert f(1) == 2"], "answer": nan}
    assert lint([coded], "x")[0][0]["answer"] is None
    for problem, told in ((nan, "problem is empty"), ({"q": 1}, "problem is {'q': 1}: expected")):
        [said] = lint([{"problem": problem, "answer": "2"}], "x")[1]
        assert said.startswith(f"x, row 1: the {told}")


def test_settings_of_rows_are_read_from_the_cells_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    cells = ['p,1,16,"[""length"", ""boxed""]"', 'q,1,,"length,boxed"', "r,1,x,"]
    path.write_text("\n".join(["problem,answer,max_tokens,rewards", *cells]), encoding="utf-8")
    rows = load_rows(FileData(path=str(path)))
    assert [row["max_tokens"] for row in rows] == [16, None, "x"]
    assert [row["rewards"] for row in rows] == [["length", "boxed"], "length,boxed", None]
    for whole in (16.0, "16.0"):
        [row], _ = lint([{**ROWS[0], "max_tokens": whole}], "x")
        assert row["max_tokens"] == 16 and isinstance(row["max_tokens"], int)


@pytest.mark.parametrize("name", ["image", "images"])
def test_rows_with_a_picture_are_told_and_an_empty_column_of_them_is_left_out(name: str) -> None:
    pictures: list[Any] = [["p.png"], "p.png", [], [None], "", None]
    good, problems = lint([{**ROWS[0], name: value} for value in pictures], "x")
    said = f"the column '{name}' has a picture, and problems are asked as text"
    assert problems == [f"x, row {number}: {said}" for number in (1, 2)]
    assert good == [ROWS[0]] * 4


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2", ""])), max_size=9
    )
)
def test_lint_never_lets_two_answers_of_one_problem_through(
    pairs: list[tuple[str, str]],
) -> None:
    rows: list[dict[str, Any]] = [{"problem": p, "answer": a} for p, a in pairs]
    good, problems = lint(rows, "x")
    assert len(good) + len(problems) == len(rows)
    for problem in {row["problem"] for row in good}:
        [answer] = {row["answer"] for row in good if row["problem"] == problem}
        assert answer == next(a for p, a in pairs if p == problem and a)


def test_stop_names_the_rows_and_the_mend(tmp_path: Path) -> None:
    found = refused(write(tmp_path / "a.jsonl", BAD))
    assert len(found) == 6
    assert found[-1] == "fix the rows, or (in a recipe's data) set on_bad_row to 'skip'"


def test_skip_goes_on_with_the_good_rows_and_says_which_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", BAD)
    with caplog.at_level(logging.WARNING):
        rows = load_rows(FileData(path=str(path), on_bad_row="skip"))
    assert [row["answer"] for row in rows] == ["1", "1", "3"]
    assert "row 2: no column 'problem'" in caplog.text
    assert "row 5: the same problem as row 1" in caplog.text
    assert "5 bad rows are skipped" in caplog.text


def test_skip_with_no_good_row_stops(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**ROWS[0], "answer": ""} for _ in range(30)])
    found = refused(path, on_bad_row="skip")
    assert found[9:] == [
        "a.jsonl, row 10: the answer is empty",
        "and 20 more",
        "a.jsonl: no good row is left",
    ]


def test_good_rows_warn_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_rows(FileData(path=str(write(tmp_path / "a.jsonl", ROWS)), on_bad_row="skip"))
    assert not caplog.records


# ------------------------------------------------------------------------------------------ sets


@pytest.fixture
def own_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with the sets `mine` and `gsm8k_test`, named in RL_REASONER_DATA."""
    folder = tmp_path / "sets"
    folder.mkdir()
    write(folder / "mine.jsonl", ROWS)
    write(folder / "gsm8k_test.jsonl", ROWS)
    monkeypatch.setenv("RL_REASONER_DATA", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_sets_are_found_by_name_here_and_in_the_folder_of_ones_own(own_sets: Path) -> None:
    assert {"mine", "gsm8k_test", "modular_test", "word_problems"} <= set(set_names())
    assert find_set("mine") == own_sets / "mine.jsonl"
    assert find_set("gsm8k") == own_sets / "gsm8k_test.jsonl"
    assert load_rows(set_data("gsm8k")) == ROWS  # and not the hub's
    assert load_rows(set_data("modular")) == load_rows(set_data("modular_test"))
    assert find_set("nowhere") is None


def test_a_file_stands_before_a_set(own_sets: Path) -> None:
    write(Path("mine"), ROWS[:1])
    assert load_rows(set_data("mine")) == ROWS[:1]
    assert load_rows(set_data("sets/mine.jsonl")) == ROWS


def test_without_a_folder_of_ones_own_a_known_set_comes_from_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RL_REASONER_DATA", raising=False)
    data = set_data("gsm8k")
    assert (data.path, data.config, data.split) == ("openai/gsm8k", "main", "test")
    assert data.columns == {"problem": "question"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("modular_tset", "there is no data file or set 'modular_tset'. Did you mean 'modular_test"),
        ("gsm8", "there is no data file or set 'gsm8'. Did you mean 'gsm8k'"),
        ("aime26", "the set 'aime26' does not come with the package: put aime26.jsonl in"),
        ("none/such.jsonl", "there is no data file or set 'none/such.jsonl'."),
        ("a/b/c", "there is no data file or set 'a/b/c'."),
        ("", "there is no data file or set ''."),
        ("/none", "there is no data file or set '/none'."),
        ("~/none", "there is no data file or set '~/none'."),
        ("./none", "there is no data file or set './none'."),
        ("/tmp", "/tmp is a folder: give a file in it (.jsonl, "),
        ("mine/rows", "mine/rows is a folder: give a file in it (.jsonl, "),
    ],
)
def test_a_set_that_is_not_there_is_told_without_asking_the_hub(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RL_REASONER_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "rows").mkdir(parents=True)
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **named: pytest.fail("asked"))
    with pytest.raises(UserError, match=re.escape(says)):
        load_rows(set_data(name))


def test_hub_rows_go_through_columns_and_lint(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        asked.append((args, kwargs))
        return [{"question": "1+1=", "answer": "2"}, {"question": "x", "answer": ""}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = FileData(
        path="who/what", config="main", columns={"problem": "question"}, on_bad_row="skip"
    )
    assert [row["problem"] for row in load_rows(data)] == ["1+1="]
    assert asked == [(("who/what", "main"), {"split": "train"})]


def test_a_hub_that_fails_is_a_mistake_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.dataset_info", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("rl_reasoner.hub._refusals", [])  # of the tests before
    with pytest.raises(UserError) as caught:
        load_rows(FileData(path="who/what"))
    [message] = caught.value.messages
    assert message.startswith("data set 'who/what' (split 'train')")
    assert message.endswith("the hub does not answer: no network")
    monkeypatch.delenv("RL_REASONER_DATA", raising=False)
    with pytest.raises(UserError, match=r"no network\. Or put gsm8k\.jsonl into a folder"):
        load_rows(set_data("gsm8k"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai/gsm8k_train.jsonl").touch()  # the hub's set may be meant all the same
    with pytest.raises(
        UserError, match=r"no network\. .*\. Did you mean 'openai/gsm8k_train.jsonl"
    ):
        load_rows(FileData(path="openai/gsm8k", split="test"))
    with pytest.raises(UserError, match=r"no data file .* Did you mean 'openai/gsm8k_train.jsonl"):
        load_rows(FileData(path="openai/gsm8k_tran.jsnol"))


# ----------------------------------------------------------------------------------------- tasks


def test_task_rows_are_the_generator_s_and_the_same_every_time() -> None:
    data = TaskData(task="modular", count=50, seed=3, levels=(2, 3), split="test")
    rows = load_rows(data)
    assert rows == load_rows(data)
    made = generate_problems("modular", split="test", count=50, seed=3, levels=range(2, 4))
    assert [row["problem"] for row in rows] == [problem.problem for problem in made]
    assert {row["level"] for row in rows} == {2, 3}


def test_direct_is_the_share_of_rows_without_a_chain() -> None:
    def share(direct: float) -> float:
        rows = load_rows(TaskData(task="modular", count=500, direct=direct))
        empty = ["<think></think><answer>" in target_completion(row) for row in rows]
        assert all(
            row["completion"].endswith(f"{row['answer']}</answer>")
            for row in rows
            if "completion" in row
        )
        return sum(empty) / len(rows)

    assert share(0.0) == 0.0
    assert share(1.0) == 1.0
    assert 0.5 < share(0.6) < 0.7  # six standard deviations


def test_noise_spoils_the_chain_and_never_the_answer_that_is_checked() -> None:
    clean = load_rows(TaskData(task="modular", count=200))
    noisy = load_rows(TaskData(task="modular", count=200, noise=1.0))
    assert [row["answer"] for row in noisy] == [row["answer"] for row in clean]
    wrong = [f"<answer>{row['answer']}</answer>" not in row["completion"] for row in noisy]
    assert 0.75 < sum(wrong) / 200 < 1.0  # nine in ten at random


def test_noise_for_a_task_without_it_is_refused() -> None:
    with pytest.raises(UserError, match="modular"):
        load_rows(TaskData(task="gcd", count=5, noise=0.1))


@pytest.mark.parametrize("levels", [(3, 2), (2, 99)])
def test_levels_that_are_none_are_told_with_what_was_expected(levels: tuple[int, int]) -> None:
    with pytest.raises(UserError) as caught:
        load_rows(TaskData(task="modular", levels=levels))
    said = f"expected the smallest and the largest of levels 2 to 7, got {list(levels)}"
    assert str(caught.value) == f"task 'modular', split 'train': {said}"


def test_an_unknown_task_is_told_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"unknown task 'modulr'\. Did you mean 'modular'\?"):
        load_rows(TaskData(task="modulr"))


# --------------------------------------------------------------------------------------- prompts


CHATTY = SimpleNamespace(chat_template="{{ messages }}")
PLAIN = SimpleNamespace(chat_template=None)


def test_each_template_makes_its_prompt() -> None:
    assert render("p", "plain", CHATTY) == "p"
    assert render("p", "chat", PLAIN) == [{"role": "user", "content": "p"}]
    assert render("p", "auto", PLAIN) == "p"
    assert render("p", "auto", CHATTY) == [{"role": "user", "content": "p"}]
    boxed = render("p", "boxed", CHATTY)
    assert isinstance(boxed, list)
    [message] = boxed
    assert message["content"].startswith("p\n")
    assert message["content"].endswith("\\boxed{}.")
    assert "User: p. Assistant:" in str(render("p", "r1", CHATTY))
    assert render("{x} {problem}", "Q: {problem} {y}", PLAIN) == "Q: {x} {problem} {y}"


def test_a_template_without_a_place_for_the_problem_is_refused() -> None:
    with pytest.raises(UserError, match="not one of auto, plain, chat, boxed, r1"):
        render("p", "Q:", PLAIN)


def test_the_completion_that_is_learned() -> None:
    row = {"problem": "p", "answer": "2"}
    assert target_completion({**row, "completion": "c", "chain": "x"}) == "c"
    assert target_completion({**row, "chain": "x"}) == "<think>x</think><answer>2</answer>"
    assert target_completion({**row, "solution": "s"}) == "<think>s</think><answer>2</answer>"
    assert target_completion({**row, "chain": None, "solution": "s"}).startswith("<think>s</think>")
    assert target_completion({**row, "chain": ""}) == "<think></think><answer>2</answer>"
    with pytest.raises(UserError, match=r"row 'p' has no completion, chain or solution"):
        target_completion(row)
    for blank in ({}, {"answer": None}, {"answer": " "}):  # rows that tests judge
        with pytest.raises(UserError, match=r"has a solution and no answer .*completion: NAME"):
            target_completion({"problem": "p", "solution": "def f(): ...", **blank})


def test_drawing_rows_leaves_the_global_random_state_alone() -> None:
    random.seed(1)
    state = random.getstate()
    load_rows(TaskData(task="modular", count=20, noise=0.5, direct=0.5))
    assert random.getstate() == state


def test_half_a_character_and_a_compressed_file_are_told(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    for name in ("problem", "answer", "source"):
        bad.write_text(json.dumps({"problem": "q", "answer": "1", name: "q\ud83dx"}))
        said = f"bad.jsonl, row 1: the column '{name}' has half of a surrogate pair: not text"
        assert refused(bad)[0] == said
    packed = tmp_path / "rows.jsonl"
    packed.write_bytes(gzip.compress(b'{"problem": "q", "answer": "1"}'))
    with pytest.raises(UserError, match="is compressed: gunzip it first"):
        load_rows(FileData(path=str(packed)))
