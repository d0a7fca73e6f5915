"""How a reward is called on rows, and how it travels to another process.

`outcomes` is the one place where a user's reward function runs: the same code in a worker, on a
thread and in the caller's own process (`isolation` picks which). `packed` says how a worker gets
the function: by its name in a module, by its file, or by value (cloudpickle) where it holds no
state; a reason in words where it cannot leave the process. A worker has a copy: what the function
reads may change here meanwhile, so that it is packed again for each batch, and `changed` is sent.
"""

import asyncio
import base64
import enum
import inspect
import pickle
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, cast

import cloudpickle

from rl_reasoner.scoring.captures import (
    ABSENT,
    PLAIN,
    cells,
    followed,
    methods,
    named,
    of_script,
    set_all,
    settings_of,
    standard,
    uses,
)
from rl_reasoner.scoring.reward import FILE_MODULE, Reward, as_score, faulted, module_of
from rl_reasoner.scoring.source import TEXT, read
from rl_reasoner.types import Completion, Fault, Outcome

CONCURRENT = 16
"""Rows that an asynchronous reward judges at the same time."""
MOST_BYTES = 1 << 20
"""What a function sent by value may weigh: code and constants, not a model."""
_SHIPPED = "rl_reasoner.rewards."
_CONSTANTS = (*PLAIN, Path, re.Pattern, enum.Enum)


# ------------------------------------------------------------------------------ calling rewards


def name_of(fn: Callable[..., Any]) -> str:
    """The reward's name in messages, ledger and metrics."""
    return str(getattr(fn, "__name__", type(fn).__name__))


def one_by_one(fn: Callable[..., Any]) -> bool:
    """Whether `fn` judges row by row, so that each row has a deadline and a fault of its own."""
    return isinstance(fn, Reward) and fn.many is None and not fn.is_async


def shipped(fn: Callable[..., Any]) -> bool:
    """Whether `fn` comes with the package: bounded, or with killable processes of its own."""
    return isinstance(fn, Reward) and fn.__module__.startswith(_SHIPPED)


def outcomes(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    timeout_s: float,
    loop: asyncio.Runner,
) -> Iterator[Outcome]:
    """The outcome of each row in order, with its seconds; each as soon as it is known.

    A batch form counts its seconds in equal shares. `timeout_s` bounds each row of an asynchronous
    reward, here; all else is bounded by whoever waits for this iterator. What is asynchronous runs
    in `loop`: one for all batches, as the clients of a reward are bound to the loop they began in.
    """
    if not isinstance(fn, Reward):
        yield from _batch(fn, completions, columns, loop)
    elif fn.is_async:
        yield from loop.run(_gathered(fn, completions, columns, timeout_s))
    else:
        yield from _rows(fn, completions, columns)


def _rows(
    fn: Reward, completions: Sequence[Completion], columns: Mapping[str, Any]
) -> Iterator[Outcome]:
    started = time.perf_counter()
    if fn.many is not None:
        try:
            yield from _shared(fn.scores(completions, columns), started)
            return
        except Exception:
            started = time.perf_counter()  # the rows one by one say which is at fault
    for index, completion in enumerate(completions):
        outcome: Outcome
        try:
            outcome = _scored(fn.result(completion, **fn.row(columns, index)), fn)
        except Exception as error:
            outcome = faulted(fn.name, error, fn=fn)
        now = time.perf_counter()
        yield replace(outcome, seconds=now - started)
        started = now


async def _gathered(
    fn: Reward, completions: Sequence[Completion], columns: Mapping[str, Any], timeout_s: float
) -> list[Outcome]:
    """The rows of an asynchronous reward, `CONCURRENT` at a time, each under its deadline."""
    free = asyncio.Semaphore(CONCURRENT)

    async def one(index: int, completion: Completion) -> Outcome:
        async with free:
            started = time.perf_counter()
            try:
                result = fn.result(completion, **fn.row(columns, index))
                outcome = _scored(await asyncio.wait_for(result, timeout_s), fn)
            except TimeoutError:
                said = f"reward {fn.name!r}: no reply within {timeout_s:g} s"
                outcome = Fault(said, "timeout")
            except Exception as error:
                outcome = faulted(fn.name, error, fn=fn)
            return replace(outcome, seconds=time.perf_counter() - started)

    return list(await asyncio.gather(*(one(i, text) for i, text in enumerate(completions))))


