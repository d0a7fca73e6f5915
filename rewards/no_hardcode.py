"""No hard-coding: does a program that passes its tests also pass tests it has not seen?

A probe against the cheapest hack of code rewards: a program that answers the tests from a list.
It needs data with a generator of fresh tests; give it a small weight next to `code_tests`.
"""

import zlib
from collections.abc import Sequence
from typing import Any

from rl_reasoner import Column, Score, reward, sandbox
from rl_reasoner.errors import check_one_of
from rl_reasoner.rewards.code_tests import EXTRACT, program_of, time_of
from rl_reasoner.sandbox.columns import list_tests


@reward(on_abstain="ignore", policy_text=True)
def no_hardcode(
    completion: str,
    tests: Sequence[sandbox.Test],
    generator: str | None,
    extract: str = "last",
    timeout_s: float = 5.0,
    time_limit_s: float | None = Column(),  # type: ignore[assignment]
    memory_mb: int = 512,
    min_level: str = "landlock",
) -> Score:
    """1.0 when a program that passes `tests` passes fresh ones too, 0.0 when it does not.

    `generator` is Python that defines `generate(seed)`, which returns a list of tests; it runs in
    the sandbox. The seed depends on the completion alone: fresh to the program, the same each time.
    A row whose column `time_limit_s` allows more than `timeout_s` gets that, up to a minute.
    Abstains where there is no generator, and for programs that do not pass `tests`: they hide
    nothing. A generator that fails raises RuntimeError, which is a fault of the data.
    """
    if not generator:
        return Score(None, "the row has no generator")
    program = program_of(completion, extract)
    if program is None:
        return Score(None, "no closed Python block")
    limits: dict[str, Any] = {
        "timeout_s": time_of(time_limit_s, timeout_s),
        "memory_mb": memory_mb,
        "min_level": min_level,
    }
    try:
        seen = sandbox.run(program, list_tests(tests), stop_early=True, **limits)
        if not seen.passed:
            return Score(None, "does not pass the tests it has seen")
        seed = zlib.crc32(completion.encode("utf-8", "surrogatepass"))
        fresh = sandbox.call(generator, "generate", [seed], **limits)
        result = sandbox.run(program, fresh, **limits)
    except sandbox.SandboxUnavailable as error:
        return Score(None, str(error))
    count, passed = len(result.verdicts), result.verdicts.count("passed")
    why = f"; the first that it fails: {result.reason}" if result.reason else ""
    return Score(float(result.passed), f"passes {passed} of {count} fresh tests{why}")


@no_hardcode.checks
def _check_options(extract: str, **others: object) -> None:
    check_one_of("extract of no_hardcode", extract, EXTRACT)
