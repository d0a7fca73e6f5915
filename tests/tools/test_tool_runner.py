"""Whatever a policy calls and a tool does, the policy gets a text, and nothing is left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import tool
from rl_reasoner.errors import UserError
from rl_reasoner.tools.runner import ToolRunner, ToolSession
from rl_reasoner.tools.tool import MalformedCall, Tool, ToolCall, ToolLimits
from support import hostile_tools
from support.places import ROOT
from support.processes import children, state_of

pytestmark = pytest.mark.slow
FILE = ROOT / "tests" / "support" / "hostile_tools.py"
HOSTILE = [each for each in vars(hostile_tools).values() if isinstance(each, Tool)]
LIMITS = ToolLimits(timeout_s=3.0, memory_mb=512, output_chars=300)


@pytest.fixture(scope="module")
def runner() -> Iterator[ToolRunner]:
    with ToolRunner(["calculator", "python", *HOSTILE], LIMITS) as made:
        yield made


def ended(pid: int) -> None:
    """Wait until a process has ended."""
    while state_of(pid):
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "text"),
    [
        ("good", {"text": "ab", "times": 2}, "ok", "abab"),
        ("calculator", {"expression": "347*29"}, "ok", "10063"),
        ("python", {"code": "347*29"}, "ok", "10063"),
        ("good", {"text": "ab" * 500}, "cut", "[700 characters cut]"),
        ("calculator", {"expression": "1/0"}, "failed", "calculator failed: ZeroDivisionError"),
        ("python", {"code": "1/0"}, "failed", "ZeroDivisionError: division by zero"),
        ("good", {"text": 3}, "malformed", "malformed call: good: text: Input should be a valid"),
        ("good", {}, "malformed", "malformed call: good: text: Field required"),
        ("python", {"cod": "1"}, "malformed", "malformed call: python: code: Field required"),
        ("calculater", {}, "malformed", "Did you mean 'calculator'?"),
        ("raises", {"text": "x"}, "failed", "raises failed: KeyError: 'x'"),
        ("hangs", {}, "timeout", "hangs timed out: no result within 3 s"),
        ("leaves", {"code": 3}, "died", "leaves failed: its process ended (exit code 3)"),
        ("leaves", {"code": 0}, "died", "leaves failed: its process ended (exit code 0)"),
        ("quits", {}, "failed", "quits failed: SystemExit: enough"),
        ("dies", {"number": int(signal.SIGKILL)}, "died", "(killed by SIGKILL)"),
        ("dies", {"number": int(signal.SIGSEGV)}, "died", "(killed by SIGSEGV)"),
        ("huge", {}, "cut", "[9,999,700 characters cut]"),
        ("chatters", {}, "ok", "done"),
        ("shouts", {}, "died", "shouts failed: its process ended"),
        ("forks", {}, "ok", "parent"),
        ("returns", {"kind": "bytes"}, "failed", "TypeError: it returned bytes, not text"),
        ("returns", {"kind": "none"}, "failed", "TypeError: it returned NoneType, not text"),
        ("returns", {"kind": "object"}, "failed", "it returned object, not text"),
        ("returns", {"kind": "set"}, "failed", "it returned set, not text"),
        ("returns", {"kind": "list"}, "ok", '[1, {"a": null}]'),
        ("eats", {}, "failed", "eats failed: MemoryError"),
        ("good", {"text": "a", "x\0\u202e": 1}, "malformed", "x\ufffd\ufffd"),
        ("python", {"code": "1", "x\0\u202e": 1}, "malformed", "x\ufffd\ufffd"),
        ("dirty", {}, "ok", "a\ufffdb\ufffd\ufffdc\nd"),
    ],
)
def test_every_call_ends_as_a_text(
    name: str, arguments: dict[str, Any], kind: str, text: str, runner: ToolRunner
) -> None:
    before = runner.counts[kind]  # type: ignore[index]
    result = runner.session().call(ToolCall(name, arguments))
    assert text in result.text
    assert result.kind == kind
    assert len(result.text) < LIMITS.output_chars + 500
    assert runner.counts[kind] == before + 1  # type: ignore[index]
    assert result.seconds >= 0


def test_a_call_that_could_not_be_read_is_answered_too(runner: ToolRunner) -> None:
    result = runner.session().call(MalformedCall("malformed call: not JSON"))
    assert (result.kind, result.text) == ("malformed", "malformed call: not JSON")


def test_a_tool_that_forks_and_fails_answers_the_next_call(runner: ToolRunner) -> None:
    session = runner.session()
    for name in ("forks", "raises", "returns"):
        arguments = {"raises": {"text": "x"}, "returns": {"kind": "list"}}.get(name, {})
        texts = {session.call(ToolCall(name, arguments)).text for _ in range(4)}
        assert len(texts) == 1, name


def test_sessions_of_python_are_apart_and_go_on_at_the_same_time(runner: ToolRunner) -> None:
    sessions = [runner.session() for _ in range(64)]

    def all_at_once(code: str) -> list[str]:
        calls = [
            runner.submit(
                session, ToolCall("python", {"code": code.replace("NUMBER", str(number))})
            )
            for number, session in enumerate(sessions)
        ]
        return [call.result().text for call in calls]

    assert set(all_at_once("mine = [NUMBER]")) == {"(no output)"}
    assert set(all_at_once("mine.append(mine[0] + 1)")) == {"(no output)"}
    assert all_at_once("mine") == [str([n, n + 1]) for n in range(64)]
    sessions[0].close()
    assert "NameError" in sessions[0].call(ToolCall("python", {"code": "mine"})).text


def test_calls_are_at_once_and_a_hanging_one_holds_up_no_other(runner: ToolRunner) -> None:
    hanging = [runner.submit(runner.session(), ToolCall("hangs", {})) for _ in range(3)]
    good = [runner.submit(runner.session(), ToolCall("good", {"text": str(n)})) for n in range(20)]
    assert [call.result().text for call in good] == [str(n) for n in range(20)]
    assert [call.result().kind for call in hanging] == ["timeout"] * 3


def test_a_process_is_kept_between_calls_and_not_tried_twice() -> None:
    with ToolRunner([f"{FILE}:counts", f"{FILE}:leaves"], LIMITS) as runner:
        session = runner.session()
        texts = [session.call(ToolCall("counts", {})).text for _ in range(3)]
        assert texts == ["1", "2", "3"]
        session.call(ToolCall("leaves", {"code": 1}))
        assert runner.counts == {"ok": 3, "died": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="memory has no limit elsewhere")
def test_a_process_without_memory_left_takes_no_other_call() -> None:
    with ToolRunner([f"{FILE}:keeps"], LIMITS) as runner:
        session = runner.session()
        kinds = [session.call(ToolCall("keeps", {})).kind for _ in range(4)]
    assert kinds == ["ok", "ok", "failed", "ok"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no subreapers")
@pytest.mark.parametrize("name", ["spawns", "spawns_and_hangs", "spawns_and_dies"])
def test_what_a_tool_started_ends_with_it(name: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    before = children()
    with ToolRunner([f"{FILE}:{name}"], LIMITS) as runner:
        runner.session().call(ToolCall(name, {"note": str(note)}))
        started = int(note.read_text())
        assert bool(state_of(started)) == (name == "spawns")
    ended(started)
    assert children() <= before


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no subreapers")
def test_nothing_outlives_a_host_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"""
from rl_reasoner.tools.runner import ToolRunner
from rl_reasoner.tools.tool import ToolCall
runner = ToolRunner(["{FILE}:spawns_and_hangs"])
runner.session().call(ToolCall("spawns_and_hangs", {{"note": {str(note)!r}}}))
"""
    host = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "tests"})
    while not (note.exists() and note.read_text()):
        assert host.poll() is None
        time.sleep(0.05)
    host.kill()
    host.wait()
    ended(int(note.read_text()))


def test_closing_ends_a_call_that_is_under_way() -> None:
    before = children()
    runner = ToolRunner([f"{FILE}:hangs"], ToolLimits(timeout_s=600))
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(runner.session().call, ToolCall("hangs", {}))
        while not children() - before:
            time.sleep(0.02)
        time.sleep(0.2)
        runner.close()
        assert calling.result(60).kind == "died"
    assert children() <= before
    assert runner.session().call(ToolCall("hangs", {})).kind == "died"


def test_closing_does_not_wait_for_a_tool_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ToolRunner([f"{ROOT}/tests/support/slow_loading.py:echo"], LIMITS)
    monkeypatch.setenv("SLOW_FOLDER", str(tmp_path))
    calling = runner.submit(runner.session(), ToolCall("echo", {"text": "a"}))
    while not (tmp_path / "loading").exists():
        time.sleep(0.02)
    runner.close()
    assert calling.result().kind == "died" and not (tmp_path / "loaded").exists()


def test_closing_ends_python_that_is_under_way() -> None:
    """Ctrl-C, or a scheduler's order to end, does not wait for a program to be late."""
    runner = ToolRunner(["python"], ToolLimits(timeout_s=120))
    with ThreadPoolExecutor(1) as thread:
        call = ToolCall("python", {"code": "import time\ntime.sleep(100)"})
        calling = thread.submit(runner.session().call, call)
        time.sleep(1)
        runner.close()
        assert calling.result(90).kind == "died"


