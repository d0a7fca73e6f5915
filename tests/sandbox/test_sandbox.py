"""The sandbox's public face: forms of tests, verdicts, limits, mistakes, levels."""

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from rl_reasoner import sandbox
from rl_reasoner.errors import UserError
from rl_reasoner.sandbox import data, host, levels, zygote

SQUARE = "def f(x, y=2):\n    return x ** y\nclass Solution:\n    def g(self, x): return [x, (x,)]"
CHECK = "def check(c):\n    assert c(3) == 9\n    assert c(2, y=3) == 8\ncheck(f)"


@pytest.mark.parametrize(
    "test",
    [
        "assert f(3) == 9",
        "assert f(2, y=3) == 8",
        CHECK,
        "x = f(3)\nassert x > 8 and f(x) == 81",
        {"call": "f", "args": [3], "expected": 9},
        {"call": "f", "args": [2], "kwargs": {"y": 3}, "expected": 8},
        {"call": "f", "args": [2], "kwargs": {"y": 0.5}, "expected": 1.41421, "tolerance": 1e-4},
        {"call": "Solution.g", "args": ["a"], "expected": ["a", ["a"]]},
        {"call": "Solution().g", "args": ["a"], "expected": ["a", ["a"]]},
        "assert Solution().g('a') == ['a', ('a',)]",
        {"call": "f", "args": [3], "expected": 9, "stdin": None, "stdout": None, "kwargs": None},
    ],
)
def test_every_form_of_test_passes_the_right_program_and_fails_a_wrong_one(test: Any) -> None:
    wrong = SQUARE.replace("x ** y", "x ** y + 1").replace("[x, (x,)]", "[x, x]")
    right, other, empty = sandbox.run_many([SQUARE, wrong, ""], [[test]] * 3)
    assert right.passed and right.verdicts == ["passed"]
    assert not other.passed and other.verdicts == ["failed"]
    assert not empty.passed and empty.verdicts == ["error"]


@pytest.mark.parametrize(
    ("said", "expected", "tolerance", "right"),
    [
        ("7", "7", None, True),
        ("7 \\n\\n", "7", None, True),
        ("1 2\\n3", "1\n2 3", None, True),
        (" *\\n***", "*\n***", None, True),
        ("*\\n***", " *\n***", None, False),
        ("a b", "a  b", None, False),
        ("70", "7", None, False),
        ("7 7", "7", None, False),
        ("", "7", None, False),
        ("7.0000001", "7", 1e-6, True),
        ("7.0000001", "7", None, False),
        ("7000001", "7000000", 1e-6, True),
        ("7.1", "7", 1e-6, False),
        ("nan", "7", 1e9, False),
        ("inf", "7", 1e9, False),
        ("0x7", "7", 1.0, False),
        ("seven", "7", 1.0, False),
        ("7", "1e400", 1e-6, False),
        ("1e400", "1e400", 1e-6, True),
        ("1e400", "1e308", 10.0, False),
    ],
)
def test_output_is_compared_as_contest_judges_do(
    said: str, expected: str, tolerance: float | None, right: bool
) -> None:
    test = {"stdin": "", "stdout": expected, "tolerance": tolerance}
    assert sandbox.run(f"print('{said}')", [test]).passed is right


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("return n + 1", "failed"),
        ("return {n}", "failed"),
        ("return str(n)", "failed"),
        ("return print", "error"),
        ("return object()", "error"),
        ("raise ValueError(n)", "error"),
        ("raise SystemExit(0)", "crash"),
        ("import os; os._exit(0)", "crash"),
        ("import os; os.abort()", "crash"),
        ("import ctypes; ctypes.string_at(0)", "crash"),
        ("return bytearray(4 << 30)", "memory"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(99)", "timeout"),
        ("import os; os.write(3, b'not json')\n    os._exit(0)", "refused"),
    ],
)
def test_what_a_call_can_come_to(body: str, verdict: str) -> None:
    test = {"call": "f", "args": [7], "expected": 7}
    result = sandbox.run(f"def f(n):\n    {body}", [test], timeout_s=0.5, memory_mb=200)
    assert result.verdicts == [verdict]


