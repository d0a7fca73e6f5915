"""Verbs beside `train` that are cut short: no room to write, a kill, a signal, two at once.

What is half written is not there, and the same command may be given again.
"""

import json
import os
import resource
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from rl_reasoner import Recipe
from rl_reasoner.pipeline.run_folder import Interrupted
from rl_reasoner.policy.policy import Policy
from rl_reasoner.policy.scratch import scratch_policy
from rl_reasoner.training.checkpointing.faults import DiskFull
from support.commands import Cli
from support.ready import Ready

MAIN = "import sys; from rl_reasoner.cli import main; sys.exit(main())"
# Before the verb: a signal comes when the tokenizer is about to be written, behind the weights.
AT_TOKENIZER = """
import os, signal
from transformers import PreTrainedTokenizerBase
signal.signal(signal.SIGHUP, signal.SIG_DFL)
PreTrainedTokenizerBase.save_pretrained = lambda *given, **named: os.kill(os.getpid(), {number})
"""
AFTER = "run/evals/after.json"
REPLAY = ("eval", "--replay", AFTER, "--out", "out.json", "--run-its-code")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Inside, no file can grow beyond so many bytes, as by `ulimit -f`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, with its bytes."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("argv", "size"),
    [
        (("export", "run", "out"), 4096),
        (("export", "tiny.yaml", "out", "--to", "verl", "--run-its-code"), 1024),
        (("publish", "run", "out"), 4096),
        (("copy", "quickstart", "out.py"), 256),
        (("copy", "quickstart.yaml", "out.yaml"), 256),
        (("report", "run"), 4096),
        (("score", "rewards.py:fine", "saved.jsonl", "--out", "out.jsonl"), 64),
        (REPLAY, 1024),
    ],
    ids=lambda given: " ".join(given[:4]) if isinstance(given, tuple) else "",
)
def test_no_room_for_a_file_is_one_line_and_nothing_is_left(
    argv: tuple[str, ...], size: int, here: Path, cli: Cli
) -> None:
    (here / "out.html").write_text("the page of an older result")
    before = everything(here)
    with files_up_to(size):
        ended = cli(*argv)
    assert ended.code == 2 and "Traceback" not in ended.err
    [said] = [line for line in ended.err.splitlines() if "File too large" in line]
    place = argv[-1] if argv[:2] == ("report", "run") else "out"
    assert said.startswith("error: ") and (place in said or "rl-reasoner-audit" in said)
    assert everything(here) == before
    assert cli(*argv).code == 0, "the same command again"


def test_a_disk_that_is_full_behind_the_weights_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:  # as tokenizers tells it
        raise Exception("No space left on device (os error 28)")

    policy = scratch_policy("dense-tiny", 0)
    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left") as told:
        policy.save(tmp_path / "policy")
    assert told.value.filename == str(tmp_path / "policy")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_verb_in_order(number: signal.Signals, here: Path) -> None:
    before = everything(here)
    code = AT_TOKENIZER.format(number=int(number)) + MAIN
    ended = Ready(here, code, "export", "run", "out").wait()
    assert ended.returncode == 130 and ended.stderr.endswith("interrupted\n")
    assert everything(here) == before


def test_a_signal_that_comes_again_at_once_does_not_end_the_cleaning(here: Path) -> None:
    """As from `timeout`, which sends it to its command and to the group, or as a shell closes."""
    again = """
import shutil
removed = shutil.rmtree
def and_again(path, **named):
    os.kill(os.getpid(), {number})
    removed(path, **named)
shutil.rmtree = and_again
"""
    before = everything(here)
    code = (AT_TOKENIZER + again).format(number=int(signal.SIGTERM)) + MAIN
    ended = Ready(here, code, "export", "run", "out").wait()
    assert ended.returncode == 130 and ended.stderr.endswith("interrupted\n")
    assert everything(here) == before


def test_what_a_stopped_evaluation_has_sampled_is_told_to_be_kept(here: Path) -> None:
    stopping = """
import os, signal
from rl_reasoner.evaluation.judging import Judge
Judge.score = lambda *given: os.kill(os.getpid(), signal.SIGTERM)
"""
    argv = ("eval", "run", "--sets", "modular_test", "--limit", "2", "--max-tokens", "4")
    ended = Ready(here, stopping + MAIN, *argv).wait()
    assert ended.returncode == 130
    assert "what was sampled is kept: the same command goes on there" in ended.stderr


def test_of_two_exports_at_once_one_is_refused(here: Path, cli: Cli) -> None:
    waiting = """
import time
from pathlib import Path
from transformers import PreTrainedTokenizerBase
save = PreTrainedTokenizerBase.save_pretrained
def later(*given, **named):
    Path("begun").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return save(*given, **named)
PreTrainedTokenizerBase.save_pretrained = later
"""
    argv = ("export", "run", "out")
    first = Ready(here, waiting + MAIN, *argv)
    try:
        while not (here / "begun").exists():
            assert first.poll() is None
        ended = cli(*argv)
        assert ended.code == 2 and "is writing out" in ended.err
        assert not (here / "out").exists()
    finally:
        (here / "go").touch()
        done = first.wait()
    assert done.returncode == 0, done.stderr
    assert cli("eval", "out", "--sets", "modular_test", "--limit", "1", "--quiet").code == 0


