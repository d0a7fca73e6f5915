"""Runs calls, many at once, and tells the policy what came of each: a call never ends a run.

A `ToolRunner` has the tools of a run and a `ToolSession` for each completion. Built-in tools that
are bounded run in place, Python in the sandbox, a user's tool in processes of its own (`apart`),
which are kept between calls, killed when they are late and started again when they died. Calls are
not tried a second time: a tool may have done half of its work. Every call ends as a text, counted
by its kind.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from rl_reasoner.errors import unknown
from rl_reasoner.foreign import printable
from rl_reasoner.sandbox import SandboxUnavailable
from rl_reasoner.sandbox.host import Leases, processors
from rl_reasoner.tools import load_tools
from rl_reasoner.tools.apart import ToolProcess, pack_tool
from rl_reasoner.tools.formats import malformed_call
from rl_reasoner.tools.python import PythonSession, PythonTool
from rl_reasoner.tools.tool import (
    ArgumentsMismatch,
    MalformedCall,
    Tool,
    ToolCall,
    ToolLimits,
    ToolOutcome,
    ToolResult,
    failure,
    shorten,
)
from rl_reasoner.workers import WorkerDied, WorkerLate

AT_ONCE = 16
"""Calls of a runner that are under way at the same time; of one user's tool, `PROCESSES`."""
PROCESSES = 4
_log = logging.getLogger(__name__)


class ToolRunner:
    """The tools of a run. May be used by several threads; `close` it, or use it in a `with`."""

    def __init__(
        self, tools: Iterable[str | Callable[..., Any]], limits: ToolLimits | None = None
    ) -> None:
        """Of the tools that `load_tool` finds.

        Raises `UserError`, also for a tool that cannot run apart, and `SandboxUnavailable` where
        Python is among them and there is no sandbox.
        """
        self.tools = {tool.name: tool for tool in load_tools(tools)}
        self.limits = limits or ToolLimits()
        self.counts: Counter[ToolOutcome] = Counter()
        self._lock = threading.Lock()
        self._processors = threading.Semaphore(processors())
        self.leases = Leases()  # of the sandbox, by all sessions
        self._apart: dict[str, _Processes] = {}
        for tool in self.tools.values():
            if isinstance(tool, PythonTool):
                tool.check_sandbox()
            elif not tool.bounded:
                self._apart[tool.name] = _Processes(tool, self.limits)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tool")

    def session(self) -> "ToolSession":
        """The tools of one completion."""
        return ToolSession(self)

    def submit(
        self, session: "ToolSession", call: ToolCall | MalformedCall
    ) -> "Future[ToolResult]":
        """Begin with a call; others go on meanwhile. Of one session one call at a time runs."""
        return self._threads.submit(session.call, call)

    def run(self, tool: Tool, arguments: Mapping[str, Any], python: PythonSession) -> ToolResult:
        """The result of a call of one of these tools, whatever it does. Not counted."""
        if not isinstance(tool, PythonTool) and not tool.bounded:
            return self._apart[tool.name].call(arguments)
        began = time.monotonic()
        try:
            checked = tool.check(arguments)
            if isinstance(tool, PythonTool):
                with self._processors:
                    return python.run(**checked)
            text, cut = shorten(tool.result(checked), self.limits.output_chars)
            return _result("cut" if cut else "ok", printable(text), began)
        except ArgumentsMismatch as error:
            return _result("malformed", malformed_call(str(error)).message, began)
        except SandboxUnavailable as error:
            if not self.leases.cancelled:
                _log.warning("tool %r does not start: %s", tool.name, error)
            return _result("died", f"{tool.name} failed: it does not start", began)
        except Exception as error:
            return _result("failed", failure(tool.name, error), began)

    def count(self, kind: ToolOutcome) -> None:
        """Count a call that has ended."""
        with self._lock:
            self.counts[kind] += 1

    def close(self) -> None:
        """End all processes of tools; calls under way end as those of a process that died."""
        self.leases.cancel()
        for processes in self._apart.values():
            processes.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ToolSession:
    """The tools of one completion: what they keep is gone with it."""

    def __init__(self, runner: ToolRunner) -> None:
        self._runner = runner
        self._lock = threading.Lock()
        tools = runner.tools.values()
        pythons = (tool for tool in tools if isinstance(tool, PythonTool))
        made = (tool.session(runner.limits, runner.leases) for tool in pythons)
        self._python = next(made, None) or PythonSession(runner.limits)

    def call(self, call: ToolCall | MalformedCall) -> ToolResult:
        """What comes of a call. Never raises for what a policy wrote or a tool did."""
        with self._lock:
            result = self._called(call)
        self._runner.count(result.kind)
        return result

    def _called(self, call: ToolCall | MalformedCall) -> ToolResult:
        if isinstance(call, MalformedCall):
            return ToolResult(call.message, "malformed", 0.0)
        known = self._runner.tools
        if call.tool not in known:
            why = malformed_call(str(unknown("tool", call.tool[:100], known)))
            return ToolResult(why.message, "malformed", 0.0)
        return self._runner.run(known[call.tool], call.arguments, self._python)

    def close(self) -> None:
        """Forget what the completion's tools keep."""
        self._python.close()


