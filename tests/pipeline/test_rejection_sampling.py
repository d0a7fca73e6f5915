"""Rejection sampling: what is kept of sampled completions, and what the card says of the rest.

The completions are written down as if an earlier call had sampled them: nothing is drawn.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import open_policy
from rl_reasoner.pipeline import rejection_sampling
from rl_reasoner.pipeline.rejection_sampling import NothingKept, make_samples
from rl_reasoner.pipeline.train import train
from rl_reasoner.recipe.stages import SampleStage
from support.tiny import recipe, sft

ROWS = [
    {"id": "a", "problem": "1+1=", "answer": "2", "task": "sums", "chain": "1+1=2"},
    {"id": "b", "problem": "2+2=", "answer": "4", "task": "sums", "completion": "4"},
    {"id": "c", "problem": "name?", "answer": "x", "task": "names"},
]
GOOD = "<think>1 plus 1=2</think><answer>2</answer>"


def sampled(*completions: tuple[str, float | None], tokens: int = 9, cut: bool = False) -> Any:
    """A line of samples.jsonl: completions with their scores."""
    texts = [text for text, _ in completions]
    return {
        "step": 1,
        "completions": texts,
        "tokens": [tokens] * len(texts),
        "truncated": [cut] * len(texts),
        "scores": [score for _, score in completions],
        "reasons": [""] * len(texts),
    }


def kept(
    folder: Path, lines: list[Any], of: list[dict[str, Any]] = ROWS, **keep: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows that are kept of the first rows, and the card."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "samples.jsonl").write_text(text, encoding="utf-8")
    stage = SampleStage(data={"path": "x"}, keep=keep)  # type: ignore[arg-type]
    card = make_samples(
        stage,
        of[: len(lines)],
        None,  # type: ignore[arg-type]  # nothing is left to sample
        folder,
        template="plain",
        seed=0,
        progress=lambda done: None,
    )
    rows = [json.loads(line) for line in (folder / "data.jsonl").open(encoding="utf-8")]
    assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == card
    return rows, card


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}])
def test_completions_are_drawn_with_the_cut_offs_of_the_stage(
    cut: dict[str, Any], tmp_path: Path
) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    stage = SampleStage(sampling={"max_tokens": 4, **cut}, min_score=-1.0, keep={"readable": False})  # type: ignore[arg-type]
    card = make_samples(
        stage, ROWS[:2], policy, tmp_path, template="plain", seed=0, progress=lambda done: None
    )
    for line in (tmp_path / "samples.jsonl").open(encoding="utf-8"):
        assert len(set(json.loads(line)["completions"])) == 1  # the likeliest tokens alone
    assert {name: card[name] for name in cut} == cut


def test_only_right_completions_are_kept_in_place_of_the_rows_own(tmp_path: Path) -> None:
    lines = [sampled((GOOD, 1.0), ("2", 0.5), ("2", None)), sampled(("3", 0.0), ("four", 1.0))]
    rows, card = kept(tmp_path, lines)
    first, second = ROWS[0], ROWS[1]
    assert rows == [
        {"id": "a", "problem": "1+1=", "answer": "2", "task": "sums", "completion": GOOD},
        {**second, "completion": "four"},
    ]
    assert "chain" in first and card["left_out"] == {"not right": 3}
    assert (card["rows"], card["sampled"], card["prompts"]) == (2, 5, 2)


def test_rows_of_one_problem_are_not_without_a_row(tmp_path: Path) -> None:
    """Each of them has the rows that were kept of the problem."""
    lines = [sampled((f"{GOOD} {i}", 1.0)) for i in range(2)]
    rows, card = kept(tmp_path, lines, of=[ROWS[0], {**ROWS[0], "id": "again"}])
    assert len(rows) == card["prompts"] == 2 and card["prompts_without_a_row"] == 0


def test_prompts_are_balanced_and_copies_left_out(tmp_path: Path) -> None:
    many = [(f"{GOOD} {i}", 1.0) for i in range(4)]
    lines = [sampled(*many), sampled(("4", 1.0), (" 4\n", 1.0)), sampled(("no", 0.0))]
    rows, card = kept(tmp_path, lines, per_prompt=2)
    assert [row["id"] for row in rows] == ["a", "a", "b"]
    assert [row["completion"] for row in rows[:2]] == [f"{GOOD} 0", f"{GOOD} 1"]
    assert card["left_out"] == {"more than per_prompt": 2, "duplicate": 1, "not right": 1}
    assert card["prompts_without_a_row"] == 1 and card["rows_by_task"] == {"sums": 3}


@pytest.mark.parametrize(
    "text",
    [
        "<think>a<answer>2</answer>",
        "</think>2<think>",
        f"{GOOD}{GOOD}",
        "<answer>2</answer><think>a</think>",
        "<think>" + "wait, again. " * 60 + "</think>2",
    ],
    ids=["open", "out of order", "twice", "answer first", "in a loop"],
)
def test_unreadable_ones_are_left_out(text: str, tmp_path: Path) -> None:
    rows, card = kept(tmp_path, [sampled((text, 1.0)), sampled(("plain 4", 1.0))])
    assert [row["id"] for row in rows] == ["b"] and card["left_out"] == {"not readable": 1}
    rows, _ = kept(tmp_path, [sampled((text, 1.0))], readable=False)
    assert [row["completion"] for row in rows] == [text]


@pytest.mark.parametrize(
    "text", ["<answer>2</answer>", "1+1=2</think>2", "1</think><answer>2</answer>"]
)
def test_a_form_of_answers_alone_and_a_chain_that_the_prompt_begins_are_kept(
    text: str, tmp_path: Path
) -> None:
    rows, _ = kept(tmp_path, [sampled((text, 1.0))])
    assert [row["completion"] for row in rows] == [text]


def test_cut_off_ones_are_left_out(tmp_path: Path) -> None:
    lines = [sampled((GOOD, 1.0), cut=True), sampled(("4", 1.0))]
    assert kept(tmp_path, lines)[1]["left_out"] == {"not readable": 1}


def test_length_and_language_of_the_chain(tmp_path: Path) -> None:
    mixed = "<think>1加1=2 plus 0=2</think><answer>2</answer>"
    other = "<think>1加1=2</think><answer>2</answer>"
    lines = [sampled((mixed, 1.0), (other, 1.0), (GOOD, 1.0)), sampled(("4", 1.0))]
    rows, card = kept(tmp_path, lines, language="en")
    assert [row["completion"] for row in rows] == [GOOD, "4"], "no chain is in no language"
    assert card["left_out"] == {"language": 2}
    rows, _ = kept(tmp_path, lines, language="en", language_share=0.5, per_prompt=3)
    assert [row["completion"] for row in rows] == [mixed, GOOD, "4"]
    lines = [sampled((GOOD, 1.0), tokens=3), sampled(("4", 1.0), tokens=5)]
    rows, card = kept(tmp_path, lines, min_tokens=4, max_tokens=5)
    assert [row["id"] for row in rows] == ["b"] and card["left_out"] == {"length": 1}


def test_where_nothing_is_kept_the_run_stops_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(NothingKept, match=r"kept none of 2 completions \(not right 2\)"):
        kept(tmp_path, [sampled(("1", 0.0), ("3", 0.0))])


@pytest.mark.parametrize("torn", [0, 1, 40])
def test_it_goes_on_after_the_last_whole_chunk(
    torn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sampled before a kill is the same as without it; a torn chunk is drawn again."""
    monkeypatch.setattr(rejection_sampling, "_CHUNK", 1)
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    fields = {"data": {"path": "x"}, "min_score": 0.0, "samples": 2, "sampling": {"max_tokens": 4}}
    stage = SampleStage.model_validate({**fields, "keep": {"readable": False, "per_prompt": 2}})

    def make(folder: Path) -> bytes:
        folder.mkdir(exist_ok=True)
        make_samples(
            stage, ROWS, policy, folder, template="plain", seed=3, progress=lambda done: None
        )
        return (folder / "samples.jsonl").read_bytes()

    whole = make(tmp_path / "whole")
    killed = tmp_path / "killed"
    killed.mkdir()
    first, rest = whole.split(b"\n", 1)
    (killed / "samples.jsonl").write_bytes(first + b"\n" + rest[:torn])
    assert make(killed) == whole
    assert (killed / "data.jsonl").read_bytes() == (tmp_path / "whole/data.jsonl").read_bytes()


def test_a_run_may_end_after_it_has_sampled(tmp_path: Path) -> None:
    keep = {"kind": "sample", "min_score": 0.0, "keep": {"readable": False}, "samples": 1}
    first = {**keep, "data": {"task": "modular", "count": 2}, "sampling": {"max_tokens": 4}}
    wanted = recipe(tmp_path, first, sft(data={"stage": "sample"}), evals={"sets": []})
    run = train(wanted, quiet=True, last="sample")
    assert run.policy.source == "scratch:moe-tiny" and run.report.is_file()
    assert (run.folder / "stages" / "1-sample" / "data.jsonl").is_file()
