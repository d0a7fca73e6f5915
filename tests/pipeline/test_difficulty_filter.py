"""Filtering by difficulty: which rows are kept, what is written of all, what a kill leaves."""

import json
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import open_policy, train
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline import difficulty_filter
from rl_reasoner.pipeline.difficulty_filter import FilterFiles, filter_rows, histogram
from rl_reasoner.pipeline.inputs import read_inputs
from rl_reasoner.pipeline.rejection_sampling import NothingKept
from rl_reasoner.recipe.data import FileData, TaskData
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import FilterStage, check_range, rate_range
from support.commands import Cli, lines, run_outside
from support.tiny import grpo, recipe, rows

# Judges by the problem and by chance; at its TRAP_AT-th call it sends a signal to who filters.
PARITY = """
import os
import signal

from rl_reasoner import Score, reward

CALLS = 0


@reward
def parity(completion: str, problem: str) -> Score:
    global CALLS
    CALLS += 1
    if str(CALLS) == os.environ.get("TRAP_AT"):
        os.kill(os.getppid(), int(os.environ["TRAP_SIGNAL"]))
    if "7" in problem:
        return Score(None, "sevens are not judged")
    if "8" in problem:
        raise ValueError("no eights")
    if "9" in problem:
        return Score(1.0)
    return Score(float(sum(map(ord, completion)) % 2))
"""
FLAGS = ("--max-tokens", "4", "--samples", "4", "--limit", "40", "--reward", "parity.py:parity")


@pytest.fixture
def reward(tmp_path: Path) -> str:
    (tmp_path / "parity.py").write_text(PARITY, encoding="utf-8")
    return f"{tmp_path / 'parity.py'}:parity"


# ------------------------------------------------------------------------------- the verb


def test_it_writes_the_rows_it_keeps_and_the_rates_of_all(
    cli: Cli, reward: str, tmp_path: Path
) -> None:
    ended = cli("filter", "scratch:dense-tiny", "modular_train", *FLAGS, "--json")
    assert ended.code == 0, ended.err
    card = json.loads(ended.out)
    kept, rates = rows(Path(card["written"])), rows(Path(card["rates"]))
    assert (card["written"], card["rates"]) == (
        "modular_train.filtered.jsonl",
        "modular_train.filtered.rates.jsonl",
    )
    given = load_rows(FileData(path="modular_train"))[:40]
    assert [rate["problem"] for rate in rates] == [row["problem"] for row in given]
    for rate in rates:
        text = rate["problem"]
        if "7" in text or "8" in text:
            assert rate["pass_rate"] is None and rate["became"] == "unjudged"
            assert rate["abstained" if "7" in text else "faults"] == 4
        elif "9" in text:
            assert (rate["pass_rate"], rate["became"]) == (1.0, "too easy")
        else:
            wanted = {0.0: "too hard", 1.0: "too easy"}.get(rate["pass_rate"], "kept")
            assert rate["became"] == wanted and rate["pass_samples"] == 4
    chosen = [
        (row, rate) for row, rate in zip(given, rates, strict=True) if rate["became"] == "kept"
    ]
    assert chosen, "the test needs a row of medium difficulty"
    marks = ("pass_rate", "pass_samples")
    assert kept == [{**row, **{name: rate[name] for name in marks}} for row, rate in chosen]
    assert card["rows"] == len(kept) and card["of"] == 40
    assert sum(card["dropped"].values()) + card["rows"] == 40
    assert sum(bar["kept"] for bar in card["histogram"]) == len(kept)
    assert load_rows(FileData(path=card["written"])) == kept, "they open as a data set"


