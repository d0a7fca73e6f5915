"""Reading a run folder for its report: what is there, in plain dataclasses.

Files are taken as they are found: a file or line that cannot be read is named in
`RunData.unreadable`, a value of the wrong kind counts as absent. Completions are read by
`rollouts`. Knows nothing of HTML.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rl_reasoner.environments.environment import OPENED
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.labels import set_title
from rl_reasoner.evaluation.learning_alarms import Metrics, highest_of
from rl_reasoner.evaluation.statistics import Interval
from rl_reasoner.files import read_jsonl
from rl_reasoner.foreign import json_value, mapping, number, yaml_value
from rl_reasoner.paths import no_links, numbered_stages
from rl_reasoner.report.rollouts import Rollouts, read_rollouts, with_seconds
from rl_reasoner.types import Row

EVAL_ROWS_KEPT = 1000  # of an evaluation's set
_LAST_STEP = 10**9
_BYTES_KEPT = 16_000_000  # of an evaluation's rows


@dataclass(frozen=True)
class Paired:
    """A paired test of the same problems before and after; `adjusted` is p for several tests.

    `tests` is how many these are; `better` and `worse` count the problems that moved.
    """

    problems: int
    difference: float
    interval: Interval
    p: float
    adjusted: float
    test: str
    tests: int = 1
    better: int | None = None
    worse: int | None = None


@dataclass(frozen=True)
class SetResult:
    """One policy's figures on one set. Shares are of 1, lengths in tokens, None is "not there".

    `paired` is the test against the evaluation that the run began with (`paired.add_paired_tests`);
    `pass_paired` has that of pass@k by k; `lenient` has the figures of answers judged apart from
    their form, where there are any.
    """

    accuracy: float
    interval: Interval | None = None
    problems: int | None = None
    samples: int | None = None
    truncated: float | None = None
    mean_length: float | None = None
    temperature: float | None = None
    thinking: float | None = None
    pass_at: Mapping[int, float] = field(default_factory=dict)
    pass_interval: Mapping[int, Interval] = field(default_factory=dict)
    paired: Paired | None = None
    pass_paired: Mapping[int, Paired] = field(default_factory=dict)
    lenient: "SetResult | None" = None


@dataclass(frozen=True)
class Evaluation:
    """One file of `evals/`: figures and the first rows of each set, in the file's order.

    `judged` has of every row its problem, what an environment opened it from, its answer, its
    scores and its lenient marks.
    """

    name: str
    policy: str
    sets: Mapping[str, SetResult]
    rows: Mapping[str, list[Metrics]]
    judged: Mapping[str, list[Row]] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRecord:
    """One folder of `stages/`; `metrics` has one mapping a step, rising; `best` may be empty.

    `settings` is what the recipe says of the stage; `card` what it says itself of the rows that it
    made; `highest` see `LearningAlarms`; `forecast` is what was expected of it, and empty where
    nothing was; `hacking` are the windows of its hacking meter.
    """

    index: int
    name: str
    metrics: list[Metrics]
    rollouts: Rollouts | None
    best: Metrics = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    highest: float | None = None
    forecast: Metrics = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    hacking: list[Metrics] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.index}-{self.name}"

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The steps at which `key` was logged as a finite number, and its values there."""
        pairs = [(int(row["step"]), number(row.get(key))) for row in self.metrics]
        kept = [(step, value) for step, value in pairs if value is not None]
        return [step for step, _ in kept], [value for _, value in kept]

    def keys(self, prefix: str) -> list[str]:
        """The logged names that start with `prefix`, in the order they first appear."""
        return [
            k for k in dict.fromkeys(k for row in self.metrics for k in row) if k.startswith(prefix)
        ]

    def seconds(self) -> float:
        """Time of all steps; a logged step stands, as in trl, for all since the one before it."""
        steps, times = self.series("step_time")
        return sum(
            t * max(step - last, 1)
            for step, last, t in zip(steps, [0, *steps], times, strict=False)
        )


