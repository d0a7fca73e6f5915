"""The judge of a test's code: a program cannot forge through its libraries, loops or callbacks."""

from typing import Any

import pytest

from rl_reasoner import sandbox

# Writes a verdict where the judge writes its own, and ends it.
FORGERY = "[__import__('os').write(3, b'passed'), __import__('os')._exit(0)]"
SAYS = f"def f(n): return {FORGERY!r}\n"


def verdict(program: str, test: Any) -> str:
    return sandbox.run(program, [test], timeout_s=3).verdicts[0]


READ_MEMORY = """
import math
class A:
    __array_interface__ = {"shape": (1,), "typestr": "<f8", "data": (id(math.pi) + 16, True), "version": 3}
def f(n): return A()
"""  # noqa: E501
ASKED_BY_SYMPY = """
class A:
    is_Matrix = is_MatrixLike = is_number = is_commutative = True
    shape = (1, 1)
    _op_priority = 1e9
    def _sympy_(self): return 3
    def _eval_simplify(self, **k): return 0
def f(n): return A()
"""
ANNOTATED = f"""
class F:
    def __call__(self, n): return n
f = F()
f.__annotations__ = {{"n": {FORGERY!r}}}
f.__globals__ = {{}}
"""


@pytest.mark.parametrize(
    ("program", "test"),
    [
        (READ_MEMORY, "import numpy as np\nassert np.allclose(f(1), [np.pi])"),
        (READ_MEMORY, "import numpy as np\nassert np.asarray(f(1)).shape == (1,)"),
        (ASKED_BY_SYMPY, "import sympy\nassert sympy.sympify(f(1)) == 3"),
        (ASKED_BY_SYMPY, "import sympy\nassert sympy.simplify(f(1)) == 0"),
        (ASKED_BY_SYMPY, "import sympy\nassert sympy.Matrix([3]) == f(1)"),
        (ANNOTATED, "import typing\nassert typing.get_type_hints(f) == {'n': int}"),
        (ANNOTATED, "import inspect\nassert inspect.get_annotations(f, eval_str=True)['n'] is int"),
        ("def f(n): return n\nf.__secret__ = 3", "assert f.__secret__ == 3"),
        ("class A: pass\ndef f(n): return A()", "import pickle\nassert pickle.dumps(f(1))"),
    ],
)
def test_no_library_learns_from_the_programs_object_how_to_treat_it(
    program: str, test: str
) -> None:
    assert verdict(program, test) in ("error", "failed")


