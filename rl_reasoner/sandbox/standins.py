"""What stands in a judge for what a program has: objects, and its own classes of exceptions.

A test may use them as it would the objects themselves. But no method of the program decides a
comparison with what the test has: whoever compares them by `==` gets a TypeError, and so does who
would get plain data from an operator that was given the test's data.
"""

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

from rl_reasoner.sandbox import raised, remote

_SHOWN = ("__name__", "__doc__")


class Owner(Protocol):
    """Who asks the program (`judging`)."""

    def ask(self, verb: str, target: object, *rest: object) -> Any:
        """What the program answers."""

    def call(self, target: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a call."""

    def names(self, name: str, asker: Any) -> bool:
        """Whether the test itself wants an attribute."""


class Proxy:
    # An object of the program, as a test sees it: to be called, asked for parts, and an operand. It
    # equals only itself: whoever compares it gets a TypeError, so that a test passes on data alone.
    # Of its dunders only those of `_SHOWN` and of operators are the program's: by the others
    # libraries ask where its memory is (numpy), what to run (typing), how to copy it. One that an
    # operator made of the test's data (`f(x) - 49`) is `biased`: an operand, and an argument, but
    # asked for nothing, or `abs(f(x) - 49) < 1e-6` and `(f(x) - day).days == 0` would believe a
    # class whose differences are 0. (No docstring: `f.__doc__` is the program's.)

    __slots__ = ("__biased", "__judge", "__number")

    def __init__(self, owner: Owner, number: int) -> None:
        object.__setattr__(self, "_Proxy__judge", owner)
        object.__setattr__(self, "_Proxy__number", number)
        object.__setattr__(self, "_Proxy__biased", False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _owner(self).call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return _attribute(_owner(self), self, name, sys._getframe(1))

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return _owner(self).ask("attribute", self, "__doc__")

    @property
    def __bases__(self) -> Any:  # for issubclass
        return _owner(self).ask("bases", self)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(f"a test cannot set {name!r} of the program's objects")
        _owner(self).ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _owner(self).ask("delete", self, name)

    def __getitem__(self, key: object) -> Any:
        return _owner(self).ask("item", self, key)

    def __setitem__(self, key: object, value: object) -> None:
        _owner(self).ask("put", self, key, value)

    def __delitem__(self, key: object) -> None:
        _owner(self).ask("remove", self, key)

    def __iter__(self) -> Iterator[Any]:
        steps = _owner(self).ask("iterate", self)
        while True:
            try:
                yield _owner(self).ask("next", steps)
            except StopIteration:
                return

    def __next__(self) -> Any:
        return _owner(self).ask("next", self)

    def __len__(self) -> int:
        return int(_owner(self).ask("len", self))

    def __str__(self) -> str:
        return str(_owner(self).ask("text", self))

    def __repr__(self) -> str:
        return str(_owner(self).ask("repr", self))

    def __instancecheck__(self, instance: object) -> bool:
        return type(instance) is Proxy and _owner(self).ask("instance", self, instance) is True

    def __copy__(self) -> Any:
        return _owner(self).ask("copy", self)

    def __deepcopy__(self, memo: object) -> Any:
        return _owner(self).ask("deepcopy", self)

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError("the program's objects cannot be pickled")

    def __enter__(self) -> Any:
        return _owner(self).ask("enter", self)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """It swallows what the program raised, and nothing by which the test itself would fail."""
        own = error is not None and not hasattr(error, raised.OF_PROGRAM)
        if isinstance(error, remote.Gone):
            return False
        seen = error if isinstance(error, Exception) else None
        if own and isinstance(error, AssertionError):
            seen = AssertionError()
        return _owner(self).ask("exit", self, seen) is True and not own

    def __divmod__(self, other: object) -> Any:
        return _operate("divmod", self, other)

    def __rdivmod__(self, other: object) -> Any:
        return _operate("divmod", other, self)

    def __eq__(self, other: object) -> bool:
        return self is other or (not isinstance(other, type) and _refuse())

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = object.__hash__


def _operator(name: str, turned: bool = False) -> Callable[..., Any]:
    def operate(self: Proxy, *rest: object) -> Any:
        return _operate(name, *rest, self) if turned else _operate(name, self, *rest)

    return operate


for _name in (*remote.UNARY, *remote.BINARY, *remote.ORDER):
    setattr(Proxy, f"__{_name}__", _operator(_name))
for _name in remote.BINARY:
    setattr(Proxy, f"__i{_name}__", _operator(f"i{_name}"))
    setattr(Proxy, f"__r{_name}__", _operator(_name, turned=True))


def _operate(name: str, *operands: object) -> Any:
    """What an operator of the program gives; but no data where the test's own are an operand."""
    ours = [operand for operand in operands if type(operand) is Proxy]
    biased = any(object.__getattribute__(each, "_Proxy__biased") for each in ours)
    biased |= name not in remote.UNARY and len(ours) < len(operands)
    value = _asking(ours[0]).ask(name, *operands)
    if biased:
        if type(value) is not Proxy:
            _refuse()
        object.__setattr__(value, "_Proxy__biased", True)
    return value


class OwnErrors(type):
    """The class of stand-ins for the program's own classes of exceptions, which `except` catches.

    Only what the program raised, or made for the test, is of them: no assertion of the test is. Nor
    is one caught by a name of the program for a builtin: `judging` takes none that would.
    """

    @classmethod
    def of(cls, owner: Owner, number: int, name: str, bases: tuple[type, ...]) -> "OwnErrors":
        """The one for the program's class `number`. Raises TypeError where Python would."""

        def attribute(self: Exception, name: str) -> Any:
            return _attribute(owner, self, name, sys._getframe(1))

        def text(self: Exception) -> str:
            return str(vars(self).get("__text__", ""))

        if not bases or not all(issubclass(base, Exception) for base in bases):
            raise TypeError("no exception")
        space = {raised.HANDLE: number, "__judge__": owner, "__module__": "__main__"}
        return cls(name, bases, {**space, "__getattr__": attribute, "__str__": text})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        owner: Owner = vars(cls)["__judge__"]
        return owner.call(cls, args, kwargs)

    def __getattr__(cls, name: str) -> Any:
        return _attribute(vars(cls)["__judge__"], cls, name, sys._getframe(1))


def handle_of(value: object) -> int | None:
    """The handle of a stand-in; None for anything else, and for what only the judge has."""
    if type(value) is Proxy:
        number: int = object.__getattribute__(value, "_Proxy__number")
        return number
    own = isinstance(value, OwnErrors) or isinstance(type(value), OwnErrors)
    return vars(value).get(raised.HANDLE) if own else None


def type_of(value: object) -> Any:
    """`type(value)`, as the program has it of what is its own."""
    return _owner(value).ask("type", value) if type(value) is Proxy else type(value)


def _attribute(owner: Owner, target: object, name: str, asker: FrameType) -> Any:
    dunder = name.startswith("__") and name.endswith("__")
    if not (name in _SHOWN if dunder else owner.names(name, asker)):
        raise AttributeError(f"a test is not given {name!r} of the program's objects")
    return owner.ask("attribute", target, name)


def _asking(proxy: object) -> Owner:
    owner: Owner = object.__getattribute__(proxy, "_Proxy__judge")
    return owner


def _owner(proxy: object) -> Owner:
    """Who asks about an object that the test's data are no part of; TypeError for others."""
    return _asking(proxy) if not object.__getattribute__(proxy, "_Proxy__biased") else _refuse()


def _refuse() -> Any:
    raise TypeError("the program's value is not plain data")
