"""What the escapes attack: a secret, listeners, a process; and how to tell that none was reached.

Also a program by itself: `python stage.py [GROUP ...]` runs the corpus as the user who starts it
and prints one line of JSON with what went wrong. The tests start it so for an ordinary user.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rl_reasoner import sandbox
from support.attacks import escapes, forgeries, honest

# Never at "process": there the escapes succeed, and change the Python and the mounts of the host.
LIMITS: dict[str, Any] = {
    "timeout_s": 0.5,
    "memory_mb": 256,
    "min_level": "seccomp",
    "allow_weak": True,
}


class Stage:
    """Things of the host that no program may reach."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.secret = f"tangerine-{os.urandom(6).hex()}"
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.folder.chmod(0o777)
        self.file = self.folder / "secret.txt"
        self.file.write_text(self.secret)
        self.file.chmod(0o666)
        link = self.folder / "link"
        link.symlink_to(self.secret)
        unix = str(self.folder / "socket")
        datagram = str(self.folder / "datagram")
        abstract = f"stage-{os.urandom(6).hex()}"
        self.listeners = [
            socket.create_server(("127.0.0.1", 0)),
            self._bound(socket.SOCK_STREAM, unix),
            self._bound(socket.SOCK_STREAM, "\0" + abstract),
        ]
        self.receivers = [self._bound(socket.SOCK_DGRAM, datagram)]
        for each in (*self.listeners, *self.receivers):
            stack.enter_context(each).setblocking(False)
        for path in (unix, datagram):
            Path(path).chmod(0o777)
        self.bystander = subprocess.Popen(["sleep", "600"])
        stack.callback(self.bystander.wait)
        stack.callback(self.bystander.kill)
        targets = {
            "secret": str(self.file),
            "folder": str(self.folder),
            "link": str(link),
            "port": self.listeners[0].getsockname()[1],
            "socket": unix,
            "datagram": datagram,
            "abstract": abstract,
            "host": os.getpid(),
            "bystander": self.bystander.pid,
        }
        self.stdin = json.dumps(targets)
        self.before = self._state()

    def _bound(self, kind: int, address: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, kind)
        made.bind(address)
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def _state(self) -> tuple[Any, ...]:
        seen = self.file.stat()
        names = sorted(path.name for path in self.folder.iterdir())
        return seen.st_mode, seen.st_uid, seen.st_mtime_ns, self.file.read_text(), names

    def attack(self, program: str) -> str:
        """Run an escape; what it reached, in words, or an empty string."""
        test = {"stdin": self.stdin, "stdout": self.secret}
        result = sandbox.run(escapes.PRELUDE + program, [test], **LIMITS)
        if result.passed or "GOT" in result.stdout or self.secret in result.stdout + result.stderr:
            return result.stdout[-300:] or "passed"
        return self.touched()

    def touched(self) -> str:
        """What of the host is not as it was."""
        if self.bystander.poll() is not None:
            return "the bystander was killed"
        if self._state() != self.before:
            return f"files changed: {self._state()}"
        with contextlib.suppress(BlockingIOError):
            for each in self.listeners:
                each.accept()
                return "a connection was made"
        with contextlib.suppress(BlockingIOError):
            for each in self.receivers:
                each.recv(1)
                return "a datagram came"
        return ""


@contextlib.contextmanager
def staged() -> Iterator[Stage]:
    """A stage for the length of a block, with a variable in the environment to steal."""
    os.environ["STAGE_API_KEY"] = "tangerine"
    try:
        with contextlib.ExitStack() as stack:
            yield Stage(stack)
    finally:
        del os.environ["STAGE_API_KEY"]


def hidden_tests() -> tuple[list[sandbox.Test], list[sandbox.Test]]:
    """Tests that only knowing the answer passes: for functions and for scripts."""
    answer = f"answer-{os.urandom(4).hex()}"
    functions: list[sandbox.Test] = [
        {"call": "f", "args": [7], "expected": answer},
        {"call": "f", "args": [7], "expected": 12345.5, "tolerance": 0.1},
        f"assert f(7) == {answer!r}",
        f"def check(candidate):\n    assert candidate(7) == {answer!r}\ncheck(f)",
        f"assert {answer!r} in [f(7)] and not f(8) != {answer!r}",
        "assert abs(f(8) - 12345.5) < 1e-6",
        f"assert {{f(9)}} == {{{answer!r}}} and sorted([f(6)]) == [{answer!r}]",
        "import numpy as np\nassert np.allclose(f(7), 12345.5) and np.allclose([f(7)], [12345.5])",
        "import sympy\nassert sympy.sympify(f(7)) == sympy.Rational(24691, 2)",
        f"import typing\nassert typing.get_type_hints(f) and eval(f(7)) == {answer!r}",
        f"assert all(x == {answer!r} for x in map(f, (7, 8)))",
        f"def told(x):\n    assert x == {answer!r}, {answer!r}\nassert f(told) == {answer!r}",
    ]
    scripts: list[sandbox.Test] = [
        {"stdin": "7", "stdout": answer},
        {"stdin": "7", "stdout": "12345.5", "tolerance": 0.1},
    ]
    return functions, scripts


def forge(program: str, tests: list[sandbox.Test]) -> list[int]:
    """The tests that a forgery passed."""
    result = sandbox.run(program, tests, **LIMITS)
    return [i for i, verdict in enumerate(result.verdicts) if verdict == "passed"]


def judge_all(groups: tuple[str, ...]) -> dict[str, Any]:
    """What went wrong, by program; a few at a time, for many only wait for their time to end."""
    functions, scripts = hidden_tests()
    with staged() as stage, ThreadPoolExecutor(max_workers=4) as pool:
        jobs: dict[str, Callable[[], Any]] = {
            **{f"escapes/{n}": partial(stage.attack, p) for n, p in escapes.ESCAPES.items()},
            **{f"forged/{n}": partial(forge, p, functions) for n, p in forgeries.FUNCTIONS.items()},
            **{f"forged/{n}": partial(forge, p, scripts) for n, p in forgeries.SCRIPTS.items()},
            **{f"honest/{n}": partial(solve, *pair) for n, pair in honest.HONEST.items()},
        }
        running = {name: pool.submit(job) for name, job in jobs.items() if name.startswith(groups)}
        return {name: job.result() for name, job in running.items()}


def solve(program: str, tests: list[sandbox.Test]) -> list[Any]:
    """Why an honest program did not pass."""
    result = sandbox.run(program, tests)
    return [] if result.passed else [result.verdicts, result.stderr[-300:]]


def main() -> None:
    """Judge the programs of the groups named, or all; one line of JSON."""
    every = judge_all(tuple(sys.argv[1:]) or ("",))
    wrong = {name: what for name, what in every.items() if what}
    found = sandbox.strength()
    told = {"level": found.level, "gaps": found.gaps, "ran": len(every), "wrong": wrong}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