def test_verdicts_are_one_a_test_and_the_tails_are_of_the_first_that_fails() -> None:
    program = "import sys\nn = int(input())\nprint('out', n)\nprint('err', n, file=sys.stderr)"
    tests = [{"stdin": str(n), "stdout": said} for n, said in ((1, "out 1"), (2, "x"), (3, "y"))]
    result = sandbox.run(program, tests)
    assert result.verdicts == ["passed", "failed", "failed"]
    assert (result.stdout, result.stderr) == ("out 2\n", "err 2\n")
    assert result.level == sandbox.strength().level and result.seconds > 0
    early = sandbox.run(program, tests, stop_early=True)
    assert early.verdicts == ["passed", "failed", "refused"] and not early.passed


def test_long_output_comes_back_as_its_tail_and_too_long_output_fails() -> None:
    result = sandbox.run("print('a' * 9999 + 'z')", [{"stdout": "a" * 9999 + "z"}])
    assert result.passed and len(result.stdout) == 4000 and result.stdout.endswith("z\n")
    flood = "x" * (5 << 20)
    assert sandbox.run("print('x' * (5 << 20))", [{"stdout": flood}]).verdicts == ["failed"]


def test_memory_and_time_are_per_test() -> None:
    program = "n = int(input())\nx = bytearray(n << 20)\nprint(len(x) >> 20)"
    test = {"stdin": "300", "stdout": "300"}
    assert sandbox.run(program, [test, test]).passed
    assert sandbox.run(program, [test], memory_mb=128).verdicts == ["memory"]


def test_one_program_is_never_seen_by_the_next() -> None:
    leave = (
        "import builtins, os, sys\nopen('left', 'w').write('x')\nbuiltins.left = 1\n"
        "sys.modules['json'] = None\nprint('ok')"
    )
    look = (
        "import builtins, os\nimport json\n"
        "print(os.listdir('.'), os.listdir('/tmp') if os.getcwd() == '/box/work' else [],"
        " hasattr(builtins, 'left'))"
    )
    first: list[sandbox.Test] = [{"stdout": "ok"}]
    results = sandbox.run_many([leave, look], [first, [{"stdout": "[] [] False"}]], workers=1)
    assert [r.passed for r in results] == [True, True]


def test_a_batch_keeps_its_order_and_its_programs_apart() -> None:
    programs = [f"print({i})" if i % 5 else "import os; os._exit(1)" for i in range(40)]
    results = sandbox.run_many(programs, [[{"stdout": str(i)}] for i in range(40)], workers=3)
    assert [r.passed for r in results] == [bool(i % 5) for i in range(40)]
    assert sandbox.run_many([], []) == []