@pytest.mark.parametrize(
    "use",
    [
        "import sympy\nassert sympy.sympify(f(1)) == 3",
        "import sympy\nassert sympy.S(f(1)) == 3",
        "import sympy\nassert sympy.Matrix([f(1)]) == sympy.Matrix([3])",
        "import sympy\nassert sympy.Integer(3).equals(f(1))",
        "import sympy\nassert sympy.simplify(f(1)) == 3",
        "import sympy\nassert sympy.Eq(sympy.Integer(3), f(1))",
        "import sympy\nassert sympy.lambdify([], f(1))() == 3",
        "import sympy\nassert sympy.lambdify([], sympy.Symbol(f(1)))() == 3",
        "import sympy\nassert sympy.lambdify([], sympy.Function(f(1))(3))() == 3",
        "from sympy.parsing.sympy_parser import parse_expr\nassert parse_expr(f(1)) == 3",
        "assert eval(f(1)) == 3",
        "exec(f(1))\nassert f(2) == 3",
        "exec(compile(f(1), 'answer', 'exec'))\nassert f(2) == 3",
        "import timeit\nassert timeit.timeit(f(1), number=1) < 0",
        "import typing\nclass A: pass\nA.__annotations__ = {'x': f(1)}\n"
        "assert typing.get_type_hints(A) == {'x': int}",
        "import doctest\ndoctest.run_docstring_examples('>>> ' + f(1), {})\nassert f(2) == 3",
    ],
)
def test_what_a_program_says_is_not_run_in_the_judge(use: str) -> None:
    assert verdict(SAYS, use) in ("error", "failed")


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(n): return '(abs := max)'", "eval(f(1))\nassert abs(3, 4) == 4"),
        ("def f(n): return 'abs = max'", "exec(f(1))\nassert abs(3, 4) == 4"),
        ("def f(n): return 'from math import exp as abs'", "exec(f(1))\nassert abs(0) == 1"),
        ("def f(n): return 'e'", "e = 24\nassert eval(f(1)) == e, 'e'"),
        ("def f(n): return 'N'", "import sympy\nN = 24\nassert f(1) and eval(f(1)) == N"),
        ("def f(n): return 'y'", "d = {'y': 24}\ny = 24\nassert eval(f(1)) == y"),
        ("def f(n): return 'wanted'", "import sympy\nwanted = sympy.pi / 24\n"
         "assert sympy.sympify(f(1), locals=globals()) == wanted"),
        ("def f(n): return 'E'", "from sympy.parsing.sympy_parser import parse_expr\n"
         "import sympy\nE = sympy.pi / 24\nassert parse_expr(f(1), global_dict=globals()) == E"),
        ("def f(n): return '().__class__'", "assert eval(f(1)) is tuple"),
        ("def f(n): return '[v for v in (lambda: f)().__globals__]'", "assert eval(f(1))"),
        ("def f(n): return n\nf.__doc__ = '>>> f(1)\\n1'", "import doctest\nf(1), f(2)\n"
         "doctest.run_docstring_examples(f, {'f': f})"),
        ("import marshal\ndef f(n): return marshal.dumps(compile('3', '', 'eval'))",
         "import marshal\nassert eval(marshal.loads(f(1))) == 3"),
        ("import pickle\nclass A:\n    def __reduce__(self): return eval, ('3',)\n"
         "def f(n): return pickle.dumps(A())", "import pickle\nassert pickle.loads(f(1)) == 3"),
        (r"""
def f(n):
    return b"\x80\x02ccollections\nCounter\n(N}X\x06\0\0\0__eq__cbuiltins\nbool\nstb."
""", "import pickle\ntry:\n    pickle.loads(f(1))\nexcept Exception:\n    pass\n"
         "assert Counter('a') == Counter('b')"),
        ("import pickle\nclass A:\n"
         "    def __reduce__(self): return type, ('A', (), {'__eq__': bool})\n"
         "def f(n): return pickle.dumps(A())", "import pickle\nassert pickle.loads(f(1))() == 3"),
    ],
)  # fmt: skip
def test_not_even_where_the_text_seems_harmless(program: str, test: str) -> None:
    assert verdict(program, test) in ("error", "failed")


def test_calculations_of_a_program_are_read_and_the_tests_own_code_runs() -> None:
    program = """
import pickle
def f(n): return "x**2 + 2*x + sin(x)/pi"
def game(n): return "(1 + 2) * 8 / max(1, 1)"
def root(n): return "x**2 + sqrt(x)"
def word(n): return "a"
def keep(x): return pickle.dumps(x)
"""
    tests: list[sandbox.Test] = [
        "import sympy\nx = sympy.symbols('x')\n"
        "assert sympy.simplify(sympy.sympify(f(1)) - (x**2 + 2*x + sympy.sin(x)/sympy.pi)) == 0",
        "import sympy\nx, y = sympy.symbols('x y')\n"
        "assert sympy.sympify(root(1).replace('x', 'y'), locals={'y': x}) == x**2 + sympy.sqrt(x)",
        "import sympy\nx = sympy.symbols('x')\ng = sympy.sympify(root(1))\n"
        "assert sympy.lambdify(x, g)(4) == 18 and sympy.lambdify(x, g, 'numpy')(4) == 18",
        "import sympy\nx, y = sympy.symbols('x y')\nassert word(1) == 'a'\n"
        "assert sympy.integrate(1 / (x**2 + 1), x) == sympy.atan(x)\n"
        "assert sympy.groebner([x*y - 1, y**2 - x]).exprs and sympy.nsolve(x**2 - 2, x, 1) > 1",
        "assert eval(game(1)) == 24",
        "from math import sqrt\nassert eval(word(1).replace('a', 'sqrt(16) + max(1, 2)')) == 6",
        "import sympy\nfrom math import sqrt\n"
        "assert eval(word(1).replace('a', 'sqrt(16) + max(1, 2)')) == 6\n"
        "assert sympy.sympify(word(1).replace('a', 'sqrt(16) + max(1, 2)')) == 6",
        "import ast\nassert ast.literal_eval(repr(word(1))) == 'a'",
        "assert word(1) == 'a'\n"
        "from dataclasses import dataclass\nfrom collections import namedtuple\n"
        "P = namedtuple('P', 'x y')\n@dataclass\nclass D:\n    x: int\nassert P(1, 2).y == D(2).x",
        "assert word(1) == 'a'\nimport colorsys, timeit\n"
        "assert timeit.timeit(lambda: word(1), number=3) >= 0\nexec('z = 3')\nassert z == 3",
        "import pickle\nx = {1: {2, 3}, 'c': (1, 2.5)}\nassert pickle.loads(keep(x)) == x",
    ]  # fmt: skip
    result = sandbox.run(program, tests)
    assert result.verdicts == ["passed"] * len(tests)


