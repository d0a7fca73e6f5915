"""Rows of code sets: brought into one form, and completions that go on from their prompt.

A code row has a `problem` and `tests` (of the forms that `rl_reasoner.sandbox` knows), and needs no
answer. Code sets call the problem `prompt`, give HumanEval's `check` without its call, or do not
say what the function is to be called; `code_row` mends that. Runs nothing.
"""

import builtins
import re
from collections.abc import Mapping
from typing import Any

_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)[ \t]*(?:py|python|py3|python3)?[ \t]*$", re.I | re.M)


def code_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with `problem` and complete `tests`; a row without `tests` comes back as it is.

    - Where there is no `problem`, `prompt` stands for it.
    - HumanEval's tests define `check` and leave it to the reader to call it on `entry_point`.
    - A problem that names no function of its first assertion (MBPP's do not) has it added.
    """
    made = dict(row)
    if not made.get("tests"):
        return made
    if "problem" not in made and "prompt" in made:
        made["problem"] = made.pop("prompt")
    tests, entry = made["tests"], made.get("entry_point")
    if isinstance(tests, str) and tests.strip():
        uncalled = entry and "def check(" in tests and f"check({entry})" not in tests
        made["tests"] = tests = [f"{tests}\n\ncheck({entry})" if uncalled else tests]
    first, problem = tests[0] if isinstance(tests, list) else None, made.get("problem")
    if isinstance(first, str) and first.startswith("assert ") and problem:
        names = set(_CALLED.findall(first)) - set(dir(builtins))
        if not any(re.search(rf"\b{name}\(|`{name}`", str(problem)) for name in names):
            made["problem"] = f"{problem}\nThe solution must satisfy this test:\n{first}"
    return made


def continued(row: Mapping[str, Any], completion: str) -> str:
    """The completion as a reward reads it, where the problem is a program to be continued.

    That is so when the problem itself begins to define `entry_point`, as in HumanEval. The problem
    is put before each fenced Python block: its imports and helpers hold, and a function written
    anew replaces the one begun. A completion without a fence is the continuation itself, up to the
    first line that is not indented; it is put in a block with the problem. What stands before
    `</think>` is left out of this. Other rows' completions come back as they are.
    """
    problem, entry = str(row.get("problem")), row.get("entry_point")
    if not entry or not re.search(rf"^(async )?def {re.escape(str(entry))}\(", problem, re.M):
        return completion
    thinking, closing, answer = completion.rpartition("</think>")
    fences = [*_FENCE.finditer(answer)]
    if not fences:
        return f"{thinking}{closing}\n```python\n{problem}{_body(answer)}\n```\n"
    made, at = "", 0
    for fence in fences[::2]:  # every second one closes
        made += f"{answer[at : fence.start()]}```python\n{problem}"
        at = fence.end()
    return thinking + closing + made + answer[at:]


def _body(text: str) -> str:
    """The indented lines that `text` begins with."""
    lines = text.split("\n")
    rest = (at for at, line in enumerate(lines) if at and line.strip() and not line[0].isspace())
    return "\n".join(lines[: next(rest, len(lines))])
