"""Nothing is left behind: after batches, interrupts, kills; and a busy machine fails no program."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import sandbox
from rl_reasoner.sandbox import host, levels, zygote
from support.places import DATA as SHARED

LEVELS = ["namespaces", "landlock"]
HOSTILE = [
    "import os; os._exit(0)",
    "while True: pass",
    "x = bytearray(4 << 30)",
    "import os; os.fork()",
    "import os, signal; os.kill(os.getppid(), 9)",
    "import ctypes; ctypes.string_at(0)",
    "while True: print('x' * 1_000_000)",
    "def f(x): return type('A', (int,), {'__eq__': lambda s, o: True})()",
    "for i in range(10 ** 6): open(str(i), 'w')",
    "raise SystemExit(0)",
]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(levels.LIMIT_VARIABLE, request.param)
    if sandbox.strength().level != request.param:
        pytest.skip(str(sandbox.strength()))
    return str(request.param)


def below(pid: int) -> dict[int, str]:
    """The processes that come from `pid`, with their state."""
    found: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(path.parent.name)] = (int(parent), state)
    family, grown = {pid}, True
    while grown:
        more = {child for child, (parent, _) in found.items() if parent in family} - family
        family, grown = family | more, bool(more)
    return {each: found[each][1] for each in family - {pid}}


def strangers() -> set[int]:
    """Processes below us that are not the sandbox's: other tests of this process have some too."""
    zygotes = [each._process.pid for each in host.pool._all]
    family = {pid for zygote in zygotes for pid in (zygote, *below(zygote))}
    return below(os.getpid()).keys() - family


def settled(count: int, others: set[int]) -> dict[int, str]:
    """What is below us but for `others`, once there are `count` and none is a zombie, or after
    10 s: a process that has just ended is one until its parent is scheduled again."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = {pid: state for pid, state in below(os.getpid()).items() if pid not in others}
        if len(found) == count and "Z" not in found.values():
            break
        time.sleep(0.05)
    return found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def boxes() -> list[Path]:
    """What is left of programs' work folders on the host."""
    return [box for each in host.pool._all if each.scratch for box in Path(each.scratch).iterdir()]


def batch(count: int) -> tuple[list[str], list[list[sandbox.Test]], list[bool]]:
    """Programs, a tenth of them hostile, with tests of all forms and whether each shall pass."""
    choose = random.Random(1)
    programs, tests, right = [], [], []
    for n in range(count):
        k = choose.randrange(1000)
        kind = choose.choices(["hostile", "wrong", "right"], [1, 3, 6])[0]
        wrong, good = f"def f(x): return x + {k} + 1", f"def f(x): return x + {k}"
        hostile = HOSTILE[n % len(HOSTILE)]
        programs.append({"hostile": hostile, "wrong": wrong, "right": good}[kind])
        right.append(kind == "right")
        forms: list[sandbox.Test] = [
            {"call": "f", "args": [n], "expected": n + k},
            f"assert f({n}) == {n + k}",
            f"def check(c):\n    assert c({n}) == {n + k}\ncheck(f)",
        ]
        tests.append([choose.choice(forms)])
    return programs, tests, right