@pytest.mark.parametrize("raised", ["StopIteration", "StopAsyncIteration", "IndexError"])
@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(f, [1, 2]))",
        "assert all(a == b for a, b in zip(map(f, [1, 2]), [3, 4]))",
        "assert not list(filter(f, [1, 2]))",
        "assert sum(1 for _ in iter(f.g, 3)) == 0",
        "class A:\n    def __iter__(self): return self\n    def __next__(self): return f(1)\n"
        "assert all(a == 3 for a in A())",
    ],
)
def test_what_a_call_raises_ends_no_loop_of_the_test(raised: str, test: str) -> None:
    assert verdict(f"def f(n): raise {raised}\nf.g = lambda: f(1)", test) == "error"


def test_an_iterator_of_the_program_ends_as_it_should() -> None:
    program = """
class Down:
    def __init__(self, n): self.n = n
    def __iter__(self): return self
    def __next__(self):
        if not self.n: raise StopIteration
        self.n -= 1
        return self.n
"""
    test = "d = Down(3)\nassert [*d] == [2, 1, 0] and next(Down(1)) == 0\ntry:\n    next(d)\n"
    assert verdict(program, test + "    assert False\nexcept StopIteration:\n    pass") == "passed"


CASE = """
import unittest
class T(unittest.TestCase):
    def test_it(self): self.assertEqual(f(1), 4)
"""


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        (CASE + "unittest.main(exit=False)", "failed"),
        (CASE + "unittest.main()", "failed"),
        (CASE + "unittest.TextTestRunner().run(unittest.makeSuite(T))", "failed"),
        (CASE + "T('test_it').run()", "failed"),
        (
            CASE.replace("self.a", "\n        with self.subTest(): self.a")
            + "unittest.main(exit=False)",
            "failed",
        ),
        ("'''\n>>> f(1)\n4\n'''\nimport doctest\nf\ndoctest.testmod()", "failed"),
    ],
)
def test_a_runner_that_raises_nothing_is_asked_what_it_found(test: str, wrong: str) -> None:
    assert verdict("def f(n): return 4", test) == "passed"
    assert verdict("def f(n): return 5", test) == wrong
    assert verdict("def f(n): return [][1]", test) == wrong


@pytest.mark.parametrize(
    "test",
    [
        "check = lambda c: c(1) == 4 or 1 / 0\ncheck(f)",
        "def check(c):\n    assert c(1) == 4\ndone = check(f)",
        "def check(n):\n    assert f(n) == 4\nlist(map(check, [1, 2]))",
        "if f(1) != 4:\n    raise ValueError",
        "import contextlib\nwith contextlib.suppress(OSError):\n    f(1) == 4 or 1 / 0",
        CASE + "import sys\n"
        "suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])\n"
        "found = unittest.TextTestRunner().run(suite)",
    ],
)
def test_whatever_may_raise_on_a_wrong_program_is_a_test(test: str) -> None:
    assert verdict("def f(n): return 4", test) == "passed"
    assert verdict("def f(n): return 5", test) != "passed"


def test_a_runner_that_finds_nothing_to_run_passes_nothing() -> None:
    for end in ("unittest.main()", "unittest.main(exit=False)"):
        assert verdict("def f(n): return 4", CASE.replace("test_it", "it") + end) != "passed"


@pytest.mark.parametrize(
    ("said", "test"),
    [
        ("unittest.__main__", "import importlib\nassert importlib.import_module(f(1)).a == 4"),
        ("unittest.__main__", "assert __import__(f(1), fromlist=['a']).a == 4"),
        ("unittest.__main__", "import pkgutil\nassert pkgutil.resolve_name(f(1)).a == 4"),
        ("--help", "import argparse\nassert argparse.ArgumentParser().parse_args([f(1)]).a == 4"),
    ],
)
def test_a_library_that_ends_the_process_passes_nothing(said: str, test: str) -> None:
    assert verdict(f"def f(n): return {said!r}", test) in ("error", "failed")


