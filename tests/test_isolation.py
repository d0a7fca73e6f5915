"""Rewards that hang, crash and eat memory: real faults, in real processes."""

import enum
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy
import pytest

from rl_reasoner.isolation import (
    Breaker,
    Limits,
    RewardsFailed,
    close_all,
    give_up_all,
    runner_of,
)
from rl_reasoner.reward import Fault, Outcome, Reward, Score, load_reward, reward, score_batch
from rl_reasoner.reward_calls import packed

FAULTY = '''
import asyncio
import ctypes
import os
import signal
import time

from rl_reasoner import reward


@reward
def row(completion: str) -> float:
    """Does what the completion says, and scores its length."""
    if completion == "raise":
        raise ValueError("told to")
    if completion == "hang":
        time.sleep(60)
    if completion == "spin":
        while True:
            pass
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "exit":
        os._exit(3)
    if completion == "leave":
        raise SystemExit(4)
    if completion == "eat":
        hoard = [bytearray(1 << 24) for _ in range(1000)]
    if completion == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if completion == "print":
        print("{}" * 1000, flush=True)
    if completion == "alarm":
        signal.signal(signal.SIGALRM, lambda *a: None)
        signal.alarm(1)
    if completion.startswith("once "):
        path = completion[5:]
        if not os.path.exists(path):
            open(path, "w").close()
            os._exit(1)
    return float(len(completion))


def many(completions, **kwargs):
    return [row.fn(text) for text in completions]


@reward
async def awaited(completion: str, answer: str) -> float:
    if completion == "hang":
        await asyncio.sleep(60)
    if completion == "raise":
        raise ValueError("told to")
    await asyncio.sleep(0.2)
    return float(completion == answer)


async def together(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


LOOPS = []


@reward
async def in_loop(completion: str) -> float:
    LOOPS.append(asyncio.get_running_loop())
    return float(LOOPS[0] is LOOPS[-1])


async def together_in_loop(completions, **kwargs):
    LOOPS.append(asyncio.get_running_loop())
    return [float(LOOPS[0] is LOOPS[-1])] * len(completions)


def history(completions, trainer_state, **kwargs):
    if completions[0] == "exit":
        os._exit(1)
    best = trainer_state.stateful_callbacks.get("best", 0)
    return [best + sum(entry["reward"] for entry in trainer_state.log_history)] * len(completions)


def logs(completions, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("seen", trainer_state.global_step)
    log_extra("lengths", [len(text) for text in completions])
    return [0.0] * len(completions)


@reward
def where(completion: str) -> float:
    return float(os.getpid())
'''
QUICK = Limits(timeout_s=1.5, batch_timeout_s=20.0, memory_mb=512)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The rewards above, from a file."""
    path = tmp_path_factory.mktemp("faulty") / "faulty.py"
    path.write_text(FAULTY)
    return lambda name: load_reward(f"{path}:{name}")


def shown(outcomes: list[Outcome]) -> list[float | str | None]:
    """The value of each row, or the kind of its fault."""
    return [o.kind if isinstance(o, Fault) else o.value for o in outcomes]


# ------------------------------------------------------------------------------ row by row


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("raise", "exception", "'row': ValueError: told to at faulty.py:"),
        ("hang", "timeout", "no reply within 1.5 s"),
        ("spin", "timeout", "no reply within 1.5 s"),
        ("stopped", "timeout", "no reply within 1.5 s"),
        ("segfault", "crash", "its process ended (killed by SIGSEGV)"),
        ("exit", "crash", "its process ended (exit code 3)"),
        ("leave", "crash", "its process ended (exit code 4)"),
        ("eat", "exception", "MemoryError"),
    ],
)
def test_a_fault_takes_out_its_row_alone(
    fault: str, kind: str, message: str, faulty: Callable[[str], Any]
) -> None:
    found = score_batch(faulty("row"), ["ab", fault, "abc", "a"], {}, QUICK)
    assert shown(found) == [2.0, kind, 3.0, 1.0]
    assert isinstance(found[1], Fault) and message in found[1].message


def test_every_fault_at_once_and_the_batch_after(faulty: Callable[[str], Any]) -> None:
    row = faulty("row")
    texts = ["segfault", "ab", "hang", "raise", "exit", "eat", "abc"]
    kinds = ["crash", 2.0, "timeout", "exception", "crash", "exception", 3.0]
    assert shown(score_batch(row, texts, {}, QUICK)) == kinds
    assert shown(score_batch(row, ["a", "ab"], {}, QUICK)) == [1.0, 2.0]


def test_a_fault_that_passes_is_no_fault(tmp_path: Path, faulty: Callable[[str], Any]) -> None:
    """The second try, in a new process, gives the score."""
    once = f"once {tmp_path / 'flag'}"
    assert shown(score_batch(faulty("row"), ["ab", once], {}, QUICK)) == [2.0, float(len(once))]


def test_the_batch_has_a_deadline_too(faulty: Callable[[str], Any]) -> None:
    limits = Limits(timeout_s=0.6, batch_timeout_s=1.0, memory_mb=512)
    row = faulty("row")
    score_batch(row, ["warm"], {}, limits)
    found = score_batch(row, ["ab", *["hang"] * 8], {}, limits)
    assert shown(found) == [2.0, *["timeout"] * 8]
    messages = [fault.message for fault in found if isinstance(fault, Fault)]
    assert any("the batch was not done within 1 s" in message for message in messages)


def test_the_worker_is_kept_and_what_it_prints_is_no_reply(
    faulty: Callable[[str], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    where, row = faulty("where"), faulty("row")
    [first], [second] = (score_batch(where, ["x"], {}, QUICK) for _ in range(2))
    assert first == second and first != Score(float(os.getpid()))
    assert shown(score_batch(row, ["print", "alarm"], {}, QUICK)) == [5.0, 5.0]
    assert "{}{}{}" in capfd.readouterr().err


def test_a_worker_killed_between_batches_is_replaced(faulty: Callable[[str], Any]) -> None:
    where = faulty("where")
    [first] = score_batch(where, ["x"], {}, QUICK)
    assert isinstance(first, Score) and first.value
    os.kill(int(first.value), signal.SIGKILL)
    time.sleep(0.1)
    [second] = score_batch(where, ["x"], {}, QUICK)
    assert isinstance(second, Score) and second.value != first.value


def test_a_clock_that_jumps_changes_no_deadline(
    faulty: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    jumps = iter([1e9, -1e9] * 1000)
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    assert shown(score_batch(faulty("row"), ["ab", "abc"], {}, QUICK)) == [2.0, 3.0]


def test_no_worker_outlives_its_parent(tmp_path: Path, faulty: Callable[[str], Any]) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    script = textwrap.dedent("""
        import os, signal
        from rl_reasoner.reward import load_reward, score_batch
        [found] = score_batch(load_reward("faulty.py:where"), ["x"], {})
        print(int(found.value), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE)
    worker = int(done.stdout)
    assert done.returncode == -signal.SIGKILL
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


