"""The Python tool: a session for each completion, run in the sandbox.

A session is the list of its blocks. For each call a fresh jailed process runs the earlier ones
again, quietly, and then the new one (`cell`). So nothing is alive between calls, nothing passes
from one completion to another, and any number of sessions needs no more processes than there are
processors. A block that was stopped is not kept: the session goes on from before it. The same
blocks give the same text in every run, but for clocks, addresses (`id`) and generators that the
system seeds.
"""

import json
import re
import secrets
import time
from pathlib import Path

from rl_reasoner import sandbox
from rl_reasoner.foreign import printable
from rl_reasoner.sandbox.host import Leases
from rl_reasoner.sandbox.levels import choose
from rl_reasoner.tools import cell
from rl_reasoner.tools.tool import Tool, ToolLimits, ToolOutcome, ToolResult, shorten

MOST_BLOCKS = 64
_PROGRAM = Path(cell.__file__).read_text(encoding="utf-8")
_SCIENCE = re.compile(r"\b(?:numpy|sympy|mpmath)\b")
_WHOLE = 4 << 20  # bytes of output that the sandbox hands over


class PythonSession:
    """The Python of one completion. Not for use by two threads at once."""

    def __init__(
        self,
        limits: ToolLimits | None = None,
        *,
        allow_weak: bool = False,
        leases: Leases | None = None,
    ) -> None:
        """With `allow_weak` also where the sandbox holds little (see `sandbox.run`).

        Who cancels `leases` ends the block that runs.
        """
        self._limits, self._leases = limits or ToolLimits(), leases
        self._allow_weak = allow_weak
        self._blocks: list[str] = []
        self._seconds = 0.0  # what running them takes, each within its limit

    def run(self, code: str) -> ToolResult:
        """Run one block and give what the policy is shown of it.

        Raises `SandboxUnavailable` where the sandbox cannot be had, or the leases are cancelled.
        """
        if len(self._blocks) >= MOST_BLOCKS:
            text = f"python failed: a session has at most {MOST_BLOCKS} blocks"
            return ToolResult(text, "failed", 0.0)
        began = time.monotonic()
        blocks, token = [*self._blocks, code], secrets.token_hex(cell.TOKEN // 2)
        done = sandbox.execute(
            _PROGRAM,
            json.dumps({"token": token, "blocks": blocks}),
            science=any(_SCIENCE.search(block) for block in blocks),
            timeout_s=self._limits.timeout_s + self._seconds,
            memory_mb=self._limits.memory_mb,
            allow_weak=self._allow_weak,
            leases=self._leases,
        )
        seconds = time.monotonic() - began
        ended, why = _ending(done, token, self._limits)
        if not why:
            self._blocks = blocks
            own = max(0.0, done.seconds - self._seconds)
            self._seconds += min(own, self._limits.timeout_s)
        shown = done.stdout[cell.TOKEN :]
        text, cut = shorten(shown.decode(errors="replace"), self._limits.output_chars)
        if len(done.stdout) > _WHOLE:
            text += "\n[and more, which is not shown]"
        text = f"{printable(text).rstrip()}\n{why}".strip("\n")
        kind: ToolOutcome = "cut" if cut and ended == "ok" else ended
        return ToolResult(text or "(no output)", kind, seconds)

    def close(self) -> None:
        """Forget the session's state."""
        self._blocks, self._seconds = [], 0.0


def _ending(done: sandbox.Execution, token: str, limits: ToolLimits) -> tuple[ToolOutcome, str]:
    """How a block ended; and of one that was stopped, what the policy is told of that."""
    kept = "its effects are lost, the state before it is kept"
    if done.ended == "timeout":
        return "timeout", f"TimeoutError: stopped after {limits.timeout_s:g} s; {kept}"
    if done.ended == "memory":
        return "failed", f"MemoryError: more than {limits.memory_mb} MB, or too many files; {kept}"
    if done.ended == "crash":
        how = f"was killed by signal {done.code}" if done.code else "was lost"
        return "died", f"the Python process {how}; {kept}"
    whole = done.stdout.startswith(token.encode())
    if done.code not in (cell.RAN, cell.RAISED) or not whole:
        return "died", f"the Python process ended with exit code {done.code}; {kept}"
    return "ok" if done.code == cell.RAN else "failed", ""


class PythonTool(Tool):
    """Python as a tool: a call is a block of the completion's session."""

    allow_weak = False

    def check_sandbox(self) -> None:
        """Raise `SandboxUnavailable` where the sandbox is not strong enough here."""
        choose("landlock", self.allow_weak)

    def session(self, limits: ToolLimits, leases: Leases | None = None) -> PythonSession:
        """A session for one completion."""
        return PythonSession(limits, allow_weak=self.allow_weak, leases=leases)


def _python(code: str) -> str:
    """Run Python code and see what it prints, and the value of its last line.

    Variables, functions and imports are kept until the end of the answer. The standard library,
    numpy and sympy are there; files of the computer and the network are not.

    Args:
        code: The code to run.
    """
    return PythonSession().run(code).text


_python.__name__ = "python"
python = PythonTool(_python)