def test_the_histogram_fits_80_columns_and_says_what_was_dropped(
    cli: Cli, reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = cli("filter", "scratch:dense-tiny", "modular_train", *FLAGS, "--out", "a/hard.jsonl")
    assert ended.code == 0, ended.err
    drawn = [line for line in ended.out.splitlines() if "█" in line]
    assert drawn and max(map(len, map(str.rstrip, drawn))) <= 80
    for word in ("pass rate", "too hard", "too easy", "unjudged", "abstentions", "faults"):
        assert word in ended.out
    assert rows(Path("a/hard.jsonl")) and rows(Path("a/hard.rates.jsonl"))


def test_a_set_by_name_is_not_written_over(
    cli: Cli, reward: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_REASONER_DATA", "")  # --data-dir changes it
    given = '{"problem": "1 + 2", "answer": "3"}\n'
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "mine.jsonl").write_text(given)
    flags = (*FLAGS, "--data-dir", "sets", "--out", "sets/mine.jsonl")
    ended = cli("filter", "scratch:dense-tiny", "mine", *flags)
    assert ended.code == 2 and "is what is filtered" in ended.err, ended.err
    assert (tmp_path / "sets" / "mine.jsonl").read_text() == given


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--keep", "0.2-0.8"), ("--keep", "LOW..HIGH", "0.2..0.8")),
        (("--keep", "90..10"), ("--keep", "0.1..0.9")),
        (("--keep", "0.8..0.2"), ("--keep", "such as 0.2..0.8")),
        (("--keep", "nan..1"), ("--keep", "from 0 to 1")),
        (("--keep", "0.3..0.4", "--samples", "2"), ("no pass rate of 2 samples", "0.3..0.4")),
        (("--samples", "0"), ("--samples 0",)),
        (("--temperature", "0"), ("--temperature 0",)),
        (("--out", "kept.csv"), ("kept.csv", ".jsonl")),
        (("--reward", "math_anwser"), ("math_anwser", "'math_answer'")),
        (("--columns", "problem=question"), ("'question'",)),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(
    flags: tuple[str, ...], words: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    ended = cli("filter", "scratch:dense-tiny", "modular_test", *flags)
    assert ended.code == 2 and all(word in ended.err for word in words), ended.err
    assert "Traceback" not in ended.err and not [*tmp_path.glob("*.jsonl")]


def test_what_is_read_is_never_written_over(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(lines({"problem": "1+1=", "answer": "2"}))
    ended = cli("filter", "scratch:dense-tiny", "mine.jsonl", "--out", "mine.jsonl")
    assert ended.code == 2 and "what is filtered" in ended.err


def test_where_nothing_is_kept_the_rates_are_said_and_an_old_file_goes(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "modular_test.filtered.jsonl").write_text("old")
    few = ("--limit", "3", "--max-tokens", "4")
    ended = cli("filter", "scratch:dense-tiny", "modular_test", *few)
    assert ended.code == 1
    for words in ("kept none of 3 rows", "Rows by pass rate: 0: 3", "easier rows", "cut off"):
        assert words in ended.err
    assert not (tmp_path / "modular_test.filtered.jsonl").exists()
    assert len(rows(tmp_path / "modular_test.filtered.rates.jsonl")) == 3


def test_a_reward_that_always_fails_ends_it_with_its_own_code(
    cli: Cli, reward: str, tmp_path: Path
) -> None:
    (tmp_path / "eights.jsonl").write_text(lines({"problem": "8+1=", "answer": "9"}))
    ended = cli("filter", "scratch:dense-tiny", "eights.jsonl", *FLAGS)
    assert ended.code == 3 and "no eights" in ended.err


# --------------------------------------------------------------------------- ranges and bars


def test_both_ends_of_the_range_are_in_it() -> None:
    stage = FilterStage(samples=5, keep="0.2..0.8")
    became = [difficulty_filter._became(stage, passed / 5) for passed in range(6)]
    assert became == ["too hard", "kept", "kept", "kept", "kept", "too easy"]


@given(st.integers(1, 64), st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64))), st.data())
def test_every_judged_row_stands_in_one_bar(
    samples: int, counts: list[tuple[int, int]], data: st.DataObject
) -> None:
    ends = sorted(data.draw(st.tuples(st.integers(0, samples), st.integers(0, samples))))
    keep = f"{ends[0] / samples}..{ends[1] / samples}"
    check_range(keep, samples)
    stage = FilterStage(samples=samples, keep=keep)
    rated = []
    for passed, judged in counts:
        judged = min(judged, samples)
        rate = min(passed, judged) / judged if judged else None
        rated.append({"pass_rate": rate, "became": difficulty_filter._became(stage, rate)})
    bars = histogram(rated, samples)
    low, high = rate_range(keep)
    known = [row["pass_rate"] for row in rated if row["pass_rate"] is not None]
    assert len(bars) == min(samples, 16) + 1 and (bars[0]["rate"], bars[-1]["rate"]) == (0, 1)
    assert sum(bar["rows"] for bar in bars) == len(known)
    assert sum(bar["kept"] for bar in bars) == sum(low <= rate <= high for rate in known)
    if samples <= 16:
        for passed in range(samples + 1):
            assert histogram([{"pass_rate": passed / samples, "became": "kept"}], samples)[passed][
                "rows"
            ]