# ---------------------------------------------------------------------- trl's form, async


def test_a_batch_function_that_fails_is_tried_row_by_row(faulty: Callable[[str], Any]) -> None:
    many = faulty("many")
    assert shown(score_batch(many, ["ab", "raise", "abc"], {}, QUICK)) == [2.0, "exception", 3.0]
    limits = Limits(timeout_s=1.5, batch_timeout_s=15.0, memory_mb=512)
    found = score_batch(many, ["ab", "segfault", "hang", "abc"], {}, limits)
    assert shown(found) == [2.0, "crash", "timeout", 3.0]


def test_the_rows_of_an_asynchronous_reward_wait_together(faulty: Callable[[str], Any]) -> None:
    awaited = faulty("awaited")
    texts = ["4", "hang", "raise", *["5"] * 13]
    score_batch(awaited, ["4"], {"answer": ["4"]}, QUICK)
    started = time.monotonic()
    found = score_batch(awaited, texts, {"answer": ["4"] * 16}, QUICK)
    assert time.monotonic() - started < 16 * 0.2 + 2 * 1.5, "not one after the other"
    assert shown(found) == [1.0, "timeout", "exception", *[0.0] * 13]
    assert awaited("4", answer="4") == Score(1.0)
    assert awaited(completions=["4", "5"], answer=["4", "4"]) == [1.0, 0.0]


def test_an_asynchronous_function_of_trls_form(faulty: Callable[[str], Any]) -> None:
    assert shown(score_batch(faulty("together"), ["ab", "a"], {}, QUICK)) == [2.0, 1.0]