def test_a_folder_that_came_meanwhile_is_not_written_over(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Policy.save

    def meanwhile(policy: Policy, folder: Path) -> None:
        save(policy, folder)
        (here / "out").mkdir()

    monkeypatch.setattr(Policy, "save", meanwhile)
    ended = cli("export", "run", "out")
    assert ended.code == 2 and "out exists already" in ended.err
    assert [file.name for file in here.glob("*out*")] == ["out"]


def test_a_result_is_never_beside_the_rows_of_another(here: Path, cli: Cli) -> None:
    assert cli(*REPLAY).code == 0
    again = (*REPLAY, "--reward", "rewards.py:fine")
    killing = """
import os
from pathlib import Path
replace = Path.replace
def killed(file, target):
    made = replace(file, target)
    os.kill(os.getpid(), 9)
Path.replace = killed
"""
    ended = Ready(here, killing + MAIN, *again).wait()
    assert ended.returncode == -signal.SIGKILL
    rows = (here / "out.rows.jsonl").read_text().splitlines()
    assert "by its length" in rows[0], "those of the new result"
    assert not (here / "out.json").exists(), "the figures of the old one"
    assert cli(*again).code == 0
    assert json.loads((here / "out.json").read_text())["settings"]["reward"] == "rewards.py:fine"


def test_a_pipe_is_not_replaced_by_a_file(here: Path, cli: Cli) -> None:
    os.mkfifo(here / "pipe")
    for argv in (
        ("score", "rewards.py:fine", "saved.jsonl"),
        ("eval", "--replay", AFTER, "--run-its-code"),
    ):
        ended = cli(*argv, "--out", "pipe")
        assert ended.code == 2 and "pipe is a device or a pipe" in ended.err
    assert stat.S_ISFIFO((here / "pipe").lstat().st_mode)


def test_what_others_have_put_beside_a_policy_is_not_published(here: Path, cli: Cli) -> None:
    wanted = {file.name for file in (here / "run/policy").iterdir()}
    shutil.copytree(here / "run/policy", here / "run/policy/older")
    (here / "run/policy/notes.txt").write_text("mine")
    (here / "run/policy/generation_config.json").unlink()  # what is left out is no matter
    wanted.remove("generation_config.json")
    assert cli("publish", "run", "out", "--no-records").code == 0
    made = {file.name for file in (here / "out").iterdir()}
    assert made == wanted | {"README.md", "audit.json", "report.html"}


def test_a_run_that_is_killed_in_its_last_save_has_no_policy_yet(here: Path, cli: Cli) -> None:
    killing = """
import os
from pathlib import Path
from transformers import PreTrainedTokenizerBase
save = PreTrainedTokenizerBase.save_pretrained
def killed(tokenizer, folder, **named):
    if Path(folder).parent.name == "new":
        os.kill(os.getpid(), 9)
    return save(tokenizer, folder, **named)
PreTrainedTokenizerBase.save_pretrained = killed
"""
    argv = ("train", "tiny.yaml", "--quiet", "--run.folder", "new")
    assert Ready(here, killing + MAIN, *argv).wait().returncode == -signal.SIGKILL
    for verb in ("export", "publish"):
        ended = cli(verb, "new", "out")
        assert ended.code == 2 and "--resume new" in ended.err
    assert cli("train", "--resume", "new", "--quiet").code == 0
    assert cli("publish", "new", "out").code == 0
    assert not [file for file in (here / "new").rglob(".*") if file.name != ".lock"]
    weights = [(here / run / "policy/model.safetensors").read_bytes() for run in ("run", "new")]
    assert weights[0] == weights[1]


def test_a_finished_run_whose_resume_is_killed_in_its_save_has_its_policy_still(
    here: Path, cli: Cli
) -> None:
    killing = """
import os
from pathlib import Path
from transformers import PreTrainedModel
def killed(model, folder, **named):
    (Path(folder) / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), 9)
PreTrainedModel.save_pretrained = killed
"""
    before = everything(here / "run/policy")
    argv = ("train", "--resume", "run", "--quiet")
    assert Ready(here, killing + MAIN, *argv).wait().returncode == -signal.SIGKILL
    assert everything(here / "run/policy") == before
    (here / "run/policy/notes.txt").write_text("mine")
    assert cli(*argv).code == 0
    after = everything(here / "run/policy")
    assert after == before | {str(here / "run/policy/notes.txt"): b"mine"}
    assert not [file for file in (here / "run").rglob(".*") if file.name != ".lock"]


def test_a_run_that_has_not_come_to_its_end_is_not_published(here: Path, cli: Cli) -> None:
    (here / "run/hashes.json").unlink()
    ended = cli("publish", "run", "out")
    assert ended.code == 2
    assert "run has not come to its end: finish it with rl-reasoner train --resume run" in ended.err
    assert cli("train", "--resume", "run", "--quiet").code == 0
    assert cli("publish", "run", "out").code == 0


@pytest.mark.parametrize("stopped", [Interrupted(Path("scratch")), DiskFull("nothing is left")])
def test_an_audit_that_is_stopped_names_no_folder_that_is_gone(
    stopped: BaseException, here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(again: Recipe, *, resume: Path, **named: object) -> None:
        stopped.folder = resume  # type: ignore[attr-defined]
        raise stopped

    monkeypatch.setattr("rl_reasoner.audit.replaying.train", stops)
    ended = cli("audit", "run", "--all", "--run-its-code")
    assert ended.code == (130 if isinstance(stopped, Interrupted) else 1)
    assert "continue with" not in ended.err