def _batch(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    loop: asyncio.Runner,
) -> Iterator[Outcome]:
    """A function of trl's own form: all rows at once, a bad value faults its row alone."""
    name, started = name_of(fn), time.perf_counter()
    try:
        values = fn(completions=completions, **columns)
        if inspect.isawaitable(values):
            values = loop.run(_awaited(values))
    except Exception as error:
        yield from _shared([faulted(name, error, fn=fn)] * len(completions), started)
        return
    try:
        values = list(values)
        if len(values) != len(completions):
            raise ValueError(f"it returned {len(values)} values for {len(completions)} completions")
    except (TypeError, ValueError) as error:
        yield from _shared([faulted(name, error, "value", fn)] * len(completions), started)
        return
    yield from _shared([_scored(value, fn) for value in values], started)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _scored(value: object, fn: Callable[..., Any]) -> Outcome:
    try:
        return as_score(value, name_of(fn))
    except Exception as error:  # an object's own __float__ may raise anything
        return faulted(name_of(fn), error, "value", fn)


def _shared(found: Sequence[Outcome], started: float) -> Iterator[Outcome]:
    """`found`, the time since `started` in equal shares."""
    each = (time.perf_counter() - started) / max(1, len(found))
    return (replace(outcome, seconds=each) for outcome in found)


# ---------------------------------------------------------------------------- rewards that travel


