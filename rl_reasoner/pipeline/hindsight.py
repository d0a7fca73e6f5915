"""Looking back at the scores of a run: why a step was as it was, and what another reward would say.

Reads what a run wrote (rollouts, metrics, ledger) and changes nothing. Knows nothing of models.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rl_reasoner.dataset.code_rows import continuing
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.files import read_jsonl
from rl_reasoner.foreign import check_run, no_links
from rl_reasoner.foreign import number as finite
from rl_reasoner.pipeline.lineage import data_in
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.scoring.batch import APPLIES, applies, score_batch, score_own_rows
from rl_reasoner.scoring.ledger import entries
from rl_reasoner.scoring.outcome import outcome_json, usable
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.types import Fault, Row

_OF_ROLLOUT = ("group", "prompt", "completion", "reward", "advantage", "truncated", "scores")


def stages_of(run: Path) -> dict[str, Path]:
    """The folders of a run's stages that sampled, by name, in order. Raises `UserError`."""
    check_run(run)
    no_links(run)
    found = sorted(
        run.glob("stages/*/rollouts.jsonl"), key=lambda p: int(p.parent.name.split("-")[0])
    )
    if not found:
        raise UserError(f"{run}: no stage of this run has sampled anything yet")
    return {path.parent.name.partition("-")[2]: path.parent for path in found}


