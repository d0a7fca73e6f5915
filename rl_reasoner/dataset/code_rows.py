"""Rows of code sets: brought into one form, and completions that go on from their prompt.

A code row has a `problem` and `tests` (of the forms that `rl_reasoner.sandbox` knows), and needs no
answer. Code sets call the problem `prompt`, give HumanEval's `check` without its call, or do not
say what the function is to be called; `code_row` mends that. `continuing` lets a reward judge a
completion that goes on from its prompt, in training as in evaluation; `as_dataset` keeps tests and
other nested values as they are. Runs nothing.
"""

import builtins
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from rl_reasoner.language.fences import python_blocks, wrong_line
from rl_reasoner.language.thinking import behind_chain, split_chain, without_answer_tags
from rl_reasoner.sandbox.claims import check_claims
from rl_reasoner.sandbox.columns import tests_of
from rl_reasoner.sandbox.plans import plan_test
from rl_reasoner.scoring.reward import Reward

if TYPE_CHECKING:
    from datasets import Dataset

_CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_BEGUN = ("problem", "entry_point")
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)[`~ \t]*([^\n]*)$", re.MULTILINE)
_MOST_CUTS = 16  # heads of a text that are tried as a program
_AT_END = re.compile(r"([^`\s])```$")  # a closing fence behind the last line of code


def code_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with `problem` and complete `tests`; a row without `tests` comes back as it is.

    - Where there is no `problem`, `prompt` stands for it.
    - Tests that are JSON, as a cell of a CSV holds them, are read; other text is one test.
    - HumanEval's tests define `check` and leave it to the reader to call it on `entry_point`.
    - A problem that names no function of its first assertion (MBPP's do not) has it added.

    Raises ValueError or `UserError` for tests that the sandbox would not run.
    """
    made = dict(row)
    if made.get("tests"):
        made["tests"] = tests_of(made["tests"])
    if not made.get("tests"):
        return made
    if "problem" not in made and "prompt" in made:
        made["problem"] = made.pop("prompt")
    made["tests"] = tests = _complete(made["tests"], made.get("entry_point"))
    first, problem = tests[0], made.get("problem")
    if isinstance(first, str) and first.startswith("assert ") and problem:
        names = set(_CALLED.findall(first)) - set(dir(builtins))
        if not any(re.search(rf"\b{name}\(|`{name}`", str(problem)) for name in names):
            made["problem"] = f"{problem}\nThe solution must satisfy this test:\n{first}"
    return made


def _complete(tests: Any, entry: Any) -> list[Any]:
    """`tests` as a list, each planned to see that it can run, and HumanEval's with their call."""
    listed = [tests] if isinstance(tests, str) else tests
    if not isinstance(listed, (list, tuple)):
        raise ValueError(f"tests are {tests!r:.40}: expected code that asserts, or a list of tests")
    made = []
    for number, test in enumerate(listed):
        code = isinstance(test, str) and entry and "def check(" in test
        uncalled = code and f"check({entry})" not in test
        made.append(f"{test}\n\ncheck({entry})" if uncalled else test)
        plan_test(made[-1], f"test {number}")
    check_claims(made)
    return made


def continue_program(row: Mapping[str, Any], completion: str) -> str:
    """Make a completion that continues its prompt's program a whole program.

    That is so when the problem itself begins to define `entry_point`, as in HumanEval. The problem
    is put before each fenced Python block: its imports and helpers hold, and a function written
    anew replaces the one begun. Text without a fence, or before one that only closes, is a program,
    too: up to the prose behind it where it defines `entry_point`, else the continuation, up to the
    first line that is not indented. It is put in a block behind the problem. A chain of thought is
    left out of this, and so are answer tags around what stands behind it. Other rows' completions
    come back as they are, and those whose chain never ends.
    """
    problem, entry = str(row.get("problem")), row.get("entry_point")
    begins = re.compile(rf"^(async )?def {re.escape(str(entry))}\(", re.M)
    if not entry or not begins.search(problem) or behind_chain(completion) is None:
        return completion
    thinking, answer = split_chain(completion)
    answer = without_answer_tags(answer)
    if program := _unfenced(problem, answer, begins):
        return f"{thinking}\n```python\n{program}\n```\n"
    made, at = "", 0
    for block in python_blocks(answer) or python_blocks(answer, unclosed=True):
        made += answer[at : block.start] + indent(f"{problem.rstrip()}\n", block.indent)
        at = block.start
    return thinking + made + answer[at:]


def _unfenced(problem: str, answer: str, begins: re.Pattern[str]) -> str:
    """The problem with the program that `answer` begins with; empty where a block has it."""
    fence = _FENCE.search(answer)
    text = answer[: fence.start()] if fence else answer
    text = _AT_END.sub(r"\1", text.rstrip())
    anew = begins.search(text) is not None and not text.lstrip("\n")[:1].isspace()
    if anew:
        begun = f"{problem.rstrip()}\n"
        program = begun + _program_in(text, begun, begins)
    else:
        program = problem + _body(text)
    if not fence:
        return program
    only_closes = _only_closes(fence, answer) and (anew or text.lstrip("\n")[:1].isspace())
    return program if only_closes and wrong_line(program) is None else ""


def _only_closes(fence: re.Match[str], answer: str) -> bool:
    """Whether the first fence closes what was never opened: those behind it are in pairs."""
    behind = [one[1].strip() for one in _FENCE.finditer(answer, fence.end())]
    opens = (at for at, language in enumerate(behind) if language)
    return not fence[1].strip() and next(opens, len(behind)) % 2 == 0


def _program_in(text: str, begun: str, begins: re.Pattern[str]) -> str:
    """`text` up to the prose behind its program; all of it where no such head is Python."""
    lines, above = text.split("\n"), begun.count("\n")
    for _ in range(_MOST_CUTS):
        head = "\n".join(lines)
        if (wrong := wrong_line(begun + head)) is None:
            return head if begins.search(head) else text
        lines = lines[: max(0, min(len(lines), wrong - above) - 1)]
    return text


def _body(text: str) -> str:
    """The indented lines that `text` begins with."""
    lines = text.split("\n")
    rest = (at for at, line in enumerate(lines) if at and line.strip() and not line[0].isspace())
    return "\n".join(lines[: next(rest, len(lines))])


def continuing(
    function: Callable[..., Any], rows: Sequence[Mapping[str, Any]]
) -> Callable[..., Any]:
    """Wrap a reward to judge whole programs where `rows` have programs to be continued.

    That is for rewards that run tests; others, and rows without an `entry_point`, get `function` as
    it is. The result takes the columns `problem` and `entry_point` too (see `continue_program`).
    """
    if not isinstance(function, Reward) or "tests" not in function.columns:
        return function
    if not any(row.get("entry_point") for row in rows):
        return function
    fn, many, taken = function.fn, function._many, function.columns

    @functools.wraps(fn)
    def judged(completion: str, **columns: Any) -> object:
        begun = {name: columns[name] for name in _BEGUN}
        kept = {n: value for n, value in columns.items() if n in taken or n not in _BEGUN}
        return fn(continue_program(begun, completion), **kept)

    made = Reward(judged, function.options)
    made.columns = tuple(dict.fromkeys((*taken, *_BEGUN)))
    made.missing = function.missing
    made.optional, made.on_abstain = function.optional, function.on_abstain
    made.policy_text = function.policy_text
    if many is not None:

        @made.batch
        def together(
            completions: Sequence[str], rows: Sequence[Mapping[str, Any]], **options: Any
        ) -> Sequence[object]:
            whole = [
                continue_program(row, text) for row, text in zip(rows, completions, strict=True)
            ]
            return many(whole, rows, **options)

    return made


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that rewards are given in training: all that any of the rows has."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_dataset(rows: Sequence[Mapping[str, Any]]) -> "Dataset":
    """Turn `rows` into a `datasets.Dataset` whose lists and objects stay unchanged.

    Arrow has one type a column: it would refuse tests of several forms, make `1` of one test `1.0`
    for the `2.5` of another, and add to each object the keys of the others. So such columns, and
    those of several types or with whole numbers beyond 64 bits, lie in it as JSON, and are read
    when a row is taken. A column that some rows lack is None there.
    """
    from datasets import Dataset

    names = columns_of(rows)
    kinds = {name: {type(row.get(name)) for row in rows} - {type(None)} for name in names}
    nested = {
        name
        for name, types in kinds.items()
        if name != "prompt" and (len(types) > 1 or types & {list, tuple, dict})
    }
    nested |= {name for row in rows for name, value in row.items() if _is_long(value)}
    kept = [
        {name: _written(row.get(name)) if name in nested else row.get(name) for name in names}
        for row in rows
    ]
    made = Dataset.from_list(kept)
    return made.with_transform(functools.partial(_read, nested=nested)) if nested else made


def _is_long(value: Any) -> bool:
    """Whether a value is a whole number that 64 bits do not hold."""
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _written(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def _read(batch: dict[str, list[Any]], nested: set[str]) -> dict[str, list[Any]]:
    """Columns of rows as they are taken, with their nested values (as far as asked for) read."""
    read = {
        name: [None if text is None else json.loads(text) for text in batch[name]]
        for name in nested
        if name in batch
    }
    return {**batch, **read}
