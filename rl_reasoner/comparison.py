"""Two evaluations of the same problems, held against each other pair by pair.

Each set has its difference with interval, a paired test, the least difference that this many
problems could show, and the rows that flipped with their reasons. Several sets are several tests:
p-values are adjusted by Holm's method. Knows saved rows only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.figures import Row, share
from rl_reasoner.intervals import bootstrap_p, detectable, holm, mcnemar, paired

_FLIPS_SHOWN = 50


def compare_rows(
    a: Mapping[str, Sequence[Row]], b: Mapping[str, Sequence[Row]]
) -> dict[str, dict[str, Any]]:
    """b against a for every set that both have; see `rl_reasoner.compare`."""
    common = [name for name in a if name in b]
    if not common:
        raise UserError("the two results have no set in common")
    found = {name: _paired(name, a[name], b[name]) for name in common}
    adjusted = holm([entry["p"] for entry in found.values()])
    for entry, p in zip(found.values(), adjusted, strict=True):
        entry["p_holm"] = p
    return found


def _paired(name: str, a: Sequence[Row], b: Sequence[Row]) -> dict[str, Any]:
    if [row["problem"] for row in a] != [row["problem"] for row in b]:
        raise UserError(f"set {name!r} holds other problems in the one result than in the other")
    pairs = [(share(x), share(y)) for x, y in zip(a, b, strict=True)]
    differences = [y - x for x, y in pairs]
    n = len(pairs)
    mean = sum(differences) / n
    entry: dict[str, Any] = {
        "problems": n,
        "difference": mean,
        "interval": [*paired(differences)],
    }
    if all(len(row["scores"]) == 1 for row in [*a, *b]):
        only_a, only_b = (sum(d < 0 for d in differences), sum(d > 0 for d in differences))
        entry |= {
            "test": "McNemar, exact",
            "p": mcnemar(only_a, only_b),
            "only_a": only_a,
            "only_b": only_b,
        }
    else:
        entry |= {"test": "paired bootstrap", "p": bootstrap_p(differences)}
    return {**entry, "detectable": detectable(differences), "flips": _flips(a, b, differences)}


def _flips(
    a: Sequence[Row], b: Sequence[Row], differences: Sequence[float]
) -> list[dict[str, Any]]:
    """The rows whose share of right completions changed, the largest changes first."""
    order = sorted(range(len(differences)), key=lambda i: (-abs(differences[i]), i))
    changed = [i for i in order if differences[i]][:_FLIPS_SHOWN]
    return [
        {
            "row": i,
            "id": a[i].get("id"),
            "problem": a[i]["problem"],
            "answer": a[i].get("answer", ""),
            "difference": differences[i],
            "a": _telling(a[i]),
            "b": _telling(b[i]),
        }
        for i in changed
    ]


def _telling(row: Row) -> dict[str, Any]:
    """The share that is right, and one completion with its reason: a wrong one where there is."""
    scores = row["scores"]
    at = next((i for i, score in enumerate(scores) if score != 1.0), 0)
    one = {name: row[f"{name}s"][at] for name in ("completion", "reason") if f"{name}s" in row}
    return {"share": share(row), **one}
