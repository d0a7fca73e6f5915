"""The rows of one optimizer step, dealt out to the processes of a job so that each has equal work.

Sampling leaves each process with the groups that it sampled, and lengths differ: a step takes as
long as the process with the most tokens. Here whole groups change places before the step; every
process keeps as many rows as it had, so that the weight of each row in the gradient stays the same.
What a group costs is its tokens, or nothing where it cannot move the policy. Knows batches of the
trainer; a few collective calls a generation, the same ones in every process.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import pad

from rl_reasoner.types import Row

_LEFT = ("prompt_ids", "prompt_mask")  # padded on the left; all else on the right
_IDS = ("prompt_ids", "completion_ids")


def dealt(costs: Sequence[Sequence[float]]) -> list[list[tuple[int, int]]]:
    """The units (process, index) that each process is to have, as many as it has now.

    `costs[p][i]` is the cost of unit i of process p. Largest first, each to the process with the
    least so far that has room (Graham's rule). All stay where they are if that is no better.
    """
    units = [(cost, p, i) for p, own in enumerate(costs) for i, cost in enumerate(own)]
    found: list[list[tuple[int, int]]] = [[] for _ in costs]
    loads = [0.0] * len(costs)
    for cost, p, i in sorted(units, key=lambda unit: (-unit[0], unit[1], unit[2])):
        free = [q for q, own in enumerate(costs) if len(found[q]) < len(own)]
        to = min(free, key=lambda q: (loads[q], q != p, q))
        found[to].append((p, i))
        loads[to] += cost
    if max(loads) >= max(map(sum, costs)):
        return [[(p, i) for i in range(len(own))] for p, own in enumerate(costs)]
    return found


def spread(costs: Sequence[Sequence[float]]) -> float:
    """The largest share of the work over the mean one; 1 where all processes have the same."""
    totals = [sum(own) for own in costs]
    return max(totals) * len(totals) / sum(totals) if sum(totals) else 1.0


def exchanged(
    batches: list[dict[str, Any]], flat: bool, process: int, padding: int
) -> tuple[list[dict[str, Any]], float, float]:
    """Micro-batches of the same sizes with rows of other processes; the spread before and after.

    `flat`: rows without advantage cost nothing. `padding` is the padding token's id. Rows stay
    where they are if they are not all in groups of one size. Called by every process.
    """
    rows = _rows_of(batches)
    units = _units(rows)
    costs = [sum(_cost(rows[i], flat) for i in unit) for unit in units]
    everyone: list[tuple[list[int], list[float]]] = gather_object(
        [([len(unit) for unit in units], costs)]
    )
    table = [found for _, found in everyone]
    if len({size for sizes, _ in everyone for size in sizes}) != 1:
        return batches, spread(table), spread(table)
    plan = dealt(table)
    leaving = [(p, i) for q, own in enumerate(plan) for p, i in own if p == process != q]
    sent: list[tuple[tuple[int, int], list[Row]]] = gather_object(
        [((process, i), [rows[row] for row in units[i]]) for _, i in leaving]
    )
    came = dict(sent)
    mine = [
        row
        for p, i in sorted(plan[process])
        for row in ([rows[r] for r in units[i]] if p == process else came[p, i])
    ]
    after = [[table[p][i] for p, i in own] for own in plan]
    return _batches_of(mine, batches, padding), spread(table), spread(after)


def _cost(row: Row, flat: bool) -> float:
    if flat and not bool(row["advantages"].ne(0).any()):
        return 0.0
    return float(row["completion_mask"].sum())


def _rows_of(batches: list[dict[str, Any]]) -> list[Row]:
    """Every row of the micro-batches, on the CPU; what has no rows stays in them."""
    return [
        {
            name: value[i].cpu() if isinstance(value, Tensor) else value[i]
            for name, value in batch.items()
            if _by_row(value)
        }
        for batch in batches
        for i in range(len(batch["prompt_ids"]))
    ]


def _by_row(value: Any) -> bool:
    return isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)


def _units(rows: list[Row]) -> list[list[int]]:
    """The rows of each prompt."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(tuple(row["prompt_ids"][row["prompt_mask"].bool()].tolist()), []).append(i)
    return list(found.values())


def _batches_of(rows: list[Row], like: list[dict[str, Any]], padding: int) -> list[dict[str, Any]]:
    """`rows` in micro-batches of the sizes, and with the other values, of `like`."""
    device = like[0]["prompt_ids"].device
    whole: dict[str, Any] = {}
    for name, value in like[0].items():
        if _by_row(value):
            column: Any = [row[name] for row in rows]
            if isinstance(value, Tensor):
                side = "left" if name in _LEFT else "right"
                wide = value.dim() > 1  # rows of several widths
                filler = padding if name in _IDS else 0
                column = (pad(column, filler, side) if wide else torch.stack(column)).to(device)
            whole[name] = column
    found, start = [], 0
    for batch in like:
        end = start + len(batch["prompt_ids"])
        found.append({**batch, **{name: column[start:end] for name, column in whole.items()}})
        start = end
    return found
