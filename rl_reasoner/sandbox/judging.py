"""The judge: the text of a test, run in a jail of its own against a program in another.

Names the test does not define become stand-ins (`Proxy`) that ask the program (`remote`). No
method of the program decides a comparison, nothing of it is read as memory, and nothing it says
becomes code (`guard`): a test passes on data alone.
"""

import ast
import builtins
import importlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import CodeType, FrameType, ModuleType
from typing import Any

from rl_reasoner.sandbox import data, raised
from rl_reasoner.sandbox.guard import Guard
from rl_reasoner.sandbox.reasons import of_error
from rl_reasoner.sandbox.remote import CHANGED, Channel, Gone
from rl_reasoner.sandbox.standins import OwnErrors, Proxy, handle_of, type_of
from rl_reasoner.sandbox.wanted import Wanted, wanted_names

_SETTLE, _TYPE_OF = "__settle__", "__type_of__"
_TEST = "<test>"  # the file name of the test's code
_TESTS = (_TEST, "<doctest ")
_QUITTERS = ("<frozen _sitebuiltins>", "/_sitebuiltins.py")  # of exit() and quit()
_RUNNER = "/unittest/main.py"
# By these libraries use files and mappings: what they get is data.
_USED = {"keys", "read", "readline", "write", "close"}
# Names that tests use without importing them: the judge's own, where a test asks for more.
_KNOWN = {
    "Counter": "collections", "OrderedDict": "collections", "defaultdict": "collections",
    "deque": "collections", "namedtuple": "collections", "Decimal": "decimal",
    "Fraction": "fractions", "isclose": "math", "List": "typing", "Dict": "typing",
    "Tuple": "typing", "Set": "typing", "Optional": "typing", "Any": "typing", "Union": "typing",
}  # fmt: skip
_ALIASES = {"np": "numpy", "numpy": "numpy", "sympy": "sympy"}
_MODULES = {*_ALIASES, *sys.stdlib_module_names}
_BUILTIN = set(dir(builtins))


def judge_test(test: str, descriptor: int) -> tuple[str, str]:
    """The verdict of running `test` against the program behind `descriptor`, and why it is so.

    "passed", "failed" (an assertion), "error" (anything else was raised) or "memory". Raises Gone.
    """
    asking = _Judge(descriptor)
    verdict, why = _run_test(test, asking)
    if asking.gone:  # whatever the test made of it
        raise Gone("during the test")
    if asking.unseen and verdict == "passed":
        return asking.unseen, "in a function or thread of the test"
    return verdict, why


def _run_test(test: str, asking: "_Judge") -> tuple[str, str]:
    runners: list[Any] = []
    try:
        tree = ast.parse(test)
        module = ModuleType("__main__")
        sys.modules["__main__"] = module  # where unittest.main() looks for test cases
        namespace = module.__dict__
        namespace["__builtins__"] = builtins
        wanted = wanted_names(tree, test)
        code = compile(
            ast.fix_missing_locations(_settling(tree, "type" in wanted.used)), _TEST, "exec"
        )
        asking.watch(tree, code)
        asking.define(wanted, namespace)
        namespace |= {_SETTLE: asking.settle, _TYPE_OF: type_of}
        runners = _remembered_runners(test)
        exec(code, namespace)  # noqa: S102 - a data set's test, in a jail
    except AssertionError as error:
        return "failed", _why(error, test, asking)
    except SystemExit as end:
        if end.code:
            return "failed", _first_failure(runners) or _why(end, test, asking)
        own = _is_own(end, runners) and not asking.broken
        return _told_by(runners) if own else ("error", _why(end, test, asking))
    except MemoryError:
        return "memory", ""
    except BaseException as error:
        return "error", _why(error, test, asking)
    return _told_by(runners)


def _why(error: BaseException, test: str, asking: "_Judge") -> str:
    try:
        return of_error(error, test, _TEST, asking.given)
    except Exception:  # of a class of the test's own, say: the verdict stands without it
        return ""


