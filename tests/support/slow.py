"""Which tests are slow: those that train, start a process or open a browser.

A test is known by the names it uses, itself or in the fixtures and helpers of tests/ that it goes
through; what these names do not tell is marked by hand (`@pytest.mark.slow`). The fast rest is
`make test FAST=1`.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType

import pytest

TESTS = Path(__file__).resolve().parents[1]
# Modules, functions and methods that make a test slow, by the names that code calls them by.
NAMES = frozenset(
    {"Popen", "Ready", "check_output", "fork", "multiprocessing", "subprocess", "train"}
)


def is_slow(item: pytest.Item) -> bool:
    """Whether the test function of `item`, or one of its fixtures, uses any of `NAMES`."""
    if not isinstance(item, pytest.Function):
        return False
    definitions = item._fixtureinfo.name2fixturedefs
    fixtures = [definitions[name][-1].func for name in item.fixturenames if name in definitions]
    return any(_uses(function) for function in (item.function, *fixtures))


def _uses(start: object) -> bool:
    """Follow the functions of tests/ from `start`."""
    seen: set[object] = set()
    waiting = [start]
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        names = _names(function.__code__)
        if names & NAMES:
            return True
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            parts = vars(value).values() if isinstance(value, type) else (value,)
            waiting += [part for part in parts if _is_ours(part)]
    return False


def _is_ours(value: object) -> bool:
    return isinstance(value, FunctionType) and value.__code__.co_filename.startswith(str(TESTS))


@cache
def _names(code: CodeType) -> frozenset[str]:
    """The names that `code`, and what is defined inside it, uses."""
    return frozenset(_all_names(code))


def _all_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_names(constant)