def test_a_batch_with_hostile_programs_is_judged_right_and_leaks_nothing(level: str) -> None:
    programs, tests, right = batch(150)
    others = strangers()
    sandbox.run_many(programs[:20], tests[:20], timeout_s=0.3)  # zygotes have started
    descriptors, processes = open_files(), below(os.getpid()).keys() - others
    results = sandbox.run_many(programs, tests, timeout_s=0.3)
    assert [r.passed for r in results] == right
    assert open_files() == descriptors
    after = settled(len(processes), others)
    assert len(after) == len(processes) and "Z" not in after.values()
    assert boxes() == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_host_leaves_nothing_behind(
    level: str, how: signal.Signals, tmp_path: Path
) -> None:
    code = """
import signal, sys
from rl_reasoner import sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)
sandbox.strength()
endless = ["while True: pass", "import time; time.sleep(99)"] * 8
print("ready", flush=True)
try:
    sandbox.run_many(endless, [[{"stdout": ""}]] * 16, workers=2, timeout_s=60)
except KeyboardInterrupt:
    sys.exit(0 if sandbox.run("print(1)", [{"stdout": "1"}]).passed else 1)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stdout and process.stdout.readline() == b"ready\n"
    while len(below(process.pid)) < 4:
        time.sleep(0.02)
    started = set(below(process.pid))
    process.send_signal(how)
    assert process.wait(timeout=30) == (0 if how == signal.SIGINT else -signal.SIGKILL)
    process.stdout.close()
    while any(Path(f"/proc/{pid}").exists() for pid in started) or list(tmp_path.iterdir()):
        time.sleep(0.05)


def test_zygotes_end_with_the_process_that_started_them(level: str, tmp_path: Path) -> None:
    code = "from rl_reasoner import sandbox; sandbox.run('print(1)', [{'stdout': '1'}])"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []


def test_a_zygote_that_dies_is_replaced(level: str) -> None:
    one: list[sandbox.Test] = [{"stdout": "1"}]
    assert sandbox.run("print(1)", one).passed
    victim = host.pool.take(level, science=False)
    os.killpg(victim._process.pid, signal.SIGKILL)
    host.pool.give_back(victim)
    assert sandbox.run("print(1)", one).passed


def test_a_zygote_that_cannot_start_a_job_is_replaced(level: str) -> None:
    """What it says of itself is no result: it was unpacked as one, a timeout after 0.00 s."""
    host.pool.close()
    short = host.pool.take(level, science=False)
    for pid in below(short._process.pid):
        room = (
            len(list(Path(f"/proc/{pid}/fd").iterdir())) + 6
        )  # those of a job, no pair of sockets
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (room, room))
    host.pool.give_back(short)
    assert sandbox.run("def f(x): return x", ["y = f(3)\nassert y == 3"]).verdicts == ["passed"]
    assert short not in host.pool._all


@pytest.mark.parametrize("test", [{"call": "f", "args": [3], "expected": 3}, "y = f(3)\nassert y"])
def test_a_program_that_cannot_enter_its_jail_runs_in_another(level: str, test: Any) -> None:
    host.pool.close()
    short = host.pool.take(level, science=False)
    for pid in below(short._process.pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))  # as on a full disk
    host.pool.give_back(short)
    assert sandbox.run("def f(x): return x", [test]).verdicts == ["passed"]
    assert short not in host.pool._all


def test_a_program_that_ends_as_if_it_had_not_started_is_wrong(level: str) -> None:
    assert sandbox.run("import os\nos._exit(88)", ["y = f(3)\nassert y"]).verdicts == ["crash"]
    assert sandbox.run("import os\nos._exit(88)", [{"stdout": ""}]).verdicts == ["error"]


def test_a_machine_that_starts_no_job_is_no_verdict(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "OSError: [Errno 28] No space left on device: '/tmp/rl-sandbox-'"
    boot = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[3]))\ns.sendall(b'ready')\n"
    boot += f"s.recv(99)\ns.sendall({said.encode()!r})"
    monkeypatch.setattr(host, "pool", host.Pool())
    monkeypatch.setattr(host, "_BOOT", boot)
    with pytest.raises(sandbox.SandboxUnavailable, match="No space left on device"):
        sandbox.run("print(1)", [{"stdout": "1"}])
    monkeypatch.setattr(host, "_file", lambda *_: os.open("/nowhere", os.O_RDONLY))  # as if EMFILE
    with pytest.raises(sandbox.SandboxUnavailable, match="/nowhere"):
        sandbox.run("print(1)", [{"stdout": "1"}])


def test_a_zygote_that_cannot_be_started_is_told(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "pool", host.Pool())
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(sandbox.SandboxUnavailable, match="/nowhere/python does not start"):
        sandbox.run("print(1)", [{"stdout": "1"}])


@pytest.mark.parametrize("folders", ["deep", "closed", "many"])
def test_work_folders_of_any_shape_are_removed(level: str, folders: str) -> None:
    programs = {
        "deep": "import os\nfor _ in range(60): os.mkdir('d'); os.chdir('d')",
        "closed": "import os\nos.mkdir('a'); open('a/f', 'w').close(); os.mkdir('a/b', 0)",
        "many": "import os\nfor i in range(500): os.mkdir(str(i)); open(f'{i}/f', 'w').close()",
    }
    assert sandbox.run(programs[folders], [{"stdout": ""}]).passed
    assert boxes() == []


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Other processes want every processor four times over."""
    burners = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(4 * host.processors())
    ]
    try:
        yield
    finally:
        for each in burners:
            each.kill()
            each.wait()


def test_a_busy_machine_fails_no_good_program(level: str) -> None:
    burn = (
        "import time; t = time.process_time()\nwhile time.process_time() - t < 0.4: pass\nprint(1)"
    )
    with busy():
        results = sandbox.run_many([burn] * 4, [[{"stdout": "1"}]] * 4, timeout_s=0.8)
    assert [r.verdicts for r in results] == [["passed"]] * 4


def test_a_program_that_no_processor_takes_up_for_longer_than_its_limit_passes(level: str) -> None:
    """It waits once, from its start: the system counts a wait when it is over."""
    assert sandbox.run("print(1)", [{"stdout": "1"}]).passed
    for each in host.pool._all:
        os.setpriority(os.PRIO_PROCESS, each._process.pid, 17)
        with contextlib.suppress(OSError):  # where sessions share the processors, not processes
            Path(f"/proc/{each._process.pid}/autogroup").write_text("17")
    try:
        with busy():
            results = sandbox.run_many(["print(1)"] * 16, [[{"stdout": "1"}]] * 16, timeout_s=0.1)
        assert [r.verdicts for r in results] == [["passed"]] * 16
    finally:
        host.pool.close()


