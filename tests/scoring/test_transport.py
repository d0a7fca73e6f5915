"""How a reward travels: what goes to a worker, what stays here, what it sees change."""

import enum
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward, reward
from rl_reasoner.scoring.runner import runner_of
from rl_reasoner.scoring.transport import pack_reward
from rl_reasoner.types import Fault
from support.outcomes import QUICK, shown


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
    caplog.set_level(logging.WARNING, "rl_reasoner.scoring.runner")
    counts = counter()
    assert shown(score_batch(counts, ["a", "b"], {}, QUICK)) == [1.0, 2.0]
    assert shown(score_batch(counts, ["c"], {}, QUICK)) == [3.0]
    assert len(caplog.records) == 1
    assert "reward 'counts' runs inside this process" in caplog.text
    assert "it changes what it holds" in caplog.text


def test_a_thread_that_hangs_costs_the_batch_not_the_run() -> None:
    gate = threading.Event()

    @reward
    def waits(completion: str) -> float:
        if completion == "wait":
            gate.wait()
        return 1.0

    limits = Limits(timeout_s=3.0)
    found = score_batch(waits, ["a", "wait", "b"], {}, limits)
    assert shown(found) == [1.0, "timeout", "timeout"]
    assert isinstance(found[2], Fault) and "an earlier call has not returned" in found[2].message
    gate.set()
    while shown(score_batch(waits, ["a", "b"], {}, limits)) != [1.0, 1.0]:
        pass  # the thread has not returned yet


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
        assert isinstance(fault, Fault) and "a function in a module or file" in fault.message
    assert isinstance(other, Fault) and "a function in a module" not in other.message


FACTOR = 3


def test_what_is_sent_and_what_is_not(tmp_path: Path) -> None:
    total, table = 0, ["a", "b"]
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

    def listed(completion: str) -> float:
        return float(completion in table) + total

    def cached(completion: str, seen: dict[str, int] = {}) -> float:  # noqa: B006
        seen[completion] = 1
        return float(len(seen))

    def large(completion: str, table: bytes = bytes(2 << 20)) -> float:
        return float(len(table))

    def nested(completion: str) -> float:
        return sum(constant(part) for part in completion.split())

    def twice(completions: list[str], factor: float, **kwargs: Any) -> list[float]:
        return [factor * len(text) for text in completions]

    assert shown(score_batch(reward(constant), ["ab"], {}, QUICK)) == [12.0]
    assert isinstance(pack_reward(reward(constant)), dict)
    assert isinstance(pack_reward(reward(nested)), dict)
    assert isinstance(pack_reward(partial(twice, factor=2.0)), dict)
    for function, why in ((locked, "lock"), (large, "more than 1 MB")):
        refused = pack_reward(reward(function))
        assert isinstance(refused, str) and why in refused
    for function, here in ((listed, False), (rebinds, True), (cached, True)):
        fn = reward(function)
        score_batch(fn, ["a"], {}, QUICK)
        assert bool(runner_of(fn, QUICK).here) == here
    assert total == 1


READS = """
import settings
from rl_reasoner.scoring.runner import runner_of
from rl_reasoner.scoring.transport import pack_reward
from rl_reasoner.scoring.batch import score_batch

STAGE, TABLE = 1, [10]


class Plan:
    weight = 1000

    @classmethod
    def at(cls):
        return cls.weight + TABLE[0]


def helper():
    return STAGE + Plan.at()


def closure():
    bonus = 0

    def put(value):
        nonlocal bonus
        bonus = value

    def reads(completions, **columns):
        return [helper() + bonus + settings.rate() for text in completions]

    return reads, put


def value(fn):
    [found] = score_batch(fn, ["x"], {})
    return found.value


reads, put = closure()
print(value(reads), value(settings.counts), end=" ")
STAGE, Plan.weight, TABLE[0] = 2, 2000, 20
put(0.5)
print(value(reads), value(settings.counts), end=" ")


class Plan:
    weight = 3000
    at = staticmethod(lambda: 0)


print(value(reads))
"""
SETTINGS = """
CALLS = 0


def rate():
    return 0.25


def counts(completions, **columns):
    global CALLS
    CALLS += 1
    return [CALLS]
"""


def ran(script: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """The script, run beside its module of settings."""
    (folder / "settings.py").write_text(SETTINGS)
    (folder / "script.py").write_text(script)
    return subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True)


