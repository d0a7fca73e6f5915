"""Reading a run folder for its report: what is there, in plain dataclasses.

Files are taken as they are found: a file or line that cannot be read is named in `Run.unreadable`,
a value of the wrong kind counts as absent. `rollouts.jsonl` is streamed, so that memory holds one
completion at a time and the few that are shown. Knows nothing of HTML.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from rl_reasoner.errors import UserError

GROUPS_SHOWN = 3  # of the first and of the last step
COMPLETIONS_SHOWN = 8  # of a group
CHARACTERS_SHOWN = 6000  # of a completion

Interval: TypeAlias = tuple[float, float]
Metrics: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class SetResult:
    """One policy's figures on one set. Shares are of 1, lengths in tokens, None is "not there"."""

    accuracy: float
    interval: Interval | None = None
    problems: int | None = None
    samples: int | None = None
    truncated: float | None = None
    mean_length: float | None = None
    temperature: float | None = None
    thinking: float | None = None
    pass_at: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One file of `evals/`: figures and a few rows for each set, in the file's order."""

    name: str
    policy: str
    sets: Mapping[str, SetResult]
    rows: Mapping[str, list[Mapping[str, Any]]]


@dataclass(frozen=True)
class Verdict:
    """What one reward said of one completion; `outcome` is "score", "abstain" or "fault"."""

    value: float | None
    reason: str
    outcome: str


@dataclass(frozen=True)
class Sample:
    """One completion as it was rewarded."""

    completion: str
    reward: float | None
    advantage: float | None
    truncated: bool
    verdicts: Mapping[str, Verdict]


@dataclass
class Group:
    """Completions of one prompt; `hidden` of them are not kept."""

    prompt: str
    answer: str
    samples: list[Sample] = field(default_factory=list)
    hidden: int = 0


@dataclass
class Rollouts:
    """What is kept of `rollouts.jsonl`: counts over all, groups of the first and last step."""

    completions: int = 0
    truncated: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)  # by reward
    fault_reasons: Counter[str] = field(default_factory=Counter)
    steps: list[tuple[int, list[Group]]] = field(default_factory=list)  # at most first and last


@dataclass(frozen=True)
class Stage:
    """One folder of `stages/`; `metrics` has one mapping a step, rising; `best` may be empty."""

    index: int
    name: str
    metrics: list[Metrics]
    rollouts: Rollouts | None
    best: Metrics = field(default_factory=dict)

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
        """Time of all steps; a logged step stands, as in trl, for those since the one before it."""
        steps, times = self.series("step_time")
        return sum(
            t * max(step - last, 1)
            for step, last, t in zip(steps, [0, *steps], times, strict=False)
        )


@dataclass(frozen=True)
class Run:
    """A run folder. `evals` are in the order before, others by name, after."""

    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    lock: Mapping[str, Any]
    evals: list[Evaluation]
    stages: list[Stage]
    unreadable: list[str]