def _is_own(end: SystemExit, runners: list[Any]) -> bool:
    """Whether the test itself ends here, or the unittest that it runs.

    What the program says can make a library end the process: a module to import, "--help" for
    argparse. That would pass everything.
    """
    trace = end.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename if trace else ""
    return file.endswith((_TEST, *_QUITTERS)) or (bool(runners) and file.endswith(_RUNNER))


def _remembered_runners(test: str) -> list[Any]:
    """What unittest and doctest will find, where a test has them: they need not raise it."""
    made: list[Any] = []

    def remember(kind: Any) -> None:
        begin = kind.__init__

        def remembered(self: Any, *args: Any, **kwargs: Any) -> None:
            begin(self, *args, **kwargs)
            made.append(self)

        kind.__init__ = remembered

    if "unittest" in test:
        remember(importlib.import_module("unittest").TestResult)
    if "doctest" in test:
        remember(importlib.import_module("doctest").DocTestRunner)
    return made


def _told_by(runners: list[Any]) -> tuple[str, str]:
    """The verdict of a test that ran to its end, by what unittest and doctest made of it."""
    found = [
        (r.testsRun, not r.wasSuccessful()) if hasattr(r, "testsRun") else (r.tries, r.failures)
        for r in runners
    ]
    if any(wrong for _, wrong in found):
        return "failed", _first_failure(runners)
    if found and not any(ran for ran, _ in found):
        return "error", "unittest or doctest found nothing to run"
    return "passed", ""


def _first_failure(runners: list[Any]) -> str:
    """The last line of unittest's report of the first failure; nothing of doctest's."""
    try:
        told = [r for r in runners if hasattr(r, "testsRun")]
        reports = [report.strip() for r in told for _, report in (*r.failures, *r.errors)]
        return reports[0].rpartition("\n")[2] if reports else ""
    except Exception:  # of a class of the test's own
        return ""


