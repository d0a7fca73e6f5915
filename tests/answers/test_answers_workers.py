"""The verifier's worker processes: real kills, threads, forked and spawned parents, exit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.answers import second_opinion, verify, verify_many

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers in /proc")

NEEDS_SYMPY = [
    (r"\boxed{\sum_{k=1}^{n} k}", r"\frac{n(n+1)}{2}", 1.0),
    (r"\boxed{\cos(n\pi)}", "(-1)^n", 1.0),
    (r"\boxed{\int_0^1 x^2 dx}", r"\frac13", 1.0),
    (r"\boxed{\sum_{n=1}^{\infty}\frac{1}{n^2}}", r"\frac{\pi^2}{6}", 1.0),
    (r"\boxed{\sum_{k=1}^{n} k}", r"\frac{n(n-1)}{2}", 0.0),
]


def workers_of(parent: int) -> list[int]:
    """Process ids of the living workers whose parent is `parent`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = status.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z" and b"answers.worker" in command:
            found.append(int(status.parent.name))
    return found


def values(pairs: list[tuple[str, str, float]]) -> list[float | None]:
    return [verify(completion, gold).value for completion, gold, _ in pairs]


def batch(size: int) -> tuple[list[str], list[str], list[float]]:
    """Distinct rows with known verdicts, every third wrong."""
    completions = [rf"so \boxed{{\frac{{{i}}}{{7}}+\sqrt{{{i + 2}}}}}" for i in range(size)]
    golds = [rf"\sqrt{{{i + 2}}}+\frac{{{i + (i % 3 == 0)}}}{{7}}" for i in range(size)]
    return completions, golds, [float(i % 3 != 0) for i in range(size)]


def test_sympy_decides_what_fixed_points_cannot() -> None:
    assert values(NEEDS_SYMPY) == [expected for *_, expected in NEEDS_SYMPY]
    assert "sympy" in verify(*NEEDS_SYMPY[0][:2]).reason


def test_the_same_from_eight_threads_at_once() -> None:
    with ThreadPoolExecutor(8) as threads:
        for given in threads.map(lambda _: values(NEEDS_SYMPY[:3]), range(8)):
            assert given == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_same_in_a_child_of_either_kind(method: str) -> None:
    assert values(NEEDS_SYMPY[:1]) == [1.0]  # so that a forked child inherits pipes
    context = multiprocessing.get_context(method)
    with context.Pool(1) as child:
        assert child.apply(values, (NEEDS_SYMPY[:3],)) == [1.0, 1.0, 1.0]
        child.close()  # it ends by itself: leaving the block ends it by SIGTERM, which coverage
        child.join()  # answers in Python, and CPython can miss one just before it waits
    assert values(NEEDS_SYMPY[1:2]) == [1.0]  # the parent's worker still answers the parent


def test_a_batch_on_processes_equals_one_by_one() -> None:
    completions, golds, expected = batch(200)
    scores = verify_many(completions, golds, workers=2)
    assert [score.value for score in scores] == expected
    assert scores[5] == verify(completions[5], golds[5])


def test_a_batch_asks_sympy_too() -> None:
    completions = [completion for completion, *_ in NEEDS_SYMPY]
    golds = [gold for _, gold, _ in NEEDS_SYMPY]
    scores = verify_many(completions, golds, workers=2)
    assert [score.value for score in scores] == [expected for *_, expected in NEEDS_SYMPY]


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="argument"):
        verify_many(["a"], [])


def test_kill_9_in_the_middle_of_a_batch_changes_no_score() -> None:
    completions, golds, expected = batch(1_200)
    verify_many(completions[:200], golds[:200], workers=2)
    killed = threading.Thread(target=lambda: os.kill(workers_of(os.getpid())[0], signal.SIGKILL))
    timer = threading.Timer(0.02, killed.start)
    timer.start()
    scores = verify_many(completions, golds, workers=2)
    timer.join()
    killed.join()
    assert [score.value for score in scores] == expected


def test_workers_that_always_die_give_abstentions_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completions, golds, expected = batch(20)
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    for process in workers_of(os.getpid()):  # those that wait from earlier calls
        os.kill(process, signal.SIGKILL)
    scores = verify_many(completions, golds, workers=2)
    alone = verify(r"\boxed{\sum_{k=1}^{m} k^2}", "m")
    monkeypatch.undo()
    for score, value in zip(scores, expected, strict=True):
        assert score.value == value or (score.value is None and "worker failed" in score.reason)
    assert alone.value is None
    assert "died 2 times" in alone.reason
    assert verify(r"\boxed{\sum_{k=1}^{m} k}", r"\frac{m(m+1)}{2}").value == 1.0


def test_a_deadline_that_passes_is_a_zero_with_the_reason() -> None:
    score = verify(r"\boxed{\sum_{k=1}^{n} \frac{1}{k^5+k+1}}", r"\frac{n}{7}", timeout_s=0.001)
    assert score.value == 0.0
    assert "in time" in score.reason


def test_nothing_heavy_is_imported_and_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "no_main_guard.py"
    script.write_text(
        "import sys\n"
        "from rl_reasoner.answers import verify, verify_many\n"
        "verify(r'\\boxed{\\sqrt{8}}', r'2\\sqrt2')\n"
        "heavy = [name for name in ('torch', 'sympy') if name in sys.modules]\n"
        "verify(r'\\boxed{\\cos(n\\pi)}', '(-1)^n')\n"
        "print(heavy, flush=True)\n"
        "input()\n"
    )
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as parent:
        assert parent.stdout.readline() == "[]\n"
        [worker] = workers_of(parent.pid)
        parent.communicate("\n")
    assert parent.returncode == 0
    while Path(f"/proc/{worker}").exists():
        time.sleep(0.05)


def test_a_worker_that_starts_slowly_is_left_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row abstains, and the next one is judged by the same worker."""
    for process in workers_of(os.getpid()):
        os.kill(process, signal.SIGKILL)
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(second_opinion, "START_S", 0.1)
    row = (r"\boxed{\sum_{k=1}^{j} k}", r"\frac{j(j+1)}{2}")
    late = verify(*row)
    assert late.value is None and "no worker with sympy was ready" in late.reason
    monkeypatch.setattr(second_opinion, "START_S", 60.0)
    monkeypatch.setattr(sys, "executable", "/nowhere")  # no further worker can start
    assert verify(*row).value == 1.0
