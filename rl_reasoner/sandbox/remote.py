"""Calls between a judge and a program: two jailed processes, a socket pair, plain data.

The judge (`judging`) runs the text of a test. Names the test does not define become stand-ins that
ask the program; arguments and results cross as data, what is no data stays with its owner and
crosses as a handle. Here are what both sides speak over, and the program's side: it holds the
objects behind handles and does what it is asked. Nothing that it sends is executed or believed.
"""

import _thread
import builtins
import copy
import math
import operator
import os
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from rl_reasoner.sandbox import data, raised

CHANGED = (list, dict, set, deque)
"""Kinds of arguments, beside arrays, that a call may change in place on the other side, too."""
BROKEN = 88  # exit code of a process that ended as no honest one does
# Length of a message, its conversation, whether the sender has threads beside it.
_HEAD = struct.Struct("!IH?")
_MAX_CONVERSATIONS = 256
_NO_MESSAGES = -1


class Gone(BaseException):
    """The other side has ended, or sends what nobody honest sends.

    No Exception, so that a test's own `except Exception` does not swallow it.
    """


# What a judge may ask of objects, but for calls and names.
UNARY = ("abs", "neg", "pos", "invert", "int", "float", "complex", "index", "round", "format",
         "bool", "trunc", "floor", "ceil", "reversed")  # fmt: skip
BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift",
          "and", "xor", "or")  # fmt: skip
ORDER = ("lt", "le", "gt", "ge")
_DONE: dict[str, Callable[..., object]] = {
    "iterate": iter, "next": next, "len": len, "text": str, "repr": repr, "type": type,
    "copy": copy.copy, "deepcopy": copy.deepcopy, "attribute": getattr, "set": setattr,
    "delete": delattr, "item": operator.getitem, "put": operator.setitem,
    "remove": operator.delitem, "instance": lambda kind, value: isinstance(value, kind),
    "enter": lambda value: type(value).__enter__(value), "divmod": divmod,
}  # fmt: skip
for _name in (*UNARY, *BINARY, *ORDER, *(f"i{each}" for each in BINARY)):
    _places = ((builtins, _name), (math, _name), (operator, _name), (operator, f"{_name}_"))
    _DONE[_name] = next(getattr(*each) for each in _places if hasattr(*each))


def _leave(value: Any, error: Exception | None) -> bool:
    """End a `with` of the program's object; whether it swallows the error."""
    told = (None, None, None) if error is None else (type(error), error, error.__traceback__)
    return bool(type(value).__exit__(value, *told))


_DONE["exit"] = _leave


class _Place:
    """The number of a thread's conversation; another thread may have it when this one has ended."""

    def __init__(self, number: int, free: list[int]) -> None:
        self.number = number
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.number)


