"""What a run wrote down, held against itself and the data: completions, ledger, metrics, problems.

Each completion of `rollouts.jsonl` has its hash and its scores in the ledger; its reward is the sum
of its scores, its advantage follows from those of its group, and the figures of a step in
`metrics.jsonl` from all of them. A forger who may write an answer beside a completion needs no
other score: so every row of an evaluation has to be the row of its set that stands in its place,
and a completion was sampled for the problem of its row. Nothing is judged here (`rejudging`), and
nothing sampled.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from rl_reasoner.audit.findings import AuditFinding, as_finding, counted, differs, held, unchecked
from rl_reasoner.audit.versions import moved_sets, same_code
from rl_reasoner.dataset.templates import with_system
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import load_set
from rl_reasoner.evaluation.judging import Judge, as_given
from rl_reasoner.evaluation.labels import split_label
from rl_reasoner.evaluation.manifest import digest_of
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import read_jsonl
from rl_reasoner.foreign import mapping, number
from rl_reasoner.pipeline.lock import evaluated_sets
from rl_reasoner.pipeline.why import rollouts_of
from rl_reasoner.recipe.algorithms import OWN_ADVANTAGES
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import RESERVED, GrpoStage
from rl_reasoner.rollout.episodes.opening import open_rows
from rl_reasoner.scoring.ledger import entries, files_of, scores_of
from rl_reasoner.training.advantages import group_relative, positive_weighed
from rl_reasoner.types import Row

_CHOOSES = ("id", "task")  # columns by which a row's judge is chosen, which all results keep
_ASKS = ("tests", "instructions")  # as well, where the judge keeps them
NOT_OF_RUN = "not of the run"
_CLOSE = 1e-4  # relative: the trainer sums in float32


@dataclass
class _Tally:
    """Rows or figures that agree, and the first that does not."""

    right: int = 0
    wrong: int = 0
    first: str = ""

    def add(self, agrees: bool, said: str) -> None:
        self.right += agrees
        self.wrong += not agrees
        self.first = self.first or ("" if agrees else said)

    def finding(self, part: str, what: str, stage: str) -> Iterator[AuditFinding]:
        """How it ended; nothing where there was nothing to compare. `what` follows "all 12"."""
        if self.wrong:
            yield differs(part, f"stage {stage}: {self.first} ({self.wrong:,} of such in all)")
        elif self.right:
            yield held(part, f"stage {stage}: all {self.right:,} {what}")


def check_ledger(folder: Path, name: str) -> Iterator[AuditFinding]:
    """Every line of the ledger against the completion that it scored."""
    rollouts = folder / "rollouts.jsonl"
    if not rollouts.is_file() or not files_of(folder):
        if rollouts.is_file() or files_of(folder):
            lacking = rollouts.name if files_of(folder) else "ledger.jsonl"
            yield differs("ledger", f"stage {name}: there is no {lacking}")
        return
    lines = _untimed(entries(folder))
    first = next(lines, None)
    kept_from = int(first["step"]) if first else 0
    tally = _Tally()
    begun = files_of(folder)[0].name == "ledger.jsonl" or files_of(folder)[0].stem.endswith("0001")
    for step, batch in sampled_steps(folder):
        if step < kept_from and not begun:  # the oldest lines of a large ledger are gone
            continue
        for expected in _expected(batch):
            line, first = (first, None) if first is not None else (next(lines, None), None)
            if line is not None and "calls" not in line:  # of a run before calls were in it
                expected.pop("calls", None)
            same = line == expected
            tally.add(same, "" if same else _unlike(expected, line))
            if not same and (line is None or _place(line) != _place(expected)):
                yield from tally.finding("ledger", "lines", name)
                return
    if (more := next(lines, None)) is not None:
        tally.add(False, f"a line of no completion, at step {more['step']}")
    yield from tally.finding("ledger", "lines are of the completions with their hashes", name)


def _expected(batch: list[Row]) -> Iterator[Row]:
    """The ledger's lines for the rollouts of a step, without seconds and seed."""
    timed = [
        {
            **row,
            "seconds": dict.fromkeys(row["scores"], 0.0),
            "call_seconds": [0.0] * len(row.get("turns", ())),
        }
        for row in batch
    ]
    yield from _untimed(scores_of(timed, 0))


