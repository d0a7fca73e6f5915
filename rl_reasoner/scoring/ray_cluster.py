"""Rewards on a Ray cluster: the rows of a batch in blocks, each scored by one of its processors.

A block runs on a node just as the whole batch would run here: a user's reward in a killable process
of its own (`isolation`), programs in that node's sandbox, sympy in that node's workers. Ray places
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
from typing import TYPE_CHECKING, Any

from rl_reasoner.errors import UserError
from rl_reasoner.scoring.call import name_of, packed, unpacked
from rl_reasoner.scoring.reward import Reward, score_batch
from rl_reasoner.types import Completion, Fault, Outcome
from rl_reasoner.waiting import waiting_for

if TYPE_CHECKING:
    from rl_reasoner.scoring.runner import Limits

logger = logging.getLogger(__name__)
RETRIES = 5
"""How often Ray gives a block to another worker when one has died under it."""
MOST_ROWS = 64
_BLOCKS_EACH = 4  # blocks a processor, so that slow rows do not hold up a batch
_OF_TRL = ("trainer_state", "log_extra", "log_metric", "completion_ids")


def installed() -> None:
    """Raise `UserError` where Ray is not there."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError("run.rewards_on: ray needs Ray: pip install 'rl-reasoner[ray]'") from error


def outcomes(
    fn: Reward, completions: Sequence[Completion], columns: Mapping[str, Any], limits: "Limits"
) -> list[Outcome]:
    """As `score_batch`, by the cluster that `ray.init` finds (RAY_ADDRESS), else by this machine.

    A reward that cannot travel (it holds state) is scored here, which is said once.
    """
    here = replace(limits, on="here")
    place = _place(fn)
    if isinstance(place, str):
        return score_batch(fn, completions, columns, here)
    ray = _ray()
    size = _block(len(completions), int(ray.cluster_resources().get("CPU", 1)))
    blocks = [
        range(at, min(at + size, len(completions))) for at in range(0, len(completions), size)
    ]
    sent = {name: values for name, values in columns.items() if _wanted(fn, name, values)}
    task = _task()
    refs = []
    for rows in blocks:
        own = {name: [values[i] for i in rows] for name, values in sent.items()}
        refs.append(task.remote(place, [completions[i] for i in rows], own, here))
    ends = time.monotonic() + limits.batch_timeout_s
    found: list[Outcome] = []
    with waiting_for(name_of(fn), limits.batch_timeout_s):
        for rows, ref in zip(blocks, refs, strict=True):
            found += _of(ref, len(rows), name_of(fn), ends, limits)
    return found


def _of(ref: Any, count: int, name: str, ends: float, limits: "Limits") -> list[Outcome]:
    """The outcomes of a block, as soon as it is done; faults where it cannot be."""
    ray = _ray()
    try:
        scored: list[Outcome] = ray.get(ref, timeout=max(0.0, ends - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        said = f"reward {name!r}: the batch was not done within {limits.batch_timeout_s:g} s"
        return [Fault(said, "timeout")] * count
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        return [Fault(f"reward {name!r}: no node could score it ({reason})", "crash")] * count
    return scored


def _wanted(fn: Reward, name: str, values: Any) -> bool:
    """Whether the column goes along: not what is trl's own, unless the reward names it."""
    return name in fn.columns or (isinstance(values, Sequence) and name not in _OF_TRL)


def _block(rows: int, processors: int) -> int:
    return max(1, min(MOST_ROWS, -(-rows // (_BLOCKS_EACH * max(1, processors)))))


_PLACES: dict[int, dict[str, Any] | str] = {}


def _place(fn: Reward) -> dict[str, Any] | str:
    """What a node needs to have the reward, or why it cannot have it, which is said once."""
    if id(fn) not in _PLACES:
        found = _PLACES[id(fn)] = packed(fn)
        if isinstance(found, str):
            logger.warning("reward %r is not scored on Ray: %s", name_of(fn), found)
    return _PLACES[id(fn)]


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
    place: dict[str, Any], completions: list[Completion], columns: dict[str, Any], limits: "Limits"
) -> list[Outcome]:
    """A block's outcomes, by the process that Ray runs this in: it keeps to one processor."""
    _one_processor()
    return score_batch(_reward(repr(sorted(place.items())), place), completions, columns, limits)


@cache
def _one_processor() -> None:
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[os.getpid() % len(own)]})


_REWARDS: dict[str, Callable[..., Any]] = {}


def _reward(key: str, place: dict[str, Any]) -> Callable[..., Any]:
    """The reward, kept with its worker process from block to block."""
    if key not in _REWARDS:
        _REWARDS[key] = unpacked(place)
    return _REWARDS[key]