def test_wall_time_is_held_where_the_program_only_sleeps() -> None:
    result = sandbox.run("import time; time.sleep(600)", [{"stdout": ""}], timeout_s=0.3)
    assert result.verdicts == ["timeout"]


def test_a_sleeper_that_computes_a_little_is_ended_like_any_other() -> None:
    """It would hold its worker for many times its limit, if it passed for one that had to wait."""
    limit, burn = 0.5, "t = time.process_time()\nwhile time.process_time() - t < 0.2: pass"
    yields = "for _ in range(100): time.sleep(0.0001)"
    program = f"import time\n{burn}\n{yields}\ntime.sleep(600)"
    result = sandbox.run(program, [{"stdout": ""}], timeout_s=limit)
    assert result.verdicts == ["timeout"]
    assert result.seconds < 8 * limit  # by far: what a second, longer run would take is 15 times


@pytest.mark.parametrize(
    "held",
    [
        "import ctypes, platform\ncall = {'x86_64': 324, 'aarch64': 283}[platform.machine()]\n"
        "step = lambda: ctypes.CDLL(None).syscall(call, 1, 0, 0)",
        "import os\nf = os.open('x', os.O_RDWR | os.O_CREAT)\n"
        "step = lambda: (os.pwrite(f, b'x', 0), os.fsync(f))",
        "import os, ssl\nf = os.open(ssl.__file__, os.O_RDONLY)\n"
        "step = lambda: (os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED), os.pread(f, 9, 0))",
    ],
    ids=["membarrier", "fsync", "fadvise"],
)
def test_a_program_that_the_kernel_holds_up_is_ended_like_any_other(held: str, level: str) -> None:
    result = sandbox.run(f"{held}\nwhile True: step()", [{"stdout": ""}], timeout_s=0.5)
    assert result.verdicts == ["timeout"]
    assert result.seconds < 4  # 8 s is the most that a deadline is put off to


def test_what_waits_for_a_disk_waits_for_a_processor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "_waits", lambda proc, pid: (0.0, b"DS"))
    deadline = zygote.Deadline(time.monotonic() - 1, 1.0, 11.0, 1.0)
    assert [zygote._put_off(deadline, [1], 0) for _ in range(3)] == [True, False, False]


def test_a_busy_machine_fails_no_good_program_that_works_in_a_thread() -> None:
    work = "t = time.thread_time()\n    while time.thread_time() - t < 0.4: pass"
    program = f"import threading, time\ndef work():\n    {work}\n    print(1)\n"
    program += "t = threading.Thread(target=work)\nt.start()\nt.join()"
    with busy():
        results = sandbox.run_many([program] * 4, [[{"stdout": "1"}]] * 4, timeout_s=0.8)
    assert [r.verdicts for r in results] == [["passed"]] * 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives its programs users of their own")
def test_no_two_zygotes_share_the_user_whose_threads_are_counted() -> None:
    if sandbox.strength().level != "namespaces":
        pytest.skip(str(sandbox.strength()))
    program = "import os, time\ntime.sleep(0.3)\nprint(os.getuid())"
    results = sandbox.run_many([program] * 2, [[{"stdout": ""}]] * 2, workers=2)
    assert len({r.stdout for r in results}) == 2


# ------------------------------------------------------------------------------- code sets

SETS = {"humaneval": 4, "mbpp": 16, "leetcode_200": 4, "code_contests_stdio": 16}


def wrong_variants(row: dict[str, Any]) -> list[str]:
    """Programs that do not solve a row: nothing, None, an exception, a loop, all words printed."""
    name = (row["entry_point"] or "main").split(".")[-1]
    method = f"def {name}(self, *a, **k): return None" if "Solution" in str(row) else ""
    shapes = ["return None", "raise ValueError", "print(a, k, True, 'passed')"]
    made = [f"def {name}(*a, **k): {shape}" for shape in shapes]
    made += [f"class Solution:\n    {method}"] if method else []
    said = " ".join(str(t.get("stdin")) for t in row["tests"] if isinstance(t, dict))
    return [*made, "", f"print({said!r})", "import os; os._exit(0)", "while True: pass"]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", SETS)
def test_references_pass_and_wrong_programs_fail(name: str) -> None:
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    rows = [json.loads(line) for line in path.read_text().splitlines()][:: SETS[name]]
    tests = [row["tests"] for row in rows]
    results = sandbox.run_many([row["reference_solution"] for row in rows], tests, timeout_s=10)
    assert [r["id"] for r, got in zip(rows, results, strict=True) if not got.passed] == []
    pairs = [(p, row["tests"][:1]) for row in rows[::4] for p in wrong_variants(row)]
    programs, firsts = zip(*pairs, strict=True)
    wrong = sandbox.run_many(programs, firsts, timeout_s=0.3)
    assert [p for p, got in zip(programs, wrong, strict=True) if got.passed] == []
