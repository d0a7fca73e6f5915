"""How a reward is called on rows.

`call_reward` is the one place where a user's reward function runs: the same code in a worker, on a
thread and in the caller's own process (`runner` picks which).
"""

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rl_reasoner.scoring.outcome import as_score, faulted
from rl_reasoner.scoring.reward import Reward, name_of, values_of_each
from rl_reasoner.scoring.waiting import GivenUp
from rl_reasoner.types import Completion, Fault, Outcome

CONCURRENT = 16
"""Rows that an asynchronous reward judges at the same time."""


def _faults() -> tuple[type[BaseException], ...]:
    """What a reward may raise without ending the run; Ctrl-C is not the reward's.

    Some clients raise CancelledError. On a thread of the trainer whatever else it raises would end
    the run (sys.exit with status 0); on a main thread that may be a signal's, and of a worker it
    ends that alone.
    """
    main = threading.current_thread() is threading.main_thread()
    return (Exception, asyncio.CancelledError) if main else (BaseException,)


def _let_through(error: BaseException) -> None:
    """Raise `error` again where it says that the run is given up: no reward raises that."""
    if isinstance(error, GivenUp):
        raise error


def one_by_one(fn: Callable[..., Any]) -> bool:
    """Whether `fn` judges row by row, or group by group: each has its own deadline and fault."""
    return isinstance(fn, Reward) and fn.many is None and not fn.is_async


def call_reward(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    timeout_s: float,
    loop: asyncio.Runner,
) -> Iterator[Outcome]:
    """The outcome of each row in order, with its seconds; each as soon as it is known.

    A batch form counts its seconds in equal shares, so does a call on a group. `timeout_s` bounds
    each call of an asynchronous reward, here; all else is bounded by whoever waits for this
    iterator. What is asynchronous runs in `loop`: one for all batches, as the clients of a reward
    are bound to the loop they began in.
    """
    if not isinstance(fn, Reward):
        yield from _batch(fn, completions, columns, loop)
    elif fn.is_async:
        yield from loop.run(_gathered(fn, completions, columns, timeout_s))
    else:
        yield from _rows(fn, completions, columns, loop)


def _rows(
    fn: Reward,
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    loop: asyncio.Runner,
) -> Iterator[Outcome]:
    started, count = time.perf_counter(), len(completions)
    if fn.many is not None:
        try:
            values = fn.values_of_all(completions, columns)
        except _faults() as error:
            _let_through(error)
            started = time.perf_counter()  # the rows one by one say which is at fault
        else:
            yield from _shared([_scored(values[i], fn) for i in range(count)], started)
            return
    found: dict[int, Outcome] = {}
    at = 0  # the row that is due
    for unit in fn.groups(columns, count):
        outcomes: Sequence[Outcome]
        try:
            value = fn.given(unit, completions, columns)
            if inspect.isawaitable(value):  # of a wrapper that is no coroutine function itself
                value = loop.run(_awaited(value))
            outcomes = _of_unit(fn, value, len(unit))
        except _faults() as error:
            _let_through(error)
            outcomes = [faulted(fn.name, error, fn=fn)] * len(unit)
        found |= zip(unit, _shared(outcomes, started), strict=True)
        started = time.perf_counter()
        while at in found:
            yield found[at]
            at += 1


def _of_unit(fn: Callable[..., Any], value: Any, count: int) -> list[Outcome]:
    """The outcomes of the `count` rows of one call, which has returned `value`."""
    try:
        values = fn.each(value, count) if isinstance(fn, Reward) else values_of_each(value, count)
    except ValueError as error:
        return [faulted(name_of(fn), error, "value", fn)] * count
    return [_scored(one, fn) for one in values]


async def _gathered(
    fn: Reward, completions: Sequence[Completion], columns: Mapping[str, Any], timeout_s: float
) -> list[Outcome]:
    """The rows of an asynchronous reward, `CONCURRENT` calls at a time, each under its deadline."""
    free = asyncio.Semaphore(CONCURRENT)
    found: dict[int, Outcome] = {}

    async def one(unit: Sequence[int]) -> None:
        async with free:
            started = time.perf_counter()
            outcomes: Sequence[Outcome]
            bound = asyncio.timeout(timeout_s)
            try:
                async with bound:
                    value = await fn.given(unit, completions, columns)
                outcomes = _of_unit(fn, value, len(unit))
            except _faults() as error:
                _let_through(error)
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task and task.cancelling():
                    raise  # Ctrl-C
                late = Fault(f"reward {fn.name!r}: no reply within {timeout_s:g} s", "timeout")
                fault = late if bound.expired() else faulted(fn.name, error, fn=fn)
                outcomes = [fault] * len(unit)
            found.update(zip(unit, _shared(outcomes, started), strict=True))

    await asyncio.gather(*map(one, fn.groups(columns, len(completions))))
    return [found[index] for index in range(len(completions))]


def _batch(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    loop: asyncio.Runner,
) -> Iterator[Outcome]:
    """A function of trl's own form: all rows at once, a bad value faults its row alone."""
    started, count = time.perf_counter(), len(completions)
    outcomes: Sequence[Outcome]
    try:
        values = fn(completions=completions, **columns)
        if inspect.isawaitable(values):
            values = loop.run(_awaited(values))
        if isinstance(values, Iterator):
            values = [*values]  # a generator's code runs only now
        outcomes = _of_unit(fn, values, count)
    except _faults() as error:
        _let_through(error)
        outcomes = [faulted(name_of(fn), error, fn=fn)] * count
    yield from _shared(outcomes, started)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _scored(value: object, fn: Callable[..., Any]) -> Outcome:
    if isinstance(value, Fault):
        return value
    try:
        return as_score(value, name_of(fn))
    except _faults() as error:  # an object's own __float__ may raise anything
        _let_through(error)
        return faulted(name_of(fn), error, "value", fn)


def _shared(outcomes: Sequence[Outcome], started: float) -> Iterator[Outcome]:
    """`outcomes`, the time since `started` in equal shares."""
    each = (time.perf_counter() - started) / max(1, len(outcomes))
    return (replace(outcome, seconds=each) for outcome in outcomes)
