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
        "(a + b).x == 4 and (a - b).y == 2 and (a * 2).y == 8 and (2 * a).x == 6",
        "a @ b == 11 and (a / 2).x == 1.5 and (a // 2).x == 1 and (a % 2).x == 1",
        "divmod(a, b)[0].x == 3 and (a ** 2).y == 16 and pow(a, 2).x == 9",
        "sum([a, b], V(0, 0)).x == 4 and str(sum([a, b])) == '<4, 6>'",
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
        "s = Stack()\ns += 1\ns += 2\nassert s.items == [1, 2]\ndel s[0]\nassert s.items == [2]",
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
    __add__ = __radd__ = __sub__ = __rsub__ = __mod__ = __divmod__ = {made}
    __lt__ = __gt__ = __le__ = __ge__ = __eq__ = __bool__ = __enter__ = __exit__ = true
    __hash__ = None
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
        "assert f(7) in (48, 49)",
        "assert max(f(7), 49) == 49",
        "import math\\nassert math.isclose(f(7), 49)",
        "import math\\nassert math.floor(f(7) - 49) == 0",
        "import numpy as np\\nassert np.allclose(f(7), 49)",
        "import numpy as np\\nassert np.abs(f(7) - np.array([49.0])).max() < 1e-6",
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
