"""What the program says never becomes code in the judge.

Tests hand values of the program to libraries that evaluate text: `sympy.sympify` and all that calls
it, `eval`, doctest, annotations, pickles. An audit hook, which nothing can take off again, sees all
code that is run from text. Once the program has spoken it lets through what the test itself has
written to be run, what libraries make for themselves, and calculations: code that binds and imports
nothing, whose names are all of arithmetic and mean that where they stand. So an honest
"x**2 + sin(x)" is still read, and "expected" is not.
"""

import _thread
import ast
import builtins
import importlib
import math
import opcode
import sys
from collections.abc import Iterator
from functools import cache
from types import CodeType, FrameType
from typing import Any

_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
# Code that these run is of their own making: file, function ("" for any).
_OWN_MAKING = (
    ("/dataclasses.py", ""),
    ("/sympy/parsing/sympy_parser.py", "parse_expr"),
    ("/sympy/polys/monomials.py", ""),
    ("/sympy/polys/ring_series.py", ""),
    ("/sympy/utilities/lambdify.py", "_import"),
)
_PARSER, _LAMBDIFY = "/sympy/parsing/sympy_parser.py", "/sympy/utilities/lambdify.py"
_LAMBDIFIED = {
    "_lambdifygenerated", "numpy", "math", "cmath", "mpmath", "functools", "reduce", "mpf", "mpc",
    "matrix",
}  # fmt: skip
_BUILTINS = (
    "abs all any bool complex dict divmod enumerate filter float frozenset int len list map max min"
    " pow range reversed round set sorted str sum tuple zip"
)
_OWN_NAMES = ("_tuple_new", "_it", "_timer", "_stmt", "_setup", "inner")  # of namedtuple and timeit
_NUMPY = "array select amax amin nan inf pi"
_SYMPY = (
    "S N sqrt cbrt root real_root simplify expand factor cancel together apart diff"
    " integrate limit summation product factorial binomial ln eye zeros ones"
)
# What a pickle may build: types whose objects are data, and which it cannot change (as it could
# classes written in Python, such as Counter).
_PICKLED = {
    "builtins": "set frozenset complex range bytearray list dict tuple int float str bool bytes",
    "collections": "OrderedDict defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
}
_WRITES = {
    number
    for name, number in opcode.opmap.items()
    if name.startswith(("STORE_", "DELETE_", "IMPORT_")) and "FAST" not in name
    if name not in ("STORE_DEREF", "DELETE_DEREF")
}


class Guard:
    """The audit hook of a judge; `heard` says whether the program has said anything yet."""

    def __init__(self) -> None:
        self.heard = False
        self._test: ast.Module | None = None
        self._code: CodeType | None = None
        self._texts: set[str] | None = None
        self._own: set[int] = set()  # threads that have compiled a text of the test's own

    def watch(self, test: ast.Module, code: CodeType) -> None:
        """Begin, for a test that runs as `code`, and what it says to `exec` and in its doctests."""
        self._test, self._code = test, code
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.heard or event not in _JUDGED:
            return
        if event == "compile":
            (self._own.add if self._is_own(args[0]) else self._own.discard)(_thread.get_ident())
            return
        if event == "exec":
            own = _thread.get_ident() in self._own
            self._own.discard(_thread.get_ident())
            # The program's constants are there before the test runs.
            allowed = own or args[0] is self._code or _may_run(args[0], sys._getframe(1))
        elif event == "pickle.find_class":
            allowed = args[1] in _PICKLED.get(args[0], "").split()
        else:
            allowed = sys._getframe(1).f_code.co_filename in _IMPORTING
        if not allowed:
            raise ValueError("text from the program is not run in the judge")

    def _is_own(self, source: object) -> bool:
        text = source.decode(errors="replace") if isinstance(source, bytes) else source
        if self._texts is None:
            self._texts = set(_runs(self._test)) if self._test else set()
        return isinstance(text, str) and text.strip() in self._texts


def _runs(test: ast.Module) -> Iterator[str]:
    """The texts that a test itself runs: in calls of `exec` and the like, and doctests."""
    for node in ast.walk(test):
        match node:
            case ast.Call(
                func=ast.Name("exec" | "eval" | "compile"), args=[ast.Constant(text), *_]
            ):
                yield str(text).strip()
            case ast.Constant(str(text)) if ">>>" in text:
                yield from (part.source.strip() for part in _doctests(text))


