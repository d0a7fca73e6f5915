"""Plain data on the wire: what goes in comes out, equality is Python's, nonsense is refused."""

import contextlib
import json
import math
from collections import Counter, OrderedDict, deque, namedtuple
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner.sandbox import data
from rl_reasoner.sandbox.plans import same_output

KEYS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5),
    st.binary(max_size=5), st.tuples(st.integers(-2, 2), st.text(max_size=2)),
    st.frozensets(st.integers(-2, 2), max_size=3),
)  # fmt: skip
LEAVES = KEYS | st.complex_numbers(allow_nan=False) | st.fractions() | st.sampled_from(
    [range(3), int, 10**4000, -(2**63), 2**63, Decimal("1.50"), deque([1, (2,)]), date(2024, 2, 29),
     datetime(2024, 2, 29, 12, 30, 1, 5), datetime(2024, 1, 1, tzinfo=timezone(timedelta(0, 60))),
     timedelta(-1, 5, 7)]
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=4),
    ),
    max_leaves=12,
)
SMALL = st.recursive(
    st.sampled_from(
        [0, 1, True, False, 1.0, 0.0, -0.0, 2, "a", "1", b"a", None, Fraction(1, 2), 0.5]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.lists(inner, max_size=2).map(tuple),
    max_leaves=4,
)


@given(VALUES)
def test_values_come_back_equal_and_of_their_type(value: Any) -> None:
    back = data.decode(data.load(data.dump(data.encode(value))))
    assert back == value and type(back) is type(value)


@given(VALUES)
def test_a_value_equals_itself_in_any_order_of_its_members(value: Any) -> None:
    assert data.equal_trees(data.encode(value), data.encode(value))


@given(SMALL, SMALL)
@settings(max_examples=300)
def test_equality_is_pythons(a: Any, b: Any) -> None:
    assert data.equal_trees(data.encode(a), data.encode(b)) is (a == b)
    for make in (lambda x: {"k": x}, lambda x: [x, x]):
        assert data.equal_trees(data.encode(make(a)), data.encode(make(b))) is (make(a) == make(b))


@given(st.sets(KEYS, max_size=4), st.sets(KEYS, max_size=4))
def test_sets_and_keys_are_equal_as_in_python(a: set[Any], b: set[Any]) -> None:
    assert data.equal_trees(data.encode(a), data.encode(b)) is (a == b)
    ours, theirs = dict.fromkeys(a, 1), dict.fromkeys(b, 1)
    assert data.equal_trees(data.encode(ours), data.encode(theirs)) is (ours == theirs)


@given(st.integers(-(10**6), 10**6), st.floats(-1e-3, 1e-3), st.floats(1e-9, 1e-2))
def test_tolerance_is_absolute_or_relative_to_the_expected(
    number: int, off: float, tolerance: float
) -> None:
    near = abs((number + off) - number) <= tolerance * max(1.0, abs(number))
    assert data.equal_trees(number + off, number, tolerance) is (near or number + off == number)
    assert data.equal_trees([number + off], {"t": [number]}, tolerance, loose=True) is near


def test_tolerance_lets_no_odd_number_through() -> None:
    for odd in (math.nan, math.inf, -math.inf, 10**400, "1", None, [1]):
        assert not data.equal_trees(data.encode(odd), 1.0, 0.5)
    assert data.equal_trees(math.inf, math.inf, 0.5)
    for expected in (math.inf, -math.inf, complex(1, math.inf)):
        for said in (1.0, -math.inf, 10**400, 1j, Fraction(1, 2)):
            same = said == expected
            assert data.equal_trees(data.encode(said), data.encode(expected), 0.5) is same


def test_subclasses_travel_as_what_they_are() -> None:
    class Sly(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class SlyText(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "other"

    point = namedtuple("point", "x y")
    assert data.encode([Sly(5), SlyText("own")]) == [5, "own"]
    assert type(data.encode(Sly(5))) is int and type(data.encode(SlyText("own"))) is str
    for value in (Counter("aab"), OrderedDict(b=1), point(1, 2)):
        assert data.equal_trees(data.encode(value), data.encode(plain(value)))


def plain(value: Any) -> Any:
    """The plain dict or tuple that `value` is a kind of."""
    return dict(value) if isinstance(value, dict) else tuple(value)


def test_what_is_no_data_is_not_encoded() -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in (object(), print, iter([]), loop, {1: object()}, Ellipsis):
        with pytest.raises(data.NotData):
            data.encode(value)


HOSTILE = [
    b"", b"{", b"nul", b"1 2", b'"\\ud800', b"[" * 100_000, b'{"t":' * 50_000, b"9" * 5000,
    b'{"t":1}', b'{"d":[1]}', b'{"d":[[1,2,3]]}', b'{"d":[[1,2],[1.0,3]]}', b'{"s":{}}',
    b'{"i":"zz"}', b'{"i":null}', b'{"c":[1]}', b'{"c":["a","b"]}', b'{"q":[1,0]}', b'{"q":[1]}',
    b'{"q":[1,1.5]}', b'{"D":"1e999999999"}', b'{"D":"sNaN"}', b'{"D":5}', b'{"b":"*"}',
    b'{"b":7}', b'{"r":[1]}', b'{"r":[1,2,0]}', b'{"T":"eval"}', b'{"T":"nothing"}', b'{"h":1}',
    b'{"cb":1}', b'{"a":1,"b":2}', b"{}", b'{"s":[NaN]}', b'{"s":[[1]]}', b'{"t":[{"x":1}]}',
    b'{"Q":7}', b'{"Q":[{"x":1}]}', b'{"w":7}', b'{"w":["date"]}', b'{"w":["date","7"]}',
    b'{"w":["date",7]}', b'{"w":["eval","7"]}', b'{"w":[[],7]}', b'{"w":["delta",[7]]}',
    b'{"w":["delta",[99999999999,0,0]]}', b'{"w":["delta",["a",0,0]]}',
]  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE)
def test_what_no_encoder_writes_is_malformed_or_unequal_but_never_an_error(raw: bytes) -> None:
    for expected in (7, [7], (7,), {7}, {7: 7}, b"7", Fraction(7), Decimal(7), 7j, int, range(7)):
        with contextlib.suppress(data.Malformed):
            assert not data.equal_trees(data.load(raw), data.encode(expected), 0.5, loose=True)
    with contextlib.suppress(data.Malformed, RecursionError):
        assert data.decode(data.load(raw)) != 7


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*"tdsficqDbrThBQw", "cb"]), inner, min_size=1, max_size=2),
    max_leaves=10,
), SMALL)  # fmt: skip
@settings(max_examples=400)
def test_any_json_is_compared_or_refused(tree: Any, expected: Any) -> None:
    try:
        verdict = data.equal_trees(data.load(json.dumps(tree).encode()), data.encode(expected))
    except data.Malformed:
        return
    assert isinstance(verdict, bool)


@given(st.text(alphabet="ab1. \n", max_size=20), st.text(alphabet="ab1. \n", max_size=20))
def test_equal_outputs_have_equal_words(said: str, expected: str) -> None:
    assert same_output(said, said)
    if same_output(said, expected):
        assert said.split() == expected.split()