class _Judge:
    """The judge's side: asks, and runs the functions that a test passed along."""

    def __init__(self, descriptor: int) -> None:
        self.gone = False
        self.broken = False  # a function of the test did not come back to the program
        self.unseen = ""  # the verdict on what failed where the test itself did not see it
        self.given: list[object] = []  # what the last call gave, to be shown to people
        self._channel = Channel(descriptor, 2, self._answer_callbacks)
        self._guard = Guard()
        self._lock = threading.Lock()
        self._functions: list[Callable[..., object]] = []
        self._standins: dict[int, Proxy | OwnErrors] = {}
        self._changes: list[tuple[Any, Any]] = []
        self._tree: ast.Module | None = None
        self._named: set[str] | None = None
        threading.excepthook = self._thread_failed

    def watch(self, tree: ast.Module, code: CodeType) -> None:
        """From here on only the test's `code`, and what its text runs, is run once a value came."""
        self._tree = tree
        self._guard.watch(tree, code)

    def define(self, wanted: Wanted, namespace: dict[str, Any]) -> None:
        """Put what the test needs and does not define into its namespace.

        Builtins stay the judge's own, and so do `_KNOWN` names and standard modules of which the
        test takes attributes, for the program's could be anything. Only where a test names nothing
        else of the program are they the program's, which then must have one: what the test hands
        to its own functions (`check(sorted)`), or else all builtins, or else all `_KNOWN` names, or
        else modules. The others stay the judge's.
        """
        used, dotted, handed = wanted
        own = {n for n in used if n in _BUILTIN or n in _KNOWN or (n in dotted and n in _MODULES)}
        for name in sorted(own - _BUILTIN):
            at = _KNOWN.get(name)
            module = importlib.import_module(at or _ALIASES.get(name, name))
            namespace[name] = getattr(module, name) if at else module
        asked = [self._asked(name, namespace) for name in sorted(used - own)]
        if not any(asked) and own:
            named = handed & own or own & _BUILTIN or own & {*_KNOWN} or own
            asked = [self._asked(name, namespace) for name in sorted(named)]
            if not any(asked):
                raise NameError(f"the program defines none of {', '.join(sorted(named))}")
        self._exchange(["get", ""])  # a program that does not load passes nothing

    def _asked(self, name: str, namespace: dict[str, Any]) -> bool:
        """Give a name what the program has by it; whether it has."""
        answer = self._exchange(["get", name])
        found = answer[0] == "value" and len(answer) == 3
        if found:
            namespace[name] = self._decode(answer[1])
        return found

    def names(self, name: str, asker: FrameType) -> bool:
        """Whether it is the test that wants the attribute `name`, or a library for itself.

        Libraries look for attributes that say how to treat a value (sympy's `_sympy_`,
        `is_Matrix`), and would believe the program's: they get none that the test does not name.
        """
        if asker.f_code.co_filename.startswith(_TESTS):
            return True
        if self._named is None:
            nodes = list(ast.walk(self._tree)) if self._tree else []
            self._named = _USED | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
            self._named |= {
                node.value
                for node in nodes
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
        return name in self._named

    def ask(self, verb: str, target: object, *rest: object) -> Any:
        """What the program answers to `verb`; raises what it raised."""
        trees = [self._encode(value) for value in (target, *rest)]
        return self._value(verb, self._exchange([verb, *trees]))

    def call(self, target: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the program; what it changed in place changes here with `settle`."""
        trees = [self._encode(value) for value in args]
        named = [[name, self._encode(value)] for name, value in kwargs.items()]
        self.given = []  # an earlier call's is not this one's, which may raise
        answer = self._exchange(["call", self._encode(target), trees, named])
        value = self._value("call", answer)
        self.given = [value]
        if answer[2]:
            self._note(answer[2], args, kwargs)
        return value

    def _exchange(self, request: list[Any]) -> list[Any]:
        try:
            if self.broken:
                raise Gone("a function of the test did not come back")
            self._channel.send(request)
            while True:
                message = self._channel.receive()
                if message[0] != "callback":
                    return message
                self._channel.send(self._called_back(*message[1:]))
        except Gone:
            self.gone = True
            raise

    def _answer_callbacks(self) -> None:
        """Run functions of the test for a thread of the program, until the program ends."""
        while True:
            message = self._channel.receive()
            if message[0] != "callback":
                raise self._malformed()
            self._channel.send(self._called_back(*message[1:]))

    def _called_back(self, number: Any, args: Any, kwargs: Any) -> list[Any]:
        try:
            function = self._functions[number]
            values = [self._decode(tree) for tree in args]
            named = {name: self._decode(tree) for name, tree in kwargs}
        except (TypeError, ValueError, LookupError) as error:
            raise self._malformed() from error
        try:
            return ["returned", self._encode(function(*values, **named))]
        except Exception as error:
            if isinstance(error, AssertionError) and not hasattr(error, raised.OF_PROGRAM):
                # Else the program could ask until none fails, or read what is expected.
                self.unseen, error = "failed", AssertionError()
            return ["failed", self._encode(error)]
        except BaseException:
            self.broken = True  # the program still waits for an answer
            raise

    def _thread_failed(self, told: threading.ExceptHookArgs) -> None:
        """Heed what ends the test's own threads, which nobody would see."""
        self.unseen = "failed" if issubclass(told.exc_type, AssertionError) else "error"

    def _value(self, verb: str, answer: list[Any]) -> Any:
        if answer[0] == "value" and len(answer) == 3:
            return self._decode(answer[1])
        self._guard.heard = True
        error = self._decode(answer[1]) if answer[0] == "raised" and len(answer) == 2 else None
        if isinstance(error, Exception):
            if isinstance(error, (StopIteration, StopAsyncIteration)) and verb != "next":
                # It would end the test's own loop over calls: all(map(f, ...)).
                error = RuntimeError(f"the program raised {type(error).__name__}")
            setattr(error, raised.OF_PROGRAM, True)
            raise error
        raise self._malformed()

    def _note(self, changed: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the arguments that a call has changed: lists, deques, dicts, sets and arrays."""
        try:
            found = [(args[p] if isinstance(p, int) else kwargs[p], tree) for p, tree in changed]
        except (TypeError, ValueError, LookupError) as error:
            raise self._malformed() from error
        changes = [(given, self._decode(tree)) for given, tree in found]
        for given, now in changes:
            kinds = [kind for kind in CHANGED if isinstance(now, kind)]
            array = type(given).__module__ == "numpy"  # a program without numpy has it as lists
            if not (array or (kinds and isinstance(given, kinds[0]))):
                raise self._malformed()
        with self._lock:
            self._changes += changes

    def settle(self) -> None:
        """Change the arguments that calls of the statement before have changed.

        Not sooner: in `assert f(x) == sorted(x)` the right side is about x as it was given.
        """
        if not self._changes:
            return
        with self._lock:
            changes, self._changes = self._changes, []
        for given, now in changes:
            if isinstance(given, list):
                given[:] = now
            elif isinstance(given, deque):
                given.clear()
                given.extend(now)
            elif isinstance(given, (dict, set)):
                given.clear()
                given.update(now)
            else:
                given[...] = now

    def _malformed(self) -> Gone:
        self.gone = True
        return Gone("a malformed message")

    def _encode(self, value: object) -> data.Tree:
        return data.encode(value, self._refer)

    def _refer(self, value: object) -> data.Tree:
        if (number := handle_of(value)) is not None:
            return {"h": number}
        if isinstance(value, Exception):
            known = next(kind for kind in type(value).__mro__ if kind in raised.BUILTIN)
            return raised.told(value, self._encode(known), self._encode)
        if isinstance(value, slice):
            return {"slice": [*map(self._encode, (value.start, value.stop, value.step))]}
        name = getattr(value, "__name__", "")
        if getattr(builtins, name or "?", None) is value:
            return {"B": name}
        if callable(value):
            with self._lock:
                self._functions.append(value)
                return {"cb": len(self._functions) - 1}
        raise TypeError(f"a test cannot pass {type(value).__name__} to the program")

    def _decode(self, tree: data.Tree) -> Any:
        self._guard.heard = self._guard.heard or not (isinstance(tree, dict) and "h" in tree)
        try:
            return data.decode(tree, self._resolve)
        except (data.Malformed, RecursionError) as error:
            raise self._malformed() from error

    def _resolve(self, tag: str, body: Any) -> object:
        def decode(tree: data.Tree) -> Any:
            return data.decode(tree, self._resolve)

        if tag == "T":
            return _harmless(data.decode({tag: body}))
        if tag == "x":
            return raised.rebuilt(body, decode)
        number, name, bases = body if tag == "e" else (body, "", [])
        if tag not in ("h", "e") or type(number) is not int:
            raise data.Malformed(f"unknown tag {tag!r}")
        if number not in self._standins:
            kinds = tuple(raised.kind_of(base, decode) for base in bases)
            made = OwnErrors.of(self, number, name, kinds) if tag == "e" else Proxy(self, number)
            self._standins[number] = made
        return self._standins[number]


def _harmless(kind: type) -> type:
    """A type that the program gives. Raises NameError for one that catches how a test fails."""
    ends = issubclass(kind, BaseException) and not issubclass(kind, Exception)  # sys.exit(1), say
    if ends or kind in (Exception, AssertionError):
        raise NameError(f"the program gives {kind.__name__}, which catches what fails a test")
    return kind


def _settling(tree: ast.Module, types: bool) -> ast.Module:
    """The test with a call of `settle` before each of its statements.

    Where it asks for `types`, the program's objects have their own: Python's is the stand-in's.
    """
    for node in list(ast.walk(tree)):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [part for each in block for part in (*_settle(each), each)])
        match node:
            case ast.Call(func=ast.Name(id="type"), args=[_], keywords=[]) if types:
                node.func = ast.copy_location(ast.Name(_TYPE_OF, ast.Load()), node.func)
    return tree


def _settle(statement: ast.stmt) -> list[ast.stmt]:
    match statement:
        case ast.Expr(value=ast.Constant()) | ast.ImportFrom(module="__future__"):
            return []  # what must come first
    return [ast.Expr(ast.Call(ast.Name(_SETTLE, ast.Load()), [], []))]