def _untimed(lines: Iterator[Row]) -> Iterator[Row]:
    for line in lines:
        kept = {key: value for key, value in line.items() if key not in ("seconds", "seed")}
        if isinstance(calls := line.get("calls"), list):
            kept["calls"] = [{**mapping(call), "seconds": 0.0} for call in calls]
        yield kept


def _place(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(key) for key in ("step", "group", "index", "reward"))


def _unlike(expected: Row, line: Row | None) -> str:
    step, group, index, reward = _place(expected)
    at = f"step {step}, group {group}, completion {index}, {reward}"
    if line is None:
        return f"{at}: not in the ledger"
    if _place(line) != _place(expected):
        return f"{at}: in its place the ledger has another line"
    keys = [key for key in {**expected, **line} if expected.get(key) != line.get(key)]
    if "hash" in keys:
        return f"{at}: the ledger has the hash of another completion"
    key = keys[0]
    return f"{at}: {key} is {line.get(key)!r}, with the completion {expected.get(key)!r}"


def check_figures(
    folder: Path, stage: GrpoStage, weights: Mapping[str, float]
) -> Iterator[AuditFinding]:
    """Rewards, advantages and the figures of steps, computed again from the scores.

    `weights` of the rewards, by the functions' names.
    """
    if not (folder / "rollouts.jsonl").is_file():
        return
    metrics = _metrics(folder)
    work = _Figures(stage, weights)
    sampled = set()
    for step, rows in sampled_steps(folder):
        sampled.add(step)
        for i, row in enumerate(rows, 1):
            work.total(step, i, row)
        work.advantages_of(step, rows)
        if (logged := metrics.get(step)) is not None:
            work.step(step, rows, logged)
        else:
            work.metrics.add(False, f"step {step} was sampled, but is not in metrics.jsonl")
    for step in [step for step, row in metrics.items() if "reward" in row and step not in sampled]:
        work.metrics.add(False, f"metrics.jsonl has a reward of step {step}, which has no rollouts")
    yield from work.totals.finding(
        "completions", "rewards are the sums of their scores", stage.name
    )
    if work.advantages.right or work.advantages.wrong:
        yield from work.advantages.finding(
            "completions", "advantages follow from their groups", stage.name
        )
    else:
        why = "are checked by a replay alone"
        yield unchecked("completions", f"stage {stage.name}: advantages of this algorithm {why}")
    yield from work.metrics.finding(
        "metrics", "figures of steps follow from the completions", stage.name
    )


def sampled_steps(folder: Path) -> Iterator[tuple[int, list[Row]]]:
    """The rollouts of each step. Raises `ValueError` where the file is not as runs have it."""
    try:
        for step, rows in groupby(rollouts_of(folder), key=lambda row: int(row["step"])):
            yield step, [*rows]
    except UserError as error:
        raise ValueError("; ".join(error.messages)) from error


def _metrics(folder: Path) -> dict[int, Row]:
    """The figures of each step. Raises `ValueError` where a row is of no step, or of one again."""
    found: dict[int, Row] = {}
    for row in read_jsonl(folder / "metrics.jsonl"):
        step = row.get("step")
        if not isinstance(step, int) or step in found:
            raise ValueError(f"metrics.jsonl: a row of step {step!r:.40}, once more or of none")
        found[step] = row
    return found