@pytest.mark.parametrize("apart", [True, False], ids=["process", "thread"])
@pytest.mark.parametrize("name", ["in_loop", "together_in_loop"])
def test_all_batches_of_an_asynchronous_reward_share_a_loop(
    name: str, apart: bool, tmp_path: Path
) -> None:
    """Clients with connections are bound to the loop that they began in."""
    (tmp_path / "loops.py").write_text(FAULTY)
    fn = load_reward(f"{tmp_path}/loops.py:{name}")
    for _ in range(3):
        assert shown(score_batch(fn, ["a", "b"], {}, Limits(apart=apart))) == [1.0, 1.0]


def test_what_a_function_logs_arrives(faulty: Callable[[str], Any]) -> None:
    heard: list[tuple[Any, ...]] = []
    columns = {
        "prompts": ["p", "p"],
        "trainer_state": None,
        "log_metric": lambda name, value: heard.append((name, value)),
        "log_extra": lambda column, values: heard.append((column, values)),
    }
    from transformers import TrainerState

    columns["trainer_state"] = TrainerState(global_step=7)
    found = score_batch(faulty("logs"), ["ab", "a"], columns, QUICK)
    assert shown(found) == [0.0, 0.0]
    assert heard == [("seen", 7.0), ("lengths", [2, 1])]


def test_a_function_sees_the_log_of_its_trainer(faulty: Callable[[str], Any]) -> None:
    """As it grows, in a worker that is new, and of the trainer that asks."""
    from transformers import TrainerState

    history = faulty("history")
    one, two = TrainerState(), TrainerState(log_history=[{"reward": 100}])
    one.stateful_callbacks["best"] = 1000

    def seen(state: TrainerState, text: str = "x") -> list[float | str | None]:
        return shown(score_batch(history, [text], {"trainer_state": state}, QUICK))

    assert seen(one) == [1000]
    one.log_history.append({"reward": 1.0})
    assert seen(one) == [1001]
    one.log_history += [{"reward": numpy.float32(2.0)}, {"reward": 4.0}]
    assert seen(one) == [1007]
    assert seen(two) == [100]
    assert seen(one, "exit") == ["crash"]
    assert seen(one) == [1007]


# ------------------------------------------------------------------- what cannot leave the process


def counter() -> Callable[..., Any]:
    calls: list[str] = []

    @reward
    def counts(completion: str) -> float:
        calls.append(completion)
        return float(len(calls))

    return counts


def test_a_reward_with_state_stays_here_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "rl_reasoner.isolation")
    counts = counter()
    assert shown(score_batch(counts, ["a", "b"], {}, QUICK)) == [1.0, 2.0]
    assert shown(score_batch(counts, ["c"], {}, QUICK)) == [3.0]
    assert len(caplog.records) == 1
    assert "reward 'counts' runs inside this process" in caplog.text
    assert "it holds a list (calls)" in caplog.text


def test_a_thread_that_hangs_costs_the_batch_not_the_run() -> None:
    gate = threading.Event()

    @reward
    def waits(completion: str) -> float:
        if completion == "wait":
            gate.wait(20)
        return 1.0

    limits = Limits(timeout_s=0.3)
    found = score_batch(waits, ["a", "wait", "b"], {}, limits)
    assert shown(found) == [1.0, "timeout", "timeout"]
    assert isinstance(found[2], Fault) and "an earlier call has not returned" in found[2].message
    gate.set()
    time.sleep(0.2)
    assert shown(score_batch(waits, ["a", "b"], {}, limits)) == [1.0, 1.0]


def test_a_reward_with_state_keeps_its_thread() -> None:
    kept: list[Any] = []

    @reward
    def asks(completion: str) -> float:
        if not kept:
            kept.extend([sqlite3.connect(":memory:"), threading.local()])
            kept[1].value = 2.0
        return float(kept[0].execute("select 1").fetchone()[0]) + kept[1].value

    for _ in range(3):
        assert shown(score_batch(asks, ["a", "b"], {}, QUICK)) == [3.0, 3.0]


def test_what_needs_the_main_thread_is_told_what_to_do() -> None:
    database, local = sqlite3.connect(":memory:"), threading.local()
    local.value = 1.0

    @reward
    def needs(completion: str) -> float:
        if completion == "signal":
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if completion == "database":
            database.execute("select 1")
        if completion == "local":
            return float(local.value)
        raise ValueError(completion)

    *found, other = score_batch(needs, ["signal", "database", "local", "other"], {}, QUICK)
    for fault in found:
        assert isinstance(fault, Fault) and "a function of a module or file" in fault.message
    assert isinstance(other, Fault) and "a function of a module" not in other.message


FACTOR = 3


