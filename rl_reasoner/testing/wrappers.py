"""Functions of trl's form that watch a reward while it is called.

They go to the worker process in the reward's place, and give 1.0 for each row on which it behaves.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rl_reasoner.scoring.transport import Around


def threaded(fn: Callable[..., Any]) -> Around:
    """A trl function: 1.0 for each row on which eight calls of `fn` at once agree with one."""
    return Around(fn, _agreed)


def watched(fn: Callable[..., Any]) -> Around:
    """A trl function: 1.0 for every row where `fn` leaves completions and columns as they were."""
    return Around(fn, _kept)


def _agreed(fn: Callable[..., Any], completions: Any, **columns: Any) -> list[float]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        alone = list(fn(completions=completions, **columns))
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(fn, completions=completions, **columns) for _ in range(8)]
            rows = zip(alone, *(call.result() for call in calls), strict=True)
            return [float(all(other == row[0] for other in row)) for row in rows]
    finally:
        sys.setswitchinterval(interval)


def _kept(fn: Callable[..., Any], completions: Any, **columns: Any) -> list[float]:
    plain: Mapping[str, Any] = {k: v for k, v in columns.items() if isinstance(v, list)}
    before = copy.deepcopy((completions, plain))
    fn(completions=completions, **columns)
    return [float((completions, plain) == before)] * len(completions)