@dataclass(frozen=True)
class RunData:
    """A run folder. `evals` are in the order before, others by name, after."""

    folder: Path
    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    lock: Mapping[str, Any]
    evals: list[Evaluation]
    stages: list[StageRecord]
    unreadable: list[str]

    @property
    def stage_settings(self) -> list[Mapping[str, Any]]:
        """What the recipe says of each of its stages."""
        return _stage_settings(self.recipe)


def title_in(run: RunData, name: str) -> str:
    """What the set `name` is called on the run's page."""
    return set_title(name, [label for e in run.evals for label in e.sets])


def read_run(folder: Path) -> RunData:
    """Read the run `folder`; raises `UserError` where nothing of a run is in it, or a link."""
    parts = ("recipe.yaml", "lock.json", "evals", "stages")
    if not any((folder / part).exists() for part in parts):
        raise UserError(f"{folder} is not a run folder: expected one of {', '.join(parts)} in it.")
    no_links(folder)
    unreadable: list[str] = []
    lock = mapping(_json(folder, "lock.json", unreadable))
    recipe_text = _text(folder / "recipe.yaml")
    recipe = _recipe(recipe_text, unreadable)
    files = sorted(path for path in (folder / "evals").glob("*.json") if path.is_file())
    evals = [_evaluation(folder, path.name, unreadable) for path in files]
    order = {"before": 0, "after": 2}
    evals.sort(key=lambda e: (order.get(e.name, 1), e.name))
    stages = [_stage(path, recipe, lock, unreadable) for path in numbered_stages(folder)]
    name = recipe.get("name") or folder.resolve().name
    return RunData(folder, str(name), recipe, recipe_text, lock, evals, stages, unreadable)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _recipe(text: str, unreadable: list[str]) -> Mapping[str, Any]:
    try:
        return mapping(yaml_value(text, yaml.SafeLoader)[1])
    except yaml.YAMLError:
        unreadable.append("recipe.yaml")
        return {}


def _json(folder: Path, name: str, unreadable: list[str]) -> Any:
    try:
        return json_value(_text(folder / name) or "{}")
    except ValueError:
        unreadable.append(name)
        return {}


def _evaluation(folder: Path, file: str, unreadable: list[str]) -> Evaluation:
    data = mapping(_json(folder, f"evals/{file}", unreadable))
    sets = {name: _set_result(mapping(raw)) for name, raw in mapping(data.get("sets")).items()}
    every, judged = _every_row(folder / "evals" / file, unreadable)
    rows = every or {
        name: [row for row in raw if isinstance(row, dict)]
        for name, raw in mapping(data.get("rows")).items()
        if isinstance(raw, list)
    }
    kept = {name: result for name, result in sets.items() if result is not None}
    return Evaluation(Path(file).stem, str(data.get("policy", "")), kept, rows, judged)


def _every_row(
    file: Path, unreadable: list[str]
) -> tuple[dict[str, list[Metrics]], dict[str, list[Row]]]:
    """By set, from the rows of a result: those that are kept, and the scores of all."""
    kept: dict[str, list[Metrics]] = {}
    judged: dict[str, list[Row]] = {}
    path, size = file.with_suffix(".rows.jsonl"), 0
    for line in _lines(path, unreadable):
        name = str(line.get("set"))
        rows = kept.setdefault(name, [])
        if len(rows) < EVAL_ROWS_KEPT and size < _BYTES_KEPT:
            size += len(str(line))
            rows.append(line)
        scores = line.get("scores")
        if isinstance(line.get("problem"), str) and isinstance(scores, list) and scores:
            row = {key: line.get(key, "") for key in ("problem", "answer")}
            if isinstance(opened := line.get(OPENED), str):
                row[OPENED] = opened
            row["scores"] = [number(s) for s in scores]
            marks = line.get("lenient")
            if isinstance(marks, list) and len(marks) == len(scores):
                row["lenient"] = [number(mark) for mark in marks]
            judged.setdefault(name, []).append(row)
    return kept, judged


