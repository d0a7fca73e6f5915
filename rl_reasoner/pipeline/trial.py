"""A trial of a grpo stage before its run: a few of its real steps, at a learning rate of 0.

Sampling, rewards and the training pass are the stage's own, in a folder that goes away; the policy
stays as it is. So `rl-reasoner check` forecasts from what a run forecasts from (`forecaster`). What
would take too long is made smaller: fewer steps, then fewer prompts in a step.
"""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.evaluation.forecast import PROMPTS, Forecast, StepPace, widened
from rl_reasoner.files import read_jsonl
from rl_reasoner.pipeline.forecaster import forecast_of, pace_of, sampled_groups
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.preflight import Notice, warn_if
from rl_reasoner.pipeline.prepare import Prepared
from rl_reasoner.pipeline.rehearsal import Rehearsal, not_its_policy
from rl_reasoner.pipeline.stage_trainers import Job
from rl_reasoner.pipeline.stage_training import train_stage
from rl_reasoner.policy.lora import merge_adapter
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.hacking_meter import HackingMeterSettings
from rl_reasoner.recipe.recipe import Evals, Recipe
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.training.checkpointing.signals import Stop

TRIAL_S = 75.0
"""Seconds that a trial may take by estimate, on one machine."""
_WHOLE_STEP = 2.5  # times as long as its sampling a step takes, at most
_EVER = 1 << 30  # steps between checkpoints: none is written