def number(value: Any) -> float | None:
    """`value` as a float when it is a finite number, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(folder: Path) -> Run:
    """Read the run `folder`; raises `UserError` when nothing of a run is in it."""
    parts = ("recipe.yaml", "lock.json", "evals", "stages")
    if not any((folder / part).exists() for part in parts):
        raise UserError(f"{folder} is not a run folder: expected one of {', '.join(parts)} in it.")
    unreadable: list[str] = []
    lock = _mapping(_json(folder, "lock.json", unreadable))
    recipe_text = _text(folder / "recipe.yaml")
    recipe = _recipe(recipe_text, unreadable)
    evals = [_evaluation(folder, path.name, unreadable) for path in _files(folder / "evals")]
    order = {"before": 0, "after": 2}
    evals.sort(key=lambda e: (order.get(e.name, 1), e.name))
    stages = [_stage(path, unreadable) for path in _stage_folders(folder / "stages")]
    name = recipe.get("name") or folder.resolve().name
    return Run(str(name), recipe, recipe_text, lock, evals, stages, unreadable)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _recipe(text: str, unreadable: list[str]) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load(text))
    except yaml.YAMLError:
        unreadable.append("recipe.yaml")
        return {}


def _json(folder: Path, name: str, unreadable: list[str]) -> Any:
    try:
        return json.loads(_text(folder / name) or "{}")
    except ValueError:
        unreadable.append(name)
        return {}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.is_file())


def _stage_folders(folder: Path) -> list[Path]:
    """The folders called `<number>-<name>`, by number."""
    named = [(path.name.partition("-")[0], path) for path in folder.glob("*-*") if path.is_dir()]
    return [path for _, path in sorted((int(n), path) for n, path in named if n.isdecimal())]


def _evaluation(folder: Path, file: str, unreadable: list[str]) -> Evaluation:
    data = _mapping(_json(folder, f"evals/{file}", unreadable))
    sets = {name: _set_result(_mapping(raw)) for name, raw in _mapping(data.get("sets")).items()}
    rows: dict[str, list[Mapping[str, Any]]] = {
        name: [row for row in raw if isinstance(row, dict)]
        for name, raw in _mapping(data.get("rows")).items()
        if isinstance(raw, list)
    }
    kept = {name: result for name, result in sets.items() if result is not None}
    return Evaluation(Path(file).stem, str(data.get("policy", "")), kept, rows)


def _set_result(raw: Mapping[str, Any]) -> SetResult | None:
    accuracy = number(raw.get("accuracy"))
    if accuracy is None:
        return None
    problems, samples = number(raw.get("problems")), number(raw.get("samples"))
    curve = {int(k): number(v) for k, v in _mapping(raw.get("pass_at")).items() if k.isdecimal()}
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
    )


def interval(value: Any) -> Interval | None:
    """`value` as (low, high) when it is a list of two finite numbers, otherwise None."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _stage(folder: Path, unreadable: list[str]) -> Stage:
    index, _, name = folder.name.partition("-")
    by_step: dict[int, Metrics] = {}
    for row in _lines(folder / "metrics.jsonl", unreadable):
        step = number(row.get("step"))
        if step is not None:  # a resumed run logs some steps again: the later line holds
            by_step[int(step)] = {**row, "step": int(step)}
    rollouts = folder / "rollouts.jsonl"
    return Stage(
        index=int(index),
        name=name,
        metrics=[by_step[step] for step in sorted(by_step)],
        rollouts=_rollouts(rollouts, unreadable) if rollouts.is_file() else None,
        best=_mapping(
            _json(folder.parent.parent, f"stages/{folder.name}/best/evaluation.json", unreadable)
        ),
    )


def _lines(path: Path, unreadable: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one at a time; broken lines are counted and left out."""
    if not path.is_file():
        return
    broken = 0
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            elif line.strip():
                broken += 1
    if broken:
        unreadable.append(f"stages/{path.parent.name}/{path.name} ({broken} lines)")


def _rollouts(path: Path, unreadable: list[str]) -> Rollouts:
    kept = Rollouts()
    groups: dict[str, Group] = {}
    for row in _lines(path, unreadable):
        step = int(number(row.get("step")) or 0)
        if not kept.steps or kept.steps[-1][0] != step:
            groups = {}
            kept.steps = [*kept.steps[:1], (step, [])]
        sample = _sample(row)
        _count(kept, sample)
        key = str(row.get("group"))
        if key not in groups and len(groups) < GROUPS_SHOWN:
            groups[key] = Group(_talk(row.get("prompt")), _talk(row.get("answer")))
            kept.steps[-1][1].append(groups[key])
        group = groups.get(key)
        if group is not None and len(group.samples) < COMPLETIONS_SHOWN:
            group.samples.append(sample)
        elif group is not None:
            group.hidden += 1
    return kept


def _count(kept: Rollouts, sample: Sample) -> None:
    kept.completions += 1
    kept.truncated += sample.truncated
    for name, verdict in sample.verdicts.items():
        kept.outcomes.setdefault(name, Counter())[verdict.outcome] += 1
        if verdict.outcome == "fault" and len(kept.fault_reasons) < 1000:
            kept.fault_reasons[f"{name}: {verdict.reason[:300]}"] += 1


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        completion=_talk(row.get("completion")),
        reward=number(row.get("reward")),
        advantage=number(row.get("advantage")),
        truncated=row.get("truncated") is True,
        verdicts={
            name: Verdict(
                number(_mapping(raw).get("value")),
                str(_mapping(raw).get("reason") or ""),
                str(_mapping(raw).get("outcome") or "score"),
            )
            for name, raw in _mapping(row.get("scores")).items()
        },
    )


def _talk(value: Any) -> str:
    """A text, or a chat's messages as one text, cut to what is shown."""
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        value = "\n\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in value)
    text = "" if value is None else str(value)
    more = len(text) - CHARACTERS_SHOWN
    return text if more <= 0 else f"{text[:CHARACTERS_SHOWN]}\n… {more:,} more characters"