@pytest.mark.parametrize("end", ["import sys\nsys.exit(0)", "exit()", "raise SystemExit"])
def test_a_test_may_end_itself(end: str) -> None:
    assert verdict("def f(n): return 4", f"assert f(1) == 4\n{end}") == "passed"
    assert verdict("def f(n): return 5", f"assert f(1) == 4\n{end}") == "failed"


READ_FROM_MESSAGE = """
import re
def f(g):
    try: g(0)
    except AssertionError as error: return int(re.findall(r"[0-9]+", str(error))[-1])
"""
ASK_UNTIL_RIGHT = """
def f(g):
    for n in range(99):
        try: g(n)
        except AssertionError: continue
        return n
"""


@pytest.mark.parametrize("program", [READ_FROM_MESSAGE, ASK_UNTIL_RIGHT])
@pytest.mark.parametrize("check", ["assert v == 41, f'not {41}'", "T().assertEqual(v, 41)"])
def test_an_assertion_in_a_callback_tells_the_program_nothing(program: str, check: str) -> None:
    test = f"from unittest import TestCase as T\ndef g(v): {check}\nassert f(g) == 41"
    assert verdict("def f(g):\n    g(41)\n    return 41", test) == "passed"
    assert verdict(program, test) in ("failed", "error")


def test_an_assertion_in_a_thread_of_the_test_counts() -> None:
    test = "import threading\ndef g():\n    assert f(1) == 4\nt = threading.Thread(target=g)\n"
    test += "t.start()\nt.join()"
    assert verdict("def f(n): return 4", test) == "passed"
    assert verdict("def f(n): return 5", test) == "failed"
    assert verdict("def f(n): return object()", test) == "error"
    assert verdict("def f(n): return n / 0", test) == "error"


def test_what_a_callback_raises_otherwise_reaches_the_program() -> None:
    program = "def f(g):\n    try: g()\n    except ValueError as error: return str(error)"
    assert verdict(program, "def g(): raise ValueError('boom')\nassert f(g) == 'boom'") == "passed"
    program = """
def positive(n): assert n > 0, n
def tries(g, xs):
    def ok(x):
        try: g(x)
        except AssertionError as error: return str(error)
    return [ok(x) for x in xs]
"""
    test = "def g(x): return positive(x)\nassert tries(g, [1, -1]) == [None, '-1']"
    assert verdict(program, test) == "passed"
    program = "def f(g):\n    try: g()\n    except ValueError as error: return str(error)"
    leaves = "import sys\ntry:\n    f(sys.exit)\nexcept SystemExit:\n    pass\n"
    assert verdict(program, leaves) == "passed"
    assert verdict(program, leaves + "f(sys.exit)") == "crash"
    assert verdict("def f(g): g(0)", "import sys\nf(sys.exit)\nassert f(3) == 4") == "error"


def test_only_what_can_change_in_place_is_changed() -> None:
    program = """
import json, os, struct
def f(x):
    raw = json.dumps(["value", None, [[0, [9]]]]).encode()
    os.write(3, struct.pack("!IH?", len(raw), 0, False) + raw)
    os._exit(0)
"""
    assert verdict(program, "x = (1,)\nf(x)\nassert x == (1,)") == "crash"
    assert verdict(program, "x = {1}\nf(x)\nassert x == {1}") == "crash"
    counts = "def f(c): c['a'] += 1"
    assert verdict(counts, "c = Counter('a')\nf(c)\nassert c == Counter('aa')") == "passed"
    sorts = "def f(x): x.sort()"
    assert verdict(sorts, "import numpy as np\nx = np.array([2, 1])\nf(x)\nassert len(x) == 2") == (
        "passed"
    )


def test_objects_show_what_tests_of_them_use() -> None:
    program = """
class Account:
    "An account."
    def __init__(self, owner): self._owner, self.moves = owner, []
    def __repr__(self): return f"Account({self._owner!r})"
class Overdrawn(ValueError): pass
class Table:
    closed = False
    def keys(self): return ["a"]
    def __getitem__(self, key): return 1
    def close(self): self.closed = True
def f(n):
    "What it does."
    return n
"""
    tests: list[sandbox.Test] = [
        "a = Account('Ada')\nassert a._owner == 'Ada' and getattr(a, '_own' + 'er') == 'Ada'",
        "assert f.__name__ == 'f' and f.__doc__ == 'What it does.'",
        "a = Account('Ada')\nassert repr(a) == f'{a!r}' == \"Account('Ada')\"",
        "a = Account('Ada')\nassert isinstance(a, Account) and not isinstance(a, Table)\n"
        "assert not isinstance(1, Account) and not isinstance(a, str)",
        "assert issubclass(Overdrawn, ValueError) and not issubclass(Overdrawn, KeyError)",
        "import copy\na = Account('Ada')\n"
        "b, c = copy.copy(a), copy.deepcopy(a)\na.moves.append(1)\n"
        "b._owner = 'Bob'\nassert a._owner == 'Ada' and len(c.moves) == 0",
        "import collections, contextlib\nwith contextlib.closing(Table()) as t:\n"
        "    assert collections.UserDict(t) == {'a': 1} and dict(t) == {'a': 1}\n"
        "assert t.closed",
        "from operator import attrgetter\nassert attrgetter('_owner')(Account('Ada')) == 'Ada'",
    ]  # fmt: skip
    assert sandbox.run(program, tests).verdicts == ["passed"] * len(tests)


