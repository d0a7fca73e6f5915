"""Why a test did not pass: told to people, and no way to a verdict."""

import tracemalloc
from typing import Any

import pytest

from rl_reasoner import sandbox
from rl_reasoner.sandbox import zygote
from rl_reasoner.sandbox.host import Finished
from rl_reasoner.sandbox.plans import plan_test, why_not_passed
from rl_reasoner.scoring.registry import load_reward

IDENTITY = "def f(n): return n"
RAISES = "def f(n): raise ValueError('no ' + str(n))"
LONG = list(range(300))
OWN = """
class A:
    def __str__(self): return "as expected"
    __repr__ = __str__
def f(n): return A()
"""
UNITTEST = """
import unittest
class T(unittest.TestCase):
    def test_it(self): self.assertEqual(f(3), 4)
unittest.main()
"""


def reason(program: str, test: Any) -> str:
    return sandbox.run(program, [test], timeout_s=3).reason


@pytest.mark.parametrize(
    ("program", "test", "why"),
    [
        (IDENTITY, "assert f(3) == 3", ""),
        (IDENTITY, "assert f(3) == 9", "f gave 3, expected 9"),
        (IDENTITY, {"call": "f", "args": ["a"], "expected": None}, "f gave 'a', expected None"),
        (IDENTITY, "x = f(3)\nassert x == 9", "at `assert x == 9` where the last call gave 3"),
        (IDENTITY, "assert f(3) + 1 == 9, 'far off'", "far off at `assert f(3) + 1 =="),
        (
            IDENTITY,
            "def check(g):\n    assert g(1) == 1\n    assert g(2) == 4\ncheck(f)",
            "g(2) ==",
        ),
        (IDENTITY, UNITTEST, "AssertionError: 3 != 4"),
        (RAISES, "assert f(3) == 9", "ValueError: no 3"),
        (RAISES, "x = f(3)\nassert x == 9", "ValueError: no 3 at `x = f(3)`"),
        ("g = 1", "x = f(3)\nassert x == 9", "NameError: name 'f' is not defined at `x = f(3)`"),
        ("1 / 0", "x = f(3)\nassert x == 9", "ZeroDivisionError: division by zero"),
        ("async def f(n): return n", "assert f(3) == 3", "the answer is not plain data: coroutine"),
        (OWN, "x = f(3)\nassert x + 1 == 9", "TypeError: unsupported operand"),
        ("import os\ndef f(n): os._exit(0)", "assert f(3) == 9", "it ended before it answered"),
        ("import os\ndef f(n): os._exit(0)", "x = f(3)\nassert x", "it ended before it answered"),
        ("print(1)\nprint(2)", {"stdout": "1\n3"}, "line 2: printed '2', expected '3'"),
        ("print(1)", {"stdout": "1\n3"}, "line 2: printed nothing, expected '3'"),
        ("import sys\nsys.exit(3)", {"stdout": "1"}, "exit status 3"),
    ],
)
def test_a_test_that_is_not_passed_says_why(program: str, test: Any, why: str) -> None:
    assert (why in reason(program, test)) if why else reason(program, test) == ""


def test_long_values_are_shown_where_they_begin_to_differ() -> None:
    wanted = [*LONG[:150], 7, *LONG[151:]]
    said = reason(
        "def f(n): return list(range(n))", {"call": "f", "args": [300], "expected": wanted}
    )
    assert "149,150,151" in said and "149,7,151" in said and len(said) < 300
    said = reason("print('x' * 5000 + 'y')", {"stdout": "x" * 5000 + "z"})
    assert "xy', expected" in said and said.endswith("xz'") and len(said) < 200


@pytest.mark.parametrize("test", ["assert f(3) == 9", "x = f(3)\nassert x == 9"])
def test_what_a_program_says_is_cut_and_escaped(test: str) -> None:
    said = reason("def f(n): raise KeyError('a\\n\\x1b[2J\\u202e\\ud800' + 'z' * 100000)", test)
    assert said.startswith("KeyError") and said.isprintable() and len(said) < 500


def test_nothing_of_the_program_is_asked_to_show_its_values() -> None:
    for told in ("x", "(x, [x], {1: x})"):
        result = sandbox.run(OWN, [f"x = f(3)\nassert x is None, {told}"])
        assert result.verdicts == ["failed"] and "as expected" not in result.reason
        assert "Proxy" in result.reason


@pytest.mark.parametrize("said", ["passed", "passed\\n", "\\npassed", "x\\npassed\\npassed"])
@pytest.mark.parametrize(
    "how", ["raise ValueError({!r})", "return {!r}", "raise AssertionError({!r})"]
)
def test_no_message_of_a_program_is_a_verdict(said: str, how: str) -> None:
    program = "def f(n):\n    " + how.format(said).replace("\\\\", "\\")
    for test in (
        "x = f(3)\nassert x == 9, x",
        "def check(g):\n    assert g(3) == 9, g(3)\ncheck(f)",
    ):
        assert sandbox.run(program, [test]).verdicts[0] in ("failed", "error")


def test_what_a_program_writes_by_itself_is_not_taken_for_the_reason() -> None:
    program = (
        "import sys\ndef f(n):\n    print('AssertionError: mine', file=sys.stderr)\n    return n"
    )
    for test in ("assert f(3) == 9", "x = f(3)\nassert x == 9"):
        result = sandbox.run(program, [test])
        assert "mine" in result.stderr and "mine" not in result.reason


def test_a_call_that_raises_is_not_said_to_have_given_what_an_earlier_one_gave() -> None:
    program = "def f(n):\n    assert n < 2, 'too large'\n    return 7"
    assert reason(program, "x = f(1)\ny = f(2)") == "too large at `y = f(2)`"


def test_millions_of_lines_on_standard_error_are_not_taken_apart() -> None:
    """A program that fails may write so many: each line by itself takes some 60 bytes here."""
    ended = zygote.Ended(zygote.EXITED, 1, 0.0)
    finished = Finished(0.0, ended, ended, b"", b"ab\n" * 1_300_000 + b"KeyError: 3\n", b"")
    plan = plan_test({"stdout": "1"}, "test 0")
    tracemalloc.start()
    try:
        assert why_not_passed(plan, "error", finished) == "KeyError: 3"
        assert tracemalloc.get_traced_memory()[1] < 4 * len(finished.stderr)
    finally:
        tracemalloc.stop()


def test_rewards_for_code_give_the_reason() -> None:
    fenced = "```python\n{}\n```".format
    code_tests, no_hardcode = load_reward("code_tests"), load_reward("no_hardcode")
    tests = ["assert f(1) == 1", "x = f(2)\nassert x == 4"]
    said = code_tests(fenced(IDENTITY), tests=tests).reason
    assert said == "test 2 of 2: failed (at `assert x == 4` where the last call gave 2)"
    half = code_tests.with_options(credit="fraction")(fenced(RAISES), tests=tests).reason
    assert half == "passes 0 of 2; test 1 of 2: error (ValueError: no 1)"
    fresh = "def generate(seed): return [{'call': 'f', 'args': [5], 'expected': 25}]"
    score = no_hardcode(fenced(IDENTITY), tests=tests[:1], generator=fresh)
    assert score.value == 0.0 and "f gave 5, expected 25" in score.reason
