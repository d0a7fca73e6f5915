"""Shared by the test files: the command line in an empty folder or beside a finished tiny run."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in every job of a script with `&`,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where Ctrl-C cannot be tested
os.environ.setdefault("RL_REASONER_REPORT_TO", "none")  # no dashboard, also where there is one
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


REWARD = """
from rl_reasoner import Score, reward


@reward
def fine(completion: str, answer: str, bonus: float = 0.0) -> Score:
    return Score(len(completion) % 2 + bonus, "by its length")


@reward
def wordy(completion: str, answer: str) -> str:
    return "very good"


@reward
def picky(completion: str, answer: str) -> float:
    if completion != answer:
        raise ValueError("not the answer")
    return 1.0


number = 3
"""
TINY = """
name: tiny
policy: scratch:dense-tiny
template: plain
rewards: {"rewards.py:fine": 1}
stages:
- {kind: sft, steps: 1, batch: 4, data: {task: modular, count: 8}}
- kind: grpo
  steps: 1
  group: {size: 2, prompts: 2}
  sampling: {max_tokens: 4}
  data: {task: modular, count: 8, seed: 1}
evals: {sets: [modular_test], limit: 2, max_tokens: 4, reward: "rewards.py:fine"}
run: {folder: run}
"""
ROWS = [
    {"id": 7, "problem": "1+1=", "answer": "2", "completion": "so \\boxed{2}"},
    {"id": 8, "problem": "2+2=", "answer": "4", "completion": "<answer>4</answer>"},
    {"id": 9, "problem": "3+3=", "answer": "6", "completion": ""},
]


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def stock(folder: Path) -> None:
    """The files that the commands of these tests name."""
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    (folder / "saved.jsonl").write_text(lines(*ROWS), encoding="utf-8")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`rl-reasoner ARGUMENTS` in this process, in a folder of its own (`tmp_path`).

    An exception that the command line lets through fails the test, as its traceback would be shown.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RL_REASONER_DATA", raising=False)
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))

    def run(*argv: str | Path, stdin: str = "") -> Ended:
        from rl_reasoner.cli import main

        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        shown = capsys.readouterr()
        return Ended(code, shown.out, shown.err)

    return run


def run_outside(folder: Path, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`rl-reasoner ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rl_reasoner.cli", *argv],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `rl-reasoner train tiny.yaml --json` has been run; the run is in `run`."""
    folder = tmp_path_factory.mktemp("trained")
    stock(folder)
    done = run_outside(folder, "train", "tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    (folder / "train.json").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> Path:
    """The folder that `cli` runs in, with the files above and a copy of the finished run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path
