"""How a reward is called on rows.

`call_reward` is the one place where a user's reward function runs: the same code in a worker, on a
thread and in the caller's own process (`runner` picks which).
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rl_reasoner.scoring.outcome import as_score, faulted
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.types import Completion, Fault, Outcome

CONCURRENT = 16
"""Rows that an asynchronous reward judges at the same time."""


def one_by_one(fn: Callable[..., Any]) -> bool:
    """Whether `fn` judges row by row, so that each row has a deadline and a fault of its own."""
    return isinstance(fn, Reward) and fn.many is None and not fn.is_async


def call_reward(
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
                outcome = Fault(f"reward {fn.name!r}: no reply within {timeout_s:g} s", "timeout")
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


def _shared(outcomes: Sequence[Outcome], started: float) -> Iterator[Outcome]:
    """`outcomes`, the time since `started` in equal shares."""
    each = (time.perf_counter() - started) / max(1, len(outcomes))
    return (replace(outcome, seconds=each) for outcome in outcomes)
