"""A run's saved completions under another reward: what would have been scored otherwise.

Reads what a run wrote and changes nothing. Knows nothing of models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import StatisticsError, correlation
from typing import Any

from rl_reasoner.dataset.code_rows import columns_of, continuing
from rl_reasoner.dataset.conversations import TURNS
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.errors import UserError
from rl_reasoner.foreign import mapping
from rl_reasoner.foreign import number as finite
from rl_reasoner.pipeline.lineage import data_in
from rl_reasoner.pipeline.why import rollouts_of, sampled_stage
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.rollout.episodes.kept import episodes_column, known_rows
from rl_reasoner.scoring.batch import (
    APPLIES,
    POLICY_TEXT,
    applies,
    columns_of_rows,
    score_batch,
    score_own_rows,
)
from rl_reasoner.scoring.outcome import NOT_ITS_ROW, failed, outcome_json, usable
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import GROUPS, Reward, name_of
from rl_reasoner.types import Row


@dataclass
class Rescoring:
    """A run's rollouts under another reward: pairs (value in the run, value now) by group.

    Compared with the run's own scores of the reward of that name, else `against` its total.
    """

    groups: list[list[tuple[float, float]]] = field(default_factory=list)
    flips: list[dict[str, Any]] = field(default_factory=list)
    against: str = "the total"
    faults: int = 0
    abstained: int = 0
    unknown: int = 0
    asked: int = 0
    first_fault: str = ""

    def summary(self) -> dict[str, Any]:
        """The figures: what would have changed.

        `flipped`: rows on the other side of their group's mean; `correlation`: Pearson's, over all
        rows; `rank_agreement`: mean over groups of Kendall's tau-b, where both rewards vary;
        `flat`: groups without any difference, then and now; and, where there are any, `first_fault`
        and `unknown`: rows that were not judged: the data have others now, or the run did not keep
        enough of their episodes.
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
            "correlation": _correlation(pairs),
            "rank_agreement": sum(taus) / len(taus) if taus else None,
            "flat": {"then": flat[0], "now": flat[1]},
            "mean": {
                "then": sum(a for a, _ in pairs) / len(pairs) if pairs else None,
                "now": sum(b for _, b in pairs) / len(pairs) if pairs else None,
            },
            "abstained": self.abstained,
            "faults": self.faults,
            **({"first_fault": self.first_fault} if self.faults else {}),
            **({"unknown": self.unknown} if self.unknown else {}),
        }


