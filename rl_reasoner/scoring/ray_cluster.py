"""Rewards on a Ray cluster: the rows of a batch in blocks, each scored by one of its processors.

A block runs on a node just as the whole batch would run here: a user's reward in a killable process
of its own (`runner`), programs in that node's sandbox, sympy in that node's workers. Ray places
the blocks and gives one whose node has died to another node; what no node can score is a fault of
its rows. Every node has the package installed, and the files that rewards come from. Ray is
imported when a recipe asks for it (`run.rewards_on: ray`), not before.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from rl_reasoner.errors import UserError
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.scoring.runner import runner_of
from rl_reasoner.scoring.transport import pack_reward, snapshot, unpack_reward
from rl_reasoner.scoring.waiting import warn_while_waiting
from rl_reasoner.types import Completion, Fault, Outcome
from rl_reasoner.version import install_extra

_log = logging.getLogger(__name__)
RETRIES = 5
"""How often Ray gives a block to another worker when one has died under it."""
MOST_ROWS = 64
_BLOCKS_EACH = 4  # blocks a processor, so that slow rows do not hold up a batch


def installed() -> None:
    """Raise `UserError` where Ray is not there."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError(f"run.rewards_on: ray needs Ray: {install_extra('ray')}") from error


def score_on_ray(
    fn: Reward, completions: Sequence[Completion], columns: Mapping[str, Any], limits: Limits
) -> list[Outcome]:
    """As `score_batch`, by the cluster that `ray.init` finds (RAY_ADDRESS), else by this machine.

    A reward that cannot travel (it holds state) is scored here, which is logged once.
    """
    here = replace(limits, on="here")
    packed = _packed(fn)
    if packed is None:
        return runner_of(fn, here).score(completions, columns)
    ray = _ray()
    count = len(completions)
    size = _block(count, int(ray.cluster_resources().get("CPU", 1)))
    blocks = _blocks(fn.groups(columns, count), size)
    sent = {name: values for name, values in columns.items() if _wanted(fn, name, values)}
    task = _task()
    refs = []
    for rows in blocks:
        own = {name: [values[i] for i in rows] for name, values in sent.items()}
        refs.append(task.remote(packed, [completions[i] for i in rows], own, here))
    ends = time.monotonic() + limits.batch_timeout_s
    outcomes: dict[int, Outcome] = {}
    with warn_while_waiting(fn.name, limits.batch_timeout_s):
        for rows, ref in zip(blocks, refs, strict=True):
            scored = _of(ref, len(rows), fn.name, ends, limits)
            if scored is None:
                _keep_here(fn, "it changes what it holds, and every node has a copy of that")
                return runner_of(fn, here).score(completions, columns)
            outcomes |= zip(rows, scored, strict=True)
    return [outcomes[index] for index in range(count)]


def _of(ref: Any, count: int, name: str, ends: float, limits: Limits) -> list[Outcome] | None:
    """The outcomes of a block (see `_scored`), as soon as it is done; faults where it cannot be."""
    ray = _ray()
    try:
        scored: list[Outcome] | None = ray.get(ref, timeout=max(0.0, ends - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        late = f"reward {name!r}: the batch was not done within {limits.batch_timeout_s:g} s"
        return [Fault(late, "timeout")] * count
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        return [Fault(f"reward {name!r}: no node could score it ({reason})", "crash")] * count
    return scored


def _wanted(fn: Reward, name: str, values: Any) -> bool:
    """Whether the column goes along: not what is trl's own, unless the reward names it."""
    return name in fn.columns or (isinstance(values, Sequence) and name != "completion_ids")


def _blocks(units: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Rows in blocks of about `size`, those of a unit together."""
    blocks: list[list[int]] = []
    for unit in units:
        if not blocks or len(blocks[-1]) + len(unit) > size:
            blocks.append([])
        blocks[-1] += unit
    return blocks


def _block(rows: int, processors: int) -> int:
    return max(1, min(MOST_ROWS, -(-rows // (_BLOCKS_EACH * max(1, processors)))))


_PACKED: WeakKeyDictionary[Reward, dict[str, Any] | None] = WeakKeyDictionary()


def _packed(fn: Reward) -> dict[str, Any] | None:
    """What a node needs to have the reward, as it was at first; None where it is scored here."""
    if fn not in _PACKED:
        packed = pack_reward(fn)
        if isinstance(packed, str):
            _keep_here(fn, packed)
        else:
            _PACKED[fn] = packed
    return _PACKED[fn]


def _keep_here(fn: Reward, why: str) -> None:
    _PACKED[fn] = None
    _log.warning("reward %r is not scored on Ray: %s", fn.name, why)


@cache
def _ray() -> Any:
    """Ray, connected."""
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    return ray


@cache
def _task() -> Any:
    return _ray().remote(num_cpus=1, max_retries=RETRIES)(_scored)


# ------------------------------------------------------------------------------ on the nodes


def _scored(
    packed: dict[str, Any], completions: list[Completion], columns: dict[str, Any], limits: Limits
) -> list[Outcome] | None:
    """A block's outcomes, by the process that Ray runs this in: it keeps to one processor.

    None where the reward has changed what it holds: the state belongs where the run is.
    """
    _one_processor()
    fn = _reward(repr(sorted(packed.items())), packed)
    before = snapshot(packed, fn)
    outcomes = runner_of(fn, limits).score(completions, columns)
    return outcomes if snapshot(packed, fn) == before else None


@cache
def _one_processor() -> None:
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[os.getpid() % len(own)]})


_REWARDS: dict[str, Callable[..., Any]] = {}


def _reward(key: str, packed: dict[str, Any]) -> Callable[..., Any]:
    """The reward, kept with its worker process from block to block."""
    if key not in _REWARDS:
        _REWARDS[key] = unpack_reward(packed)
    return _REWARDS[key]
