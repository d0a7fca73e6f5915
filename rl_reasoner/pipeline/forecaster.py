"""What a forecast is made of, read from the first steps of a grpo stage: theirs, or a trial's.

A run forecasts from its own first steps (`forecast_first_steps`, called by `recorder`), at no cost
and without a trace in what it trains; `trial` takes such steps for `rl-reasoner check`. The maths
is `evaluation.forecast`'s.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import load_set
from rl_reasoner.evaluation.forecast import (
    PROMPTS,
    Forecast,
    PlannedEvals,
    SampledGroups,
    StagePlan,
    StepPace,
    Totals,
    beside_outcome,
    forecast,
    reward_moved,
)
from rl_reasoner.evaluation.learning_alarms import Metrics, highest_of
from rl_reasoner.evaluation.length_course import MeasuredGroup, course_of
from rl_reasoner.files import read_jsonl, write_json
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.pipeline.stage_trainers import Job
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.scoring.batch import POLICY_TEXT

FORECAST_FILE = "forecast.json"
_SHARE = 0.2  # of a stage's steps, the most that a forecast waits for
_PARTS = ("generation", "reward", "training")


def first_steps(stage: GrpoStage) -> int:
    """After how many steps a run forecasts: those with enough prompts, at most a fifth of all.

    Of whole batches, as each is sampled in the first of its steps.
    """
    once = stage.loss.iterations  # steps on one batch
    batches = min(-(-PROMPTS // stage.group.prompts), int(stage.steps * _SHARE) // once)
    return min(stage.steps, max(1, batches) * once)


def plan_of(recipe: Recipe, stage: GrpoStage) -> StagePlan:
    """What a recipe says of a stage that decides how much it can learn."""
    return StagePlan(
        stage.name,
        stage.steps,
        stage.group.prompts,
        stage.group.size,
        highest_of(spec.weight for spec in recipe.rewards.values()),
        stage.sampling.temperature,
        stage.loss.dynamic_sampling,
        stage.loss.iterations,
        stage.sampling.longest,
    )


def planned_evals(recipe: Recipe, stage: GrpoStage, answer_s: float) -> PlannedEvals:
    """The evaluations that a recipe plans, where one completion of them takes `answer_s` seconds.

    A set that cannot be read is left out: what is wrong with it is reported elsewhere.
    """
    evals = recipe.evals
    passes = 1 + evals.samples + 2 * evals.forced
    problems = {name: _problems(name, evals.limit) for name in evals.sets}
    sets = {name: (n, 1) for name, n in problems.items() if n}
    if evals.samples:
        sets |= {f"{name}@sampled": (n, evals.samples) for name, n in problems.items() if n}
    held_out = _problems(evals.validation, evals.limit) if evals.validation else 0
    return PlannedEvals(
        ends=sum(problems.values()) * passes * answer_s,
        validation=held_out * answer_s,
        validations=stage.steps // evals.every if held_out else 0,
        sets=sets,
    )


def _problems(name: str, limit: int | None) -> int:
    try:
        return len(load_set(name, limit))
    except UserError:
        return 0


def sampled_groups(folder: Path, rows: Sequence[Metrics], of: str) -> SampledGroups:
    """The groups that the steps of a stage sampled; `rows` are the steps' metrics.

    Rollouts tell lengths in characters, the policy's own: what a course needs is how they move.
    """
    found: dict[tuple[int, int], list[tuple[int, float | None]]] = {}
    cut = []
    last = int(rows[-1]["step"])
    for row in read_jsonl(folder / "rollouts.jsonl"):
        if row["step"] <= last:
            measured = len(row.get(POLICY_TEXT, row["completion"])), row["reward"]
            found.setdefault((row["step"], row["group"]), []).append(measured)
            cut.append(row["truncated"])
    groups: list[Totals] = [[reward for _, reward in group] for group in found.values()]
    course = course_of([MeasuredGroup(step, group) for (step, _), group in found.items()], last)
    thrown = _mean(rows, "dynamic_sampling/thrown_away")
    return SampledGroups(groups, of, fmean(cut) if cut else 0.0, thrown, course)


def pace_of(rows: Sequence[Metrics], once: int, completions: int) -> StepPace:
    """The pace of steps from their metrics; the first batch, which warms up, counts if alone.

    `once`: steps on one batch of so many `completions`, which is sampled in the first of them.
    Whole batches count.
    """
    batches = rows[: len(rows) // once * once] or rows
    timed = batches[once:] or batches
    parts = {part: fmean(row.get(f"timing/{part}", 0.0) for row in timed) for part in _PARTS}
    whole = fmean(row["step_time"] for row in timed)
    parts["rest"] = max(0.0, whole - sum(parts.values()))
    tokens = _mean(timed, "completions/mean_length")
    return StepPace(parts, tokens, _share(batches, completions))


def _share(rows: Sequence[Metrics], completions: int) -> float:
    """The share of completions in all tokens that trl has counted, without those of tools.

    It counts in steps that sample a batch; of dynamic sampling, also groups that are thrown away.
    """
    counted = [row for row in rows if "num_tokens" in row]
    thrown = [row.get("dynamic_sampling/thrown_away", 0.0) for row in counted]
    sampled = completions * sum(1 / max(1e-9, 1 - share) for share in thrown)
    whole = counted[-1]["num_tokens"] / sampled if counted else 0.0
    return min(1.0, _mean(rows, "completions/mean_length") / whole) if whole else 1.0


def _mean(rows: Sequence[Metrics], key: str) -> float:
    """The mean of a metric over the steps that have it: those in which a batch is sampled."""
    return fmean([row[key] for row in rows if key in row] or [0.0])


def forecast_of(
    recipe: Recipe,
    stage: GrpoStage,
    sampled: SampledGroups,
    pace: StepPace,
    answer_s: float | None = None,
) -> Forecast:
    """Forecast a stage; completions of evaluations take `answer_s`, or as long as the sampled."""
    plan = plan_of(recipe, stage)
    own = pace.parts.get("generation", 0.0) * plan.iterations / (plan.prompts * plan.size)
    evals = planned_evals(recipe, stage, own if answer_s is None else answer_s)
    return forecast(plan, sampled, pace, evals)


def forecast_from(
    recipe: Recipe,
    stage: GrpoStage,
    folder: Path,
    rows: Sequence[Metrics],
    spent: float,
    answer_s: float | None,
) -> Forecast | None:
    """Forecast the stage in `folder` from its steps with the metrics `rows`; None without groups.

    `spent`: seconds since its training began, without evaluations; `answer_s`: see `forecast_of`.
    """
    done = int(rows[-1]["step"])
    of = "the first step" if done == 1 else f"the first {done} steps"
    sampled = sampled_groups(folder, rows, of)
    if not sampled.groups:
        return None
    pace = pace_of(rows, stage.loss.iterations, stage.group.prompts * stage.group.size)
    return forecast_of(recipe, stage, sampled, replace(pace, spent=spent, done=done), answer_s)


def forecast_first_steps(job: Job, rows: Sequence[Metrics], spent: float) -> Forecast | None:
    """Forecast a stage in training from its steps so far, and write it; see `forecast_from`.

    What is written once stays: a run that continues from before it takes the same steps again.
    """
    file, stage = job.folder / FORECAST_FILE, job.stage
    if not isinstance(stage, GrpoStage) or file.is_file():
        return None
    made = forecast_from(job.recipe, stage, job.folder, rows, spent, job.answer_s)
    if made is not None:
        write_json(file, made.to_json())
    return made


def add_outcome(job: Job, rows: Sequence[Metrics], spent: float | None) -> str:
    """Add to a stage's forecast what happened, and say both; "" where there is none, or it is told.

    `spent`: the seconds of the whole stage; None where several processes took it to its end.
    """
    file = job.folder / FORECAST_FILE
    if not file.is_file():
        return ""
    outcome = {
        "minutes": None if spent is None else spent / 60,
        "minutes_of_steps": sum(row["step_time"] for row in rows) / 60,
        "reward": reward_moved([row["reward"] for row in rows if "reward" in row]),
    }
    made = json_object(file)
    if mapping(made.get("outcome")).get("minutes_of_steps") == outcome["minutes_of_steps"]:
        return ""
    made["outcome"] = outcome
    write_json(file, made)
    return beside_outcome(made)
