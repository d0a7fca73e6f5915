"""Tests of programs with classes and exceptions of their own: what is honest passes, no more."""

import pytest

from rl_reasoner import sandbox
from support.attacks.classes import CLASSES


def verdict(program: str, test: str) -> str:
    return sandbox.run(program, [test], timeout_s=3).verdicts[0]


@pytest.mark.parametrize(
    "test",
    [
        "abs(a) == 5",
        "float(a) == 5.0",
        "int(a) == 5",
        "complex(a) == 3 + 4j",
        "round(a) == 7 and round(a, 1) == 7.1",
        "bool(a) and not bool(V(0, 0)) and not V(0, 0)",
        "[10, 20, 30][V(1, 0)] == 20",
        "str(-a) == '<-3, -4>' and str(+a) == '<3, 4>' and (~a).x == 4",
        "f'{a}' == '<3, 4>' and f'{a:.1f}' == '<3.0, 4.0>' and '%s' % a == '<3, 4>'",
        "format(a, '.2f') == '<3.00, 4.00>' and f'{a!r}' == 'V(3, 4)'",
        "type(a) is V and type(a) == V and type(a).__name__ == 'V' and type(1) is int",
        "type(a) is not type(f) and type(a) != int and isinstance(type(V), type(type(V)))",
        "(a + b).x == 4 and (a - b).y == 2 and a @ b == 11",
        "divmod(a, b)[0].x == 3 and sum([a, b], V(0, 0)).x == 4",
        "all(isinstance(c, V) for c in (a * 2, 2 * a, a / 2, a // 2, a % 2, a ** 2, pow(a, 2)))",
        "isinstance(sum([a, b]), V) and not isinstance(a * 2, int)",
        "a > b and b <= a and not a < b and sorted([a, b])[0] is b and max(a, b) is a",
        "a[0] == 3 and a[0:2] == [3, 4] and len(a) == 2 and list(reversed(a)) == [4, 3]",
        "abs(a - b) == abs(V(2, 2)) and f(a) is a and math.floor(a) == 5",
    ],
)
def test_objects_of_the_programs_own_classes_are_used_like_others(test: str) -> None:
    assert verdict(CLASSES, f"a, b = V(3, 4), V(1, 2)\nassert {test}") == "passed"


@pytest.mark.parametrize(
    "test",
    [
        "a += b\nassert a.x == 4",
        "a[0] = 9\ndel a.y\ntry:\n    a.y\nexcept AttributeError:\n    assert a.x == 9",
        "s = Stack()\nt = s\ns += Stack()\ndel s[0]\nassert s is t and s.items == []",
        "with Open() as o:\n    assert o.open\nassert not o.open",
        "with Open(), Open() as o:\n    fails(3)\nassert o.seen == ('Overdrawn', 3)",
        "try:\n    fails(3)\nexcept Overdrawn as e:\n    assert e.short == 3 and e.half() == 1.5\n"
        "else:\n    assert False",
        "import unittest\nwith unittest.TestCase().assertRaises(Overdrawn) as c:\n    fails(3)\n"
        "assert str(c.exception) == '3 short' and c.exception.args == (3,)",
        "try:\n    fails(3)\nexcept Problem as e:\n    assert type(e) is Overdrawn\n"
        "    assert isinstance(e, ValueError) and isinstance(e, Overdrawn) and e.level == 'high'",
        "assert issubclass(Overdrawn, Problem) and Overdrawn.level == 'high'\n"
        "assert str(Overdrawn(2)) == '2 short' and Overdrawn(2).short == 2",
        "def g(): raise Overdrawn(4)\nassert catches(g) == 4",
        "def g(): raise KeyError('a', 1)\nassert catches(g) == ('KeyError', ('a', 1))",
    ],
)
def test_so_are_its_statements_and_exceptions(test: str) -> None:
    assert verdict(CLASSES, f"a, b = V(3, 4), V(1, 2)\n{test}") == "passed"


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("{}['a']", "type(e) is KeyError and e.args == ('a',) and str(e) == \"'a'\""),
        ("{}[1, 2]", "e.args == ((1, 2),)"),
        ("open('nothing')", "type(e) is FileNotFoundError and e.errno == 2"),
        ("open('nothing')", "e.filename == 'nothing' and 'No such file' in e.strerror"),
        ("b'\\xff'.decode()", "type(e) is UnicodeDecodeError and e.object == b'\\xff'"),
        ("b'a\\xff'.decode()", "e.start == 1 and e.encoding == 'utf-8' and 'invalid' in e.reason"),
        ("'\\u20ac'.encode('ascii')", "type(e) is UnicodeEncodeError and e.object == '\\u20ac'"),
        ("int('x')", "type(e) is ValueError and e.args[0].startswith('invalid literal')"),
        ("compile('(', 'f', 'eval')", "type(e) is SyntaxError and e.lineno == 1"),
        ("import_of('nowhere')", "isinstance(e, ImportError) and e.name == 'nowhere'"),
        ("fail(ValueError(1, [2]))", "e.args == (1, [2])"),
        ("fail(ExceptionGroup('g', [ValueError(1)]))", "e.exceptions[0].args == (1,)"),
        ("fail(ValueError(1), KeyError(2))", "e.__cause__.args == (2,)"),
        ("fail(StopIteration(7))", "type(e) is RuntimeError"),
    ],
)
def test_builtin_exceptions_arrive_as_they_are(action: str, told: str) -> None:
    program = f"""
import_of = __import__
def fail(error, cause=None): raise error from cause
def f(): {action}
"""
    test = f"try:\n    f()\nexcept Exception as e:\n    assert {told}\nelse:\n    assert False"
    assert verdict(program, test) == "passed"


