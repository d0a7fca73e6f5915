"""Does this program pass these tests? Public: `run`, `run_many`, `execute`, `strength`.

Programs are hostile: they run in a jail whose strength is tested on this machine (`levels`), in a
fresh process and work folder for each test, forked from a zygote that was started before
(`host`, `zygote`, `jail`, `child`). What is expected never enters the jail; verdicts are made in
this process, from plain data (`plans`, `data`), or by a judge process the program cannot reach
(`remote`). Knows nothing of models. A leaf: may import only the ground; torch-free.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from rl_reasoner.errors import UserError
from rl_reasoner.sandbox import data
from rl_reasoner.sandbox.host import (
    Finished,
    Leases,
    Lost,
    NotStarted,
    Overdue,
    processors,
    wants_science,
)
from rl_reasoner.sandbox.levels import LEVELS, SandboxUnavailable, Strength, choose, strength
from rl_reasoner.sandbox.plans import (
    Call,
    Stdio,
    TestPlan,
    Verdict,
    plan_test,
    verdict_on,
    why_not_passed,
)

__all__ = [
    "LEVELS",
    "Execution",
    "SandboxResult",
    "SandboxUnavailable",
    "Strength",
    "Test",
    "Verdict",
    "call",
    "execute",
    "run",
    "run_many",
    "strength",
]

Test = str | Mapping[str, Any]
_TAIL = 4000


@dataclass(frozen=True)
class SandboxResult:
    """What running a program on its tests gave.

    `verdicts` has one of "passed", "failed" (wrong answer), "error" (an exception or exit code),
    "timeout", "memory", "crash" (died, or left before it answered), "refused" (an answer that is
    no honest data, or a test left out by `stop_early`) for each test. `stdout` and `stderr` are
    the last 4,000 characters of the first test that did not pass, else of the last. `reason` says
    in one line why that test did not pass: what it raised, or what came beside what was expected.
    It may quote the test and the program, so it is for people, not for a policy.
    """

    verdicts: list[Verdict]
    level: str
    stdout: str
    stderr: str
    seconds: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return all(verdict == "passed" for verdict in self.verdicts)


@dataclass(frozen=True)
class Execution:
    """How a program ended that was run to see what it prints.

    `ended`: by itself, with the exit status `code` ("exited"), at a limit of time or memory
    ("timeout", "memory"), or by a signal ("crash"). `stdout` has up to 4 MB and a byte of what it
    wrote before. `seconds` is the longer of processor and wall time.
    """

    ended: Literal["exited", "timeout", "memory", "crash"]
    code: int
    stdout: bytes
    seconds: float


@dataclass(frozen=True)
class _Settings:
    level: str
    timeout_s: float
    memory: int
    stop_early: bool


def run(
    program: str,
    tests: Sequence[Test],
    *,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    min_level: str = "landlock",
    allow_weak: bool = False,
    stop_early: bool = False,
) -> SandboxResult:
    """Run `program` on each of `tests`, in a fresh jailed process each.

    A test is code that asserts (str), `{"stdin", "stdout"}`, or `{"call", "args", "kwargs",
    "expected"}`, the last two also with "tolerance". `timeout_s` (CPU seconds; also wall seconds
    but for those of waiting for a processor) and `memory_mb` are per test. With `stop_early` the
    tests after the first that does not pass are left out ("refused"). Raises `UserError` for a
    test of no known form and `SandboxUnavailable` where `min_level` cannot be had (see `strength`).
    """
    plans = _plans(program, tests, "")
    settings = _settings(timeout_s, memory_mb, min_level, allow_weak, stop_early)
    return _run(program, plans, settings, Leases())


def run_many(
    programs: Sequence[str],
    tests: Sequence[Sequence[Test]],
    *,
    workers: int | None = None,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    min_level: str = "landlock",
    allow_weak: bool = False,
    stop_early: bool = False,
) -> list[SandboxResult]:
    """`run` for many programs, each with its own list of tests, on `workers` at a time.

    `workers` defaults to the processors this process may use. An interrupt ends what is running
    at once.
    """
    if len(programs) != len(tests):
        raise UserError(f"{len(programs)} programs but {len(tests)} lists of tests")
    pairs = enumerate(zip(programs, tests, strict=True))
    plans = [_plans(program, own, f" of program {i}") for i, (program, own) in pairs]
    if not programs:
        return []
    settings = _settings(timeout_s, memory_mb, min_level, allow_weak, stop_early)
    leases = Leases()
    workers = min(workers or processors(), len(programs))
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="sandbox") as executor:
        try:
            futures = [
                executor.submit(_run, program, own, settings, leases)
                for program, own in zip(programs, plans, strict=True)
            ]
            return [future.result() for future in futures]
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            leases.cancel()
            raise


def call(
    program: str,
    name: str,
    args: Sequence[Any] = (),
    *,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    min_level: str = "landlock",
    allow_weak: bool = False,
) -> Any:
    """The value, as plain data, of `name(*args)` in `program`, run in the sandbox.

    Raises RuntimeError, with the end of its standard error, where the program gives none.
    """
    planned = plan_test({"call": name, "args": args, "expected": None}, "call")
    assert isinstance(planned, Call)
    settings = _settings(timeout_s, memory_mb, min_level, allow_weak, stop_early=False)
    verdict, finished = _run_test(program, planned, settings, Leases(), wants_science(program))
    if finished is None or verdict not in ("passed", "failed"):
        said = _tail(finished.stderr) if finished else ""
        raise RuntimeError(f"{name}: {verdict} {said}".strip())
    try:
        return data.decode(data.load(finished.answer))
    except (data.Malformed, RecursionError) as error:
        raise RuntimeError(f"{name}: {error}") from error


def execute(
    program: str,
    stdin: str = "",
    *,
    science: bool = False,
    timeout_s: float = 5.0,
    memory_mb: int = 512,
    min_level: str = "landlock",
    allow_weak: bool = False,
    leases: Leases | None = None,
) -> Execution:
    """Run `program` as a script that reads `stdin`, to see what it prints.

    With `science` it may import numpy and sympy, whatever its own text says. Limits and errors are
    those of `run`; `SandboxUnavailable` also where another thread cancels `leases`, which ends it.
    """
    settings = _settings(timeout_s, memory_mb, min_level, allow_weak, stop_early=False)
    plan = Stdio(stdin, "", 0.0)
    science = science or wants_science(program)
    verdict, finished = _run_test(program, plan, settings, leases or Leases(), science)
    if finished is None:
        return Execution("timeout" if verdict == "timeout" else "crash", 0, b"", timeout_s)
    seconds = max(finished.wall_s, finished.first.cpu_s)
    ended: Literal["exited", "timeout", "memory", "crash"] = "exited"
    if verdict in ("timeout", "memory", "crash"):
        ended = verdict
    return Execution(ended, finished.first.code, finished.stdout, seconds)


def _settings(
    timeout_s: float, memory_mb: int, min_level: str, allow_weak: bool, stop_early: bool
) -> _Settings:
    if not 0 < timeout_s < float("inf") or memory_mb <= 0:
        raise UserError(f"timeout_s={timeout_s!r} and memory_mb={memory_mb!r} must be above 0")
    level = choose(min_level, allow_weak)
    return _Settings(level, timeout_s, int(memory_mb) << 20, stop_early)


def _plans(program: str, tests: Sequence[Test], place: str) -> list[TestPlan]:
    if not isinstance(program, str):
        raise UserError(f"the program{place} is {type(program).__name__}, not str")
    if isinstance(tests, (str, Mapping)) or not tests:
        raise UserError(f"the tests{place} must be a list of at least one test")
    return [plan_test(test, f"test {index}{place}") for index, test in enumerate(tests)]


def _run(
    program: str, plans: Sequence[TestPlan], settings: _Settings, leases: Leases
) -> SandboxResult:
    """Run one program on its tests, one after the other."""
    began = time.monotonic()
    science = wants_science(program, *(each.text for each in plans))
    verdicts: list[Verdict] = []
    shown: Finished | None = None
    clean, reason = True, ""
    for each in plans:
        verdict, finished = _run_test(program, each, settings, leases, science)
        verdicts.append(verdict)
        shown = finished if clean else shown
        if clean and finished:
            reason = why_not_passed(each, verdict, finished)
        clean = clean and verdict == "passed"
        if settings.stop_early and not clean:
            verdicts += ["refused"] * (len(plans) - len(verdicts))
            break
    stdout, stderr = (_tail(shown.stdout), _tail(shown.stderr)) if shown else ("", "")
    seconds = time.monotonic() - began
    return SandboxResult(verdicts, settings.level, stdout, stderr, seconds, reason)


def _run_test(
    program: str, each: TestPlan, settings: _Settings, leases: Leases, science: bool
) -> tuple[Verdict, Finished | None]:
    """The verdict on one test; a zygote that fails is replaced, once."""
    inputs, limit = each.inputs(program), settings.timeout_s
    for last in (False, True):
        try:
            with leases.zygote(settings.level, science) as leased:
                finished = leased.run(
                    each.mode, inputs, wall_s=limit, cpu_s=limit, memory=settings.memory
                )
            return verdict_on(each, finished, limit), finished
        except Overdue:
            return "timeout", None
        except (Lost, OSError) as error:  # of a machine that is full, or has no more descriptors
            if leases.cancelled or (last and isinstance(error, (NotStarted, OSError))):
                raise SandboxUnavailable(str(error)) from error
    return "crash", None


def _tail(raw: bytes) -> str:
    return raw[-4 * _TAIL :].decode(errors="replace")[-_TAIL:]