@pytest.mark.slow
def test_threads_may_share_the_sandbox() -> None:
    passed: list[bool] = []

    def work(n: int) -> None:
        passed.append(sandbox.run(f"print({n})", [{"stdout": str(n)}] * 3).passed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == [True] * 6


def test_a_fork_of_this_process_has_zygotes_of_its_own() -> None:
    sandbox.run("print(1)", [{"stdout": "1"}])
    pid = os.fork()
    if not pid:
        ok = all(sandbox.run(f"print({n})", [{"stdout": str(n)}]).passed for n in range(5))
        os._exit(0 if ok else 1)
    for n in range(10, 15):
        assert sandbox.run(f"print({n})", [{"stdout": str(n)}]).passed
    assert os.waitpid(pid, 0)[1] == 0


def test_numpy_and_sympy_are_there_for_programs_and_tests_that_import_them() -> None:
    pytest.importorskip("numpy")
    program = "def f(n):\n    import numpy as np\n    return np.arange(n)"
    tests: list[sandbox.Test] = [
        {"call": "f", "args": [3], "expected": [0, 1, 2]},
        "import numpy as np\nassert np.array_equal(np.array(f(3)), np.arange(3))",
    ]
    assert sandbox.run(program, tests).passed
    assert sandbox.run("import sympy\nprint(sympy.Integer(7))", [{"stdout": "7"}]).passed
    assert sandbox.run("import torch", [{"stdout": ""}]).verdicts == ["error"]


def test_call_gives_the_value_as_plain_data() -> None:
    program = "def f(n): return {'a': (n, {1, 2}), 2: b'x'}\ndef g(): return print\ndef h(): 1 / 0"
    assert sandbox.call(program, "f", [7]) == {"a": (7, {1, 2}), 2: b"x"}
    with pytest.raises(RuntimeError, match="not plain data"):
        sandbox.call(program, "g")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        sandbox.call(program, "h")
    assert sandbox.call("class A:\n    def f(self, n): return n", "A().f", [7]) == 7


def test_a_value_that_takes_long_to_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_DECODING_S", 0.1)
    program = """
import json, os
def f():
    members = [{"i": format(n * (2 ** 61 - 1), "x")} for n in range(30_000)]
    os.write(3, json.dumps({"s": members}).encode())
    os._exit(0)
def g(): return {n: str(n) for n in range(3_000)}
"""
    with pytest.raises(RuntimeError, match="members collide"):
        sandbox.call(program, "f")
    assert len(sandbox.call(program, "g")) == 3_000


@pytest.mark.parametrize(
    "test",
    [
        {"stdin": "7", "stdout": "tangerine"},
        {"call": "f", "args": [7], "expected": "tangerine"},
        "assert f(7) == 'tangerine'",
        "def check(c):\n    assert c(7) == 'tangerine'\ncheck(f)",
    ],
)
def test_what_is_expected_is_not_given_to_the_process_of_the_program(
    test: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bytes] = []
    run = host.Zygote.run

    def spied(self: Any, mode: bytes, inputs: Any, **limits: Any) -> Any:
        given.extend(inputs[:1] if mode == zygote.JUDGED else inputs)
        return run(self, mode, inputs, **limits)

    monkeypatch.setattr(host.Zygote, "run", spied)
    assert sandbox.run("def f(n): return 'tange' 'rine'\nprint(f(7))", [test]).passed
    assert given and not any(b"tangerine" in each for each in given)


@pytest.mark.parametrize(
    "test",
    [
        "assert sorted([2, 1]) == [1, 2]",
        {"call": "sorted", "args": [[2, 1]], "expected": [1, 2]},
        "def check(candidate):\n    assert candidate([2, 1]) == [1, 2]\ncheck(sorted)",
        "x = sorted([2, 1])\nassert x == [1, 2]",
    ],
)
def test_a_builtin_does_not_pass_for_the_program_of_the_same_name(test: Any) -> None:
    mine = "def sorted(x): return [min(x), max(x)]"
    programs = [mine, "def sorted(x): return x", "def other(x): return x", "", "1 / 0", "def ("]
    results = sandbox.run_many(programs, [[test]] * len(programs))
    assert [r.passed for r in results[:2]] == [True, False]
    assert not any(r.passed for r in results[2:])


def test_tests_may_be_test_cases_or_guarded_as_scripts() -> None:
    case = """
import unittest
class Squares(unittest.TestCase):
    def test_small(self):
        self.assertEqual(f(3), 9)
        self.assertRaises(TypeError, f, None)
if __name__ == "__main__":
    unittest.main()
"""
    guarded = "def test():\n    assert f(3) == 9\nif __name__ == '__main__':\n    test()"
    programs = [SQUARE, "def f(x): return 8", "def f(x): return type('A', (), {})()", ""]
    results = sandbox.run_many(programs, [[case, guarded]] * 4)
    assert results[0].verdicts == ["passed", "passed"]
    assert not any("passed" in r.verdicts for r in results[1:])


def test_a_test_uses_its_own_builtins_and_modules_not_the_programs() -> None:
    fake = "def f(x): return 0\nabs = sorted = all = len = max = lambda *a: 0\n"
    fake += "class math:\n    isclose = staticmethod(lambda *a: True)\nCounter = dict.fromkeys"
    tests: list[sandbox.Test] = [
        "assert abs(f(2) - 4) < 1e-6",
        "assert math.isclose(f(2), 4)",
        "assert Counter([f(2)]) == Counter([4])",
        "def check(c):\n    assert max(abs(c(n) - n * n) for n in (1, 2)) < 1\ncheck(f)",
        "def check(c, own):\n    assert own([c(2)]) == [4]\ncheck(f, sorted)",
    ]
    assert sandbox.run(fake, tests).verdicts == ["failed"] * 5
    assert sandbox.run(SQUARE.replace("class", "import math\nclass"), tests).passed


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (
            "class Counter:\n    n = 0\n    def increment(self): self.n += 1",
            "c = Counter()\nc.increment()\nassert c.n == 1",
        ),
        (
            "class Fraction:\n    def __init__(self, a, b): self.v = a / b\n"
            "    def value(self): return self.v",
            "assert Fraction(1, 2).value() == 0.5",
        ),
        ("def isclose(a, b, rel_tol=0.1): return abs(a - b) < rel_tol", "assert isclose(1, 1.05)"),
        (
            "class calendar:\n    def book(day): return day < 9",
            "assert calendar.book(3) is True\nassert calendar.book(9) is False",
        ),
    ],
)
def test_a_name_that_python_also_has_is_the_programs_where_a_test_asks_for_nothing_else(
    program: str, test: str
) -> None:
    assert sandbox.run(program, [test]).verdicts == ["passed"]
    assert sandbox.run("x = 1", [test]).verdicts == ["error"]