def test_what_a_reward_reads_is_as_the_script_set_it(tmp_path: Path) -> None:
    """Before the first batch and between batches; what a module counts stays in the worker."""
    done = ran(READS, tmp_path)
    assert done.stdout == "1011.25 1.0 2022.75 2.0 2.75\n", done.stderr
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

    assert isinstance(pack_reward(classes), dict)
    assert shown(score_batch(classes, ["a"], {}, QUICK)) == [2.0]


CHANGES = """
from rl_reasoner.scoring.runner import runner_of
from rl_reasoner.scoring.transport import pack_reward
from rl_reasoner.scoring.batch import score_batch


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


for fn in (by_name, by_method, by_list):
    score_batch(fn, ["x"], {})
print(Stats.calls, Seen.texts)
"""


def test_a_function_that_changes_a_class_of_its_script_runs_here(tmp_path: Path) -> None:
    done = ran(CHANGES, tmp_path)
    assert done.stdout == "2 ['x']\n", done.stderr
    assert done.stderr.count("it changes what it holds") == 3


def test_a_reward_that_comes_to_hold_a_lock_moves_here(caplog: pytest.LogCaptureFixture) -> None:
    held: Any = 1

    def put(value: Any) -> None:
        nonlocal held
        held = value

    @reward
    def reads(completion: str) -> float:
        return float(held if isinstance(held, int) else held.acquire())

    assert shown(score_batch(reads, ["a"], {}, QUICK)) == [1.0]
    put(threading.Lock())
    assert shown(score_batch(reads, ["a"], {}, QUICK)) == [1.0]
    assert held.locked() and "lock" in caplog.text


def test_options_travel_with_the_reward(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(
        "from rl_reasoner import reward\n\n@reward\ndef scaled(completion, by: float = 1.0):\n"
        "    return by * len(completion)\n"
    )
    scaled = load_reward(f"{tmp_path}/scaled.py:scaled", {"by": 3.0})
    assert isinstance(scaled, Reward) and isinstance(pack_reward(scaled), dict)
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
        from rl_reasoner.scoring.batch import score_batch

        @reward
        def where(completion: str) -> float:
            return float(os.getpid())

        [found] = score_batch(where, ["x"], {})
        print(int(found.value) != os.getpid())
        """)
    )
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True)
    assert done.stdout == b"True\n", done.stderr


def test_an_object_and_a_partial_of_a_file_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "style.py").write_text(
        textwrap.dedent("""
            import functools, os

            class Style:
                def __call__(self, completions, **columns):
                    if "bad" in completions:
                        os._exit(7)
                    return [1.0] * len(completions)

            def scaled(completions, by, **columns):
                return [by * len(c) for c in completions]

            style = Style()
            double = functools.partial(scaled, by=2.0)
        """)
    )
    style = load_reward(f"{tmp_path / 'style.py'}:style")
    double = load_reward(f"{tmp_path / 'style.py'}:double")
    assert shown(score_batch(double, ["a", "bb"], {}, QUICK)) == [2.0, 4.0]
    packed = [pack_reward(fn) for fn in (style, double)]
    assert all(isinstance(one, dict) and "module" in one for one in packed)
    assert shown(score_batch(style, ["a"], {}, QUICK)) == [1.0]
    assert isinstance(score_batch(style, ["a", "bad"], {}, QUICK)[1], Fault)


def test_an_object_may_be_a_reward_and_an_exit_is_told_by_its_code(tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(
        textwrap.dedent("""
            import threading, time
            from rl_reasoner import reward

            class Counter:
                "Counts."
                def __call__(self, completion, most: int = 2):
                    if completion == "bad":
                        threading.Thread(target=time.sleep, args=(60,)).start()
                        raise SystemExit(3)
                    return min(most, len(completion))

            count = reward(Counter())
        """)
    )
    count = load_reward(f"{tmp_path / 'counter.py'}:count", {"most": 3})
    assert (count.__name__, count.__doc__) == ("Counter", "Counts.")
    packed = pack_reward(count)
    assert isinstance(packed, dict) and packed["name"] == "count"
    good, bad = score_batch(count, ["aaaa", "bad"], {}, QUICK)
    assert shown([good]) == [3.0]
    assert isinstance(bad, Fault)
    assert bad.message.endswith("its process ended (exit code 3)")


def test_a_cached_function_of_a_file_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        textwrap.dedent("""
            import functools
            from rl_reasoner import reward

            @reward
            @functools.lru_cache
            def cached(completion):
                return 3.0 * len(completion)
        """)
    )
    fn = load_reward(f"{tmp_path / 'made.py'}:cached")
    packed = pack_reward(fn)
    assert isinstance(packed, dict) and packed["name"] == "cached" and "module" in packed
    assert shown(score_batch(fn, ["aa"], {}, QUICK)) == [6.0]