class _Processes:
    """The processes of one user's tool: idle ones wait for the next call."""

    def __init__(self, tool: Tool, limits: ToolLimits) -> None:
        self.name = tool.name
        self._packed = pack_tool(tool)
        self._limits = limits
        self._free = threading.Semaphore(PROCESSES)
        self._lock = threading.Lock()
        self._idle: list[ToolProcess] = []
        self._all: set[ToolProcess] = set()
        self._closed = False

    def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """The result of a call, whatever the tool does."""
        with self._free:
            began = time.monotonic()
            process: ToolProcess | None = None
            try:
                process = self._take()
                began = time.monotonic()
                kind, text = process.call(arguments)
                result = _result(kind, text, began)
            except WorkerLate:
                late = f"{self.name} timed out: no result within {self._limits.timeout_s:g} s"
                result = _result("timeout", late, began)
            except WorkerDied as error:
                result = _result("died", f"{self.name} failed: its process ended ({error})", began)
            except (ImportError, OSError) as error:
                _log.warning("tool %r does not start: %s", self.name, error)
                result = _result("died", f"{self.name} failed: it does not start", began)
            except BaseException:
                self._end(process)
                raise
            self._give_back(process, result.kind)
            return result

    def _take(self) -> ToolProcess:
        with self._lock:
            if self._closed:
                raise WorkerDied("the tools are closed")
            if self._idle:
                return self._idle.pop()
        started = ToolProcess(self._packed, self._limits)
        with self._lock:
            closed = self._closed
            self._all.add(started)
        if closed:
            self._end(started)
            raise WorkerDied("the tools are closed")
        try:
            started.load()  # among all others already, so that closing does not wait for it
        except BaseException:
            self._end(started)
            raise
        return started

    def _give_back(self, process: ToolProcess | None, kind: ToolOutcome) -> None:
        if process is None:
            return
        with self._lock:
            keep = kind not in ("timeout", "died") and process.usable and not self._closed
            if keep:
                self._idle.append(process)
        if not keep:
            self._end(process)

    def _end(self, process: ToolProcess | None) -> None:
        if process is not None:
            process.stop()
            process.forget()
            with self._lock:
                self._all.discard(process)

    def close(self) -> None:
        """End all processes; one that a thread waits for is let go of by that thread."""
        with self._lock:
            self._closed = True
            idle, self._idle, every = self._idle, [], list(self._all)
        for process in every:
            process.stop()
        for process in idle:
            self._end(process)


def _result(kind: ToolOutcome, text: str, began: float) -> ToolResult:
    return ToolResult(text, kind, time.monotonic() - began)
