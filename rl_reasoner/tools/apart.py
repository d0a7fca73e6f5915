"""A user's tool in a process of its own: `python -m rl_reasoner.tools.apart MEMORY_MB`.

Both sides of it: `ToolProcess` here, `main` there. Requests and replies are JSON lines: the tool
once, then calls one at a time, each answered by how it ended and the text for the policy. The tool
may raise, hang, exit, fork and return anything. A keeper stands between the two processes: it has
no code of the tool, and when the tool's process ends, is late, or loses its host, the keeper ends
all that it started, in other sessions and groups too (on Linux; elsewhere those of its group).
Environments (rl_reasoner.environments.apart) are kept in the same way.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rl_reasoner.errors import UserError
from rl_reasoner.foreign import printable
from rl_reasoner.sandbox import linux
from rl_reasoner.scoring.transport import pack_reward, unpack_reward
from rl_reasoner.tools.formats import malformed_call
from rl_reasoner.tools.tool import (
    ArgumentsMismatch,
    Tool,
    ToolLimits,
    ToolOutcome,
    failure,
    shorten,
)
from rl_reasoner.workers import Worker, WorkerDied, as_worker

_LOAD_S = 300.0
_END_S = 5.0
_LOOK_EVERY_S = 1.0
_MOST_LOADED = 1 << 16  # bytes of the reply to a tool
_BYTES_A_CHAR = 12  # of JSON, at most


def pack_tool(tool: Tool) -> dict[str, Any]:
    """What another process needs to have a tool. Raises `UserError` where it cannot have it."""
    packed = pack_reward(tool.fn)
    if isinstance(packed, str):
        raise UserError(
            f"tool {tool.name!r} cannot run in a process of its own: {packed}. "
            f"Put it into a file, and give it as FILE.py:{tool.name}"
        )
    return packed


class KeptWorker(Worker):
    """A worker with a keeper, which is asked to end all before it is killed itself."""

    def kill(self) -> None:
        """Ask the keeper, which ends all that it keeps, and kill what is left then."""
        if not self.stopped:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S + 1)
        super().kill()


class ToolProcess:
    """A process that has one tool; used by one thread at a time."""

    def __init__(self, packed: Mapping[str, Any], limits: ToolLimits) -> None:
        """Start it. It has no tool before it is asked to `load`, and may be stopped meanwhile."""
        self._packed, self._limits = packed, limits
        self._whole = True
        self._worker = KeptWorker("rl_reasoner.tools.apart", str(limits.memory_mb), shown=True)

    def load(self) -> None:
        """Have the tool. Raises `WorkerDied`, `WorkerLate`, and ImportError where that fails."""
        deadline = time.monotonic() + _LOAD_S
        self._worker.send({"tool": self._packed}, deadline)
        reply = self._worker.receive(deadline, _MOST_LOADED)
        if reply != "loaded":
            self._worker.stop()
            raise ImportError(str(reply))

    def call(self, arguments: Mapping[str, Any]) -> tuple[ToolOutcome, str]:
        """How a call ended, and the text for the policy.

        Raises `WorkerLate`, `WorkerDied`; the process has ended then.
        """
        most = self._limits.output_chars
        deadline = time.monotonic() + self._limits.timeout_s
        self._worker.send({"arguments": dict(arguments), "most": most}, deadline)
        bytes_most = _BYTES_A_CHAR * most + _MOST_LOADED
        try:
            kind, text, self._whole = self._worker.receive(deadline, bytes_most)
        except ValueError as error:  # the tool has written on the pipe itself
            self._worker.stop()
            raise WorkerDied("its reply cannot be read") from error
        return kind, str(text)

    @property
    def usable(self) -> bool:
        """Whether it takes another call: not where it has no memory left."""
        return self._whole and self._worker.usable

    def stop(self) -> None:
        """End it with all that the tool has started, also while a thread waits for it."""
        self._worker.kill()

    def forget(self) -> None:
        """Close this side of its pipes, once no thread waits."""
        self._worker.stop()


# ------------------------------------------------------------------------------- the other side


def main() -> None:
    """Serve calls of a tool."""
    run_kept(_serve)


def run_kept(serve: Callable[[], None]) -> NoReturn:
    """Start the keeper's child, which is to `serve`, and keep it; on the child's side, serve."""
    parent = os.getppid()
    signals = {signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with suppress(OSError):
        linux.adopt_orphans()
    child = os.fork()
    if child:
        _keep(child, parent, signals)
    os.setsid()
    with suppress(OSError):
        linux.die_with_parent(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    serve()
    os._exit(0)


def _keep(child: int, parent: int, signals: set[signal.Signals]) -> NoReturn:
    """Wait for the end of the tool's process, or an order to end it; then end as it did."""
    for descriptor in (0, 1):  # the child's: the host is to see that they close
        os.close(descriptor)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_EVERY_S, _LOOK_EVERY_S)
    status = None
    while status is None and os.getppid() == parent:
        if signal.sigwait(signals) == signal.SIGTERM:
            break
        status = _reap(child)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    ends = time.monotonic() + _END_S
    while time.monotonic() < ends:
        for started in _children():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(started, signal.SIGKILL)
        found = _reap(child)
        status = found if found is not None else status
        if not _has_children():
            break
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):  # SIGKILL and SIGSTOP have no handler to take off
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.Signals(-code)})
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _reap(child: int) -> int | None:
    """Take leave of every child that has ended; the status of `child` if it is one of them."""
    status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                status = ended[1]
    return status


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    """The children of this process, where the system tells."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(number) for number in text.split()]


def requests(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Reply to each request by what `answer` makes of it, until the input ends.

    What answers has no more memory than the process was told, nothing to read, and prints on
    standard error.
    """
    lines, out = as_worker(int(sys.argv[1]))
    own = os.getpid()
    for line in lines:
        reply = answer(json.loads(line))
        if os.getpid() != own:  # what answered forked, and this is the copy
            os._exit(0)
        _put(out, reply)


def _serve() -> None:
    """Have a tool, and answer calls of it until the input ends."""
    tool: Any = None

    def answer(request: dict[str, Any]) -> Any:
        nonlocal tool
        if "tool" not in request:
            return _called(tool, request["arguments"], request["most"])
        try:
            loaded = unpack_reward(request["tool"])
            tool = loaded if isinstance(loaded, Tool) else Tool(loaded)
        except BaseException as error:  # a module may raise anything, SystemExit too
            return f"{type(error).__name__}: {error}"[:500]
        return "loaded"

    requests(answer)


def _called(tool: Tool, arguments: dict[str, Any], most: int) -> tuple[ToolOutcome, str, bool]:
    """How a call ended, the text of that, and whether the process may take another one."""
    try:
        checked = tool.check(arguments)
    except ArgumentsMismatch as error:
        return "malformed", malformed_call(str(error)).message, True
    try:
        text, cut = shorten(tool.result(checked), most)
    except BaseException as error:  # it may raise anything, SystemExit too
        return "failed", printable(failure(tool.name, error)), not isinstance(error, MemoryError)
    return "cut" if cut else "ok", printable(text), True


def _put(out: TextIO, reply: Any) -> None:
    try:
        out.write(json.dumps(reply) + "\n")
        out.flush()
    except BrokenPipeError:  # the host is gone: nobody is left to be told
        os._exit(0)


if __name__ == "__main__":
    main()