def packed(fn: Callable[..., Any]) -> dict[str, Any] | str:
    """What a worker needs to have `fn` (JSON values for `unpacked`), or why it can't have it."""
    target = fn.fn if isinstance(fn, Reward) else fn
    options = fn.options if isinstance(fn, Reward) else {}
    place = _place(target, fn.many if isinstance(fn, Reward) else None)
    try:
        if place is not None:
            decorated = isinstance(fn, Reward)
            settings = settings_of(fn, _home(target))
            sent = {"options": _text(pickle.dumps(options)), "settings": settings}
            return {**place, "decorated": decorated, **sent}
        if held := _held(target, set()):
            return held
        value = cloudpickle.dumps(fn)
    except Exception as error:  # locks, sockets, anything that refuses
        return f"it cannot be sent to another process ({type(error).__name__}: {error})"
    if len(value) > MOST_BYTES:
        return f"what it holds is {len(value) / (1 << 20):.0f} MB"
    return {"value": _text(value), "settings": settings_of(fn, None)}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What a worker that has `before` needs in order to have `now`.

    Settings that stayed are left out: its modules may have set them otherwise by now.
    """
    old = before["settings"]
    settings = {k: v for k, v in now["settings"].items() if k not in old or old[k] != v}
    return {**now, "settings": settings}


def unpacked(place: Mapping[str, Any], earlier: Any = None) -> Callable[..., Any]:
    """The reward that `packed` described, in this process; `earlier` is what it was before."""
    if "value" in place:
        value: Callable[..., Any] = pickle.loads(_bytes(place["value"]))  # noqa: S301 (the parent's)
        set_all(place["settings"], None)
        return value
    if earlier is not None:
        target = earlier.fn if isinstance(earlier, Reward) else earlier
        set_all(place["settings"], _home(target))
        return cast(Callable[..., Any], earlier)
    found: Any
    if "text" in place:
        found = read(place["name"], place["text"])
        set_all(place["settings"], _home(found.fn if isinstance(found, Reward) else found))
    else:
        found = module = cast(Any, module_of(place["module"], place["module"]))
        set_all(place["settings"], vars(module))
        for part in place["name"].split("."):
            found = getattr(found, part)
    options = pickle.loads(_bytes(place["options"]))  # noqa: S301 (the parent's)
    if place["decorated"]:
        return (found if isinstance(found, Reward) else Reward(found)).with_options(**options)
    plain: Callable[..., Any] = found
    return plain


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _place(target: Any, many: Any = None) -> dict[str, str] | None:
    """Module (or file) and name under which another interpreter finds the function `target`.

    None too where it would be found there without its batch form `many`.
    """
    name = str(getattr(target, "__qualname__", "<none>"))
    module = str(getattr(target, "__module__", None))
    if "<" in name or module in ("__main__", "__mp_main__"):
        return None
    own = module.startswith(FILE_MODULE)  # another file may have taken its place in sys.modules
    space = target.__globals__ if own else vars(sys.modules.get(module, object))
    first, *rest = name.split(".")
    found: Any = space.get(first)
    for part in rest:
        found = getattr(found, part, None)
    if found is not target and getattr(found, "fn", None) is not target:
        return None
    if many is not None and getattr(found, "many", None) is not many:
        return None
    if TEXT in space:
        return {"text": space[TEXT], "name": name}
    file = space.get("__file__")
    if not own:
        spec = space.get("__spec__")
        if spec is not None and spec.origin == file:
            return {"module": module, "name": name}
    return {"module": file, "name": name} if file and file.endswith(".py") else None


def _home(target: Any) -> dict[str, Any]:
    """The globals of the module of `target`, a function that `_place` finds there."""
    own: bool = target.__module__.startswith(FILE_MODULE)
    return target.__globals__ if own else vars(sys.modules[target.__module__])


def _held(value: Any, seen: set[int]) -> str:
    """What of `value` would not be the same thing in another process, in words; empty if nothing.

    A function by value takes copies of what it names along: right for constants, functions and
    modules, wrong for what it changes (a counter, a list) and for what is alive (a lock, a model).
    """
    constant = isinstance(value, (*_CONSTANTS, ModuleType, BuiltinFunctionType))
    if constant or value is ABSENT or id(value) in seen:
        return ""
    seen.add(id(value))
    if isinstance(value, (tuple, frozenset)):
        return next(filter(None, (_held(item, seen) for item in value)), "")
    if isinstance(value, partial):
        return _held((value.func, *value.args, *value.keywords.values()), seen)
    if isinstance(value, Reward):
        return _held((value.fn, value.many), seen)
    if isinstance(value, type):
        if not of_script(value):
            return ""
        why = (_held_by(method, seen, value) for method in methods(value))
        return next(filter(None, (*why, *(_held(base, seen) for base in value.__bases__))), "")
    if not isinstance(value, FunctionType):
        return f"it holds a {type(value).__name__}"
    if _place(value) is not None or standard(value.__module__):
        return ""
    return _held_by(value, seen)


def _held_by(function: FunctionType, seen: set[int], owner: type | None = None) -> str:
    """`_held` for a function: what it rebinds, its defaults, its closure, the globals it names.

    Of a class of the script it is also what the function changes there, and the lists and dicts
    that it names; `owner` is the class that it is a method of.
    """
    values: dict[str, Any] = {"its defaults": function.__defaults__ or ()}
    values |= (function.__kwdefaults__ or {}) | vars(function) | cells(function)
    for use in uses(function.__code__):
        if use.written and not use.path and (not use.captured or use.name in values):
            return f"it changes {use.name}"
        root = named(function, use, owner)
        place = followed(root, use.path)
        name = ".".join((use.name or getattr(owner, "__name__", ""), *use.path))
        if use.name:
            values[use.name] = root
        if place.space is None:
            continue
        if use.written and not standard(place.space.__name__):
            if use.name or isinstance(vars(owner).get(function.__name__), classmethod):
                return f"it changes {name}"
        elif of_script(place.space) and not hasattr(place.value, "__get__"):
            values[name] = place.value
    for name, value in values.items():
        if why := _held(value, seen):
            return why if " (" in why else f"{why} ({name})"
    return ""
