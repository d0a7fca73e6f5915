"""The run folder: one holder at a time, whole files, and a record of what it was made from."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import train
from rl_reasoner.dataset.sets import find_set
from rl_reasoner.errors import UserError
from rl_reasoner.files import append_rows, keep_rows_until, write_json, write_text
from rl_reasoner.pipeline.lock import lock as lock_run
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.run_folder import FolderGone, RunFolder, given_flags
from rl_reasoner.pipeline.session import Session
from rl_reasoner.policy.scratch import scratch_policy
from rl_reasoner.recipe.recipe import PolicySpec
from rl_reasoner.rollout.cache import SampleCache
from support.tiny import REWARD, grpo, recipe, sft


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


# ------------------------------------------------------------------------------------ folders


def test_created_once_and_reopened_with_its_recipe(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, sft(), grpo())
    run = RunFolder.create(wanted)
    assert run.path == tmp_path / "run" and (run.path / "recipe.yaml").is_file()
    run.release()
    with pytest.raises(UserError, match=r"exists already; continue it with --resume .*/run"):
        RunFolder.create(wanted)
    again, found = RunFolder.reopen(run.path)
    assert found == wanted and again.path == run.path
    again.release()


def test_killed_before_its_recipe_is_there_a_run_begins_again_by_the_same_command(
    tmp_path: Path,
) -> None:
    wanted = recipe(tmp_path, sft())
    child = os.fork()
    if child == 0:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        RunFolder.create(wanted)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", ".recipe.yaml.part"}
    RunFolder.create(wanted).release()
    assert [p.name for p in (tmp_path / "run").glob("*recipe*")] == ["recipe.yaml"]


@pytest.mark.parametrize("last", [1, 2])
def test_killed_while_its_recipe_is_changed_a_run_goes_on(last: int, tmp_path: Path) -> None:
    wanted, changed = recipe(tmp_path, sft()), recipe(tmp_path, sft(steps=9))
    RunFolder.create(wanted).release()
    child = os.fork()
    if child == 0:
        calls = iter([1, 2])
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL * (next(calls) == last))
        try:
            RunFolder.reopen(tmp_path / "run")[0].change(changed)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    run, found = RunFolder.reopen(tmp_path / "run")
    assert found == wanted
    run.change(changed)
    run.release()
    assert RunFolder.reopen(tmp_path / "run")[1] == changed
    kept = sorted((tmp_path / "run").glob("old/*/recipe.yaml"))
    assert {file.read_text() for file in kept} == {wanted.to_yaml()}


def test_what_a_run_found_outlives_a_change_that_came_to_nothing(tmp_path: Path) -> None:
    """As where the changed recipe is told a mistake: no lock is there then."""
    wanted, changed = recipe(tmp_path, sft()), recipe(tmp_path, sft(steps=9))
    run = RunFolder.create(wanted)
    lengths, choices = {"(evals)": {"max_tokens": 64}}, {"threads": 2}
    write_json(run.path / "lock.json", {"max_tokens": lengths, "choices": choices})
    run.change(changed)
    run.release()
    again, _ = RunFolder.reopen(run.path)
    assert (again.lengths, again.choices()) == (lengths, choices)
    again.release()


def test_a_change_that_is_refused_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    """What only the policy shows is found when the folder is the run's again."""

    def files() -> dict[str, bytes]:
        found = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
        return {str(file): file.read_bytes() for file in found}

    stages = (sft(), sft(name="more", steps=1))
    train(recipe(tmp_path, *stages), quiet=True)
    done = files()
    again, other = sft(name="again", steps=1), sft(name="more", steps=2)
    for changed, policy, says in (
        (stages, "scratch:dense-tniy", "dense-tiny"),
        ((again, other), "scratch:dense-tniy", "dense-tiny"),
        ((other,), str(tmp_path / "nowhere"), "nowhere"),
    ):
        wanted = recipe(tmp_path, *changed).model_copy(update={"policy": PolicySpec(source=policy)})
        with pytest.raises(UserError, match=says):
            train(wanted, resume=tmp_path / "run", quiet=True)
        assert files() == done
    with pytest.raises(UserError, match="nowhere"):
        train(recipe(tmp_path, sft(policy="nowhere")), resume=tmp_path / "run", quiet=True)
    assert files() == done
    later = (sft(steps=2), sft(name="more", steps=1, policy="nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        train(recipe(tmp_path, *later), resume=tmp_path / "run", quiet=True)
    assert files() == done
    train(recipe(tmp_path, sft()), resume=tmp_path / "run", quiet=True)
    assert (tmp_path / "run/old/1/recipe.yaml").is_file()


def test_the_flags_of_its_first_command_outlive_each_resume(tmp_path: Path) -> None:
    run = RunFolder.create(recipe(tmp_path, sft()))
    commands = [
        "r.yaml --run.seed 7 --optim.lr 1e-3",
        f"{run.path}/recipe.yaml --save_every 50",  # resumed without the recipe
        "r.yaml --run.seed 7 --optim.lr 1e-3 --save_every 50 --name 'a b'",  # and with it
        *[f"{run.path}/recipe.yaml --steps {n}" for n in range(9)],  # old/10 comes after old/9
    ]
    for command in commands:
        write_text(run.path / "lock.json", json.dumps({"command": f"rl-reasoner train {command}"}))
        RunFolder(run.path).change(recipe(tmp_path, sft()))  # each in a process of its own
    first = ["--run.seed", "7", "--optim.lr", "1e-3", "--save_every", "50", "--name", "a b"]
    steps = [word for n in range(9) for word in ("--steps", str(n))]
    assert given_flags(run.path) == first + steps  # also where the new lock is not yet written
    run.release()


def test_an_evaluation_without_a_result_is_none(tmp_path: Path) -> None:
    """As one whose prompts are too long: the corrected recipe begins in the same folder."""
    for result in (False, True):
        run = RunFolder.create(recipe(tmp_path, sft()))
        SampleCache(run.path / "evals" / ".before.drawn", "somebody")
        if result:
            (run.path / "evals" / "before.json").write_text("{}")
        run.discard()
        run.release()
        assert run.path.exists() == result


def test_a_folder_of_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        RunFolder.create(recipe(tmp_path, sft()))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match=r"is not a run folder: it has no recipe\.yaml"):
        RunFolder.reopen(tmp_path / "run")


def test_a_lock_that_says_something_is_none_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("a user's own")
    with pytest.raises(UserError, match="exists already"):
        RunFolder.create(recipe(tmp_path, sft()))
    assert (tmp_path / "run" / ".lock").read_text() == "a user's own"


def test_a_linked_folder_is_emptied_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    for _ in range(2):
        run = RunFolder.create(recipe(tmp_path, sft()))
        SampleCache(run.path / "evals" / ".before.drawn", "somebody")
        run.discard()
        run.release()
        assert [*(tmp_path / "disk").iterdir()] == []


def test_a_writable_folder_may_stand_where_nothing_else_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a volume at the root of a container, whose user is not root."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == tmp_path / "run")
    RunFolder.create(recipe(tmp_path, sft())).release()
    with pytest.raises(UserError, match="cannot write to the run folder"):
        RunFolder.create(recipe(tmp_path, sft(), run={"folder": str(tmp_path / "other")}))


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    RunFolder.create(recipe(tmp_path, sft())).release()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file; give a folder"):
        RunFolder.create(recipe(tmp_path, sft(), run={"folder": str(tmp_path / "file")}))
    with pytest.raises(UserError, match=r"cannot write to the run folder .* is not a folder that"):
        RunFolder.create(recipe(tmp_path, sft(), run={"folder": str(tmp_path / "file" / "run")}))


def test_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    run = RunFolder.create(recipe(tmp_path, sft()))
    code = (
        "import sys, pathlib, rl_reasoner.pipeline.run_folder as r\n"
        "try:\n    r.RunFolder.reopen(pathlib.Path(sys.argv[1]))\n"
        "except Exception as e:\n    print(e)\nelse:\n    print('taken')"
    )

    def other() -> str:
        command = [sys.executable, "-c", code, str(run.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert other() == f"another process ({os.getpid()}) is training in {run.path}"
    assert not (run.path / ".lock").stat().st_size
    run.release()
    assert other() == "taken", "and the lock of a process that ended holds nobody up"
    run.lock()
    run.release()


def test_a_damaged_recipe_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "recipe.yaml").write_text("policy: [\n")
    with pytest.raises(UserError, match=r"recipe\.yaml:2: not valid YAML"):
        RunFolder.reopen(tmp_path)


# --------------------------------------------------------------------------------------- lock


def test_the_lock_says_what_the_run_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n')
    wanted = recipe(
        tmp_path,
        sft(),
        grpo(data=str(tmp_path / "mine.jsonl")),
        run={"folder": str(tmp_path / "run"), "seed": 11},
    )
    run = RunFolder.create(wanted)
    policy = scratch_policy("dense-tiny", 0)
    lock_run(run, wanted, Placement("cpu", "fp32"), policy, "1 thread", None, print)
    run.release()
    lock = json.loads((run.path / "lock.json").read_text())
    assert lock["seed"] == 11 and lock["device"] == "cpu"
    assert {"torch", "transformers", "trl", "sympy"} <= lock["versions"].keys()
    test = find_set("modular_test")
    assert test is not None
    assert lock["data"] == {
        str(tmp_path / "mine.jsonl"): hashlib.sha256(
            (tmp_path / "mine.jsonl").read_bytes()
        ).hexdigest(),
        "modular_test": hashlib.sha256(test.read_bytes()).hexdigest(),
    }
    assert lock["commit"] is None or len(lock["commit"].rstrip("+")) == 40


# -------------------------------------------------------------------------------------- files


texts = st.text(
    st.characters(), max_size=30
)  # with lone surrogates, line separators, control characters
rows = st.lists(st.fixed_dictionaries({"step": st.integers(1, 9), "text": texts}), max_size=8)


@given(written=rows, step=st.integers(0, 9), torn=st.integers(0, 60))
def test_rows_up_to_a_step_are_kept_whatever_stands_in_them(
    written: list[dict[str, object]],
    step: int,
    torn: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "metrics.jsonl"
    append_rows(path, written)
    if torn:  # a last line that was cut off by a kill
        with path.open("ab") as file:
            file.write(('{"step": 1, "text": "' + "é" * 40).encode()[:torn])
    keep_rows_until(path, step)
    assert lines(path) == [row for row in written if row["step"] <= step]  # type: ignore[operator]
    append_rows(path, [{"step": step + 1}])
    assert lines(path)[-1] == {"step": step + 1}


def test_a_file_that_is_not_there_stays_so(tmp_path: Path) -> None:
    keep_rows_until(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "file.json"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_text(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_a_folder_that_is_taken_away_is_told(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle, and when all is done: what is written later makes a part of it again."""
    moves = f"    import os\n    if os.path.isdir({str(tmp_path / 'run' / 'stages')!r}):\n"
    moves += f"        os.rename({str(tmp_path / 'run')!r}, {str(tmp_path / 'moved')!r})\n"
    source = REWARD if last else REWARD.replace("    if answer", f"{moves}    if answer")
    made = recipe(tmp_path, grpo(), source=source, evals={"sets": ()})

    def at_the_end(session: Session) -> None:
        (tmp_path / "run").rename(tmp_path / "moved")

    if last:
        monkeypatch.setattr("rl_reasoner.pipeline.train.train_controls", at_the_end)
    with pytest.raises(FolderGone, match="/run was removed or moved while the run wrote to it"):
        train(made, quiet=True)
    assert (tmp_path / "moved" / "recipe.yaml").is_file()