@dataclass
class _Figures:
    """What is compared of a stage."""

    stage: GrpoStage
    weights: Mapping[str, float]
    totals: _Tally = field(default_factory=_Tally)
    advantages: _Tally = field(default_factory=_Tally)
    metrics: _Tally = field(default_factory=_Tally)

    def total(self, step: int, at: int, row: Row) -> None:
        """A completion's reward from its scores; what the length costs is a reward of weight 1."""
        scores = row["scores"].items()
        values = {name: number(mapping(score).get("value")) for name, score in scores}
        known = [self.weights.get(n, 1.0) * v for n, v in values.items() if v is not None]
        expected = sum(known) if known and not row.get("left_out_by") else None
        found = number(row["reward"])
        said = f"step {step}, row {at}: reward {found}, its scores give {expected}"
        self.totals.add(_close(expected, found), said)

    def advantages_of(self, step: int, rows: list[Row]) -> None:
        """Advantages from rewards, where they are GRPO's own."""
        loss, size = self.stage.loss, self.stage.group.size
        own = loss.algorithm in OWN_ADVANTAGES or self.stage.trainer
        in_reward = loss.beta and loss.kl_in == "reward"
        if own or in_reward or loss.aggregation != "sum_then_normalize" or len(rows) % size:
            return
        rewards = [math.nan if row["reward"] is None else row["reward"] for row in rows]
        centred = group_relative(torch.tensor(rewards), size, loss.scale_rewards)
        expected = positive_weighed(centred, loss.positive_advantage_weight).tolist()
        for i, (row, value) in enumerate(zip(rows, expected, strict=True), 1):
            found = number(row["advantage"])
            agrees = found is not None and math.isclose(found, value, rel_tol=1e-3, abs_tol=1e-3)
            said = f"step {step}, row {i}: advantage {found}, its group's rewards give {value:.6g}"
            self.advantages.add(agrees, said)

    def step(self, step: int, rows: list[Row], logged: Mapping[str, Any]) -> None:
        """The figures of a step that the rows alone decide."""
        totals = [row["reward"] for row in rows]
        expected: dict[str, float | None] = {}
        if all(total is not None for total in totals):
            expected["reward"] = _mean(totals)
        for name in {name: None for row in rows for name in row["scores"]}:
            values = [number(mapping(row["scores"].get(name)).get("value")) for row in rows]
            expected[f"rewards/{name}/mean"] = _mean([v for v in values if v is not None])
        for name, value in expected.items():
            found = number(logged.get(name))
            if found is not None and value is not None:
                said = f"step {step}: {name} is {found}, the completions give {value:.6g}"
                self.metrics.add(_close(value, found), said)


