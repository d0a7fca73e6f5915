"""Stages as a graph in one run: killed anywhere, changed anywhere, begun and ended anywhere."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import Recipe, Run, open_policy, train
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline import rejection_sampling
from rl_reasoner.pipeline.lineage import hash_of
from rl_reasoner.recipe.flags import apply_flags
from support.tiny import grpo, recipe, same, sft, untimed

STAGES = ("pre", "zero", "cold", "samples", "again", "student")


def pipeline(folder: Path, run: Path | None = None, **changes: Any) -> Recipe:
    """Every kind of stage: RL from the base, a second start, samples, and two users of them.

    The reward's file is in `folder`; the run too, where `run` says nothing else.
    """
    near, few = f"{folder / 'near.py'}:near", {"max_tokens": 8}
    samples = {
        "kind": "sample",
        "name": "samples",
        "data": {"task": "modular", "count": 12, "seed": 3},
        "samples": 3,
        "reward": near,
        "min_score": 0.01,
        "sampling": few,
        "keep": {"readable": False, "per_prompt": 2},
    }
    student = {
        "kind": "distill",
        "name": "student",
        "policy": "scratch:dense-tiny",
        "teacher": "again",
        "data": {"stage": "samples"},
        "steps": 4,
        "batch": 4,
        "save_every": 2,
        "sampling": few,
        "optim": {"lr": 1e-3},
    }
    stages = [
        sft(name="pre", steps=4, save_every=2),
        grpo(name="zero", steps=4, save_every=2),
        sft(name="cold", start="pre", data={"task": "modular", "count": 32, "chinese": 0.5}),
        samples,
        sft(
            name="again",
            start="pre",
            data=[{"stage": "samples"}, {"task": "functions", "count": 8}],
            save_every=2,
        ),
        student,
    ]
    evals = {"limit": 2, "stages": True}
    wanted = recipe(folder, *stages, **{"evals": evals, **changes})
    return wanted.in_folder(str(run or folder / "run"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run that the others are held against."""
    return train(pipeline(tmp_path_factory.mktemp("pipeline")), quiet=True)


@pytest.fixture
def copy(whole: Run, tmp_path: Path) -> Path:
    """A copy of the finished run, to be gone on with."""
    shutil.copytree(whole.folder, tmp_path / "copy")
    return tmp_path / "copy"


def done(run: Path) -> dict[str, Any]:
    """What is written at each stage's end, by the stage's name."""
    found = {}
    for file in (run / "stages").glob("*/done.json"):
        found[file.parent.name.partition("-")[2]] = json.loads(file.read_text())
    return found


def made(run: Path) -> dict[str, str]:
    return {name: facts["made"] for name, facts in done(run).items()}


def changed(whole: Run, run: Path, *flags: str) -> Recipe:
    """The recipe of `whole` in the folder `run`, with flags."""
    return apply_flags(pipeline(whole.folder.parent, run), flags)


# ------------------------------------------------------------------------------------ one run


def test_each_stage_has_its_folder_lock_and_evaluation(whole: Run) -> None:
    names = [f"{i}-{name}" for i, name in enumerate(STAGES, 1)]
    assert sorted(p.name for p in (whole.folder / "stages").iterdir()) == names
    for name in names:
        lock = json.loads((whole.folder / "stages" / name / "lock.json").read_text())
        assert {"made_from", "versions", "commit", "started"} <= lock.keys()
    evals = {p.stem for p in (whole.folder / "evals").glob("*.json")}
    assert evals == {"before", "after", *STAGES} - {"samples"}, "random weights are not evaluated"
    figures = {n: json.loads((whole.folder / "evals" / f"{n}.json").read_text()) for n in evals}
    for one, other in (("before", "pre"), ("after", "student")):
        assert figures[one]["sets"] == figures[other]["sets"] and figures[one]["name"] == one
    assert same(whole.folder / "policy", whole.folder / "stages" / "6-student" / "policy")


def test_stages_start_where_they_say(whole: Run) -> None:
    locks = {
        name: json.loads((whole.folder / "stages" / f"{i}-{name}" / "lock.json").read_text())
        for i, name in enumerate(STAGES, 1)
    }
    start = {name: lock["made_from"].get("from") for name, lock in locks.items()}
    hashes = made(whole.folder)
    assert start == {
        "pre": "scratch:moe-tiny, seed 0",
        "zero": hashes["pre"],
        "cold": hashes["pre"],
        "samples": hashes["cold"],
        "again": hashes["pre"],
        "student": "scratch:dense-tiny, seed 0",
    }
    assert locks["student"]["made_from"]["teacher"] == hashes["again"]
    assert whole.policy.model.config.model_type == "qwen3"