def trial_size(
    stage: GrpoStage, rows: int, seconds: float, budget_s: float = TRIAL_S
) -> tuple[int, int]:
    """(steps, prompts a step) of a trial, where sampling `rows` completions took `seconds`.

    Whole steps with 64 prompts in all, and one before them to warm up; as many as `budget_s` has
    room for. Where not one fits, a step of fewer prompts. Fewer completions at once than `rows` are
    taken to need as long: often the weights are read once for all of them.
    """
    prompts = stage.group.prompts
    step_s = seconds * max(1.0, prompts * stage.group.size / rows) * _WHOLE_STEP
    if step_s > budget_s:
        return 1, max(1, int(prompts * budget_s / step_s))
    wanted = -(-PROMPTS // prompts) + 1
    return min(wanted, stage.steps, int(budget_s / max(1e-9, step_s))), prompts


def forecast_by_trial(
    recipe: Recipe,
    placement: Placement,
    prepared: Prepared,
    policy: Policy,
    seen: Rehearsal,
) -> tuple[Notice, Forecast | None]:
    """Forecast the stage of a rehearsal from a trial of it, and from the groups `seen` there."""
    stage = seen.stage
    if why := _not_judged(recipe, seen, known=bool(prepared.rows[stage.name])):
        return Notice("forecast", "skipped", f"stage {stage.name}: not judged: {why}"), None
    try:
        made = _trial(recipe, placement, prepared, policy, seen)
    except (RunStopped, UserError) as error:
        return Notice("forecast", "failed", f"stage {stage.name}: {error}", ""), None
    return _notice(made), made


def _not_judged(recipe: Recipe, seen: Rehearsal, known: bool) -> str:
    """Why nothing can be said of a stage; "" where something can. `known`: its rows are."""
    stage = seen.stage
    if why := not_its_policy(recipe, stage):
        return why
    if not known:
        return "an earlier stage makes or chooses its rows"
    if stage.vllm is not None:
        return "vLLM samples for it"
    if any(notice.status == "failed" for notice in seen.notices):
        return "its rewards fail"
    return ""


def _trial(
    recipe: Recipe, placement: Placement, prepared: Prepared, policy: Policy, seen: Rehearsal
) -> Forecast:
    """Take a few steps of the stage, and forecast from them and the groups `seen` before."""
    stage = seen.stage
    sampled = sum(map(len, seen.groups)), seen.seconds
    steps, prompts = trial_size(stage, *sampled)
    run = recipe.run.model_copy(update={"report_to": "none", "rewards_on": "here"})
    tried = _shortened(stage, steps, prompts)
    off = HackingMeterSettings(every=0)
    alone = {"stages": (tried,), "evals": Evals(), "run": run, "hacking_meter": off}
    asked = recipe.model_copy(update=alone)
    name = policy.model.config.name_or_path  # a reference is loaded from where it says
    quiet = LiveView(quiet=True)
    with tempfile.TemporaryDirectory(prefix="rl-reasoner-trial-") as folder:
        rows = prepared.rows[stage.name]
        job = Job(asked, tried, placement, rows, prepared.rewards, policy, Path(folder))
        try:
            train_stage(job, quiet, Stop(quiet.note))
        finally:  # also of a trial that fails: what comes after it finds the policy as it was
            merge_adapter(policy)
            policy.model.config.name_or_path = name
        metrics = [*read_jsonl(job.folder / "metrics.jsonl")]
        found = sampled_groups(job.folder, metrics, "")
    pace = pace_of(metrics, 1, prompts * stage.group.size)
    pace = _of_whole_steps(pace, stage, prompts, sampled)
    groups = [*seen.groups, *found.groups]
    cut_short = f", cut short of {PROMPTS} to save time" if len(groups) < PROMPTS else ""
    of = f"{len(groups)} sampled groups{cut_short}"
    course = replace(found.course, trend=0.0)  # the policy of a trial stays as it is
    everything = replace(found, groups=groups, of=of, course=course)
    return forecast_of(recipe, stage, everything, pace)


def _shortened(stage: GrpoStage, steps: int, prompts: int) -> GrpoStage:
    """The stage with so many steps and prompts, in which nothing changes the policy.

    Each step samples, also where the stage takes several steps on one batch.
    """
    nothing = {"learning_rate": 0.0, "save_strategy": "no", "max_steps": steps}
    group = {"prompts": prompts, "micro_batch": _micro(stage, prompts)}
    return stage.model_copy(
        update={
            "steps": steps,
            "group": stage.group.model_copy(update=group),
            "save_every": _EVER,
            "router_bias": 0.0,
            "loss": stage.loss.model_copy(update={"dynamic_sampling": 0, "iterations": 1}),
            "trainer": {**stage.trainer, **nothing},
        }
    )


def _of_whole_steps(
    pace: StepPace, stage: GrpoStage, prompts: int, before: tuple[int, float]
) -> StepPace:
    """The pace of the stage's steps from that of steps with fewer `prompts`, each with its batch.

    `before`: the completions that the rehearsal sampled, and its seconds.
    """
    share, size = prompts / stage.group.prompts, stage.group.size
    parts = {name: value / share for name, value in pace.parts.items() if name != "rest"}
    rows, seconds = before
    took, wanted = pace.parts["generation"], stage.group.prompts * size
    parts["generation"] = widened(took, prompts * size, (seconds, rows), wanted)
    for name in ("generation", "reward"):  # once for all steps on a batch
        parts[name] /= stage.loss.iterations
    return replace(pace, parts={**parts, "rest": pace.parts["rest"]})


def _micro(stage: GrpoStage, prompts: int) -> int | None:
    """The micro-batch of a step of fewer prompts."""
    micro = stage.group.micro_batch
    return micro and math.gcd(micro, prompts * stage.group.size)


def _notice(made: Forecast) -> Notice:
    minutes, tokens = made.minutes, made.tokens_per_second
    rate = f", {tokens:,.0f} tokens/s sampled" if tokens else ""
    message = (
        f"stage {made.plan.name}: {made.sentence} ({made.sampled.of}); {minutes['step']:.2g} min a "
        f"step{rate}, {minutes['stage']:.3g} min for the stage{made.change_of_length}, "
        f"{minutes['end']:.2g} min for each evaluation before and after it"
    )
    if shown := made.detectable:
        least = ", ".join(
            f"none on {name}, which has too few problems"
            if d is None
            else f"{100 * d:.1f} points on {name}"
            for name, d in shown.items()
        )
        message += f"; the least gain that these can show: {least}"
    return warn_if(made.direction == "none", "forecast", message, "")