class Channel:
    """Conversations of JSON messages over one stream, for any number of threads on both sides.

    The two main threads are in conversation 0. Every other thread that asks has one of its own, and
    the other side answers it in a thread of its own, by `serve`. So calls that wait for each other,
    as tests of locks and queues make, can. Whoever waits for a message reads for all; a listener
    does when nobody waits, but is only started once there are threads: it costs every message a
    change of threads.
    """

    def __init__(self, descriptor: int, first: int, serve: Callable[[], None]) -> None:
        """`first` is 1 on one side and 2 on the other: who opens a conversation numbers it."""
        self._descriptor = descriptor
        self._next = first
        self._serve = serve
        self._main = _thread.get_ident()
        self._inboxes: dict[int, deque[list[Any]]] = {0: deque()}
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._reading = self._listening = self._ended = False
        self._own_threads = 0
        # For other threads than the main one only: each new thing costs a fork some pages.
        self._turn: threading.Condition | None = None
        self._seats: threading.local | None = None
        self._free: list[int] = []

    def send(self, message: list[Any]) -> None:
        """Send one message; raises Gone when nobody is there or it is too large."""
        raw = data.dump(message)
        if len(raw) > data.MAX_BYTES:
            raise Gone("a message too large")
        beside = _thread._count() > self._own_threads
        frame = _HEAD.pack(len(raw), self._conversation(), beside) + raw
        try:
            with self._writing:
                while frame:
                    frame = frame[os.write(self._descriptor, frame) :]
        except OSError as error:
            raise Gone(str(error)) from error

    def receive(self) -> list[Any]:
        """The next message of this thread; raises Gone at the end or for a malformed one."""
        return self._await(self._conversation())

    def _conversation(self) -> int:
        if _thread.get_ident() == self._main:
            return 0
        with self._lock:
            self._seats = self._seats or threading.local()
            if not hasattr(self._seats, "place"):
                if not self._free:
                    self._inboxes[self._next] = deque()
                    self._free.append(self._next)
                    self._next += 2
                self._seats.place = _Place(self._free.pop(), self._free)
            number: int = self._seats.place.number
            return number

    def _await(self, mine: int) -> list[Any]:
        with self._lock:
            while self._reading and not self._inboxes[mine] and not self._ended:
                self._turn = self._turn or threading.Condition(self._lock)
                self._turn.wait()
            if self._inboxes[mine]:
                return self._inboxes[mine].popleft()
            if self._ended:
                raise Gone("the end")
            self._reading = True
        try:
            while True:
                number, message = self._read()
                if number == mine:
                    return message
                self._hand_on(number, message)
        except Gone:
            self._ended = True
            raise
        finally:
            with self._lock:
                self._reading = False
                self._wake()

    def _wake(self) -> None:
        if self._turn is not None:
            self._turn.notify_all()

    def _read(self) -> tuple[int, list[Any]]:
        length, number, threads = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > data.MAX_BYTES:
            raise Gone("a message too large")
        try:
            message = data.load(self._exactly(length))
        except data.Malformed as error:
            raise Gone(str(error)) from error
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            raise Gone("no message")
        if (threads or number) and not self._listening:
            self._listening = True
            self._inboxes[_NO_MESSAGES] = deque()
            self._start(self._await, _NO_MESSAGES)
        return number, message

    def _hand_on(self, number: int, message: list[Any]) -> None:
        """Give a message to the conversation it belongs to, a new one where it opens one."""
        with self._lock:
            new = number not in self._inboxes
            if new:
                theirs = number % 2 != self._next % 2
                if not theirs or len(self._inboxes) > _MAX_CONVERSATIONS:
                    raise Gone("no such conversation")
                self._inboxes[number] = deque()
            self._inboxes[number].append(message)
            self._wake()
        if new:
            self._start(self._converse, number)

    def _converse(self, number: int) -> None:
        with self._lock:
            self._seats = self._seats or threading.local()
            self._seats.place = _Place(number, [])
        self._serve()

    def _start(self, act: Callable[[int], object], number: int) -> None:
        self._own_threads += 1
        threading.Thread(target=_until_gone, args=(act, number), daemon=True).start()

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


def _until_gone(act: Callable[[int], object], number: int) -> None:
    try:
        act(number)
    except Gone:
        pass
    except BaseException:  # what ends the process from its main thread ends it from here
        os._exit(BROKEN)


class Server:
    """The program's side: holds the objects behind handles and does what the judge asks."""

    def __init__(self, namespace: dict[str, Any], descriptor: int) -> None:
        self._namespace = namespace
        self._channel = Channel(descriptor, 1, self.run)
        self._lock = threading.Lock()
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
            return ["raised", self._encode(error)]

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
            array = type(now).__module__ == "numpy"
            if (array or isinstance(now, CHANGED)) and self._encode(now) != tree:
                changed.append([place, self._encode(now)])
        return value, changed

    def _do(self, verb: str, target: Any, *rest: Any) -> object:
        if verb == "bases" and isinstance(target, type):
            return target.__bases__
        return _DONE[verb](target, *rest)

    def _encode(self, value: object) -> data.Tree:
        return data.encode(value, self._handle)

    def _handle(self, value: object) -> data.Tree:
        """What stands for a value that is no data; of exceptions also what they are."""
        if isinstance(value, Exception):
            own = None if type(value) in raised.BUILTIN else self._number(value)
            return raised.told(value, self._encode(type(value)), self._encode, own)
        if isinstance(value, type) and issubclass(value, Exception):
            bases = [base for base in value.__bases__ if issubclass(base, Exception)]
            return {"e": [self._number(value), value.__name__, [*map(self._encode, bases)]]}
        return {"h": self._number(value)}

    def _number(self, value: object) -> int:
        with self._lock:
            number = self._numbers.setdefault(id(value), len(self._objects))
            if number == len(self._objects):
                self._objects.append(value)
        return number

    def _resolve(self, tag: str, body: Any) -> object:
        if tag == "h":
            return self._objects[body]
        if tag == "B":
            return getattr(builtins, body)
        if tag == "T":
            return data.decode({tag: body})
        if tag == "x":
            return raised.rebuilt(body, lambda tree: data.decode(tree, self._resolve))
        if tag == "slice":
            return slice(*(data.decode(part, self._resolve) for part in body))
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
                raise data.decode(message[1], self._resolve)
            self._channel.send(self._answer(message))
