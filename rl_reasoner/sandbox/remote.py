"""Calls between a judge and a program: two jailed processes, a socket pair, plain data.

The judge runs the text of a test. Names the test does not define become stand-ins that ask the
program; arguments and results cross as data, what is no data stays with its owner and crosses as a
handle that can be called and asked for attributes and items. Nothing the program sends is executed
or believed: a handle has no truth value and equals only itself, so that no method of the program
decides a comparison.
"""

import ast
import builtins
import importlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from rl_reasoner.sandbox import data

_SETTLE = "__settle__"
_LENGTH = struct.Struct("!I")
# Names that tests use without importing them, and that no task asks to write: the judge's own.
_KNOWN = {
    "Counter": "collections", "OrderedDict": "collections", "defaultdict": "collections",
    "deque": "collections", "namedtuple": "collections", "Decimal": "decimal",
    "Fraction": "fractions", "isclose": "math", "List": "typing", "Dict": "typing",
    "Tuple": "typing", "Set": "typing", "Optional": "typing", "Any": "typing", "Union": "typing",
}  # fmt: skip
_ALIASES = {"np": "numpy", "numpy": "numpy", "sympy": "sympy"}


class Gone(BaseException):
    """The other side has ended, or sends what nobody honest sends.

    No Exception, so that a test's own `except Exception` does not swallow it.
    """


class Channel:
    """Frames of JSON over a stream, each after its length in four bytes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def send(self, message: list[Any]) -> None:
        """Send one message; raises Gone when nobody is there or it is too large."""
        raw = data.dump(message)
        if len(raw) > data.MAX_BYTES:
            raise Gone("a message too large")
        frame = _LENGTH.pack(len(raw)) + raw
        try:
            while frame:
                frame = frame[os.write(self._descriptor, frame) :]
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self) -> list[Any]:
        """The next message; raises Gone at the end or for a malformed one."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > data.MAX_BYTES:
            raise Gone("a message too large")
        try:
            message = data.load(self._exactly(length))
        except data.Malformed as error:
            raise Gone(str(error)) from error
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            raise Gone("no message")
        return message

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = os.read(self._descriptor, min(count, 1 << 20))
            except OSError as error:
                raise Gone(str(error)) from error
            if not part:
                raise Gone("the end")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


# -------------------------------------------------------------------------------- the program


