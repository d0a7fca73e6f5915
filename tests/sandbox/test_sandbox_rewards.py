"""The rewards that run code: what counts as the program, credit, abstentions, held-back tests."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import sandbox
from rl_reasoner.dataset.rows import lint
from rl_reasoner.errors import UserError
from rl_reasoner.rewards.code_tests import program_of
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.types import Fault, Score

code_tests = load_reward("code_tests")
no_hardcode = load_reward("no_hardcode")
TESTS: list[Any] = [{"call": "f", "args": [2], "expected": 4}, "assert f(3) == 9"]
SQUARE = "def f(x): return x * x"
LIST = "def f(x): return {2: 4, 3: 9}[x]"
GENERATOR = """
import random
def generate(seed):
    numbers = random.Random(seed).sample(range(10, 99), 3)
    return [{"call": "f", "args": [n], "expected": n * n} for n in numbers]
"""


DEEP = "def f():\n    '''\n    ```\n    '''"
TABS = DEEP.replace("    ", "\t")
SEE = 'def f():\n    """see ```\n    """\n    b'
F = "def f(n):\n    return n\n"
LISTED = F + '    """\n    - n: int\n\n        ```\n        f(1)\n        ```\n    """'


def fenced(program: str, language: str = "python") -> str:
    return f"Here it is.\n```{language}\n{program}\n```\nDone."


@pytest.mark.parametrize(
    ("text", "extract", "program"),
    [
        (fenced("a"), "last", "a"),
        (fenced("a", ""), "last", "a"),
        (fenced("a", "Python3"), "last", "a"),
        (fenced("a") + "\n" + fenced("b"), "last", "b"),
        (fenced("a") + "\n" + fenced("b"), "first", "a"),
        (fenced("a") + "\n" + fenced("b"), "only", None),
        (fenced("a") + "\n" + fenced("out", "text"), "last", "a"),
        (fenced("a") + "\n" + fenced("out", "text"), "only", "a"),
        ("<think>" + fenced("a") + "</think>" + fenced("b"), "first", "b"),
        ("<think>" + fenced("a") + "</think> nothing", "last", None),
        ("```python\na", "last", None),
        ("```python\na\n```python\nb\n```", "last", "b"),
        ("~~~py\na\n```\nb\n~~~", "last", "a\n```\nb"),
        ("````\na\n```\nb\n````", "last", "a\n```\nb"),
        ("say ```a``` inline", "last", None),
        ("```python\na\nb```\nDone.", "last", "a\nb"),
        ("```python\na\nb ``` \n```python\nc```", "first", "a\nb"),
        ("```python\n# see ```\nb\n\nc```\nDone.", "last", "# see ```\nb\n\nc"),
        ("```python\n# see ```\nb\n", "last", None),
        ('```python\ndef f():\n    """see ```\n    """\n    b```', "last", SEE),
        ("```python\n    return 1```", "last", "    return 1"),
        ('```python\ns = """\n```a```\n"""\nb```', "last", 's = """\n```a```\n"""\nb'),
        ("```python\n# a```\nb\n```", "last", "# a```\nb"),
        ("  ```python \n  a\n  ```  ", "last", "a"),
        ("1. Here:\n   ```python\n   def f(n):\n       return n\n\n   ```", "last", F),
        ("- Here:\n\n\t```python\n\tdef f(n):\n\t    return n\n\n\t```", "last", F),
        ("- 1\n      ```py\n      a\n   b\n      ```", "last", "a\nb"),
        (fenced("f()\n    ```\n    x\n    ```\ng()"), "last", "f()\n    ```\n    x\n    ```\ng()"),
        (fenced("a") + "\nOutput:\n" + fenced("9", ""), "last", "a"),
        (fenced("a") + "\nOutput:\n" + fenced("9", ""), "only", "a"),
        (fenced("a", "python3.11"), "last", "a"),
        (fenced("a").replace("\n", "\r\n"), "last", "a\r"),
        ("<think>" + fenced("a") + " and so on", "last", None),
        ("<think>no idea", "whole", None),
        ("<think>no idea", "any", None),
        (fenced("s = '<think>'"), "last", "s = '<think>'"),
        (fenced(TABS), "last", TABS),
        (f" ```python\n{DEEP}\n ```", "last", DEEP.replace("    ", "   ")),
        ("    ```\n    x = 1\n    ```\nthen\n```\nx = 1\n```", "last", "x = 1"),
        ("", "last", None),
        ("a", "whole", "a"),
        ("<think>x</think>a", "whole", "a"),
        ("<think>x</think>\n<answer>```python\na\n```</answer>", "last", "a"),
        ("<think>x</think><answer>\n```python\na\n```\n</answer>\n", "only", "a"),
        ("<answer>\na\n</answer>", "any", "\na\n"),
        ("1. Here:\n\n    ```python\n    a\n    ```\n", "any", "a"),
        (
            f'{F}\n    """\n    ```\n    f(1)\n    ```\n    """',
            "any",
            f'{F}\n    """\n    ```\n    f(1)\n    ```\n    """',
        ),
        (
            f'{F}\n    """\n    - n: int\n\n        ```\n        f(1)\n        ```\n    """',
            "any",
            f'{F}\n    """\n    - n: int\n\n        ```\n        f(1)\n        ```\n    """',
        ),
        ("```text\na\n```", "any", None),
        ("<think>x</think><answer>a</answer>", "whole", "a"),
        ("```python\ns = '<answer>a</answer>'\n```", "last", "s = '<answer>a</answer>'"),
    ],
)
def test_which_part_of_a_completion_is_the_program(
    text: str, extract: str, program: str | None
) -> None:
    assert program_of(text, extract) == program


