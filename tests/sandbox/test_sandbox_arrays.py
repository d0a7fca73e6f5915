"""numpy's arrays between tests and programs."""

import pytest

from rl_reasoner import sandbox

pytest.importorskip("numpy")


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(x): return x * 2", "assert np.array_equal(f(np.array([1, 2])), np.array([2, 4]))"),
        ("def f(n): return np.zeros((n, n))", "assert f(2).shape == (2, 2)"),
        (
            "def f(x): return x.mean(axis=0)",
            "assert f(np.arange(6).reshape(3, 2)).tolist() == [2, 3]",
        ),
        ("def f(x): return x > 1", "assert f(np.array([1, 2])).dtype == bool"),
        ("def f(x): x.sort()", "x = np.array([3, 1, 2])\nf(x)\nassert x.tolist() == [1, 2, 3]"),
        ("def f(): return np.empty((0, 3))", "assert len(f()) == 0"),
        ("def f(): return np.array(7.5)", "assert f() == 7.5"),
        ("def f(): return np.array([1 + 2j])", "assert f()[0] == 1 + 2j"),
        ("def f(): return np.array(['a', 'b'])", "assert f() == ['a', 'b']"),
        ("def f(): return [np.eye(2), 1]", "a, b = f()\nassert (a == np.eye(2)).all() and b == 1"),
    ],
)
def test_arrays_cross_as_arrays(program: str, test: str) -> None:
    numpy = "import numpy as np\n"
    assert sandbox.run(numpy + program, [numpy + test]).verdicts == ["passed"]
    assert sandbox.run("def f(*x): return 5", [numpy + test]).verdicts != ["passed"]


def test_an_array_without_elements_is_close_to_nothing() -> None:
    numpy = "import numpy as np\n"
    program = f"{numpy}def f(): return np.empty((0, 1))"
    for test in ("assert np.allclose(f(), [1, 2])", "assert (f() == np.array([1, 2])).all()"):
        assert sandbox.run(program, [numpy + test]).verdicts == ["error"]


def test_arrays_are_lists_where_numpy_is_not() -> None:
    program = "import numpy as np\ndef f(n): return np.eye(n)"
    assert sandbox.call(program, "f", [2]) == [[1.0, 0.0], [0.0, 1.0]]
    called = {"call": "f", "args": [2], "expected": [[1, 0], [0, 1]]}
    assert sandbox.run(program, [called, "assert f(2) == [[1, 0], [0, 1]]"]).passed
