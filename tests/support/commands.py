"""The command line as a user has it, and the files that its tests name."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.ready import Ready

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


_MAIN = "import sys; from rl_reasoner.cli import main; sys.exit(main())"


def start_outside(folder: Path, *argv: str, stdin: str = "", **said: str) -> Ready:
    """Start `rl-reasoner ARGUMENTS` in a process of its own, told `said` by its environment."""
    return Ready(folder, _MAIN, *argv, stdin=stdin, **said)


def run_outside(
    folder: Path, *argv: str, stdin: str = "", **said: str
) -> subprocess.CompletedProcess[str]:
    """`rl-reasoner ARGUMENTS` in a process of its own, told `said` by its environment."""
    return start_outside(folder, *argv, stdin=stdin, **said).wait()


def whole_and_resumed(folder: Path, recipe: str, metrics: str, rows: int) -> None:
    """Run `recipe` as run "whole", and as "killed": by SIGKILL soon behind `rows` of `metrics`.

    The killed one is resumed to its end. Both are in `folder`, `metrics` is a file of the run.
    """
    run_outside(folder, "train", recipe, "--run.folder", "whole").check_returncode()
    running = start_outside(folder, "train", recipe, "--run.folder", "killed")
    file = folder / "killed" / metrics
    while not file.is_file() or len(file.read_text().splitlines()) < rows:
        assert running.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    running.kill()
    run_outside(folder, "train", "--resume", "killed").check_returncode()