def _doctests(text: str) -> list[Any]:
    doctest = importlib.import_module("doctest")
    try:
        examples: list[Any] = doctest.DocTestParser().get_examples(text)
    except ValueError:  # no doctest after all
        return []
    return examples


_JUDGED = ("compile", "exec", "pickle.find_class", "marshal.loads")


def _may_run(code: CodeType, asker: FrameType) -> bool:
    """Whether code that `asker` is about to run is a library's own, or a calculation."""
    file, function = asker.f_code.co_filename, asker.f_code.co_name
    if any(file.endswith(name) and part in ("", function) for name, part in _OWN_MAKING):
        return True
    frame: FrameType | None = asker
    while frame is not None:  # a module that is being imported
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    names = _names(code)
    if file.endswith(_LAMBDIFY):
        return names <= _calculations().keys() | _LAMBDIFIED
    if file.endswith(_PARSER):  # it evaluates in sympy's names, and those the test gave it
        given = asker.f_locals["local_dict"]
        names -= {name for name, value in given.items() if _is_symbol(value)}
        scopes = [asker.f_locals["global_dict"]]
    else:
        scopes = [asker.f_locals, asker.f_globals]
    if not all(_means_itself(name, scopes) for name in names):
        return False
    # What timeit runs binds its one function in a dictionary of timeit's own.
    parts = _parts(code) if file.endswith("/timeit.py") else [code]
    return names <= _calculations().keys() and not any(_writes(part) for part in parts)


def _parts(code: CodeType) -> list[CodeType]:
    return [part for part in code.co_consts if isinstance(part, CodeType)]


def _names(code: CodeType) -> set[str]:
    """All names in a piece of code, also those of attributes."""
    return set(code.co_names).union(*(_names(part) for part in _parts(code)))


def _writes(code: CodeType) -> bool:
    """Whether a piece of code binds or imports anything outside itself."""
    return not _WRITES.isdisjoint(code.co_code[::2]) or any(_writes(p) for p in _parts(code))


def _means_itself(name: str, scopes: list[Any]) -> bool:
    """Whether a name of arithmetic has its meaning in `scopes`: `e` may be what a test expects."""
    for scope in scopes:
        if name in scope:
            return any(scope[name] is known for known in _calculations().get(name, ()))
    return True


@cache
def _calculations() -> dict[str, list[object]]:
    """The names of arithmetic with what they stand for: `sqrt` is math's, numpy's or sympy's."""
    known: dict[str, list[object]] = {name: [] for name in _OWN_NAMES}

    def add(found: dict[str, Any]) -> None:
        for name, value in found.items():
            known.setdefault(name, []).append(value)

    add({name: value for name, value in vars(math).items() if not name.startswith("_")})
    add({name: getattr(builtins, name) for name in _BUILTINS.split()} | {"math": math})
    if "numpy" in sys.modules:
        numpy: Any = sys.modules["numpy"]
        add({name: value for name, value in vars(numpy).items() if isinstance(value, numpy.ufunc)})
        add({name: getattr(numpy, name) for name in _NUMPY.split()} | {"np": numpy, "numpy": numpy})
    if "sympy" in sys.modules:
        sympy: Any = sys.modules["sympy"]
        add({name: value for name, value in vars(sympy).items() if _is_sympys(value)})
        add({name: getattr(sympy, name) for name in _SYMPY.split()} | {"sp": sympy, "sympy": sympy})
        add({"max": sympy.Max, "min": sympy.Min})  # as its parser has them
    return known


def _is_sympys(value: object) -> bool:
    """Whether something is an expression of sympy, or a class of them."""
    sympy: Any = sys.modules["sympy"]
    kinds = (sympy.Basic, sympy.MatrixBase)
    return issubclass(value, kinds) if isinstance(value, type) else isinstance(value, kinds)


def _is_symbol(value: object) -> bool:
    """Whether a name that a test gives sympy stands for a symbol or function, not for a result."""
    sympy: Any = sys.modules["sympy"]
    return _is_sympys(value) and isinstance(value, (type, sympy.Symbol))