class Server:
    """The program's side: holds the objects behind handles and does what the judge asks."""

    def __init__(self, namespace: dict[str, Any], channel: Channel) -> None:
        self._namespace = namespace
        self._channel = channel
        self._objects: list[object] = []
        self._numbers: dict[int, int] = {}

    def run(self) -> None:
        """Answer until the judge closes its side."""
        while True:
            try:
                request = self._channel.receive()
            except Gone:
                return
            self._channel.send(self._answer(request))

    def _answer(self, request: list[Any]) -> list[Any]:
        verb, *rest = request
        if verb == "get":
            if rest[0] not in self._namespace:
                return ["missing"]
            return ["value", self._encode(self._namespace[rest[0]]), []]
        changed: list[Any] = []
        try:
            if verb == "call":
                value, changed = self._call(*rest)
            else:
                value = self._do(verb, *(data.decode(tree, self._resolve) for tree in rest))
            return ["value", self._encode(value), changed]
        except Exception as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            return ["raised", names, str(error)[:1000]]

    def _call(self, handle: Any, args: list[Any], kwargs: list[Any]) -> tuple[object, list[Any]]:
        """The value of a call, and which arguments it changed in place: [place, new value]."""
        target: Any = data.decode(handle, self._resolve)
        values = [data.decode(tree, self._resolve) for tree in args]
        named = {name: data.decode(tree, self._resolve) for name, tree in kwargs}
        value = target(*values, **named)
        given = [(place, tree) for place, tree in enumerate(args)] + [(n, t) for n, t in kwargs]
        changed = []
        for place, tree in given:
            now: Any = values[place] if isinstance(place, int) else named[place]
            if isinstance(now, (list, dict, set)) and self._encode(now) != tree:
                changed.append([place, self._encode(now)])
        return value, changed

    def _do(self, verb: str, target: Any, *rest: Any) -> object:
        if verb == "attribute":
            return getattr(target, rest[0])
        if verb == "set":
            setattr(target, rest[0], rest[1])
            return None
        if verb == "item":
            return target[rest[0]]
        if verb == "put":
            target[rest[0]] = rest[1]
            return None
        simple: dict[str, Callable[[Any], object]] = {"iterate": iter, "next": next, "len": len}
        return simple[verb](target) if verb in simple else str(target)

    def _encode(self, value: object) -> data.Tree:
        return data.encode(value, self._handle)

    def _handle(self, value: object) -> data.Tree:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return {"h": number}

    def _resolve(self, tag: str, body: Any) -> object:
        if tag == "h":
            return self._objects[body]
        if tag == "B":
            return getattr(builtins, body)
        if tag == "cb":
            return lambda *args, **kwargs: self._call_back(body, args, kwargs)
        raise data.Malformed(f"unknown tag {tag!r}")

    def _call_back(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Call a function that the test passed as an argument."""
        named = [[name, self._encode(value)] for name, value in kwargs.items()]
        self._channel.send(["callback", number, [self._encode(value) for value in args], named])
        while True:
            message = self._channel.receive()
            if message[0] == "returned":
                return data.decode(message[1], self._resolve)
            if message[0] == "failed":
                raise _exception(message[1], message[2])
            self._channel.send(self._answer(message))


# -------------------------------------------------------------------------------- the judge


def judge(test: str, channel: Channel) -> str:
    """The verdict of running `test` against the program behind `channel`.

    "passed", "failed" (an assertion), "error" (anything else was raised) or "memory". Raises Gone.
    """
    asking = _Judge(channel)
    verdict = _run_test(test, asking)
    if asking.gone:  # whatever the test made of it
        raise Gone("during the test")
    return verdict


def _run_test(test: str, asking: "_Judge") -> str:
    try:
        tree = ast.parse(test)
        module = ModuleType("__main__")
        sys.modules["__main__"] = module  # where unittest.main() looks for test cases
        namespace = module.__dict__
        namespace["__builtins__"] = builtins
        asking.define(tree, namespace)
        namespace[_SETTLE] = asking.settle
        code = compile(ast.fix_missing_locations(_settling(tree)), "test", "exec")
        exec(code, namespace)  # noqa: S102 - a data set's test, in a jail
    except AssertionError:
        return "failed"
    except SystemExit as end:  # the test's own: no exception of the program arrives as this
        return "failed" if end.code else "passed"
    except MemoryError:
        return "memory"
    except BaseException:
        return "error"
    return "passed"


class _Judge:
    """The judge's side: asks, and runs the functions that a test passed along."""

    def __init__(self, channel: Channel) -> None:
        self.gone = False
        self._channel = channel
        self._functions: list[Callable[..., object]] = []
        self._proxies: dict[int, Proxy] = {}
        self._changes: list[tuple[Any, Any]] = []

    def define(self, tree: ast.Module, namespace: dict[str, Any]) -> None:
        """Put what the test needs and does not define into its namespace.

        Builtins stay the judge's own, and so do standard modules of which the test takes
        attributes, for the program's could be anything. Only where a test names nothing else of
        the program is what it calls a builtin the program's, which then must have it: what it
        hands to its own functions (`check(sorted)`), or else all it uses.
        """
        used, dotted, handed = _names(tree)
        own = used & set(dir(builtins))
        asked = [self._define(name, name in dotted, namespace) for name in sorted(used - own)]
        if not any(asked) and own:
            named = handed & own or own
            asked = [self._define(name, False, namespace) for name in sorted(named)]
            if not any(asked):
                raise NameError(f"the program defines none of {', '.join(sorted(named))}")
        self._exchange(["get", ""])  # a program that does not load passes nothing

    def _define(self, name: str, dotted: bool, namespace: dict[str, Any]) -> bool:
        """Give one name its value; whether that is the program's."""
        if dotted and (name in _ALIASES or name in sys.stdlib_module_names):
            namespace[name] = importlib.import_module(_ALIASES.get(name, name))
        elif name in _KNOWN:
            namespace[name] = getattr(importlib.import_module(_KNOWN[name]), name)
        else:
            answer = self._exchange(["get", name])
            if answer[0] == "value" and len(answer) == 3:
                namespace[name] = self._decode(answer[1])
                return True
        return False

    def ask(self, verb: str, target: "Proxy", *rest: object) -> Any:
        """What the program answers to `verb`; raises what it raised, as the builtin exception."""
        trees = [self._encode(value) for value in (target, *rest)]
        return self._value(self._exchange([verb, *trees]))

    def call(self, target: "Proxy", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function of the program; what it changed in place changes here with `settle`."""
        trees = [self._encode(value) for value in args]
        named = [[name, self._encode(value)] for name, value in kwargs.items()]
        answer = self._exchange(["call", self._encode(target), trees, named])
        value = self._value(answer)
        self._note(answer[2], args, kwargs)
        return value

    def _exchange(self, request: list[Any]) -> list[Any]:
        try:
            self._channel.send(request)
            while True:
                message = self._channel.receive()
                if message[0] != "callback":
                    return message
                self._channel.send(self._called_back(*message[1:]))
        except Gone:
            self.gone = True
            raise

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
            return ["failed", [kind.__name__ for kind in type(error).__mro__], str(error)[:1000]]

    def _value(self, answer: list[Any]) -> Any:
        if answer[0] == "value" and len(answer) == 3:
            return self._decode(answer[1])
        if answer[0] == "raised" and len(answer) == 3 and isinstance(answer[1], list):
            raise _exception(answer[1], str(answer[2]))
        raise self._malformed()

    def _note(self, changed: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            found = [(args[p] if isinstance(p, int) else kwargs[p], tree) for p, tree in changed]
        except (TypeError, ValueError, LookupError) as error:
            raise self._malformed() from error
        self._changes += [(given, self._decode(tree)) for given, tree in found]

    def settle(self) -> None:
        """Change the arguments that calls of the statement before have changed.

        Not sooner: in `assert f(x) == sorted(x)` the right side is about x as it was given.
        """
        changes, self._changes = self._changes, []
        for given, now in changes:
            if isinstance(given, list) and isinstance(now, list):
                given[:] = now
            elif isinstance(given, (dict, set)) and type(now) is type(given):
                given.clear()
                given.update(now)

    def _malformed(self) -> Gone:
        self.gone = True
        return Gone("a malformed message")

    def _encode(self, value: object) -> data.Tree:
        return data.encode(value, self._refer)

    def _refer(self, value: object) -> data.Tree:
        if type(value) is Proxy:
            return {"h": object.__getattribute__(value, "_number")}
        name = getattr(value, "__name__", "")
        if getattr(builtins, name or "?", None) is value:
            return {"B": name}
        if callable(value):
            self._functions.append(value)
            return {"cb": len(self._functions) - 1}
        raise TypeError(f"a test cannot pass {type(value).__name__} to the program")

    def _decode(self, tree: data.Tree) -> Any:
        try:
            return data.decode(tree, self._resolve)
        except (data.Malformed, RecursionError) as error:
            raise self._malformed() from error

    def _resolve(self, tag: str, body: Any) -> object:
        if tag != "h" or not isinstance(body, int):
            raise data.Malformed(f"unknown tag {tag!r}")
        return self._proxies.setdefault(body, Proxy(self, body))


class Proxy:
    """An object of the program, as a test sees it: to be called, and asked for parts.

    It has no truth value and equals only itself: whoever compares it gets a TypeError, so that a
    test passes on data alone.
    """

    def __init__(self, owner: _Judge, number: int) -> None:
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _owner(self).call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return _owner(self).ask("attribute", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        _owner(self).ask("set", self, name, value)

    def __getitem__(self, key: object) -> Any:
        return _owner(self).ask("item", self, key)

    def __setitem__(self, key: object, value: object) -> None:
        _owner(self).ask("put", self, key, value)

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

    def __eq__(self, other: object) -> bool:
        return self is other or _refuse()

    def __ne__(self, other: object) -> bool:
        return self is not other and _refuse()

    def __bool__(self) -> bool:
        return _refuse()

    __hash__ = object.__hash__


def _owner(proxy: Proxy) -> _Judge:
    owner: _Judge = object.__getattribute__(proxy, "_owner")
    return owner


def _refuse() -> bool:
    raise TypeError("the program's value is no plain data")


def _exception(names: list[Any], message: str) -> Exception:
    """The builtin exception nearest to one whose classes have these names."""
    for name in names:
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(message)
            except TypeError:
                break
    return RuntimeError(message)


def _settling(tree: ast.Module) -> ast.Module:
    """The test with a call of `settle` before each of its statements."""
    for node in list(ast.walk(tree)):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [part for each in block for part in (*_settle(each), each)])
    return tree


def _settle(statement: ast.stmt) -> list[ast.stmt]:
    match statement:
        case ast.Expr(value=ast.Constant()) | ast.ImportFrom(module="__future__"):
            return []  # what must come first
    return [ast.Expr(ast.Call(ast.Name(_SETTLE, ast.Load()), [], []))]


def _names(tree: ast.Module) -> tuple[set[str], set[str], set[str]]:
    """Names a test uses and does not define at its top; of those it takes attributes; it hands on.

    Handed on are the arguments of calls, at the top of the test, of functions it defines itself.
    """
    bound = _bound(tree)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - bound
    used = {name for name in used if not name.startswith("__")}
    dotted = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    handed: set[str] = set()
    for statement in tree.body:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id=name), args=args)) if name in bound:
                handed |= {argument.id for argument in args if isinstance(argument, ast.Name)}
    return used, dotted, handed & used


def _bound(tree: ast.AST) -> set[str]:
    """Names bound at the top level of a test, not inside its functions and classes."""
    bound: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        bound |= _bound(node)
    return bound
