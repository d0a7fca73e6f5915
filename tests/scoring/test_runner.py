"""Rewards that hang, crash and eat memory: real faults, in real processes."""

import asyncio
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from rl_reasoner import reward
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.circuit_breaker import Breaker, RewardsFailed
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.runner import close_all, give_up_all, runner_of
from rl_reasoner.types import Fault, Score
from support.outcomes import QUICK, shown
from support.processes import state_of

pytestmark = pytest.mark.slow  # real processes that hang and are killed
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
        open(__file__ + ".hangs", "w").close()
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
    if completion == "meet":
        MET.append(completion)
        while len(MET) < 13:
            await asyncio.sleep(0.01)
    if completion == "raise":
        raise ValueError("told to")
    return float(completion == answer)


async def together(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


LOOPS, MET = [], []


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


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The rewards above, from a file."""
    path = tmp_path_factory.mktemp("faulty") / "faulty.py"
    path.write_text(FAULTY)
    return lambda name: load_reward(f"{path}:{name}")


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
    limits = Limits(timeout_s=3.0, batch_timeout_s=5.0, memory_mb=512)
    row = faulty("row")
    score_batch(row, ["warm"], {}, limits)
    found = score_batch(row, ["ab", *["hang"] * 8], {}, limits)
    assert shown(found) == [2.0, *["timeout"] * 8]
    messages = [fault.message for fault in found if isinstance(fault, Fault)]
    assert any("the batch was not done within 5 s" in message for message in messages)


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
    while state_of(int(first.value)):
        time.sleep(0.02)
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
        from rl_reasoner.scoring.batch import score_batch
        from rl_reasoner.scoring.registry import load_reward
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
    texts = ["4", "hang", "raise", *["meet"] * 13]
    score_batch(awaited, ["4"], {"answer": ["4"]}, QUICK)
    found = score_batch(awaited, texts, {"answer": ["4"] * 16}, QUICK)
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


# -------------------------------------------------------------------------- other processes


def test_a_file_named_as_a_standard_module_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('not the standard module')\n")
    (tmp_path / "faulty.py").write_text(FAULTY)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "run.py").write_text(
        "import os\nfrom rl_reasoner import verify\n"
        "from rl_reasoner.scoring.batch import score_batch\n"
        "from rl_reasoner.scoring.registry import load_reward\n"
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


def test_the_breaker_trips_over_half_of_a_window() -> None:
    breaker = Breaker()
    for step in range(1, 9):  # a third of the calls: it goes on
        breaker.add(step, {"f": [True, False, False] * 22}, iter(()), judged=True)
    with pytest.raises(RewardsFailed, match=r"f: 1\d\d of its last \d+ calls faulted\nrow 3"):
        for step in range(9, 20):
            flags = [True] * 21 + [False]
            breaker.add(step, {"f": flags, "g": [False] * 22}, iter(["row 3: why"]), judged=True)


@pytest.mark.parametrize("rows", [8, 64, 512])
def test_a_bad_step_now_and_then_ends_no_run_however_many_rows_it_has(rows: int) -> None:
    breaker = Breaker()
    for step in range(1, 41):  # the first step of all, and every fourth one
        bad = step % 4 == 1
        breaker.add(step, {"f": [bad] * rows}, iter(()), judged=not bad)
    with pytest.raises(RewardsFailed, match="calls faulted"):
        for step in range(41, 80):
            breaker.add(step, {"f": [True] * rows}, iter(()), judged=False)
    assert step - 40 <= max(4, 129 // rows + 1), "and one that has broken down is found soon"


def test_steps_without_any_reward_end_the_run() -> None:
    breaker = Breaker()
    with pytest.raises(RewardsFailed, match="no row got a reward in the last 64 steps"):
        for step in range(1, 100):
            breaker.add(step, {"f": [False] * 8}, iter(()), judged=step in (3, 7))
    assert step == 71
    resumed = Breaker()
    resumed.add(99, {"flaky": [True] * 8}, iter(()), judged=False)
    resumed.end(iter(()), strict=True)  # the steps before had rewards, for all it knows
    Breaker().end(iter(()), strict=False)  # in trl, abstaining on everything is no error


@pytest.mark.parametrize("here", [False, True], ids=["process", "thread"])
def test_calls_under_way_can_be_given_up_from_another_thread(
    here: bool, faulty: Callable[[str], Any]
) -> None:
    row = faulty("row")
    limits = Limits(timeout_s=40.0, apart=not here)
    score_batch(row, ["warm"], {}, limits)
    hangs = Path(f"{row.fn.__code__.co_filename}.hangs")
    hangs.unlink(missing_ok=True)

    def when_it_hangs() -> None:
        while not hangs.exists():
            time.sleep(0.02)
        give_up_all()

    threading.Thread(target=when_it_hangs).start()
    found = score_batch(row, ["hang", "ab"], {}, limits)
    assert all(isinstance(o, Fault) and "given up" in o.message for o in found[1:])
    assert shown(score_batch(row, ["ab"], {}, limits)) == [2.0], "the next ones start anew"


def test_a_process_that_ends_after_its_last_reply_ends_no_run() -> None:
    """Here when it looks at what the reward holds; its scores count."""

    class Held:
        scored = False

        def __getstate__(self) -> dict[str, Any]:
            if self.scored:
                os._exit(3)
            return {}

    held = Held()

    @reward
    def touches(completion: str) -> float:
        held.scored = True
        return float(len(completion))

    for _ in range(2):
        assert shown(score_batch(touches, ["a", "ab"], {}, QUICK)) == [1.0, 2.0]
    assert not held.scored


def test_neither_exits_nor_cancellations_of_a_reward_end_the_run() -> None:
    seen: list[str] = []

    @reward
    def leaves(completion: str) -> float:
        seen.append(completion)  # state: it runs on a thread
        if completion == "bad":
            sys.exit(0)
        return 1.0

    @reward
    async def cancels(completion: str) -> float:
        if completion == "bad":
            raise asyncio.CancelledError("by its client")
        return 1.0

    @reward
    async def late(completion: str) -> float:
        raise TimeoutError("the client's own")

    for fn, said in ((leaves, "SystemExit"), (cancels, "CancelledError: by its client")):
        for limits in (QUICK, Limits(timeout_s=10, apart=False)):
            score_batch(fn, ["a"], {}, limits)
            first, second, third = score_batch(fn, ["a", "bad", "c"], {}, limits)
            assert isinstance(second, Fault) and said in second.message
            assert shown([first, third]) == [1.0, 1.0]
    [found] = score_batch(late, ["a"], {}, QUICK)
    assert isinstance(found, Fault) and "TimeoutError: the client's own" in found.message


def test_a_plain_wrapper_of_an_asynchronous_reward_is_awaited() -> None:
    async def slow(completion: str) -> float:
        return float(len(completion))

    @functools.wraps(slow)
    def wrapped(completion: str) -> object:
        return slow(completion)

    assert shown(score_batch(reward(wrapped), ["a", "bb"], {}, QUICK)) == [1.0, 2.0]