def test_the_samples_are_a_data_set_with_a_card(whole: Run) -> None:
    folder = whole.folder / "stages" / "4-samples"
    rows = [json.loads(line) for line in (folder / "data.jsonl").open(encoding="utf-8")]
    card = json.loads((folder / "card.json").read_text())
    assert card["rows"] == len(rows) and card["sampled"] == 36
    assert card["rows"] + sum(card["left_out"].values()) == 36
    assert all({"problem", "answer", "completion"} <= row.keys() for row in rows)
    problems = [row["problem"] for row in rows]
    assert max(map(problems.count, problems)) <= 2, "balanced over prompts"


# -------------------------------------------------------------------------------------- kills


def killed(wanted: Recipe, folder: Path, resume: bool, at: Callable[[], bool]) -> None:
    """Run in a process of its own, and kill -9 it as soon as `at` holds."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            torch.set_num_threads(1)
            train(wanted, resume=folder if resume else None, quiet=True)
        finally:
            os._exit(0)
    while not at():
        ended, _ = os.waitpid(child, os.WNOHANG)
        assert not ended, "the run ended before the moment to kill it"
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def lines(file: Path, count: int) -> Callable[[], bool]:
    """Holds when a file has so many lines."""
    return lambda: file.is_file() and file.read_bytes().count(b"\n") >= count


def test_killed_in_every_kind_of_stage_it_ends_with_the_same_weights(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejection_sampling, "_CHUNK", 4)
    wanted = pipeline(tmp_path)
    run = tmp_path / "run"
    stage = {name: run / "stages" / f"{i}-{name}" for i, name in enumerate(STAGES, 1)}
    moments = [
        lines(stage["pre"] / "metrics.jsonl", 3),
        (run / "evals" / "pre.rows.jsonl").exists,  # between the two files of an evaluation
        lines(stage["zero"] / "metrics.jsonl", 1),
        lines(stage["zero"] / "metrics.jsonl", 3),
        (stage["cold"] / "policy").exists,  # while the policy is written
        lines(stage["samples"] / "samples.jsonl", 4),
        lines(stage["again"] / "metrics.jsonl", 2),
        lines(stage["student"] / "metrics.jsonl", 3),
    ]
    for number, moment in enumerate(moments):
        killed(wanted, run, number > 0, moment)
    chunks = (stage["samples"] / "samples.jsonl").read_text().count("\n")
    assert chunks == 12
    train(wanted, resume=run, quiet=True)
    assert made(run) == made(whole.folder)
    assert same(run / "policy", whole.folder / "policy")
    for name in ("pre", "zero", "student"):
        other = whole.folder / "stages" / stage[name].name
        assert untimed(stage[name] / "metrics.jsonl") == untimed(other / "metrics.jsonl")
    assert not (run / "old").exists(), "nothing ran again"


def test_killed_while_the_lock_of_a_stage_is_written_the_stage_was_not_begun(
    whole: Run, copy: Path
) -> None:
    for folder in (copy / "stages" / "6-student", copy / "policy"):
        shutil.rmtree(folder)
    for file in (copy / "report.html", *(copy / "evals").glob("after.*")):
        file.unlink(missing_ok=True)
    (copy / "stages" / "6-student").mkdir()
    (copy / "stages" / "6-student" / ".lock.json.part").write_text('{"made_from"')
    train(pipeline(whole.folder.parent, copy), resume=copy, quiet=True)
    assert made(copy) == made(whole.folder)
    assert not (copy / "old").exists(), "nothing was there to be set aside"
    assert not (copy / "stages" / "6-student" / ".lock.json.part").exists()


# ------------------------------------------------------------------------------------ changes


def test_a_changed_stage_is_done_again_with_what_depends_on_it(
    whole: Run, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(changed(whole, copy, "--again.optim.lr", "1e-3"), resume=copy)
    before, after = done(whole.folder), done(copy)
    kept = {name for name in STAGES if before[name] == after[name]}
    assert kept == {"pre", "zero", "cold", "samples"}
    assert before["again"]["made"] != after["again"]["made"]
    said = capsys.readouterr().err
    assert "recipe changed; stages to run again: again, student" in said
    assert "stage again: run again (optim.lr 0.005 -> 0.001)" in said
    assert "stage student: run again (teacher changed)" in said
    old = copy / "old" / "1"
    assert same(old / "stages" / "5-again" / "policy", whole.folder / "stages/5-again/policy")
    assert {p.name for p in (old / "evals").iterdir()} == {
        f"{name}{end}" for name in ("again", "student", "after") for end in (".json", ".rows.jsonl")
    }
    assert (old / "recipe.yaml").is_file()
    again = train(changed(whole, tmp_path / "afresh", "--again.optim.lr", "1e-3"), quiet=True)
    assert made(again.folder) == made(copy), "as if it had been so from the start"


def test_a_reward_with_other_code_is_another_one(whole: Run, tmp_path: Path) -> None:
    run = train(pipeline(tmp_path), quiet=True, last="zero").folder
    file = tmp_path / "near.py"
    wanted = pipeline(tmp_path)
    file.write_text(file.read_text().replace("0.5 *", "0.4 *"))
    train(wanted, resume=run, quiet=True, last="zero")
    assert done(run)["pre"]["made"] == made(whole.folder)["pre"]
    assert [p.name for p in (run / "old" / "1" / "stages").iterdir()] == ["2-zero"]
    assert made(run)["zero"] != made(whole.folder)["zero"]


def test_what_changes_no_result_does_nothing_again(whole: Run, copy: Path) -> None:
    train(changed(whole, copy, "--pre.save_every", "1"), resume=copy, quiet=True)
    assert done(copy) == done(whole.folder)


def test_other_filters_sample_nothing_anew(
    whole: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejection_sampling, "sample", None)
    wanted = changed(whole, copy, "--samples.keep.per_prompt", "1")
    train(wanted, resume=copy, quiet=True, last="samples")
    place = Path("stages") / "4-samples"
    assert hash_of(copy / place / "samples.jsonl") == hash_of(
        whole.folder / place / "samples.jsonl"
    )
    rows = [json.loads(line) for line in (copy / place / "data.jsonl").open(encoding="utf-8")]
    assert len({row["problem"] for row in rows}) == len(rows)
    assert made(copy)["samples"] != made(whole.folder)["samples"]


def test_a_stage_put_in_between_takes_its_place(whole: Run, copy: Path) -> None:
    wanted = changed(whole, copy)
    extra = type(wanted.stages[0]).model_validate(sft(name="extra", start="pre", steps=1))
    stages = (*wanted.stages[:2], extra, *wanted.stages[2:])
    train(wanted.model_copy(update={"stages": stages}), resume=copy, quiet=True)
    names = ["1-pre", "2-zero", "3-extra", "4-cold", "5-samples", "6-again", "7-student"]
    assert sorted(p.name for p in (copy / "stages").iterdir()) == names
    assert {n: d for n, d in done(copy).items() if n != "extra"} == done(whole.folder)


# ------------------------------------------------------------- from, until, folders of the user


def test_from_and_until(whole: Run, tmp_path: Path) -> None:
    wanted = pipeline(tmp_path)
    part = train(wanted, quiet=True, last="zero")
    assert done(part.folder).keys() == {"pre", "zero"} and not (part.folder / "policy").exists()
    assert part.policy.source == str(part.folder / "stages" / "2-zero" / "policy")
    with pytest.raises(UserError, match=r"stage again needs stage samples, which is not finished"):
        train(wanted, resume=part.folder, quiet=True, first="again")
    train(wanted, resume=part.folder, quiet=True, first="cold", last="samples")
    assert done(part.folder).keys() == {"pre", "zero", "cold", "samples"}
    train(wanted, resume=part.folder, quiet=True)
    assert made(part.folder) == made(whole.folder)


def test_a_finished_stage_is_done_again_when_asked(whole: Run, copy: Path) -> None:
    train(changed(whole, copy), resume=copy, quiet=True, first="samples")
    before, after = done(whole.folder), done(copy)
    assert made(copy) == made(whole.folder), "the same comes out"
    assert (copy / "old" / "1" / "stages" / "4-samples" / "data.jsonl").is_file()
    assert {n: after[n] for n in STAGES if n != "samples"} == {
        n: before[n] for n in STAGES if n != "samples"
    }, "and so what follows stays"


def test_a_folder_of_the_users_stands_for_a_stage(whole: Run, tmp_path: Path) -> None:
    open_policy("scratch:moe-tiny", seed=5, device="cpu").save(tmp_path / "mine")
    data = tmp_path / "mine.jsonl"
    shutil.copy(whole.folder / "stages" / "4-samples" / "data.jsonl", data)
    flags = ("--pre.reuse", str(tmp_path / "mine"), "--samples.reuse", str(data))
    wanted = apply_flags(pipeline(tmp_path), flags)
    run = train(wanted, quiet=True, first="again", last="again")
    assert done(run.folder).keys() == {"pre", "samples", "again"}
    assert same(run.folder / "stages" / "1-pre" / "policy", tmp_path / "mine")
    assert hash_of(run.folder / "stages/4-samples/data.jsonl") == hash_of(data)


def test_mistakes_are_said_before_anything_is_done(tmp_path: Path) -> None:
    wanted = pipeline(tmp_path)
    with pytest.raises(UserError, match=r"unknown stage \(--from\) 'agin'.*'again'"):
        train(wanted, quiet=True, first="agin")
    with pytest.raises(UserError, match="--until pre comes before --from again"):
        train(wanted, quiet=True, first="again", last="pre")
    nothing = apply_flags(wanted, ("--pre.reuse", str(tmp_path)))
    with pytest.raises(
        UserError, match=r"stage pre: reuse: .* is not a folder with a policy in it"
    ):
        train(nothing, quiet=True)
    nothing = apply_flags(wanted, ("--samples.reuse", str(tmp_path)))
    with pytest.raises(UserError, match=r"stage samples: reuse: there is no data set"):
        train(nothing, quiet=True)
    assert not (tmp_path / "run").exists()
