"""The task `functions`: a specification in plain words and two examples -> a one-line function.

    f(x,y): add y, at most 5, square. f(2,-4)=4 f(8,3)=25
    def f(x,y):x+=y;x=min(x,5);x*=x;return x

Two functions with the same values count as one problem, so that no split holds another's in other
words. Three tests go with each row, apart from the two examples: together they tell the function
from those that leave an operation out or have a constant one higher or lower.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rl_reasoner.dataset.tasks.base import Pick, Problem, Task, picker, sha256_int

_CONSTANTS = range(2, 10)
_TESTS = 3
_EXAMPLES = 2
_TRIED = 12  # points among which tests and examples are looked for
_LARGEST = 999  # of the values in examples and tests
_ONE = [(x, 0) for x in range(-9, 10)]  # inputs of functions of x, and of x and y
_TWO = [(x, y) for x in (-9, -7, -4, -2, -1, 1, 3, 5, 6, 8) for y in (-8, -5, -3, -1, 2, 4, 7, 9)]


@dataclass(frozen=True)
class _Kind:
    """A kind of operation: in words, in Python, and what it makes of x and its operand."""

    words: str
    code: str
    apply: Callable[[int, int], int]
    operand: str = ""  # "c": a constant; "cy": a constant or y


_KINDS = (
    _Kind("add {}", "x+={}", lambda x, n: x + n, "cy"),
    _Kind("subtract {}", "x-={}", lambda x, n: x - n, "cy"),
    _Kind("times {}", "x*={}", lambda x, n: x * n, "cy"),
    _Kind("at most {}", "x=min(x,{})", min, "cy"),
    _Kind("at least {}", "x=max(x,{})", max, "cy"),
    _Kind("remainder by {}", "x%={}", lambda x, n: x % n, "c"),
    _Kind("square", "x*=x", lambda x, n: x * x),
    _Kind("absolute", "x=abs(x)", lambda x, n: abs(x)),
    _Kind("negate", "x=-x", lambda x, n: -x),
)
_SWAP = _Kind("swap", "x,y=y,x", lambda x, n: n)
_Step = tuple[_Kind, str]  # a kind and its operand: "3", "y" or ""


def _functions(level: int, pick: Pick) -> Problem | None:
    """A function of `level` operations on x, or on x and y."""
    two = bool(pick(2))
    steps = [_step(two, pick) for _ in range(level)]
    if two and not any(kind is _SWAP or operand == "y" for kind, operand in steps):
        return None
    if any(_one_in_two(first, then) for first, then in pairwise(steps)):
        return None
    points = _TWO if two else _ONE
    values = _values(steps, points)
    order = _telling(steps, points, values)
    if order is None:
        return None
    head = "f(x,y)" if two else "f(x)"
    shown = " ".join(
        f"f({','.join(map(str, _arguments(points[at], two)))})={values[at]}"
        for at in order[_TESTS : _TESTS + _EXAMPLES]
    )
    tests: list[dict[str, Any]] = [
        {"call": "f", "args": _arguments(points[at], two), "expected": values[at]}
        for at in order[:_TESTS]
    ]
    program = _program(head, steps)
    return Problem(
        "functions",
        f"{head}: {', '.join(kind.words.format(operand) for kind, operand in steps)}. {shown}\n",
        "",
        program,
        level,
        f"{head}={sha256_int(repr(values)) % 16**16:016x}",
        {"completion": program, "tests": tests},
    )


def _step(two: bool, pick: Pick) -> _Step:
    kinds = (*_KINDS, _SWAP) if two else _KINDS
    kind = kinds[pick(len(kinds))]
    if not kind.operand:
        return kind, ""
    if two and "y" in kind.operand and pick(2):
        return kind, "y"
    return kind, str(_CONSTANTS[pick(len(_CONSTANTS))])


def _one_in_two(first: _Step, then: _Step) -> bool:
    """Whether the two are one operation, as "add 3, subtract 5" are."""
    sums = {"add {}", "subtract {}"}
    alike = first[0] is then[0] or {first[0].words, then[0].words} == sums
    return alike and (first[1] == "y") == (then[1] == "y") and first[0].words != "square"


def _arguments(point: tuple[int, int], two: bool) -> list[int]:
    return [*point] if two else [point[0]]


def _program(head: str, steps: Sequence[_Step]) -> str:
    body = "".join(f"{kind.code.format(operand)};" for kind, operand in steps)
    return f"def {head}:{body}return x"


def _values(steps: Sequence[_Step], points: Sequence[tuple[int, int]]) -> list[int]:
    """The function's value at each point."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    for kind, operand in steps:
        if kind is _SWAP:
            xs, ys = ys, xs
        else:
            operands = ys if operand == "y" else [int(operand or 0)] * len(xs)
            xs = [kind.apply(x, n) for x, n in zip(xs, operands, strict=True)]
    return xs


def _telling(
    steps: Sequence[_Step], points: Sequence[tuple[int, int]], values: Sequence[int]
) -> list[int] | None:
    """Places of points for tests and examples, in this order; None where no three tests will do.

    Their order is a matter of the function's hash; those that tell it from a near one come first.
    """
    pick = picker(f"functions|{values!r}")
    rest = [at for at, value in enumerate(values) if abs(value) <= _LARGEST]
    order = [rest.pop(pick(len(rest))) for _ in range(min(len(rest), _TRIED))]
    some = [points[at] for at in order]
    near = [dict(zip(order, _values(other, some), strict=True)) for other in _neighbours(steps)]
    tests: list[int] = []
    for at in order:
        alike = [other for other in near if other[at] == values[at]]
        if len(alike) < len(near):
            tests.append(at)
            near = alike
    if near or len(tests) > _TESTS:
        return None
    order = [*tests, *(at for at in order if at not in tests)][: _TESTS + _EXAMPLES]
    return order if len(order) == _TESTS + _EXAMPLES else None


def _neighbours(steps: Sequence[_Step]) -> Iterator[list[_Step]]:
    """The functions with one operation less, or a constant one higher or lower."""
    for place, (kind, operand) in enumerate(steps):
        before, after = steps[:place], steps[place + 1 :]
        yield [*before, *after]
        if operand.isdigit():
            yield from ([*before, (kind, str(int(operand) + by)), *after] for by in (-1, 1))


# ------------------------------------------------------------------------------ carelessness


def careless_function(problem: Problem, share: float, rng: random.Random) -> dict[str, str]:
    """The completion of a writer who is careless in a `share` of the programs.

    A careless program has one operation, or its constant alone, replaced by a random one.
    """
    if rng.random() >= share:
        return {}
    head, _, rest = problem.problem.partition(": ")
    steps = [_read(words) for words in rest.partition(". ")[0].split(", ")]

    def pick(n: int) -> int:
        return int(rng.random() * n)

    place = pick(len(steps))
    kind, operand = steps[place]
    if operand.isdigit() and pick(2):
        steps[place] = kind, str(_CONSTANTS[pick(len(_CONSTANTS))])
    else:
        steps[place] = _step(head == "f(x,y)", pick)
    return {"completion": _program(head, steps)}


def _read(words: str) -> _Step:
    """The operation that the words of a specification name."""
    for kind in (*_KINDS, _SWAP):
        start, braces, _ = kind.words.partition("{}")
        if words.startswith(start) if braces else words == start:
            return kind, words[len(start) :]
    raise ValueError(f"no operation: {words!r}")


FUNCTION_TASK = Task(
    "functions",
    "one-line Python functions from plain words and two examples; level: operations",
    range(2, 4),
    range(4, 5),
    _functions,
    careless_function,
    "code_tests",
    {"extract": "any"},
)