@given(st.text(alphabet="`~ \npya", max_size=60))
def test_any_text_has_a_program_or_none(text: str) -> None:
    for extract in ("last", "first", "only", "whole"):
        found = program_of(text, extract)
        assert found is None or all(line in text for line in found.split("\n"))


def test_credit_is_all_or_nothing_or_the_share() -> None:
    half = fenced("def f(x): return 4")
    share = code_tests.with_options(credit="fraction")  # type: ignore[attr-defined]
    assert [code_tests(fenced(p), tests=TESTS).value for p in (SQUARE, LIST)] == [1.0, 1.0]
    assert code_tests(half, tests=TESTS).value == 0.0
    assert share(half, tests=TESTS).value == 0.5
    assert share(half, tests=TESTS).parts == {"passed": 1, "tests": 2}
    assert "test 2 of 2: failed" in code_tests(half, tests=TESTS).reason
    assert code_tests("no code", tests=TESTS).value == 0.0
    assert "ZeroDivisionError" in code_tests(fenced("1 / 0"), tests=TESTS).reason


def test_a_program_in_the_form_of_tags_is_paid_for_both() -> None:
    format_tags = load_reward("format_tags")
    for inside in (f"```python\n{SQUARE}\n```", f"\n{SQUARE}\n"):
        text = f"<think>so</think>\n<answer>{inside}</answer>"
        assert format_tags(text).value == 1.0
        assert code_tests(text, tests=TESTS, extract="any").value == 1.0


def test_tests_come_in_every_form_and_as_tables_give_them() -> None:
    program = "n = int(input())\nprint(n / 3)"
    row = {"stdin": "1", "stdout": "0.33333", "tolerance": 1e-3, "call": None, "args": None}
    assert code_tests(fenced(program), tests=[row]).value == 1.0
    assert code_tests(fenced(SQUARE), tests="assert f(2) == 4").value == 1.0


def test_tests_that_pass_arguments_by_name_or_allow_a_tolerance_to_decimals() -> None:
    exact = "from decimal import Decimal\ndef f(x): return Decimal('0.3000001')"
    near = {"call": "f", "args": [1], "expected": 0.3, "tolerance": 1e-3}
    assert code_tests(fenced(exact), tests=[near]).value == 1.0
    assert code_tests(fenced(exact), tests=[{**near, "tolerance": 1e-9}]).value == 0.0