def test_what_is_sent_and_what_is_not(tmp_path: Path) -> None:
    total = 0
    lock = threading.Lock()

    def constant(completion: str, scale: float = 2.0) -> float:
        return scale * FACTOR * len(completion)

    def rebinds(completion: str) -> float:
        nonlocal total
        total += 1
        return float(total)

    def locked(completion: str) -> float:
        with lock:
            return 1.0

    def cached(completion: str, seen: dict[str, int] = {}) -> float:  # noqa: B006
        return float(len(seen))

    def nested(completion: str) -> float:
        return sum(constant(part) for part in completion.split())

    def twice(completions: list[str], factor: float, **kwargs: Any) -> list[float]:
        return [factor * len(text) for text in completions]

    assert shown(score_batch(reward(constant), ["ab"], {}, QUICK)) == [12.0]
    assert isinstance(packed(reward(constant)), dict)
    assert isinstance(packed(reward(nested)), dict)
    assert isinstance(packed(partial(twice, factor=2.0)), dict)
    for function, why in ((rebinds, "changes total"), (locked, "lock"), (cached, "defaults")):
        refused = packed(reward(function))
        assert isinstance(refused, str) and why in refused
    assert isinstance(packed(SimpleNamespace(a=1)), str)  # type: ignore[arg-type]


READS = """
import settings
from rl_reasoner.reward import score_batch

STAGE = 1
settings.SCALE = 10
settings.Late.by = 100


class Plan:
    weight = 1000

    @classmethod
    def at(cls):
        return cls.weight + settings.Late.by


def helper():
    return STAGE + Plan.at()


def closure():
    bonus = 0

    def put(value):
        nonlocal bonus
        bonus = value

    def reads(completions, **columns):
        return [helper() + settings.SCALE + bonus + settings.rate() for text in completions]

    return reads, put


def value(fn):
    [found] = score_batch(fn, ["x"], {})
    return found.value


reads, put = closure()
print(value(reads), value(settings.far), end=" ")
STAGE, Plan.weight, settings.SCALE, settings.Late.by = 2, 2000, 20, 200
put(0.5)
print(value(reads), value(settings.far), end=" ")


class Plan:
    weight = 3000
    at = staticmethod(lambda: 0)


print(value(reads))
"""
SETTINGS = """
SCALE, CALLS = 1, 0


class Late:
    by = 2


def rate():
    return 0.25


def near():
    global CALLS
    CALLS += 1
    return CALLS / 100


def far(completions, **columns):
    return [SCALE + Late.by + near()]
"""


def test_what_a_reward_reads_is_as_the_script_set_it(tmp_path: Path) -> None:
    """Before the first batch and between batches; what the worker itself counts stays."""
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "script.py").write_text(READS)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "1111.25 110.01 2222.75 220.02 22.75\n", done.stderr
    assert "on a thread" not in done.stderr


def test_a_reward_with_small_classes_of_its_own_runs_apart() -> None:
    class Kind(enum.Enum):
        GOOD = 1

    class Pair(NamedTuple):
        left: float = 1.0

    @dataclass
    class Sum:
        value: float = 0.0
        seen: list[str] = field(default_factory=list)

        def add(self, value: float) -> None:
            self.value += value

    @reward
    def classes(completion: str) -> float:
        total = Sum()
        total.add(Pair().left + Kind.GOOD.value)
        return total.value

    assert isinstance(packed(classes), dict)
    assert shown(score_batch(classes, ["a"], {}, QUICK)) == [2.0]


CHANGES = """
import settings
from rl_reasoner.reward import score_batch


class Seen:
    texts = []


class Stats:
    calls = 0

    @classmethod
    def add(cls):
        cls.calls += 1

    @classmethod
    def total(cls):
        return cls.calls


def by_name(completions, **columns):
    Stats.calls += 1
    return [0.0] * len(completions)


def by_method(completions, **columns):
    Stats.add()
    return [0.0] * len(completions)


def by_list(completions, **columns):
    Seen.texts.extend(completions)
    return [0.0] * len(completions)


def of_module(completions, **columns):
    settings.CALLS += 1
    return [0.0] * len(completions)


for fn in (by_name, by_method, by_list, of_module):
    score_batch(fn, ["x"], {})
print(Stats.calls, Seen.texts, settings.CALLS)
"""


def test_a_function_that_changes_a_class_or_a_module_runs_here(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "script.py").write_text(CHANGES)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "2 ['x'] 1\n", done.stderr
    for why in ("changes Stats.calls", "a list (Seen.texts", "changes settings.CALLS"):
        assert why in done.stderr