@pytest.mark.parametrize(
    ("program", "test", "verdict"),
    [
        ("def pow(a, b): return 0", "assert math.isclose(pow(2, 0.5), 2**0.5)", "failed"),
        ("", "assert math.isclose(pow(2, 0.5), 99)", "error"),
        ("def round(x): return 0", "assert isclose(round(2.7), 3)", "failed"),
        (
            "def sorted(x): return [1, 2]",
            "assert Counter(sorted([2])) == Counter([1, 2])",
            "passed",
        ),
    ],
)
def test_of_the_names_that_python_also_has_the_judge_keeps_all_but_those_asked_for(
    program: str, test: str, verdict: str
) -> None:
    own = "class math:\n    isclose = staticmethod(lambda *a, **k: True)\n"
    own += "def isclose(*a, **k): return True\nclass Counter: pass\n"
    assert sandbox.run(own + program, [test]).verdicts == [verdict]


# ------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        ([], "at least one test"),
        ("assert f(1) == 1", "must be a list"),
        ([7], "test 0 is int"),
        (["assert f(1) =="], "test 0 is not Python"),
        (["def check(candidate):\n    assert candidate(1) == 1"], "defines check and runs nothing"),
        ([{"stdin": "", "stdot": "7"}], "Did you mean 'stdout'?"),
        ([{"input": "", "output": "7"}], "unknown key 'input'. Did you mean 'stdin'?"),
        (
            [{"fn_name": "f", "inputs": [1], "outputs": 7}],
            "'fn_name'. Did you mean 'call'? Known: call, args",
        ),
        ([{"call": "f", "output": "7"}], "unknown key 'output'. Did you mean 'expected'?"),
        ([{"stdin": ["7"], "stdout": ["7"]}], "not list. Make a test of each of its texts"),
        ([{"stdin": ""}], "stdout must be a str"),
        ([{"stdin": 7, "stdout": "7"}], "stdin must be a str, not int"),
        (["assert f(1) == 1", {"call": "f(", "expected": 1}], "test 1: call must be"),
        ([{"call": "Solution().f()", "expected": 1}], "test 0: call must be"),
        ([{"call": "f", "args": [1]}], "without saying what is expected"),
        ([{"call": "f", "args": 1, "expected": 1}], "args must be a list"),
        ([{"call": "f", "args": [object()], "expected": 1}], "object, which is not plain data"),
        ([{"stdout": "7", "tolerance": -1}], "tolerance must be a number"),
        ([{"stdout": "7", "tolerance": float("nan")}], "tolerance must be a number"),
    ],
)
def test_a_wrong_test_is_the_users_mistake_and_says_where(tests: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        sandbox.run("", tests)
    assert told in str(caught.value)


def test_other_mistakes_of_the_user() -> None:
    one = [{"stdout": ""}]
    with pytest.raises(UserError, match="2 programs but 1"):
        sandbox.run_many(["", ""], [one])
    with pytest.raises(UserError, match="test 0 of program 1"):
        sandbox.run_many(["", ""], [one, [None]])  # type: ignore[list-item]
    with pytest.raises(UserError, match="NoneType, not str"):
        sandbox.run(None, one)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Did you mean 'landlock'"):
        sandbox.run("", one, min_level="landlok")
    with pytest.raises(UserError, match="allow_weak"):
        sandbox.run("", one, min_level="process")
    with pytest.raises(UserError, match="timeout_s"):
        sandbox.run("", one, timeout_s=0)


# ------------------------------------------------------------------------------- levels


def test_strength_says_what_holds_here_and_each_result_its_level() -> None:
    found = sandbox.strength()
    assert found.level in sandbox.LEVELS and found.isolates
    assert str(found).startswith(found.level)
    assert all(gap in str(found) for gap in found.gaps)


@pytest.mark.parametrize("level", ["landlock", "seccomp", "process"])
def test_a_lower_level_can_be_had_and_weak_ones_only_when_asked_for(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(levels.LIMIT_VARIABLE, level)
    found = sandbox.strength()
    if found.level != level:
        pytest.skip(f"{level}: {found.tried[level]}")
    one: list[Any] = [{"stdin": "2", "stdout": "4"}, {"call": "f", "args": [4], "expected": 4}]
    square = "def f(n): return n\nif __name__ == '__main__': print(int(input()) ** 2)"
    assert found.gaps
    if level == "landlock":
        assert sandbox.run(square, one).level == "landlock"
        with pytest.raises(sandbox.SandboxUnavailable, match="RL_REASONER_SANDBOX_LEVEL allows"):
            sandbox.run(square, one, min_level="namespaces")
        return
    with pytest.raises(sandbox.SandboxUnavailable, match="Weak levels need allow_weak"):
        sandbox.run(square, one)
    result = sandbox.run(square, one, allow_weak=True)
    assert result.passed and result.level == level


def test_a_level_whose_self_test_gets_through_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    leaky = levels._ATTACK.replace('"fork": tried(fork)', '"fork": True')
    monkeypatch.setattr(levels, "_ATTACK", leaky)
    levels._strength.cache_clear()
    try:
        found = levels.strength()
        assert found.level == "process"
        assert "got through: fork" in found.tried["namespaces"] or "namespaces" in found.tried
        with pytest.raises(sandbox.SandboxUnavailable, match="got through: fork"):
            sandbox.run("", [{"stdout": ""}])
    finally:
        levels._strength.cache_clear()


def test_a_wrong_name_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(levels.LIMIT_VARIABLE, "namespace")
    with pytest.raises(UserError, match="Did you mean 'namespaces'"):
        sandbox.strength()


def test_importing_the_sandbox_does_not_import_torch() -> None:
    code = "import sys; import rl_reasoner.sandbox; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_executing_a_program_shows_how_it_ended_and_what_it_printed() -> None:
    done = sandbox.execute("import sys; print(input()[::-1]); sys.exit(3)", "abc\n")
    assert (done.ended, done.code, done.stdout) == ("exited", 3, b"cba\n")
    late = sandbox.execute("print('so far', flush=True)\nwhile True: pass", timeout_s=0.3)
    assert (late.ended, late.stdout) == ("timeout", b"so far\n")
    assert sandbox.execute("[0] * 10**9", memory_mb=64).ended == "memory"
    killed = sandbox.execute("import os; os.kill(os.getpid(), 11)")
    assert (killed.ended, killed.code) == ("crash", 11)


def test_a_program_may_be_given_numpy_that_it_does_not_name() -> None:
    program = "print(__import__('num' + 'py').arange(3).sum())"
    assert sandbox.execute(program, science=True).stdout == b"3\n"
    assert sandbox.execute(program).code == 1


@pytest.mark.parametrize(
    "line",
    [
        "import math, numpy",
        "import os; import numpy",
        "import numpy.linalg, numpy",
        "try: import numpy\nexcept ImportError: pass",
        "from math import pi; from numpy import linalg; import numpy",
        "import importlib\nnumpy = importlib.import_module('numpy')",
    ],
)
def test_numpy_is_found_wherever_it_is_imported(line: str) -> None:
    assert sandbox.execute(f"{line}\nprint(numpy.arange(3).sum())").stdout == b"3\n"


def test_every_zygote_has_the_same_hashes() -> None:
    program = "print({'a', 'b', 'c', 'd', 'e'}, hash('a'))"
    seen = set()
    for _ in range(3):
        seen.add(sandbox.execute(program).stdout)
        host.pool.close()
    assert len(seen) == 1
