"""How strong the sandbox is here: the ladder of levels, and the self-test that each must pass.

A level counts when a program that tries real attacks in it fails at all that the level promises to
hold, and can still do what honest programs do. Versions are never asked. The result is kept for
the life of the process.
"""

import contextlib
import functools
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.sandbox import zygote
from rl_reasoner.sandbox.host import Leases, Lost
from rl_reasoner.sandbox.plans import Stdio

LEVELS = ("namespaces", "landlock", "seccomp", "process")
STRONG = ("namespaces", "landlock")
LIMIT_VARIABLE = "RL_REASONER_SANDBOX_LEVEL"

_ISOLATES = {
    "namespaces": "no host files but a read-only Python, no network, own process ids, a work "
    "folder in memory with a quota, an allow-list of system calls, limits on CPU, memory and time",
    "landlock": "no reading or writing of host files but a read-only Python, no network, no "
    "signals to others, an allow-list of system calls, limits on CPU, memory and time",
    "seccomp": "no writing of files, no network, no new processes, no signals to others, "
    "limits on CPU, memory and time",
    "process": "limits on CPU, memory and time only",
}
_GAPS = {
    "namespaces": (),
    "landlock": (
        "existence and size of host files can be seen (stat), and where links lead",
        "which processes there are can be seen, but nothing of them",
        "the work folder is on the host's disk: its total size is watched, not capped at once",
    ),
    "seccomp": (
        "reads of host files possible",
        "unless you are root, reads of the memory of your processes too, this one with what is "
        "expected: verdicts can be forged",
        "no work folder to write to",
    ),
    "process": ("no isolation: programs can read, write and connect as you can",),
}
_HELD: dict[str, tuple[str, ...]] = {
    "namespaces": ("read", "write", "connect", "abstract", "fork", "exec", "signal", "variable"),
    "landlock": ("read", "write", "connect", "abstract", "fork", "exec", "signal", "variable"),
    "seccomp": ("write", "connect", "abstract", "fork", "exec", "signal", "variable"),
    "process": (),
}

_ATTACK = """
import json, os, socket, sys, threading
canary, port, name, host = json.loads(sys.stdin.read())
def tried(action):
    try:
        return bool(action())
    except BaseException:
        return False
def connect(family, address):
    with socket.socket(family) as s:
        s.connect(address)
        return True
def fork():
    pid = os.fork()
    if not pid:
        os._exit(0)
    return True
def execute():
    os.posix_spawn("/bin/true", ["/bin/true"], {})
    return True
def signals():
    for pid in (host, os.getppid()):
        os.kill(pid, 0)
        return True
def work():
    with open("note", "w") as f:
        f.write("x")
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return True
print(json.dumps({
    "read": tried(lambda: open(canary).read()),
    "write": tried(lambda: open(canary, "a").write("x")),
    "connect": tried(lambda: connect(socket.AF_INET, ("127.0.0.1", port))),
    "abstract": tried(lambda: connect(socket.AF_UNIX, "\\0" + name)),
    "fork": tried(fork),
    "exec": tried(execute),
    "signal": tried(signals),
    "variable": bool(os.environ),
    "work": tried(work),
}))
"""


class SandboxUnavailable(Exception):
    """No level of the sandbox that was asked for works here; says what was tried and why not."""


@dataclass(frozen=True)
class Strength:
    """How strong the sandbox is here."""

    level: str
    isolates: str
    gaps: tuple[str, ...]
    tried: Mapping[str, str] = field(default_factory=dict)  # stronger levels: why they failed

    def __str__(self) -> str:
        gaps = f" Known gaps: {'; '.join(self.gaps)}." if self.gaps else ""
        tried = "".join(f" {level} failed: {reason}." for level, reason in self.tried.items())
        return f"{self.level}: {self.isolates}.{gaps}{tried}"


def strength() -> Strength:
    """The strongest level whose self-test passes on this machine, for this user.

    The environment variable RL_REASONER_SANDBOX_LEVEL names the strongest level to try. Raises
    `SandboxUnavailable` where not even a plain process works.
    """
    highest = os.environ.get(LIMIT_VARIABLE) or LEVELS[0]
    if highest not in LEVELS:
        raise unknown(f"level in {LIMIT_VARIABLE}", highest, LEVELS)
    return _strength(highest)


@functools.cache
def _strength(highest: str) -> Strength:
    tried: dict[str, str] = {}
    for level in LEVELS[LEVELS.index(highest) :]:
        try:
            self_test(level)
        except Lost as error:
            tried[level] = str(error)
            continue
        return Strength(level, _ISOLATES[level], _GAPS[level], tried)
    raise SandboxUnavailable(f"no sandbox level works here. {_told(tried)}")


def choose(min_level: str, allow_weak: bool) -> str:
    """The level to run at: the strongest one here, if it is at least `min_level`.

    The levels below "landlock" need `allow_weak`, which also lowers the default `min_level` to
    the weakest. Raises `SandboxUnavailable`, and `UserError` for a wrong `min_level`.
    """
    if min_level not in LEVELS:
        raise unknown("sandbox level", min_level, LEVELS)
    if min_level not in STRONG and not allow_weak:
        raise UserError(f"min_level={min_level!r} is weak ({_GAPS[min_level][0]}): add allow_weak")
    lowest = LEVELS[-1] if allow_weak and min_level == "landlock" else min_level
    found = strength()
    if LEVELS.index(found.level) > LEVELS.index(lowest):
        raise SandboxUnavailable(
            f"the sandbox reaches only level {found.level!r} here, {min_level!r} is required. "
            f"{_told(found.tried)} Weak levels need allow_weak=True."
        )
    return found.level


def _told(tried: Mapping[str, str]) -> str:
    if not tried:
        return f"{LIMIT_VARIABLE} allows no stronger one."
    return "Tried " + "; ".join(f"{level}: {reason}" for level, reason in tried.items()) + "."


def self_test(level: str) -> None:
    """Attack the host from within `level`; raises Lost, saying what was not held."""
    with _targets() as targets, Leases().zygote(level, science=False) as leased:
        plan = Stdio(json.dumps(targets), "", 0.0)
        done = leased.run(plan.mode, plan.inputs(_ATTACK), wall_s=20.0, cpu_s=10.0, memory=1 << 28)
        try:
            got = json.loads(done.stdout)
        except ValueError as error:
            said = done.stderr.decode(errors="replace").strip()[-200:]
            raise Lost(f"the self-test's program failed: {said or done.first}") from error
        open_ways = [way for way in _HELD[level] if got[way]]
        if open_ways:
            raise Lost(f"the self-test's program got through: {', '.join(open_ways)}")
        if level != "seccomp" and not got["work"]:
            raise Lost("the self-test's program could not use its work folder or a thread")
        if done.first.how != zygote.EXITED:
            raise Lost("the self-test's program did not end by itself")


@contextlib.contextmanager
def _targets() -> Iterator[tuple[str, int, str, int]]:
    """Things to attack: a file, a TCP port, an abstract socket, and this process."""
    name = f"rl-sandbox-{os.getpid()}-{os.urandom(8).hex()}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        canary = Path(folder) / "canary"
        canary.write_text("canary")
        canary.chmod(0o666)
        Path(folder).chmod(0o755)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        if os.name == "posix" and hasattr(os, "memfd_create"):
            abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
            abstract.bind("\0" + name)
            abstract.listen()
        yield str(canary), listener.getsockname()[1], name, os.getpid()