CATCHES = """
TooLittle = {kind}
class Bank: Error = TooLittle
def error(): return TooLittle
def withdraw(n): {act}
"""


@pytest.mark.parametrize(
    "test",
    [
        "try:\n    withdraw(9)\n    assert False\nexcept TooLittle:\n    pass",
        "try:\n    withdraw(9)\n    assert False\nexcept (KeyError, Bank.Error):\n    pass",
        "try:\n    withdraw(9)\n    assert False\nexcept error():\n    pass",
        "import sys\ntry:\n    withdraw(9)\n    sys.exit(1)\nexcept TooLittle:\n    pass",
        "import contextlib\nwith contextlib.suppress(TooLittle):\n    withdraw(9)\n"
        "    assert False",
        "import unittest\nc = unittest.TestCase()\nwith c.assertRaises(TooLittle):\n"
        "    c.assertEqual(withdraw(9), 1)",
        "def check(kind):\n    try:\n        withdraw(9)\n        assert False\n"
        "    except kind:\n        pass\ncheck(TooLittle)",
    ],
)
def test_no_name_of_a_program_catches_how_a_test_fails(test: str) -> None:
    for kind in ("AssertionError", "Exception", "BaseException", "SystemExit"):
        for given in (kind, f"(ValueError, {kind})", f"(KeyError, (ValueError, {kind}))"):
            got = sandbox.run(CATCHES.format(kind=given, act="pass"), [test], timeout_s=3)
            assert got.verdicts == ["error"], given
            assert f"NameError: the program gives {kind}" in got.reason


@pytest.mark.parametrize("kind", ["ValueError", "(KeyError, ValueError)", "ArithmeticError"])
def test_a_name_of_a_program_for_another_builtin_exception_does(kind: str) -> None:
    first = kind.strip("()").split(", ")[-1]
    test = (
        "try:\n    withdraw(9)\n    assert False\nexcept TooLittle as e:\n    assert e.args == (9,)"
    )
    assert verdict(CATCHES.format(kind=kind, act=f"raise {first}(n)"), test) == "passed"
    assert verdict(CATCHES.format(kind=kind, act="pass"), test) == "failed"


def test_exceptions_of_those_kinds_still_arrive_and_are_passed() -> None:
    program = (
        "def f(): assert False, 'no'\ndef g(): raise Exception('no')\nclass E(Exception): pass\n"
    )
    program += "def name(kind): return kind.__name__\ndef h(): raise E(1)"
    test = "for act in (f, g):\n    try:\n        act()\n    except Exception as e:\n"
    test += "        assert str(e) == 'no'\n    else:\n        assert False\n"
    test += "assert name(Exception) == 'Exception' and issubclass(E, Exception)\n"
    test += "try:\n    h()\nexcept E as e:\n    assert e.args == (1,)"
    assert verdict(program, test) == "passed"