# ----------------------------------------------------------------------------- kill and resume


def outside(folder: Path, *argv: str, trap: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which a reward may kill."""
    more = {"TRAP_AT": trap, "TRAP_SIGNAL": str(int(signal.SIGKILL))}
    return run_outside(folder, *argv, RL_REASONER_CACHE=str(folder / "cache"), **more)


def kept_completions(folder: Path) -> int:
    [file] = folder.glob("*.sqlite")
    return int(sqlite3.connect(file).execute("SELECT count(*) FROM samples").fetchone()[0])


def test_a_killed_filter_goes_on_where_it_was(reward: str, tmp_path: Path) -> None:
    argv = ("filter", "scratch:dense-tiny", "modular_train", *FLAGS, "--quiet", "--out")
    whole = outside(tmp_path, *argv, "whole.jsonl", "--no-cache")
    assert whole.returncode == 0, whole.stderr
    killed = outside(tmp_path, *argv, "killed.jsonl", trap="5")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.jsonl").exists()
    drawn = kept_completions(tmp_path / "cache/samples")
    assert drawn > 0
    heard: list[int] = []
    stage = FilterStage.model_validate(
        {"samples": 4, "sampling": {"max_tokens": 4}, "reward": reward}
    )
    filter_rows(
        stage,
        load_rows(FileData(path="modular_train"))[:40],
        open_policy("scratch:dense-tiny"),
        FilterFiles(
            tmp_path / "killed.jsonl", tmp_path / "killed.rates.jsonl", tmp_path / "cache/samples"
        ),
        template="auto",
        seed=0,
        progress=heard.append,
    )
    assert heard[0] == drawn, "what was drawn before the kill is there at once"
    for name in ("{}.jsonl", "{}.rates.jsonl"):
        one, other = (tmp_path / name.format(each) for each in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()


# ---------------------------------------------------------------------------------- the stage


def filtered(folder: Path, reward: str, **fields: Any) -> Recipe:
    """A filter on 40 rows, and GRPO on what it keeps."""
    stage = {
        "kind": "filter",
        "samples": 4,
        "sampling": {"max_tokens": 4},
        "reward": reward,
        "data": {"path": "modular_train", "limit": 40},
        **fields,
    }
    return recipe(folder, stage, grpo(data=None), evals={"sets": []})


def test_the_stages_after_it_train_on_what_it_kept(reward: str, tmp_path: Path) -> None:
    run = train(filtered(tmp_path, reward), quiet=True)
    kept = rows(run.folder / "stages/1-filter/data.jsonl")
    card = json.loads((run.folder / "stages/1-filter/card.json").read_text())
    assert 0 < len(kept) == card["rows"] < 40
    trained_on = {row["prompt"] for row in rows(run.folder / "stages/2-grpo/rollouts.jsonl")}
    assert trained_on and trained_on <= {row["problem"] for row in kept}
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert f"{len(kept)} of 40 rows kept" in page and "too hard" in page and "unjudged" in page


def test_the_rows_that_a_run_wrote_end_it_for_no_second_answer(reward: str, tmp_path: Path) -> None:
    """A file may hold the problem of a task with an answer of its own: that is known before."""
    [first] = load_rows(TaskData(task="modular", count=1))
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"problem": first["problem"], "answer": "-1"}), encoding="utf-8")
    mix = [{"task": "modular", "count": 1}, {"path": str(own)}]
    run = train(filtered(tmp_path, reward, data=mix, keep="0.0..1.0"), quiet=True)
    kept = rows(run.folder / "stages/1-filter/data.jsonl")
    assert [row["answer"] for row in kept] == [first["answer"], "-1"]
    assert (run.folder / "stages/2-grpo/done.json").is_file()


@pytest.mark.matrix
def test_a_killed_stage_goes_on_and_a_changed_range_draws_nothing_again(
    reward: str, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    whole = train(filtered(tmp_path / "other", reward), quiet=True).folder
    file = tmp_path / "killed.yaml"
    file.write_text(filtered(tmp_path, reward).to_yaml(), encoding="utf-8")
    killed = outside(tmp_path, "train", str(file), trap="9")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stage = tmp_path / "run/stages/1-filter"
    drawn = kept_completions(stage / "samples")
    assert drawn > 0 and not (stage / "data.jsonl").exists()
    resumed = outside(tmp_path, "train", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("data.jsonl", "rates.jsonl"):
        assert (stage / name).read_bytes() == (whole / "stages/1-filter" / name).read_bytes()
    assert "kept" in resumed.stderr and "too easy" in resumed.stderr
    [cache] = (stage / "samples").glob("*.sqlite")
    with sqlite3.connect(cache) as store:  # a text that no policy writes tells a copy
        store.execute("UPDATE samples SET value = ?", (json.dumps(["mark", 1, False]),))
    again = outside(tmp_path, "train", "--resume", "run", "--filter.keep", "0..1")
    assert again.returncode == 0, again.stderr
    assert {row["mean_tokens"] for row in rows(stage / "rates.jsonl")} == {1.0}, "drawn anew"
    assert len(rows(stage / "data.jsonl")) > len(rows(whole / "stages/1-filter/data.jsonl"))


def test_a_filter_that_keeps_nothing_is_one_clear_error(reward: str, tmp_path: Path) -> None:
    data = tmp_path / "easy.jsonl"
    data.write_text(lines({"problem": "9+1=", "answer": "10"}, {"problem": "9+2=", "answer": "11"}))
    made = filtered(tmp_path, reward, data=str(data))
    with pytest.raises(NothingKept, match=r"filter kept none of 2 rows.*: 1: 2\. Give harder"):
        train(made, quiet=True)


def test_a_reward_that_the_rows_of_a_filter_name_is_tried_on_one_before_the_run(
    tmp_path: Path,
) -> None:
    """Rows name it as the recipe does, by its file."""
    (tmp_path / "own.py").write_text(
        "from rl_reasoner import reward\n\n\n@reward\n"
        "def f(completion, level):\n    return level + 'x'\n"
    )
    own = f"{tmp_path / 'own.py'}:f"
    data = tmp_path / "rows.jsonl"
    data.write_text(lines({"problem": "1+1=", "answer": "2", "level": 1, "rewards": [own]}))
    stage = {"kind": "filter", "samples": 2, "data": str(data), "reward": "math_answer"}
    fields = {"rewards": {"math_answer": 1.0, own: 1.0}, "evals": {"sets": []}}
    with pytest.raises(UserError, match="a trial call failed: reward 'f': TypeError"):
        read_inputs(recipe(tmp_path, stage, grpo(data=None), **fields))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("[{kind: filter, keep: 0.8..0.2}, {kind: grpo}]", (":5: stages.0.keep", "0.2..0.8")),
        ("[{kind: filter, samples: 1}, {kind: grpo}]", (":5: stages.0", "1 samples", "wider")),
        ("[{kind: grpo}, {kind: filter}]", ("last stage makes no policy",)),
        ("[{kind: filter}, {kind: grpo, data: {stage: filtre}}]", ("'filtre'", "'filter'")),
        ("[{kind: filter, sampling: {top_k: 5}}, {kind: grpo}]", ("top_k", "unknown field")),
    ],
)
def test_mistakes_in_recipes_have_their_places(
    stages: str, words: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    head = "policy: scratch:dense-tiny\ndata: {task: modular}\ntemplate: plain\n"
    text = f"{head}rewards: {{math_answer: 1.0}}\nstages: {stages}\n"
    (tmp_path / "bad.yaml").write_text(text)
    ended = cli("check", "bad.yaml")
    assert ended.code == 2 and all(word in ended.err for word in words), ended.err


def test_a_later_filter_narrows_an_earlier_one_and_a_reference_names_either() -> None:
    made = Recipe.model_validate(
        {
            "policy": "scratch:dense-tiny",
            "data": {"task": "modular"},
            "rewards": {"math_answer": 1.0},
            "stages": [
                {"kind": "filter", "name": "first"},
                {"kind": "grpo", "name": "a"},
                {"kind": "filter", "name": "second"},
                {"kind": "grpo", "name": "b"},
                {"kind": "grpo", "name": "c", "data": {"stage": "first"}},
            ],
        }
    )
    needed = {stage.name: made.needs(stage) for stage in made.stages}
    assert needed == {
        "first": [],
        "a": ["first"],
        "second": ["a", "first"],
        "b": ["a", "second"],
        "c": ["b", "first"],
    }
