"""Held-out evaluations while GRPO trains: the best policy so far, and alarms.

The policy whose accuracy has the highest lower bound is kept in the stage's folder `best/`: among
many evaluations the highest figure is partly luck, the bound allows for it. Alarms say when
training makes the figure that it maximises better and not the one that is wanted (Goodhart's law),
or when cut-off, length or repetition run away. Knows metrics and policies; nothing of trainers.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

from rl_reasoner.dataset.contamination import find_overlap
from rl_reasoner.evaluation.evaluate import load_set
from rl_reasoner.evaluation.formatting import percent
from rl_reasoner.evaluation.learning_alarms import Metrics
from rl_reasoner.files import write_text
from rl_reasoner.foreign import json_object
from rl_reasoner.types import Row

if TYPE_CHECKING:
    from rl_reasoner.policy.policy import Policy

_SHOWN = ("accuracy", "interval", "truncated", "mean_length", "repeating")  # of each evaluation
_SURE = 3.0  # standard errors that a mean reward must have risen by
_CUT_OFF = 0.25  # share of completions cut off that is too much, where it has doubled
_LONGER = 2.0  # times as long as at the start
_OLD = ".best.old"
_REPEATING = 0.15  # rise of the share of completions that repeat themselves


class Watch:
    """The held-out evaluations of one stage."""

    def __init__(self, folder: Path, name: str, note: Callable[[str], None]) -> None:
        self.folder = folder
        self.name = name
        self.note = note
        self.raised: set[str] = set()
        old = folder / _OLD
        if old.is_dir() and not (folder / "best").exists():  # killed between two names
            with suppress(FileNotFoundError):  # another process of the job was first
                old.rename(folder / "best")

    def record(self, figures: Metrics, step: int, policy: "Policy | None") -> dict[str, Any]:
        """The metrics of an evaluation after `step`; saves `policy` if it is the best so far."""
        shown = {key: figures[key] for key in _SHOWN}
        if policy is not None and shown["interval"][0] > self.best().get("bound", -1.0):
            self._keep(shown, step, policy)
        metrics = {f"eval/{self.name}/{key}": value for key, value in shown.items()}
        if "lenient" in figures:
            metrics[f"eval/{self.name}/lenient"] = figures["lenient"]["accuracy"]
        return metrics

    def best(self) -> dict[str, Any]:
        """Step, accuracy, interval and bound of the best policy so far; empty for none."""
        file = self.folder / "best" / "evaluation.json"
        return json_object(file) if file.is_file() else {}

    def _keep(self, shown: Metrics, step: int, policy: "Policy") -> None:
        """Replace the best policy; if the process is killed, the old or the new one is left."""
        fresh, best, old = (self.folder / name for name in (".best.part", "best", _OLD))
        for rest in (fresh, old):
            shutil.rmtree(rest, ignore_errors=True)
        policy.save(fresh)
        facts = {"set": self.name, "step": step, "bound": shown["interval"][0]}
        kept = {key: shown[key] for key in ("accuracy", "interval")}
        write_text(fresh / "evaluation.json", json.dumps({**facts, **kept}))
        if best.is_dir():
            best.rename(old)
        fresh.rename(best)
        shutil.rmtree(old, ignore_errors=True)

    def alarms(self, rows: Sequence[Metrics]) -> dict[str, str]:
        """Return the alarms that the metrics (one row a step) raise now, and report new ones."""
        raised = alarms(rows, self.name)
        for kind, text in raised.items():
            if kind not in self.raised:
                self.note(f"alarm: {text}")
        self.raised = set(raised)
        return raised


def alarms(rows: Sequence[Metrics], name: str) -> dict[str, str]:
    """Alarms by kind, from the metrics of all steps so far and the evaluations on set `name`.

    The last stretch between two evaluations is compared with the first one; there must be three.
    Where accuracy has fallen from its best so far by more than the intervals explain, rewards and
    lengths are compared with that one.
    """
    key = f"eval/{name}"
    ends = [i for i, row in enumerate(rows) if f"{key}/accuracy" in row]
    if len(ends) < 3:
        return {}
    now, last = rows[ends[-1]], rows[ends[-2] + 1 : ends[-1] + 1]
    start = _held_against(rows, ends, key)
    first = rows[0 if start == 0 else ends[start - 1] + 1 : ends[start] + 1]
    before, after = rows[ends[start]][f"{key}/accuracy"], now[f"{key}/accuracy"]
    flat = after <= before and (before < 0.98 or start > 0)
    moved = f"accuracy on {name} went from {percent(before)} to {percent(after)}"
    raised = {}
    if flat and _rose(
        *([row["reward"] for row in part if "reward" in row] for part in (first, last))
    ):
        raised["reward"] = f"the reward rises, and {moved}: is the reward being gamed?"
    cut = [_mean(part, "completions/clipped_ratio") for part in (rows[: ends[0] + 1], last)]
    if cut[1] > max(_CUT_OFF, 2 * cut[0]):
        first_cut, now_cut = (percent(share, 0) for share in cut)
        raised["cut off"] = f"{now_cut} of the completions are cut off, at first {first_cut}"
    length = [_mean(part, "completions/mean_length") for part in (first, last)]
    if flat and length[1] > _LONGER * max(1.0, length[0]):
        raised["length"] = (
            f"completions grew from {length[0]:.0f} to {length[1]:.0f} tokens, and {moved}"
        )
    loops = [row.get(f"{key}/repeating", 0.0) for row in (rows[ends[0]], now)]
    if loops[1] > loops[0] + _REPEATING:
        raised["repetition"] = f"{percent(loops[1], 0)} of the answers on {name} repeat themselves"
    return raised


def _held_against(rows: Sequence[Metrics], ends: Sequence[int], key: str) -> int:
    """The evaluation that the last one is compared with: the first, or the best so far."""
    accuracies = [rows[i][f"{key}/accuracy"] for i in ends]
    best = max(range(len(ends) - 1), key=lambda n: accuracies[n])
    spans = [rows[ends[n]].get(f"{key}/interval", (0.0, 1.0)) for n in (best, -1)]
    fell = spans[1][1] < spans[0][0]  # the two intervals do not meet
    return best if fell and accuracies[-1] > accuracies[0] else 0


def _rose(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether a mean rose by more than what its steps' spread explains."""
    parts = [[v for v in values if math.isfinite(v)] for values in (before, after)]
    if not all(parts):
        return False
    spread = sum(variance(p) / len(p) if len(p) > 1 else 0.0 for p in parts)
    return fmean(parts[1]) - fmean(parts[0]) > max(1e-3, _SURE * math.sqrt(spread))


def _mean(rows: Sequence[Metrics], key: str) -> float:
    values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return fmean(values) if values else 0.0


def measure_overlaps(rows: Sequence[Row], sets: Sequence[str]) -> dict[str, Any]:
    """Measure what training rows share with each set: counts, and which rows of the set.

    Equal texts and shared runs of 13 words; near copies are `rl-reasoner eval`'s to find.
    """
    by_set = {}
    for name in sets:
        held_out = load_set(name)
        shared = find_overlap(rows, held_out, near=False)
        marked = [
            {"row": i, "id": row.get("id"), **hit}
            for i, (row, hit) in enumerate(zip(held_out, shared.hits, strict=True))
            if hit
        ]
        by_set[name] = {**shared.counts(), "overlapping": marked}
    return by_set


def overlap_notes(overlaps: Mapping[str, Any]) -> list[str]:
    """One warning for each set of which problems were trained on."""
    return [
        f"{name}: {counts['contaminated']:,} of its {counts['rows']:,} problems are in the "
        "training data; see contamination.json, and evaluate with --decontaminated"
        for name, counts in overlaps.items()
        if counts["contaminated"]
    ]