@pytest.mark.parametrize(
    ("below", "test"),
    [
        ("result = f(2)\nprint(result)", "def check(candidate):\n    result = candidate(1)\n"
         "    assert result == 2\ncheck(f)"),
        ("candidate = [1]", "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)"),
        ("for i in range(3):\n    print(f(i))", "def check(g):\n    for i in range(3):\n"
         "        assert g(i) == i + 1\ncheck(f)"),
        ("x, y = 1, 2", "assert all((lambda x: f(x) == x + 1)(y) for y in range(3))"),
        ("MOD = 7", "y = f(3)\nassert y % MOD == 4"),
        ("names = ['a']\nf.names = names", "import collections\n"
         "P = collections.namedtuple('P', names)\nassert f(P(1).a) == 2"),
        ("COUNT = 0", "class Test:\n    f, COUNT = staticmethod(f), COUNT + 2\n"
         "assert Test.f(1) == Test.COUNT"),
    ],
)  # fmt: skip
def test_a_programs_plain_globals_do_not_stop_a_test(below: str, test: str) -> None:
    assert verdict(f"def f(x):\n    return x + 1\n{below}\n", test) == "passed"


def test_locals_of_a_test_are_its_own_and_what_a_program_says_is_still_not_run() -> None:
    test = "def check(f):\n    assert wanted == 3 and f(1) == 2\nwanted = 3\ncheck(lambda x: x + 1)"
    assert verdict("wanted, f = 4, None", test) == "passed"
    program = f"said = {FORGERY!r}\ndef f(n): return n\n"
    for test in ("assert eval(said) == 3", "exec(said)\nassert f(2) == 3"):
        assert verdict(program, test) in ("error", "failed")


def test_dates_and_deques_are_data_on_both_sides() -> None:
    program = """
import datetime
from collections import deque
def later(day, days): return day + datetime.timedelta(days)
def gap(a, b): return b - a
def turn(q):
    q.rotate(1)
    return deque(q)
"""
    tests = [
        "import datetime as d\nassert later(d.date(2024, 2, 28), 2) == d.date(2024, 3, 1)",
        "from datetime import datetime, timedelta\n"
        "assert gap(datetime(2024, 1, 1), datetime(2024, 1, 2, 3)) == timedelta(days=1, hours=3)",
        "q = deque([1, 2, 3])\nassert turn(q) == deque([3, 1, 2])\nassert q[0] == 3",
        {"call": "turn", "args": [{"_": 1}], "expected": 1},
    ]
    assert sandbox.run(program, tests).verdicts == ["passed", "passed", "passed", "error"]
    assert verdict(program, "import datetime as d\nx = d.date(2024, 1, 1)\n"
                   "assert later(x, 1) == x") == "failed"  # fmt: skip
    assert verdict(program, "assert turn(deque([1, 2])) == [2, 1]") == "failed"


def test_what_plain_deques_and_dates_cannot_say_stays_with_the_program() -> None:
    program = """
import datetime, zoneinfo
from collections import deque
class Queue(deque):
    def top(self): return self[-1]
def last(size): return deque(maxlen=size)
def noon(zone): return datetime.datetime(2024, 1, 1, 12, tzinfo=zoneinfo.ZoneInfo(zone))
"""
    tests = [
        "q = Queue()\nq.append(3)\nassert q.top() == 3 and len(q) == 1",
        "q = last(2)\nq.extend([1, 2, 3])\nassert q.maxlen == 2 and list(q) == [2, 3]",
        "assert noon('UTC').tzinfo.key == 'UTC'",
    ]
    assert sandbox.run(program, tests).verdicts == ["passed"] * len(tests)