def test_tests_that_are_one_text_or_json_are_judged_by_both_rewards() -> None:
    wrong, right = fenced("def f(x): return 1"), fenced(SQUARE)
    for tests in ("assert f(2) == 4", json.dumps(TESTS), json.dumps(TESTS[0])):
        assert [code_tests(text, tests=tests).value for text in (wrong, right)] == [0.0, 1.0]
        held = {"tests": tests, "generator": GENERATOR}
        assert [no_hardcode(text, **held).value for text in (wrong, right)] == [None, 1.0]
    with pytest.raises(ValueError, match="tests are '5': expected code that asserts, or a list"):
        code_tests(wrong, tests="5")


def test_hostile_programs_earn_nothing() -> None:
    for program in ("import os; os._exit(0)", "raise SystemExit", "def f(x): return __import__"):
        assert code_tests(fenced(program), tests=TESTS).value == 0.0


def test_a_sandbox_that_cannot_be_had_abstains(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*args: Any, **options: Any) -> None:
        raise sandbox.SandboxUnavailable("none here")

    for name in ("run", "run_many"):
        monkeypatch.setattr(sandbox, name, unavailable)
    assert code_tests(fenced(SQUARE), tests=TESTS).value is None
    assert code_tests(fenced(SQUARE), tests=TESTS).reason == "none here"
    assert no_hardcode(fenced(SQUARE), tests=TESTS, generator=GENERATOR).value is None


def test_a_wrong_test_of_the_data_is_a_fault_of_its_row_alone() -> None:
    columns = {"tests": [TESTS, [{"call": "f", "arg": [2]}], TESTS]}
    scores = score_batch(code_tests, [fenced(SQUARE)] * 3, columns)
    assert isinstance(scores[1], Fault) and "Did you mean 'args'" in scores[1].message
    assert [s.value for s in scores if not isinstance(s, Fault)] == [1.0, 1.0]


def test_mistakes_in_options_are_told() -> None:
    with pytest.raises(UserError, match="Did you mean 'fraction'"):
        code_tests(fenced(SQUARE), tests=TESTS, credit="fractions")
    with pytest.raises(UserError, match="extract"):
        code_tests(fenced(SQUARE), tests=TESTS, extract="best")


def test_hard_coded_answers_do_not_pass_fresh_tests() -> None:
    row: dict[str, Any] = {"tests": TESTS, "generator": GENERATOR}
    assert no_hardcode(fenced(SQUARE), **row).value == 1.0
    assert no_hardcode(fenced(LIST), **row).value == 0.0
    assert no_hardcode(fenced("def f(x): return 1"), **row).value is None
    assert no_hardcode("no code", **row).value is None
    assert no_hardcode(fenced(SQUARE), tests=TESTS, generator=None).value is None
    with pytest.raises(RuntimeError, match="NameError"):
        no_hardcode(fenced(SQUARE), tests=TESTS, generator="def generate(seed): return missing")


def test_a_slow_list_of_answers_has_the_time_of_its_row_for_fresh_tests_too() -> None:
    """`code_tests` pays it by that time: here it would seem not to pass its own tests."""
    slow = fenced(f"import time\ntime.sleep(1.5)\n{LIST}")
    row: dict[str, Any] = {"tests": TESTS, "generator": GENERATOR, "timeout_s": 0.3}
    assert code_tests(slow, tests=TESTS, timeout_s=0.3, time_limit_s=20).value == 1.0
    assert no_hardcode(slow, **row, time_limit_s=20).value == 0.0
    assert no_hardcode(slow, **row).value is None
    columns = {"tests": [TESTS] * 2, "generator": [GENERATOR] * 2, "time_limit_s": ["20", "2s"]}
    good, bad = score_batch(load_reward("no_hardcode", {"timeout_s": 0.3}), [slow] * 2, columns)
    assert isinstance(good, Score) and good.value == 0.0
    assert isinstance(bad, Fault) and "time_limit_s is '2s'" in bad.message