def test_functions_of_scripts_and_closures_go_along() -> None:
    factor = 7

    @tool
    def scaled(number: int) -> int:
        """Scale."""
        return number * factor

    with ToolRunner([scaled], LIMITS) as runner:
        assert runner.session().call(ToolCall("scaled", {"number": 6})).text == "42"


def test_a_tool_that_cannot_run_apart_is_refused_before_the_run() -> None:
    import threading

    lock = threading.Lock()

    @tool
    def locked(text: str) -> str:
        """Lock."""
        with lock:
            return text

    with pytest.raises(UserError, match="'locked' cannot run in a process of its own"):
        ToolRunner([locked])


def test_a_tool_that_does_not_load_is_answered_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "once.py"
    text = 'def once(text: str) -> str:\n    """Say."""\n    return text\n'
    file.write_text(text)
    with ToolRunner([f"{file}:once"], LIMITS) as runner:
        file.write_text("raise SystemExit(3)")
        with caplog.at_level(logging.WARNING):
            result = runner.session().call(ToolCall("once", {"text": "a"}))
        assert (result.kind, result.text) == ("died", "once failed: it does not start")
        assert "SystemExit: 3" in caplog.text
        file.write_text(text)
        assert runner.session().call(ToolCall("once", {"text": "a"})).text == "a"


def test_one_session_runs_one_call_at_a_time(runner: ToolRunner) -> None:
    session: ToolSession = runner.session()
    codes = ["n = 0"] + ["n += 1"] * 6
    calls = [runner.submit(session, ToolCall("python", {"code": code})) for code in codes[:1]]
    calls[0].result()
    more = [runner.submit(session, ToolCall("python", {"code": code})) for code in codes[1:]]
    assert {call.result().kind for call in more} == {"ok"}
    assert session.call(ToolCall("python", {"code": "n"})).text == "6"
