"""One training step explained: its prompts, completions, scores with reasons, and its metrics.

Reads what a run wrote (rollouts, metrics, ledger) and changes nothing. Knows nothing of models.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.files import read_jsonl
from rl_reasoner.foreign import number as finite
from rl_reasoner.paths import check_run, no_links, numbered_stages
from rl_reasoner.report.rollouts import in_turns, turns_of
from rl_reasoner.scoring.ledger import entries, seconds_of_calls
from rl_reasoner.types import Row

_OF_ROLLOUT = ("group", "prompt", "completion", "reward", "advantage", "truncated", "scores")


def sampled_stages(run: Path) -> dict[str, Path]:
    """The folders of a run's stages that sampled, by name, in order. Raises `UserError`."""
    check_run(run)
    no_links(run)
    folders = [at for at in numbered_stages(run) if (at / "rollouts.jsonl").exists()]
    if not folders:
        raise UserError(f"{run}: no stage of this run has sampled anything yet")
    return {folder.name.partition("-")[2]: folder for folder in folders}


def sampled_stage(run: Path, name: str | None) -> Path:
    """The stage `name`, or the last one that sampled. Raises `UserError`."""
    stages = sampled_stages(run)
    if name is not None and name not in stages:
        raise unknown("stage", name, stages)
    return stages[name] if name else list(stages.values())[-1]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file with a step; it may be written to right now, or torn."""
    return (row for row in read_jsonl(path) if isinstance(row.get("step"), int))


def rollouts_of(folder: Path) -> Iterator[Row]:
    """The rollouts of a stage; raises `UserError` for a row that is not one."""
    for row in _rows(folder / "rollouts.jsonl"):
        if missing := [name for name in _OF_ROLLOUT if name not in row]:
            at = f"{folder / 'rollouts.jsonl'}, step {row['step']}"
            raise UserError(f"{at}: a row that is not a rollout: it has no {missing[0]!r}")
        yield row


@dataclass(frozen=True)
class TrainedStep:
    """One step of a run: its rollouts, its metrics, the seconds of its scores by reward."""

    stage: str
    number: int
    rollouts: list[Row]
    metrics: dict[str, Any]
    seconds: dict[str, float]

    def row(self, number: int | None) -> int:
        """The index of row `number` (from 1), by default of the one with the largest advantage."""
        if number is None:
            sizes = [abs(row["advantage"] or 0.0) for row in self.rollouts]
            return sizes.index(max(sizes))
        if not 1 <= number <= len(self.rollouts):
            raise UserError(f"step {self.number} has the rows 1 to {len(self.rollouts)}")
        return number - 1

    def group(self, index: int) -> list[tuple[int, Row]]:
        """The rows that share their prompt with row `index`, with their numbers from 1."""
        wanted = self.rollouts[index]["group"]
        return [(i, row) for i, row in enumerate(self.rollouts, 1) if row["group"] == wanted]


def read_step(run: Path, number: int, stage: str | None = None) -> TrainedStep:
    """Read step `number` of a run. Raises `UserError` where it has no such step."""
    folder = sampled_stage(run, stage)
    rollouts: list[Row] = []
    last = 0
    for row in rollouts_of(folder):
        last = int(row["step"])
        if last == number:
            rollouts.append(row)
        elif last > number:
            break
    if not rollouts:
        steps = f"it has the steps up to {last}" if last < number else "nothing was sampled in it"
        raise UserError(f"{folder.name}: there is no step {number}: {steps}")
    metrics = next((m for m in _rows(folder / "metrics.jsonl") if m.get("step") == number), {})
    seconds: dict[str, float] = {}
    for entry in entries(folder):
        if entry["step"] == number:
            name, took = str(entry.get("reward")), finite(entry.get("seconds"))
            seconds[name] = seconds.get(name, 0.0) + (took or 0.0)
        elif entry["step"] > number:
            break
    _add_seconds_of_calls(rollouts, folder, number)
    return TrainedStep(folder.name.partition("-")[2], number, rollouts, metrics, seconds)


def _add_seconds_of_calls(rollouts: list[Row], folder: Path, number: int) -> None:
    """Put the seconds of their calls, which the ledger has, into the turns of step `number`."""
    called = [row for row in rollouts if row.get("turns")]
    told = seconds_of_calls(folder, {number}) if called else {}
    for row in called:
        waiting = told.get((number, str(row["group"])))
        for turn, seconds in zip(row["turns"], waiting.popleft() if waiting else (), strict=False):
            turn["seconds"] = finite(seconds)


def most_telling(run: Path, stage: str | None = None) -> int:
    """The step whose advantages are largest on average, the first of several alike.

    There rewards within groups differed most, for the reasons that the scores give. Raises
    `UserError` where nothing was sampled.
    """
    folder = sampled_stage(run, stage)
    sums: dict[int, tuple[float, int]] = {}
    for row in rollouts_of(folder):
        total, count = sums.get(int(row["step"]), (0.0, 0))
        sums[int(row["step"])] = total + abs(finite(row["advantage"]) or 0.0), count + 1
    if not sums:
        raise UserError(f"{folder.name}: nothing has been sampled yet")
    return max(sums, key=lambda step: sums[step][0] / sums[step][1])


def scores_in_words(rollout: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(reward, value and reason in words) of one rollout."""
    for name, score in rollout["scores"].items():
        value = score["outcome"] if score["value"] is None else f"{score['value']:g}"
        yield name, f"{value}  {score['reason']}".rstrip()


def pieces_of(rollout: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A completion in pieces: (text, ""), and (what a tool gave, what is told of the call)."""
    text = str(rollout["completion"])
    for piece, turn in in_turns(text, turns_of(rollout, len(text))):
        yield piece, "" if turn is None else turn.told