def test_a_row_may_allow_more_time_than_the_reward() -> None:
    slow = "```python\nimport time\ntime.sleep(3)\nprint(1)\n```"
    test = {"stdin": "", "stdout": "1"}
    code_tests = load_reward("code_tests", {"timeout_s": 0.8})
    columns = {"tests": [[test]] * 4, "time_limit_s": [0.1, 20, "20", ""]}
    assert code_tests(completions=[slow] * 4, **columns) == [0.0, 1.0, 1.0, 0.0]
    found = score_batch(code_tests, [slow] * 2, {"tests": [[test]] * 2, "time_limit_s": ["2s", 9]})
    assert isinstance(found[0], Fault) and not isinstance(found[1], Fault)
    assert "time_limit_s is '2s': expected a number of seconds" in found[0].message
    assert code_tests(slow, tests=[test]).reason.startswith("test 1 of 1: timeout")


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ("", "test 0 is empty: any program would pass"),
        ("# nothing", "test 0 is empty"),
        ("x = int('1')", "test 0 asserts nothing"),
        ("assert True", "test 0 asserts nothing"),
        ("print(f(1) == 2)", "test 0 asserts nothing"),
        ("f(1) == 2 and f(2) == 3", "test 0 asserts nothing"),
        ("x = 1\nf(x) == 2", "test 0 compares in line 2 and drops the result"),
        ("all(f(n) == n for n in range(3))", "test 0 asserts nothing"),
        ("if f(1) != 2:\n    print('wrong')", "test 0 asserts nothing"),
        ("def check():\n    f(1) == 2\ncheck()", "test 0 compares in line 2 and drops"),
        ("assert (f(1) == 2, 'wrong')", "test 0 asserts a tuple in line 1"),
        ("def check(c):\n    assert c(1) == 1\nprint(f(1))", "defines check and runs nothing"),
    ],
)
def test_no_reward_is_paid_for_a_test_that_any_program_passes(test: str, told: str) -> None:
    """The sandbox itself runs such code: a program may be run for what it does."""
    program = "def f(n): return 9"
    with pytest.raises(UserError, match=re.escape(told)) as said:
        code_tests(f"```python\n{program}\n```", tests=[test])
    [mistake] = lint([{"problem": "Write f.", "tests": [test]}], "own.jsonl")[1]
    assert f"row 1: {said.value}" in mistake and told in mistake
    assert sandbox.run(program, [test or "pass"]).verdicts


@pytest.mark.parametrize(
    "test",
    [
        "x = f(1)",
        "x = 0\nx += f(1)",
        "for n in range(3): r = f(n)",
        "for n in f(1): pass",
        "del f(1)[0]",
        "y = 1 / (f(1) == 2)",
        "y = 1 / (limit == 2)",
        "x = 2\nx == 2\nassert f(x) == 2",
        "def check(n):\n    assert f(n) == n\nany(check(n) for n in range(3))",
        "def check():\n    assert f(1) == 2\nr = check()",
        "def check():\n    assert f(1) == 2\nprint(check())",
        "class Test:\n    assert f(1) == 2",
        "class Test:\n    def check(self):\n        assert f(1) == 2\nTest().check()",
        "import threading\nclass Test(threading.Thread): pass\nTest(f(1))",
        "def run_now(g): g()\n@run_now\ndef check():\n    assert f(1) == 2",
    ],
)
def test_a_test_that_some_program_fails_is_one(test: str) -> None:
    program = "def f(n): raise ValueError"
    assert lint([{"problem": "Write f.", "tests": [test]}], "own.jsonl")[1] == []
    assert code_tests(f"```python\n{program}\n```", tests=[test]).value == 0.0
