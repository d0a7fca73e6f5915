"""What a programming problem is: a function with its specification, its solution and its tests.

The problems are in `programming_numbers.py`, `programming_text.py` and `programming_lists.py`, as
ordinary functions, so that the reference solutions are formatted, linted and typed like all code;
`make.py` turns them into rows of `programming.jsonl`.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
TIME_LIMIT_S = 2.0  # for each test; the reference solutions take milliseconds
PROBLEMS: list[dict[str, Any]] = []  # the rows, in the order in which the files define them


def problem(level: int, *cases: tuple[Any, ...]) -> Callable[[Function], Function]:
    """Make the decorated function a problem of `level` 1 to 3.

    Its docstring is the specification, its body the reference solution (standing alone: imports
    are inside). Each case is the expected value followed by the arguments; the first is the
    example that the prompt shows.
    """

    def add(function: Function) -> Function:
        name = function.__name__
        signature, body = _source(function)
        expected, *args = cases[0]
        example = f"{name}({', '.join(map(repr, args))}) == {expected!r}"
        prompt = (
            f"Write a Python function `{signature}`.\n\n{inspect.getdoc(function)}\n\n"
            f"Example: `{example}`"
        )
        PROBLEMS.append(
            {
                "id": f"prog-{len(PROBLEMS) + 1:02d}",
                "prompt": prompt,
                "entry_point": name,
                "tests": [
                    {"call": name, "args": args, "expected": expected} for expected, *args in cases
                ],
                "reference_solution": f"def {signature}:\n{body}",
                "subject": function.__module__.rpartition("_")[2],
                "level": level,
                "time_limit_s": TIME_LIMIT_S,
            }
        )
        return function

    return add


def _source(function: Callable[..., Any]) -> tuple[str, str]:
    """The signature and the body of a function as written, without decorator and docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    if not isinstance(node, ast.FunctionDef):
        raise TypeError(f"{function.__name__}: not a plain function")
    lines = source.splitlines(keepends=True)
    signature = lines[node.lineno - 1].removeprefix("def ").rstrip().removesuffix(":")
    docstring_end = node.body[0].end_lineno or 0
    return signature, "".join(lines[docstring_end:])
