"""Code tests: does the program in a completion pass its tests, run in the sandbox?

The program is a fenced block of the completion, taken after the reasoning where there is any, with
answer tags around that or without. Tests are of any form `rl_reasoner.sandbox` knows: code that
asserts, what to read and print, or calls with their expected values. A sandbox that cannot be had
abstains: that is not the program's fault.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner import Column, Score, reward, sandbox
from rl_reasoner.errors import check_one_of
from rl_reasoner.language.fences import python_blocks, wrong_line
from rl_reasoner.language.thinking import behind_chain, without_answer_tags
from rl_reasoner.sandbox.columns import list_tests

_FENCE_LINE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)  # deeper ones: of a docstring
EXTRACT = ("last", "first", "only", "whole", "any")
_CREDIT = ("all", "fraction")
_LONGEST_S = 60.0


@reward(policy_text=True)
def code_tests(
    completion: str,
    tests: Sequence[sandbox.Test],
    extract: str = "last",
    credit: str = "all",
    timeout_s: float = 5.0,
    time_limit_s: float | None = Column(),  # type: ignore[assignment]
    memory_mb: int = 512,
    min_level: str = "landlock",
) -> Score:
    """1.0 when the program passes all `tests`, else 0.0; with credit="fraction" the share passed.

    `extract` says which closed Python block is the program (one without a language counts where no
    other is Python, so that what a program prints is not taken for it): "last", "first", "only"
    (there must be one), "whole" (the completion itself is the program), or "any" (the last block,
    where there is a fence, else the whole). `timeout_s` (seconds) and `memory_mb` are per test; a
    row whose column `time_limit_s` allows more gets that, up to a minute.
    """
    row = {"tests": tests, "time_limit_s": time_limit_s}
    limits: dict[str, Any] = {"memory_mb": memory_mb, "min_level": min_level}
    choices: dict[str, Any] = {"extract": extract, "credit": credit, "timeout_s": timeout_s}
    [score] = _scores([completion], [row], **choices, **limits)
    return score


@code_tests.checks
def _check_options(extract: str, credit: str, **others: object) -> None:
    check_one_of("extract of code_tests", extract, EXTRACT)
    check_one_of("credit of code_tests", credit, _CREDIT)


@code_tests.batch
def _scores(
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    extract: str,
    credit: str,
    timeout_s: float,
    **limits: Any,
) -> list[Score]:
    """The scores of a batch, on all processors; what is twice in it is run once."""
    _check_options(extract, credit)
    programs = [program_of(completion, extract) for completion in completions]
    times = [time_of(row.get("time_limit_s"), timeout_s) for row in rows]
    tests = [list_tests(row["tests"]) for row in rows]
    pairs = [
        (program, repr(own), time)
        for program, own, time in zip(programs, tests, times, strict=True)
    ]
    firsts = {pair: i for i, pair in reversed([*enumerate(pairs)]) if pair[0] is not None}
    scores: dict[tuple[str | None, str, float], Score] = {}
    for time in dict.fromkeys(times):
        asked = {pair: tests[i] for pair, i in firsts.items() if pair[2] == time}
        try:
            results = sandbox.run_many(
                [program for program, _, _ in asked if program is not None],
                list(asked.values()),
                stop_early=credit == "all",
                timeout_s=time,
                **limits,
            )
        except sandbox.SandboxUnavailable as error:
            return [Score(None, str(error))] * len(completions)
        marks = [_score(result, credit) for result in results]
        scores |= dict(zip(asked, marks, strict=True))
    return [scores.get(pair, Score(0.0, "no closed Python block")) for pair in pairs]


def time_of(limit: Any, timeout_s: float) -> float:
    """Seconds a test may take: a row may allow more than the reward does.

    Raises ValueError for a limit that is no number, nor a text of one.
    """
    if limit is None or not str(limit).strip():
        return timeout_s
    try:
        allowed = float(limit)
    except (TypeError, ValueError):
        raise ValueError(f"time_limit_s is {limit!r:.40}: expected a number of seconds") from None
    return max(timeout_s, min(allowed, _LONGEST_S))


def program_of(completion: str, extract: str) -> str | None:
    """The program in a completion by the policy `extract` (see `code_tests`); None for none."""
    check_one_of("extract of code_tests", extract, EXTRACT)
    text = behind_chain(completion)
    if text is None:
        return None
    text = without_answer_tags(text)
    if extract == "whole":
        return text
    programs = [block.code for block in python_blocks(text)]
    bare = extract == "any" and not _FENCE_LINE.search(text)
    if bare and (not programs or wrong_line(text) is None):  # a block may be in its docstring
        return text
    if not programs or (extract == "only" and len(programs) > 1):
        return None
    return programs[0] if extract == "first" else programs[-1]


def _score(result: sandbox.SandboxResult, credit: str) -> Score:
    count, passed = len(result.verdicts), result.verdicts.count("passed")
    parts: dict[str, float] = {"passed": passed, "tests": count}
    if result.passed:
        return Score(1.0, f"passes all {count} tests", parts)
    at, verdict = next((i, v) for i, v in enumerate(result.verdicts) if v != "passed")
    why = f" ({result.reason})" if result.reason else ""
    reason = f"test {at + 1} of {count}: {verdict}{why}"
    if credit == "all":
        return Score(0.0, reason, parts)
    return Score(passed / count, f"passes {passed} of {count}; {reason}", parts)