def stage_of(run: Path, name: str | None) -> Path:
    """The stage `name`, or the last one that sampled. Raises `UserError`."""
    stages = stages_of(run)
    if name is not None and name not in stages:
        raise unknown("stage", name, stages)
    return stages[name] if name else list(stages.values())[-1]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file with a step; it may be written to right now, or torn."""
    return (row for row in read_jsonl(path) if isinstance(row.get("step"), int))


def _rollouts(folder: Path) -> Iterator[Row]:
    """The rollouts of a stage; raises `UserError` for a row that is none."""
    for row in _rows(folder / "rollouts.jsonl"):
        if lacking := [name for name in _OF_ROLLOUT if name not in row]:
            at = f"{folder / 'rollouts.jsonl'}, step {row['step']}"
            raise UserError(f"{at}: a row that is no rollout: it has no {lacking[0]!r}")
        yield row


# --------------------------------------------------------------------------------------- why


@dataclass(frozen=True)
class Step:
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


def step_of(run: Path, number: int, stage: str | None = None) -> Step:
    """Step `number` of a run. Raises `UserError` where it has no such step."""
    folder = stage_of(run, stage)
    rollouts: list[Row] = []
    last = 0
    for row in _rollouts(folder):
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
    return Step(folder.name.partition("-")[2], number, rollouts, metrics, seconds)


# ----------------------------------------------------------------------------------- rescoring


@dataclass
class Rescored:
    """A run's rollouts under another reward: pairs (value in the run, value now) by group.

    Held against the run's own scores of the reward of that name, else `against` its total.
    """

    groups: list[list[tuple[float, float]]] = field(default_factory=list)
    flips: list[dict[str, Any]] = field(default_factory=list)
    against: str = "the total"
    faults: int = 0
    abstained: int = 0

    def summary(self) -> dict[str, Any]:
        """The figures: what would have changed.

        `flipped`: rows on the other side of their group's mean; `correlation`: Pearson's, over all
        rows; `rank_agreement`: mean over groups of Kendall's tau-b, where both rewards vary; and
        `flat`: groups without any difference, then and now.
        """
        pairs = [pair for group in self.groups for pair in group]
        taus = [tau for group in self.groups if (tau := kendall(group)) is not None]
        flat = [sum(len({p[side] for p in g}) == 1 for g in self.groups) for side in (0, 1)]
        return {
            "against": self.against,
            "rows": len(pairs),
            "groups": len(self.groups),
            "changed": sum(a != b for a, b in pairs),
            "flipped": len(self.flips),
            "correlation": pearson(pairs),
            "rank_agreement": sum(taus) / len(taus) if taus else None,
            "flat": {"then": flat[0], "now": flat[1]},
            "mean": {
                "then": sum(a for a, _ in pairs) / len(pairs) if pairs else None,
                "now": sum(b for _, b in pairs) / len(pairs) if pairs else None,
            },
            "abstained": self.abstained,
            "faults": self.faults,
        }


def rescored(run: Path, reference: str, stage: str | None = None) -> Rescored:
    """The run's rollouts (of one stage) scored with the reward that `reference` names.

    Rows that either did not judge leave the comparison. Raises `UserError`.
    """
    folder = stage_of(run, stage)
    recipe = load_recipe(str(run / "recipe.yaml"))
    data = _data_of(run, recipe, folder.name.partition("-")[2])
    spec = recipe.rewards.get(reference)
    own = spec.source if spec is not None else None
    reward = continuing(load_reward(reference, source=own), data)
    found = Rescored()
    rollouts = _rollouts(folder)
    for _, batch in groupby(rollouts, key=lambda row: row["step"]):
        _rescore(list(batch), data, reward, reference, found)
    return found


def _data_of(run: Path, recipe: Recipe, name: str) -> list[Row]:
    [stage] = [stage for stage in recipe.stages if stage.name == name]
    return load_rows(data_in(run, recipe, stage))


def _rescore(
    batch: list[Row],
    data: list[Row],
    reward: Callable[..., Any],
    reference: str,
    found: Rescored,
) -> None:
    rows = [_row_of(rollout, data) for rollout in batch]
    needed = reward.columns if isinstance(reward, Reward) else ()
    for name in needed:
        if name != "prompt" and name not in rows[0]:
            raise UserError(
                f"the reward {reference} needs the column {name!r}; the run's data lack it"
            )
    columns = {key: [row.get(key) for row in rows] for key in rows[0]}
    columns["prompts"] = [rollout["prompt"] for rollout in batch]
    name = name_of(reward)
    if any(name in rollout["scores"] for rollout in batch):
        found.against = name
    own = any(row.get(APPLIES) and applies(name, row[APPLIES]) for row in data)
    score = score_own_rows if own else score_batch  # a reward that is new to the run: on all rows
    outcomes = score(reward, [rollout["completion"] for rollout in batch], columns)
    found.faults += sum(isinstance(outcome, Fault) for outcome in outcomes)
    found.abstained += sum(outcome_json(outcome)["outcome"] == "abstain" for outcome in outcomes)
    scored = [*zip(batch, outcomes, strict=True)]
    for _, members in groupby(scored, key=lambda pair: pair[0]["group"]):
        judged = [
            (rollout, outcome)
            for rollout, outcome in members
            if _then(rollout, found.against) is not None and not math.isnan(usable(outcome))
        ]
        if not judged:
            continue
        pairs = [(_then(r, found.against) or 0.0, usable(outcome)) for r, outcome in judged]
        found.groups.append(pairs)
        means = [sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1)]
        for (rollout, outcome), (then, now) in zip(judged, pairs, strict=True):
            if (then - means[0]) * (now - means[1]) < 0:
                why = outcome_json(outcome)["reason"]
                found.flips.append({**rollout, "then": then, "now": now, "reason": why})


def _then(rollout: Row, reward: str) -> float | None:
    """What the run gave a completion by `reward`; its total where the run has no such reward."""
    score = rollout["scores"].get(reward)
    return finite(rollout["reward"] if score is None else score.get("value"))


def _row_of(rollout: Row, data: list[Row]) -> Row:
    """The data's row that a rollout was sampled for."""
    number = rollout.get("row")
    if number is not None and number < len(data):
        row = data[number]
        if str(row.get("answer")) == str(rollout.get("answer")):
            return row
    return {"answer": rollout.get("answer"), "problem": rollout["prompt"]}


def pearson(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's correlation of the two sides; None where one of them does not vary."""
    if not pairs:
        return None
    means = [sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1)]
    gaps = [(a - means[0], b - means[1]) for a, b in pairs]
    left, right = (math.sqrt(sum(gap[side] ** 2 for gap in gaps)) for side in (0, 1))
    return sum(a * b for a, b in gaps) / (left * right) if left and right else None


def kendall(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Kendall's tau-b of the two sides (Kendall 1945); None where one of them does not vary."""
    agree, left, right = 0, 0, 0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[:i]:
            x, y = (a > c) - (a < c), (b > d) - (b < d)
            agree, left, right = agree + x * y, left + abs(x), right + abs(y)
    return agree / math.sqrt(left * right) if left and right else None


def by_reward(rollout: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(reward, value and reason in words) of one rollout."""
    for name, score in rollout["scores"].items():
        value = score["outcome"] if score["value"] is None else f"{score['value']:g}"
        yield name, f"{value}  {score['reason']}".rstrip()
