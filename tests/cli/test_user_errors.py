"""The mistakes of a user: exit code 2, one clear message that names the thing, nothing written."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from rl_reasoner.cli import main
from support.commands import ROWS, TINY, Cli, lines


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes, and every folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
    }


Setup = Callable[[Path], object]


def no(folder: Path) -> None:
    """Nothing to prepare."""


def file(name: str, text: str) -> Setup:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def cut(folder: Path, *names: str) -> None:
    """The policy of the run as `cut`, without the files whose names begin so."""
    shutil.copytree(folder / "run/policy", folder / "cut")
    for path in (folder / "cut").iterdir():
        if path.name.startswith(names):
            path.unlink()


TRAIN = ("train", "tiny.yaml", "--quiet", "--run.folder", "new")
SCORE = ("score", "boxed")
EVAL = ("eval", "run", "--max-tokens", "4", "--limit", "2", "--reward", "boxed", "--sets")
MISTAKES: dict[str, tuple[Setup, tuple[str, ...], tuple[str, ...]]] = {
    "unknown verb": (no, ("trian", "x"), ("unknown verb 'trian'", "'train'")),
    "train nothing": (no, ("train",), ("Give a recipe",)),
    "two recipes": (no, ("train", "quickstart", "other"), ("other",)),
    "recipe name": (no, ("train", "quickstrat"), ("'quickstrat'", "'quickstart'")),
    "recipe file": (no, ("train", "nope.yaml"), ("nope.yaml",)),
    "recipe key": (
        file("bad.yaml", TINY.replace("steps: 1", "stepz: 1", 1)),
        ("train", "bad.yaml"),
        ("bad.yaml:7: stages.0.stepz", "'steps'"),
    ),
    "part of the data": (
        no,
        (*TRAIN, "--grpo.data.count", "1"),
        ("tiny.yaml:12 with --grpo.data.count 1: stage grpo: 1 row cannot fill",),
    ),
    "stage without a kind": (
        file("bad.yaml", TINY.replace("kind: ", "kin: ", 1)),
        ("train", "bad.yaml"),
        ("bad.yaml:", "expected a 'kind', such as kind: grpo"),
    ),
    "weight": (no, (*TRAIN, "--rewards", "{length: true}"), ("expected a weight (a number)",)),
    "file of the recipes' folder": (no, ("copy", "README.md"), ("unknown recipe 'README.md'",)),
    "recipe is no YAML": (file("bad.yaml", "a: ["), ("train", "bad.yaml"), ("bad.yaml:1",)),
    "script syntax": (file("bad.py", "def (:"), ("train", "bad.py"), ("bad.py:1", "syntax")),
    "flag": (no, (*TRAIN, "--grup.size", "4"), ("--grup.size", "'--group.size'")),
    "flag of a verb": (no, ("eval", "run", "--sampels", "3"), ("--sampels",)),
    "flag without value": (no, (*TRAIN, "--steps"), ("--steps: expected a value",)),
    "micro batch": (no, (*TRAIN, "--group.micro_batch", "3"), ("--group.micro_batch 3", "= 4")),
    "group of one": (no, (*TRAIN, "--group.size", "1"), ("--group.size 1", "expected at least 2")),
    "template": (no, (*TRAIN, "--template", "Q:"), ("--template Q:", "{problem}")),
    "stage names": (no, (*TRAIN, "--sft.name", "grpo"), ("the same name: grpo, grpo",)),
    "trainer argument": (no, (*TRAIN, "--trainer.sed", "1"), ("'sed'", "GRPOConfig", "'seed'")),
    "loss type": (no, (*TRAIN, "--loss.type", "drgrpo"), ("--loss.type drgrpo", "'dr_grpo'")),
    "task": (no, (*TRAIN, "--data.task", "modulr"), ("'modulr'", "'modular'")),
    "data missing": (no, (*TRAIN, "--data.path", "no.jsonl"), ("'no.jsonl'",)),
    "data file's name": (
        no,
        (*TRAIN, "--data.path", "savd.jsonl"),
        ("'savd.jsonl'", "Did you mean 'saved.jsonl'"),
    ),
    "data empty": (file("e.jsonl", ""), (*TRAIN, "--data.path", "e.jsonl"), ("e.jsonl is empty",)),
    "data not JSON": (
        file("d.jsonl", lines(ROWS[0]) + "{'problem'}\n"),
        (*TRAIN, "--data.path", "d.jsonl"),
        ("d.jsonl, line 2: not JSON",),
    ),
    "data column": (
        file("d.jsonl", lines({"question": "q", "answr": "1"})),
        (*TRAIN, "--data.path", "d.jsonl", "--data.columns.problem", "question"),
        ("d.jsonl: no column 'answer'", "'answer'", "'answr'"),
    ),
    "data without completions": (
        file(
            "d.jsonl",
            lines({"problem": "q", "answer": "1", "chain": "c"}, ROWS[0] | {"completion": ""}),
        ),
        (*TRAIN, "--sft.data.path", "d.jsonl"),
        ("row 7 has no completion",),
    ),
    "evaluation set": (no, (*TRAIN, "--evals.sets", "modular_tst"), ("'modular_test'",)),
    "reward": (no, (*TRAIN, "--rewards", "{lenght: 1}"), ("'lenght'", "'length'")),
    "reward function": (no, (*TRAIN, "--rewards", "{'rewards.py:fin': 1}"), ("'fin'", "'fine'")),
    "reward file": (no, (*TRAIN, "--rewards", "{'no.py:f': 1}"), ("no.py",)),
    "reward file without name": (
        no,
        (*TRAIN, "--rewards", "{rewards.py: 1}"),
        ("rewards.py:NAME",),
    ),
    "reward syntax": (
        file("bad.py", "x = 1\ndef f(:\n"),
        (*TRAIN, "--rewards", "{'bad.py:f': 1}"),
        ("bad.py:2", "syntax error"),
    ),
    "reward type": (
        no,
        (*TRAIN, "--rewards", "{'rewards.py:wordy': 1}"),
        ("'wordy' returned str ('very good')", "expected a float"),
    ),
    "reward is no function": (
        no,
        (*TRAIN, "--rewards", "{'rewards.py:number': 1}"),
        ("'rewards.py:number' is int",),
    ),
    "reward option": (
        no,
        (*TRAIN, "--rewards", "{'rewards.py:fine': {options: {bonsu: 1}}}"),
        ("'bonsu'", "'bonus'"),
    ),
    "reward column": (
        no,
        (*TRAIN, "--rewards", "{countdown: 1}"),
        ("'countdown' needs the column 'numbers'",),
    ),
    "policy": (no, (*TRAIN, "--policy", "scratch:moe-tny"), ("scratch:moe-tny", "moe-tiny'")),
    "policy without tokenizer": (
        lambda folder: cut(folder, "tokenizer", "special"),
        (*TRAIN, "--policy", "cut"),
        ("'cut' has no tokenizer",),
    ),
    "policy without model": (
        lambda folder: cut(folder, "model", "config"),
        (*TRAIN, "--policy", "cut"),
        ("'cut' is a folder without a model",),
    ),
    "run folder there": (no, ("train", "tiny.yaml", "--quiet"), ("run exists already", "--resume")),
    "run folder below a file": (
        no,
        (*TRAIN, "--run.folder", "tiny.yaml/x"),
        ("cannot write to the run folder tiny.yaml/x",),
    ),
    "resume nothing": (no, ("train", "--resume", "no"), ("no is not a run folder",)),
    "resume near": (no, ("train", "--resume", "rnu"), ("no such folder. Did you mean 'run'?",)),
    "why near": (no, ("why", "rnu", "--step", "1"), ("no such folder. Did you mean 'run'?",)),
    "report near": (no, ("report", "rnu"), ("no such folder. Did you mean 'run'?",)),
    "resume a policy": (no, ("train", "--resume", "run/policy"), ("is not a run folder",)),
    "resume with flags": (
        no,
        ("train", "--resume", "run", "--setps", "9"),
        ("--setps", "'--steps'"),
    ),
    "from no stage": (
        no,
        ("train", "--resume", "run", "--from", "grop"),
        ("unknown stage (--from) 'grop'", "'grpo'"),
    ),
    "until no stage": (
        no,
        ("train", "tiny.yaml", "--until", "stf"),
        ("unknown stage (--until) 'stf'", "'sft'"),
    ),
    "start at no stage": (
        no,
        (*TRAIN, "--grpo.start", "stf"),
        ("no stage with a policy 'stf' before it", "'sft'"),
    ),
    "resume another recipe": (
        no,
        ("train", "quickstart", "--resume", "run"),
        ("'tiny'", "'quickstart'"),
    ),
    "resume elsewhere": (
        no,
        ("train", "--resume", "run", "--run.folder", "fork", "--sft.steps", "9"),
        ("--run.folder fork: a run stays in its own folder, run",),
    ),
    "eval: column without a name": (
        file("cells.csv", "0,1\n1+1=,2\n"),
        (*EVAL, "cells.csv", "--columns", "problem=0,answer=2"),
        ("no column '2'", "0, 1"),
    ),
    "eval: policy": (no, ("eval", "scratch:tiny", "--sets", "modular_test"), ("scratch:tiny",)),
    "eval: set": (no, (*EVAL, "modular_tset"), ("'modular_tset'", "'modular_test'")),
    "eval: reward": (no, (*EVAL, "modular_test", "--reward", "boxd"), ("'boxd'", "'boxed'")),
    "eval: samples": (
        no,
        (*EVAL, "modular_test", "--samples", "0"),
        ("--samples 0: expected 1 or",),
    ),
    "eval: number": (no, (*EVAL, "modular_test", "--samples", "x"), ("--samples",)),
    "eval: temperature": (
        no,
        (*EVAL, "modular_test", "--temperature", "-1"),
        ("--temperature -1", "0 or more"),
    ),
    "eval: template": (no, (*EVAL, "modular_test", "--template", "Q:"), ("'Q:'", "{problem}")),
    "eval: out": (no, (*EVAL, "modular_test", "--out", "tiny.yaml/x"), ("tiny.yaml/x",)),
    "eval: folder": (no, (*EVAL, "modular_test", "--data-dir", "no"), ("--data-dir", "no")),
    "chat: policy": (no, ("chat", "scratch:tiny"), ("scratch:tiny",)),
    "chat: tokens": (no, ("chat", "run", "--max-tokens", "0"), ("--max-tokens 0: expected",)),
    "compare: no file": (no, ("compare", "no.json", "no.json"), ("there is no file no.json",)),
    "compare: no result": (
        no,
        ("compare", "saved.jsonl", "saved.jsonl"),
        ("not an evaluation result",),
    ),
    "score: reward": (no, ("score", "boxd", "saved.jsonl"), ("'boxd'", "'boxed'")),
    "score: file": (no, (*SCORE, "no.jsonl"), ("'no.jsonl'",)),
    "score: no completions": (
        file("d.jsonl", lines({"completoin": "x"})),
        (*SCORE, "d.jsonl"),
        ("d.jsonl, row 1", "'completion'", "'completoin'"),
    ),
    "score: both": (no, ("score", "boxd", "no.jsonl"), ("'boxd'", "'boxed'", "'no.jsonl'")),
    "score: both rewards": (
        no,
        ("score", "boxd", "saved.jsonl", "--disagree", "lenght"),
        ("'boxd'", "'lenght'"),
    ),
    "score: null": (
        file("d.jsonl", lines({"completion": "x"}, {"completion": None})),
        (*SCORE, "d.jsonl"),
        ("d.jsonl, row 2: the value of 'completion' is null",),
    ),
    "score: null column": (
        file("d.jsonl", lines({"completion": "x", "answer": None})),
        ("score", "rewards.py:fine", "d.jsonl"),
        ("the value of 'answer', which the reward rewards.py:fine needs, is null",),
    ),
    "score: policy_text": (
        file("d.jsonl", lines({**ROWS[0], "policy_text": 5})),
        (*SCORE, "d.jsonl"),
        ("d.jsonl, row 1: 'policy_text' is 5, not the text that the policy wrote",),
    ),
    "check: no server": (
        no,
        ("check", "http://127.0.0.1:9/score"),
        ("reward http://127.0.0.1:9/score: no server answers there",),
    ),
    "check: no host": (no, ("check", "http://"), ("reward http://: a URL without a host",)),
    "check: no URL": (no, ("check", "http://[::1"), ("reward http://[::1: no URL: ",)),
    "score: number": (
        file("d.jsonl", lines({"completion": "x"}, {"completion": 5})),
        (*SCORE, "d.jsonl"),
        ("d.jsonl, row 2: 'completion' is 5: expected a text, or a list of messages",),
    ),
    "score: texts": (
        file("d.jsonl", lines({"completion": ["a", "b"]})),
        (*SCORE, "d.jsonl"),
        ("d.jsonl, row 1: 'completion' is ['a', 'b']: expected a text",),
    ),
    "score: no prompt": (
        file("d.jsonl", lines({"completion": "16 - 3 = 13", "promt": "x"})),
        ("score", "step_arithmetic", "d.jsonl"),
        ("d.jsonl, row 1: no column 'prompt', which the reward step_arithmetic needs", "'promt'"),
    ),
    "score: stage": (no, (*SCORE, "saved.jsonl", "--stage", "grpo"), ("--stage: only with",)),
    "score: disagree": (
        no,
        (*SCORE, "--rescore", "run", "--disagree", "length"),
        ("--disagree: only with a FILE",),
    ),
    "score: folder": (no, (*SCORE, "run"), ("run is a folder: give a file in it",)),
    "score: no column": (
        file("d.jsonl", lines(ROWS[0], {"completion": "x"})),
        ("score", "rewards.py:fine", "d.jsonl"),
        ("d.jsonl, row 2: no column 'answer', which the reward rewards.py:fine needs",),
    ),
    "score: onto itself": (no, (*SCORE, "saved.jsonl", "--out", "./saved.jsonl"), ("saved.jsonl",)),
    "score: out": (no, (*SCORE, "saved.jsonl", "--out", "tiny.yaml/x"), ("tiny.yaml/x",)),
    "list: kind": (no, ("list", "reward"), ("'reward'", "'rewards'")),
    "copy: recipe": (no, ("copy", "quikstart"), ("'quikstart'", "'quickstart'")),
    "copy: reward": (no, ("copy", "rewards/lenght"), ("'lenght'", "'length'")),
    "copy: target": (no, ("copy", "quickstart", "tiny.yaml/x.py"), ("tiny.yaml/x.py",)),
    "report: no run": (no, ("report", "run/policy"), ("is not a run folder",)),
    "export: there": (no, ("export", "run", "run"), ("run exists already",)),
    "export: below a file": (no, ("export", "run", "tiny.yaml/x"), ("tiny.yaml/x",)),
    "export: engine": (no, ("export", "tiny.yaml", "new", "--to", "verll"), ("'verll'", "'verl'")),
    "export: to, there": (no, ("export", "tiny.yaml", "run", "--to", "verl"), ("run exists",)),
    "export: to, recipe": (no, ("export", "tiny.yml", "new", "--to", "verl"), ("tiny.yml",)),
    "export: chosen": (no, ("export", "run", "new", "--chosen", "3"), ("--chosen", "--upcycle")),
    "export: dtype": (no, ("export", "run", "new", "--dtype", "fp23"), ("'fp23'", "'fp32'")),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_message_and_nothing_is_written(
    case: str, here: Path, cli: Cli
) -> None:
    setup, argv, words = MISTAKES[case]
    setup(here)
    before = contents(here)
    ended = cli(*argv)
    shown = " ".join(ended.err.split()) + ended.out
    assert ended.code == 2, shown
    assert "Traceback" not in shown
    for word in words:
        assert word in shown
    assert contents(here) == before


@pytest.fixture
def read_only(here: Path) -> Iterator[Path]:
    """A folder that cannot be written to, whoever asks: a file system mounted read-only."""
    folder = here / "sealed"
    folder.mkdir()
    shutil.copytree(here / "run", folder / "run")
    mounted = subprocess.run(
        ["mount", "--bind", "-o", "ro", str(folder), str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a read-only folder needs root")
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this mount does not take the option ro at once")
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((*TRAIN[:3], "--run.folder", "sealed/new"), "cannot write to the run folder sealed/new"),
        (("train", "--resume", "sealed/run", "--quiet"), "cannot write to the run folder sealed/"),
        (("report", "sealed/run"), "cannot write sealed/run/report.html"),
        (("copy", "quickstart", "sealed"), "cannot write sealed/quickstart.py"),
        (("export", "run", "sealed/out"), "cannot write sealed/out"),
        ((*SCORE, "saved.jsonl", "--out", "sealed/x"), "cannot write sealed/x"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told(
    argv: tuple[str, ...], says: str, read_only: Path, cli: Cli
) -> None:
    ended = cli(*argv)
    assert ended.code == 2
    assert says in ended.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        Path("/dev/full").write_text("x", encoding="utf-8")

    monkeypatch.setattr("rl_reasoner.files.write_text", full)
    ended = cli(*SCORE, "saved.jsonl")
    assert ended.code == 2
    assert "No space left on device" in ended.err


def test_a_full_disk_is_told_by_export(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    ended = cli("export", "scratch:dense-tiny", "out")
    assert ended.code == 2
    assert "out.part: No space left on device" in ended.err
    assert not [*here.glob("*out*")], "the same command may be given again"


def test_an_export_that_is_killed_leaves_no_policy_and_may_be_given_again(
    here: Path, cli: Cli
) -> None:
    child = os.fork()
    if child == 0:
        kill = partial(os.kill, os.getpid(), signal.SIGKILL)
        PreTrainedTokenizerBase.save_pretrained = lambda *given, **named: kill()
        try:
            main(["export", "scratch:dense-tiny", "out", "--json"])
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (here / "out").exists(), "weights without their tokenizer"
    assert cli("export", "scratch:dense-tiny", "out").code == 0
    assert [file.name for file in here.glob("*out*")] == ["out"]


def test_a_reward_copied_by_its_bare_name_is_told_where_it_is(here: Path, cli: Cli) -> None:
    for name in ("length", "length.py"):
        assert "rl-reasoner copy rewards/length" in cli("copy", name).err


def test_a_file_in_place_of_the_run_folder_is_told(here: Path, cli: Cli) -> None:
    Path("taken").write_text("", encoding="utf-8")
    ended = cli(*TRAIN[:3], "--run.folder", "taken")
    assert ended.code == 2
    assert "--run.folder taken: this is a file; give a folder" in ended.err
