"""The reward test kit and this process: all trials of a file's reward run in others."""

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.testing.findings import Finding
from rl_reasoner.testing.kit import examine
from rl_reasoner.testing.wrappers import threaded
from support.commands import Cli

HELPER = """
def is_right(text, answer):
    return float(f"<answer>{answer}</answer>" in text)
"""
REWARDS = """
import os, threading
from aid import is_right
from rl_reasoner import reward

LOCK = threading.Lock()
HERE = {here}

def judged(text, answer):
    assert os.getpid() != HERE, "it runs in the process of the kit"
    with LOCK:
        return is_right(text, answer)

@reward
def helped(completion: str, answer: str) -> float:
    return judged(completion, answer)

def plain(completions, answer, **columns):
    return [judged(text, right) for text, right in zip(completions, answer)]

@reward
def ends(completion: str, answer: str) -> float:
    if threading.current_thread() is not threading.main_thread():
        os._exit(7)
    return judged(completion, answer)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of rewards with a helper beside it and a lock, which no copy could have."""
    (tmp_path / "aid.py").write_text(HELPER)
    (tmp_path / "kept.py").write_text(REWARDS.format(here=os.getpid()))
    return tmp_path / "kept.py"


def found(fn: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(fn).findings}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["helped", "plain"])
def test_a_reward_of_a_file_is_tried_in_processes_of_its_own(
    name: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    checks = found(load_reward(f"{file}:{name}"))
    assert checks["process"].status == checks["distinguishes"].status == "passed"
    assert checks["threads"].status == checks["leaves data unchanged"].status == "passed"
    assert "on a thread" not in caplog.text


@pytest.mark.slow
def test_a_reward_that_ends_its_process_on_a_thread_ends_no_command(file: Path) -> None:
    checks = found(load_reward(f"{file}:ends"))
    assert checks["threads"].status == "failed"
    assert checks["threads"].message == "reward 'ends': its process ended (exit code 7)"
    assert checks["leaves data unchanged"].status == "passed"


def test_threads_are_switched_as_before_afterwards() -> None:
    before = sys.getswitchinterval()
    agreed = threaded(lambda completions, **columns: [1.0] * len(completions))
    assert agreed(completions=["a", "b"]) == [1.0, 1.0]
    with pytest.raises(ZeroDivisionError):
        threaded(lambda completions, **columns: [1 / 0])(completions=["a"])
    assert sys.getswitchinterval() == before


def test_what_moves_into_this_process_in_a_trial_has_no_verdict() -> None:
    """It draws another number each time, but only where eight threads ask: it is not judged so."""
    calls: list[int] = []

    def counts(completions: Any, answer: Any, **columns: Any) -> list[float]:
        if threading.current_thread() is not threading.main_thread():
            calls.append(1)
        pairs = zip(completions, answer, strict=True)
        return [float(f"<answer>{right}</answer>" in text) for text, right in pairs]

    checks = found(counts)
    assert checks["process"].status == "passed"
    assert checks["threads"].status == "skipped"
    assert checks["threads"].message == "it runs in this process"


def test_rows_without_the_column_are_told_by_their_file(tmp_path: Path, cli: Cli) -> None:
    rows = [{"problem": f"{i} + 1 =", "anwser": str(i + 1)} for i in range(4)]
    file = tmp_path / "lack.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    ended = cli("check", "math_answer", "--data", str(file))
    said = " ".join(ended.err.split())
    assert ended.code == 2 and "built-in" not in said and "--data" not in said
    assert "needs the column 'answer'; " in said
    assert "lack.jsonl has none. Did you mean 'anwser'?" in said
    with pytest.raises(UserError, match="'answer'; the data has none"):
        examine(load_reward("math_answer"), rows)


def test_rows_that_are_all_bad_are_told_with_the_reason() -> None:
    rows: list[Any] = [{"problem": "", "answer": "4"}, {"problem": "2 + 3 =", "answer": ["5", "6"]}]
    with pytest.raises(UserError) as refused:
        examine(load_reward("math_answer"), rows)
    first, second, few = refused.value.messages
    assert first == "the data, row 1: the problem is empty"
    assert second.startswith("the data, row 2: the answer is ['5', '6']")
    assert "three rows" in few


def test_rows_are_those_that_training_takes() -> None:
    """Tests in the form of a data set are read, and an answer in a list is the answer."""
    rows = [
        {"problem": f"double {i}", "answer": [str(i)], "test_list": [f"assert f(1) == {i}"]}
        for i in range(4)
    ]
    checks = {f.check: f for f in examine(load_reward("math_answer"), rows).findings}
    assert checks["distinguishes"].message.startswith("right 1")