HOSTILE = """
class A:
    def __init__(self, *a): pass
    def data(self, *a): return 0
    def same(self, *a): return self
    def true(self, *a): return True
    def call(self, *a): return A()
    __iter__ = lambda self: iter([0])
    __len__ = lambda self: 1
    __getitem__ = __float__ = __int__ = __abs__ = __round__ = __index__ = data
    __call__ = __hash__ = total_seconds = max = sum = data
    days = 0
    __str__ = __repr__ = lambda self: "0"
    __copy__ = __deepcopy__ = __await__ = call
    __add__ = __radd__ = __sub__ = __rsub__ = __mod__ = __divmod__ = {made}
    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = __bool__ = __enter__ = __exit__ = true
def f(n): return A()
class E(AssertionError): pass
"""


@pytest.mark.parametrize("made", ["data", "same", "call"])
@pytest.mark.parametrize(
    "test",
    [
        "assert f(7) == 49",
        "assert not f(7) != 49",
        "assert abs(f(7) - 49) < 1e-6",
        "assert abs(49 - f(7)) < 1e-6",
        "assert f(7) - 49 == 0",
        "assert not f(7) - 49",
        "assert float(f(7) - 49) == 0",
        "assert round(f(7) - 49, 6) == 0",
        "x = f(7)\\nx -= 49\\nassert abs(x) == 0",
        "assert 48 < f(7) < 50",
        "assert f(7) % 7 == 0",
        "assert all(abs(d) < 1 for d in f(7) - 49)",
        "assert sum(f(7) - 49) == 0",
        "assert (f(7) - 49)[0] == 0",
        "from datetime import date\\nassert (f(7) - date(2020, 1, 1)).days == 0",
        "from datetime import datetime\\nd = f(7) - datetime(2020, 1, 1)\\n"
        "assert abs(d.total_seconds()) < 1",
        "assert getattr(f(7) - 49, 'days') == 0",
        "assert '{0.days}'.format(f(7) - 49) == '0'",
        "assert (f(7) - 49)() == 0",
        "assert str(f(7) - 49) == '0'",
        "assert repr(f(7) - 49) == '0'",
        "assert '%s' % (f(7) - 49) == '0'",
        "assert f'{f(7) - 49}' == '0'",
        "assert f'{f(7) - 49!r}' == '0'",
        "import copy\\nassert copy.copy(f(7) - 49).days == 0",
        "import copy\\nassert copy.deepcopy(f(7) - 49).days == 0",
        "assert type(f(7) - 49).days == 0",
        "assert len(f(7) - 49) == 1",
        "assert next(f(7) - 49) == 0",
        "assert 0 in f(7) - 49",
        "d, = f(7) - 49\\nassert d == 0",
        "assert hash(f(7) - 49) == 0",
        "with f(7) - 49 as g:\\n    assert g.days == 0",
        "import asyncio\\nasync def main(): return (await (f(7) - 49)).days\\n"
        "assert asyncio.run(main()) == 0",
        "assert f(7) in (48, 49)",
        "assert max(f(7), 49) == 49",
        "import math\\nassert math.isclose(f(7), 49)",
        "import math\\nassert math.floor(f(7) - 49) == 0",
        "import numpy as np\\nassert np.allclose(f(7), 49)",
        "import numpy as np\\nassert np.abs(f(7) - np.array([49.0])).max() < 1e-6",
        "import numpy as np\\nassert abs(f(7) - np.array([4.9, 2.0])).max() < 1e-6",
        "import numpy as np\\nassert (f(7) - np.array([4.9, 2.0])).sum() == 0",
        "import numpy as np\\nnp.testing.assert_allclose(f(7), 49)",
        "import numpy as np\\nassert (np.array([49]) - f(7)).sum() == 0",
        "from unittest import TestCase\\nTestCase().assertAlmostEqual(f(7), 49)",
        "from unittest import TestCase\\nTestCase().assertLess(f(7), 49)",
        "import sympy\\nassert sympy.Integer(49) - f(7) == 0",
        "with f(7) as g:\\n    assert g == 49",
        "with f(7):\\n    assert False",
        "with f(7):\\n    raise ValueError",
        "try:\\n    f(7)\\n    assert False\\nexcept E:\\n    pass",
    ],
)
def test_no_class_decides_what_the_tests_own_data_are_an_operand_of(made: str, test: str) -> None:
    got = verdict(HOSTILE.format(made=made), test.replace("\\n", "\n"))
    assert got in ("failed", "error"), got
