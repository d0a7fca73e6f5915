"""Tests as columns of rows hold them: lists, one text, or JSON, as a cell of a CSV has it.

Knows nothing of rows, and runs nothing.
"""

import json
from contextlib import suppress
from typing import Any

from rl_reasoner.sandbox.claims import check_claims
from rl_reasoner.sandbox.plans import is_known


def tests_of(value: Any) -> Any:
    """The tests of a column: read where they are JSON; raises ValueError for JSON that is none.

    As Python, JSON is a literal that every program passes.
    """
    if isinstance(value, (list, tuple)):
        return [_from_json(one) if _is_object(one) else one for one in value]
    read = _from_json(value)
    if isinstance(read, list):
        return tests_of(read)
    if isinstance(value, str) and not isinstance(read, (str, dict)):
        raise ValueError(f"tests are {value!r:.40}: expected code that asserts, or a list of tests")
    return [read] if isinstance(read, dict) else read


def are_known(value: Any) -> bool:
    """Whether a column's tests are in forms of the sandbox's, with mistakes or without."""
    read = _from_json(value)
    if isinstance(value, str) and not isinstance(read, (list, dict)):
        return True
    listed = read if isinstance(read, (list, tuple)) else [read]
    return all(map(is_known, listed))


def list_tests(value: Any) -> Any:
    """The list of a column's tests; a text is one test.

    Raises `UserError` for a test that any program would pass (`claims`).
    """
    tests = tests_of(value)
    listed = [tests] if isinstance(tests, str) else tests
    if isinstance(listed, (list, tuple)):
        check_claims(listed)
    return listed


def _is_object(test: Any) -> bool:
    return isinstance(test, str) and test.lstrip().startswith("{")


def _from_json(value: Any) -> Any:
    """The value of a text that is JSON; anything else as it is."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value