def rescore(
    run: Path,
    reference: str,
    stage: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Rescoring:
    """Score the run's rollouts (of one stage) with the reward that `reference` names.

    `options` are the reward's, by default those of the run for a reward of its own.
    Rows that either reward did not judge leave the comparison. Raises `UserError`.
    """
    folder = sampled_stage(run, stage)
    recipe = load_recipe(str(run / "recipe.yaml"))
    [own_stage] = [s for s in recipe.stages if s.name == folder.name.partition("-")[2]]
    data = load_rows(data_in(run, recipe, own_stage))
    spec = recipe.rewards.get(reference)
    own = spec.source if spec is not None else None
    given = options or (spec.options if spec is not None else {})
    reward = continuing(load_reward(reference, given, source=own), data)
    rescoring = Rescoring()
    for _, rollouts in groupby(rollouts_of(folder), key=lambda row: row["step"]):
        batch = list(rollouts)
        try:
            played = episodes_column(recipe, batch)
        except ValueError as error:
            raise UserError(f"{folder / 'rollouts.jsonl'}: {error}") from error
        rows = [row_of(rollout, data) for rollout in batch]
        known = known_rows(reward, played, [rollout["group"] for rollout in batch])
        pairs = {i: (batch[i], row) for i in known if (row := rows[i]) is not None}
        rescoring.unknown += len(batch) - len(pairs)
        if pairs:
            played = columns_of_rows(played, [*pairs], len(batch))
            _rescore_step([*pairs.values()], data, played, reward, reference, rescoring)
    return rescoring


def _rescore_step(
    pairs: list[tuple[Row, Row]],
    data: list[Row],
    played: Mapping[str, Any],
    reward: Callable[..., Any],
    reference: str,
    rescoring: Rescoring,
) -> None:
    batch, rows = ([pair[side] for pair in pairs] for side in (0, 1))
    names = columns_of([*data, *rows])
    needed = reward.columns if isinstance(reward, Reward) else ()
    for name in needed:
        if name not in ("prompt", POLICY_TEXT, *names, *played):
            raise UserError(
                f"the reward {reference} needs the column {name!r}; the run's data do not have it"
            )
    columns = {**{name: [row.get(name) for row in rows] for name in names}, **played}
    columns["prompts"] = [rollout["prompt"] for rollout in batch]
    columns[GROUPS] = [rollout["group"] for rollout in batch]
    columns[POLICY_TEXT] = [rollout.get(POLICY_TEXT) for rollout in batch]
    name = name_of(reward)
    if any(name in rollout["scores"] for rollout in batch):
        rescoring.against = name
    own = any(row.get(APPLIES) and applies(name, row[APPLIES]) for row in data)
    score = score_own_rows if own else score_batch  # a reward that is new to the run: on all rows
    outcomes = score(reward, [rollout["completion"] for rollout in batch], columns)
    rescoring.asked += sum(outcome is not NOT_ITS_ROW for outcome in outcomes)
    faults = [outcome_json(outcome)["reason"] for outcome in outcomes if failed(outcome)]
    rescoring.faults += len(faults)
    rescoring.first_fault = rescoring.first_fault or next(iter(faults), "")
    rescoring.abstained += sum(
        outcome_json(outcome)["outcome"] == "abstain" for outcome in outcomes
    )
    scored = [*zip(batch, outcomes, strict=True)]
    for _, members in groupby(scored, key=lambda pair: pair[0]["group"]):
        judged = [
            (rollout, outcome)
            for rollout, outcome in members
            if _then(rollout, rescoring.against) is not None and not math.isnan(usable(outcome))
        ]
        if not judged:
            continue
        both = [(_then(r, rescoring.against) or 0.0, usable(outcome)) for r, outcome in judged]
        rescoring.groups.append(both)
        means = [sum(one[side] for one in both) / len(both) for side in (0, 1)]
        for (rollout, outcome), (then, now) in zip(judged, both, strict=True):
            if (then - means[0]) * (now - means[1]) < 0:
                why = outcome_json(outcome)["reason"]
                rescoring.flips.append({**rollout, "then": then, "now": now, "reason": why})


def _then(rollout: Row, reward: str) -> float | None:
    """What the run gave a completion by `reward`; its total where the run has no such reward."""
    score = rollout["scores"].get(reward)
    return finite(rollout["reward"] if score is None else score.get("value"))


def row_of(rollout: Row, rows: Sequence[Row]) -> Row | None:
    """The data's row that a completion was sampled for; None where it is another one now."""
    at = rollout.get("row")
    if not isinstance(at, int) or not 0 <= at < len(rows):
        return None
    same = rows[at].get("answer") == rollout.get("answer")
    return rows[at] if same and _is_asked(rollout.get("prompt"), rows[at]) else None


def _is_asked(prompt: Any, row: Row) -> bool:
    """Whether a prompt asks for the problem of a row; of conversations nothing is held against."""
    problem = row.get("problem")
    if not isinstance(problem, str) or row.get(TURNS):
        return True
    chat = prompt if isinstance(prompt, list) else [{"content": prompt}]
    texts = [str(mapping(message).get("content")) for message in chat]
    return any(problem.strip() in text for text in texts)


def kendall(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Kendall's tau-b of the two sides (Kendall 1945); None where one of them does not vary."""
    agree, left, right = 0, 0, 0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[:i]:
            x, y = (a > c) - (a < c), (b > d) - (b < d)
            agree, left, right = agree + x * y, left + abs(x), right + abs(y)
    return agree / math.sqrt(left * right) if left and right else None


def _correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's correlation of the two sides; None where one of them does not vary."""
    try:
        return correlation([a for a, _ in pairs], [b for _, b in pairs])
    except StatisticsError:
        return None