def _close(expected: float | None, found: float | None) -> bool:
    if expected is None or found is None:
        return expected is found
    return math.isclose(expected, found, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


# -------------------------------------------------------------------- what was asked, and the data


def result_files(run: Path) -> list[Path]:
    """The evaluations of a run and of its control arms."""
    return sorted([*run.glob("evals/*.json"), *run.glob("controls/*/evals/*.json")])


def is_of_run(name: str, recipe: Recipe) -> bool:
    """Whether a run of `recipe` writes the evaluation `name`, a path in its folder, or its rows.

    Others are the user's: nothing that they say is held against the run.
    """
    *folders, file = PurePosixPath(name).parts
    if folders != ["evals"]:  # of a control arm
        return file == "after.json"
    stages = [stage.name for stage in recipe.stages]
    own = (*RESERVED, *stages, *(f"before-{stage}" for stage in stages))
    return file.removesuffix(".json").removesuffix(".rows.jsonl") in own


def saved_result(file: Path) -> EvalResult:
    """An evaluation of the run; raises `ValueError` where its figures and rows do not fit."""
    try:
        return EvalResult.load(file)
    except UserError as error:
        raise ValueError("; ".join(error.messages)) from error


def rows_of_set(recipe: Recipe, name: str) -> list[Row]:
    """What the recipe's evaluations ask of a set; raises `UserError` where it is not here."""
    rows = open_rows(recipe.environment, load_set(name, recipe.evals.limit), recipe.run.seed)
    return with_system(rows, recipe.system)


def check_problems(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """Every evaluation: of the recipe's sets, and of each the problems that the set has."""
    known: dict[str, list[Row]] = {}
    moved = moved_sets(run)
    for name in dict.fromkeys(recipe.evals.sets):
        if name in moved:
            yield unchecked("results", f"the problems of {name}, which is other in this version")
            continue
        try:
            known[name] = rows_of_set(recipe, name)
        except UserError as error:
            yield unchecked("data", f"the problems of {name}: {'; '.join(error.messages)}")
    here = same_code(run)
    for file in result_files(run):
        name, found = file.relative_to(run).as_posix(), list[AuditFinding]()
        if not is_of_run(name, recipe):
            yield unchecked("results", f"{name} is {NOT_OF_RUN}: its problems are not compared")
            continue
        with as_finding("results", found):
            found += _of_result(saved_result(file), name, recipe, known, here)
        yield from found


def _of_result(
    saved: EvalResult,
    name: str,
    recipe: Recipe,
    known: dict[str, list[Row]],
    here: bool,
) -> Iterator[AuditFinding]:
    measured = {split_label(label)[0] for label in saved.sets}
    if left_out := [one for one in recipe.evals.sets if one not in measured]:
        yield differs("results", f"{name} has no figures of {left_out[0]}, which the recipe names")
    unknown = sorted(measured - {*evaluated_sets(recipe)})
    if unknown and Path(name).stem in ("before", "after"):
        yield differs("results", f"{name} has figures of {unknown[0]}, no set of the recipe")
    elif unknown:
        yield unchecked("results", f"{name}: the problems of {unknown[0]}, no set of the recipe")
    if other := _other_judge(saved, recipe):
        yield differs("results", f"{name}: {other}")
        return
    count = 0
    for label, rows in saved.rows.items():
        wanted = known.get(split_label(label)[0])
        if wanted is None:  # said of the set, or told as a set that was not measured
            continue
        judge = None
        with suppress(UserError):  # its file is not here, say
            judge = Judge(wanted, _judge_in(recipe), recipe.evals.reward_options or None)
        if here and judge and saved.sets[label].get("reward", judge.name) != judge.name:
            said = f"was judged by {saved.sets[label]['reward']}, its rows ask for {judge.name}"
            yield differs("results", f"{name}, {label}: {said}")
            return
        exact = here and judge is not None
        if other := _first_other(rows, judge.kept(wanted) if judge else wanted, exact=exact):
            yield differs("results", f"{name}, {label}: {other}")
            return
        count += len(rows)
    for base, facts in mapping(saved.manifest.get("sets")).items():
        hashed = mapping(facts).get("rows_sha256")
        if base in known and hashed is not None and hashed != digest_of(known[base]):
            said = f"{name}: it was measured on other problems of {base}, by their hash"
            yield differs("results", said) if here else unchecked("results", said)
            return
    if count:
        yield held("results", f"{name}: {counted(count, 'problem')} as the sets have them")


def _judge_in(recipe: Recipe) -> str | None:
    """The reward that judges evaluations by the recipe; None: what each row asks for."""
    return recipe.evals.reward or ("environment" if recipe.environment else None)


def _other_judge(saved: EvalResult, recipe: Recipe) -> str:
    """What a result says of its judge that is not the recipe's, in words; empty for nothing."""
    asked = _judge_in(recipe) or "by the rows"
    named = saved.settings.get("reward", asked)
    if named != asked:
        return f"its judge is {named!r:.60}, in the recipe {asked!r}"
    options = saved.settings.get("reward_options") or {}
    wanted = json.loads(json.dumps(dict(recipe.evals.reward_options or {}), default=str))
    return (
        "" if options == wanted else f"options of its judge are {options}, in the recipe {wanted}"
    )


def _first_other(rows: Sequence[Row], wanted: Sequence[Row], *, exact: bool) -> str:
    """The first row that is not the set's, in words; empty for none.

    `exact`: `wanted` is all that a result keeps of a row. Else the columns that both have are
    compared, and those that say who judges.
    """
    if len(rows) != len(wanted):
        return f"{counted(len(rows), 'problem')}, of {len(wanted):,} in the set"
    for at, (row, given) in enumerate(zip(rows, wanted, strict=True), 1):
        own, there = (as_given(one) for one in (json.loads(json.dumps(given, default=str)), row))
        own, there = ({"answer": "", **one} for one in (own, there))
        for key in {**there, **own}:
            both = key in own and key in there
            counts = exact or both or key in _CHOOSES or (key in _ASKS and key not in own)
            if counts and (not both or own[key] != there[key]):
                said, known = (
                    f"{one[key]!r:.60}" if key in one else "none" for one in (there, own)
                )
                return f"row {at}: {key} is {said}, in the set {known}"
    return ""