def _set_result(raw: Mapping[str, Any]) -> SetResult | None:
    accuracy = number(raw.get("accuracy"))
    if accuracy is None:
        return None
    problems, samples = number(raw.get("problems")), number(raw.get("samples"))
    lenient = mapping(raw.get("lenient"))
    pass_at = mapping(raw.get("pass_at"))
    curve = {int(k): number(v) for k, v in pass_at.items() if k.isdecimal() and len(k) < 10}
    return SetResult(
        accuracy=accuracy,
        interval=interval(raw.get("interval")),
        problems=None if problems is None else int(problems),
        samples=None if samples is None else int(samples),
        truncated=number(raw.get("truncated")),
        mean_length=number(raw.get("mean_length")),
        temperature=number(raw.get("temperature")),
        thinking=number(raw.get("thinking")),
        pass_at={k: v for k, v in sorted(curve.items()) if v is not None},
        pass_interval={
            int(k): span
            for k, v in mapping(raw.get("pass_at_interval")).items()
            if k.isdecimal() and len(k) < 10 and (span := interval(v)) is not None
        },
        lenient=_set_result({**raw, **lenient, "lenient": None, "pass_at": {}})
        if lenient
        else None,
    )


def interval(value: Any) -> Interval | None:
    """`value` as (low, high) when it is a list of two finite numbers, otherwise None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _stage(
    folder: Path, recipe: Mapping[str, Any], lock: Mapping[str, Any], unreadable: list[str]
) -> StageRecord:
    index, _, name = folder.name.partition("-")
    by_step: dict[int, Metrics] = {}
    for row in _lines(folder / "metrics.jsonl", unreadable):
        step = row.get("step")
        if isinstance(step, int) and 0 <= step <= _LAST_STEP:
            by_step[step] = row  # a resumed run logs some steps again: the later line holds
    rollouts = folder / "rollouts.jsonl"
    sampled = read_rollouts(rollouts) if rollouts.is_file() else None
    if sampled is not None:
        sampled.samples = with_seconds(sampled.samples, folder)
    if sampled is not None and sampled.broken:
        unreadable.append(f"stages/{folder.name}/{rollouts.name} ({sampled.broken} lines)")
    best = _json(folder.parent.parent, f"stages/{folder.name}/best/evaluation.json", unreadable)
    forecast = _json(folder.parent.parent, f"stages/{folder.name}/forecast.json", unreadable)
    named = (s for s in _stage_settings(recipe) if (s.get("name") or s.get("kind")) == name)
    return StageRecord(
        index=int(index),
        name=name,
        metrics=[by_step[step] for step in sorted(by_step)],
        rollouts=sampled,
        best=mapping(best),
        settings=_fitted(next(named, {}), mapping(mapping(lock.get("max_tokens")).get(name))),
        highest=_highest(recipe),
        forecast=mapping(forecast),
        card=mapping(_json(folder.parent.parent, f"stages/{folder.name}/card.json", unreadable)),
        hacking=[*_lines(folder / "hacking.jsonl", unreadable)],
    )


def _fitted(settings: Mapping[str, Any], lengths: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a stage, with what its max_tokens auto came to."""
    sampling = mapping(settings.get("sampling"))
    if sampling.get("max_tokens") != "auto" or not lengths:
        return settings
    return {**settings, "sampling": {**sampling, "max_tokens": lengths.get("max_tokens")}}


def _stage_settings(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stages = recipe.get("stages")
    return [s for s in stages if isinstance(s, Mapping)] if isinstance(stages, list) else []


def _highest(recipe: Mapping[str, Any]) -> float | None:
    """The largest total reward of the recipe; None where a weight is no number."""
    specs = mapping(recipe.get("rewards")).values()
    weights = [number(mapping(spec).get("weight", 1.0)) for spec in specs]
    return highest_of(weight or 0.0 for weight in weights)


def _lines(path: Path, unreadable: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one at a time; broken lines are counted and left out."""
    place = "/".join(path.parts[-2 if path.parent.name == "evals" else -3 :])  # inside its run
    return read_jsonl(path, lambda count: unreadable.append(f"{place} ({count} lines)"))