def test_a_reward_that_comes_to_hold_state_moves_here(caplog: pytest.LogCaptureFixture) -> None:
    held: Any = 1

    def put(value: Any) -> None:
        nonlocal held
        held = value

    @reward
    def reads(completion: str) -> float:
        return float(held if isinstance(held, int) else len(held))

    assert shown(score_batch(reads, ["a"], {}, QUICK)) == [1.0]
    put([1, 2])
    assert shown(score_batch(reads, ["a"], {}, QUICK)) == [2.0]
    assert "it holds a list (held)" in caplog.text


def test_options_travel_with_the_reward(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(
        "from rl_reasoner import reward\n\n@reward\ndef scaled(completion, by: float = 1.0):\n"
        "    return by * len(completion)\n"
    )
    scaled = load_reward(f"{tmp_path}/scaled.py:scaled", {"by": 3.0})
    assert isinstance(scaled, Reward) and isinstance(packed(scaled), dict)
    assert shown(score_batch(scaled, ["ab"], {}, QUICK)) == [6.0]


def test_a_module_that_a_worker_cannot_import_runs_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "shy.py").write_text(
        "import os\nfrom rl_reasoner import reward\n\n"
        f"if os.getpid() != {os.getpid()}:\n    raise ImportError('only there')\n\n\n"
        "@reward\ndef shy(completion):\n    return 1.0\n"
    )
    assert shown(score_batch(load_reward(f"{tmp_path}/shy.py:shy"), ["a"], {}, QUICK)) == [1.0]
    assert "only there" in caplog.text


def test_a_reward_of_a_script_without_a_main_guard_runs_apart(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import os
        from rl_reasoner import reward
        from rl_reasoner.reward import score_batch

        @reward
        def where(completion: str) -> float:
            return float(os.getpid())

        [found] = score_batch(where, ["x"], {})
        print(int(found.value) != os.getpid())
        """)
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True)
    assert done.stdout == b"True\n", done.stderr


def test_a_file_named_as_a_standard_module_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('not the standard module')\n")
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.py").write_text(
        "import os\nfrom rl_reasoner import verify\n"
        "from rl_reasoner.reward import load_reward, score_batch\n"
        "[found] = score_batch(load_reward('faulty.py:where'), ['x'], {})\n"
        "print(found.value != os.getpid(), verify('x + 1', '1 + x').value)\n"
    )
    command = [sys.executable, "scripts/run.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.stdout == b"True 1.0\n", done.stderr


def test_the_shipped_rewards_pay_nothing() -> None:
    for name in ("math_answer", "boxed", "length"):
        assert runner_of(load_reward(name), Limits()).shipped
    close_all()
    assert shown(score_batch(load_reward("math_answer"), ["\\boxed{4}"], {"answer": ["4"]})) == [1]


# ------------------------------------------------------------------------------------- breaker


def test_the_breaker_trips_over_half_of_a_window_or_a_whole_step() -> None:
    breaker = Breaker()
    for step in range(1, 9):  # a third of the calls: it goes on
        breaker.add(step, {"f": [True, False, False] * 22}, iter(()))
    with pytest.raises(RewardsFailed, match=r"f: 1\d\d of its last 256 calls faulted\nrow 3"):
        for step in range(9, 20):
            flags = [True] * 21 + [False]
            breaker.add(step, {"f": flags, "g": [False] * 22}, iter(["row 3: why"]))
    with pytest.raises(RewardsFailed, match=r"every reward call of step 1 failed \(4 calls\)"):
        Breaker().add(1, {"f": [True] * 2, "g": [True] * 2}, iter(()))
    Breaker().add(1, {"f": [True] * 2, "g": [True, False]}, iter(()))


@pytest.mark.parametrize("here", [False, True], ids=["process", "thread"])
def test_calls_under_way_can_be_given_up_from_another_thread(
    here: bool, faulty: Callable[[str], Any]
) -> None:
    row = faulty("row")
    limits = Limits(timeout_s=40.0, apart=not here)
    score_batch(row, ["warm"], {}, limits)
    threading.Timer(0.5, give_up_all).start()
    started = time.monotonic()
    found = score_batch(row, ["hang", "ab"], {}, limits)
    assert time.monotonic() - started < 10
    assert all(isinstance(o, Fault) and "given up" in o.message for o in found[1:])
    assert shown(score_batch(row, ["ab"], {}, limits)) == [2.0], "the next ones start anew"
