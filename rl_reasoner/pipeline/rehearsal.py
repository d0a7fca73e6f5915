"""A few groups sampled and scored before a run: what its first steps would show.

What share is cut off, which rewards fault or judge nothing, how many groups would teach nothing,
how far sampling and training are apart. `rl-reasoner check RECIPE` tells it beside what `preflight`
finds.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import TrainerState

from rl_reasoner.dataset.code_rows import continuing
from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.pipeline.preflight import Notice, Work
from rl_reasoner.policy.device import choose_precision
from rl_reasoner.policy.fp8 import in_fp8
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.recipe import GrpoStage, Recipe
from rl_reasoner.rollout.mismatch import diagnose, measure
from rl_reasoner.rollout.sampler import eos_ids, prompt_ids, sample, without_long
from rl_reasoner.scoring.batch import score_own_rows
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.outcome import NOT_ITS_ROW, failed, outcome_json, usable
from rl_reasoner.scoring.rule import rule_of, total
from rl_reasoner.types import Fault, Outcome, Row

_REHEARSED = 8  # rows that are sampled
_COMPARED = 256  # tokens of a completion


def rehearsed(recipe: Recipe, work: Work, policy: Policy) -> list[Notice]:
    """Sample a group for each of a few rows of every grpo stage, and score it.

    What the samples say of the policy is told of stages that begin with it: of others it is not
    known before the stage that makes their policy.
    """
    found = []
    for stage, rows in zip(recipe.stages, work.rows, strict=True):
        if isinstance(stage, GrpoStage) and rows:
            if stage.long_prompts == "skip":
                prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
                rows = without_long(prompts, rows, stage.sampling.max_tokens, policy)
            some = _some_of_each_task(rows)
            found += _rehearse(recipe, stage, work.rewards, some, policy)
            found.append(_compared(recipe, stage, some, policy))
    return found


def _some_of_each_task(rows: Sequence[Row]) -> list[Row]:
    """A few rows, of each task as many."""
    tasks: dict[Any, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.get("task"), []).append(row)
    each = max(1, _REHEARSED // len(tasks))
    return [row for part in tasks.values() for row in part[:each]]


def _compared(recipe: Recipe, stage: GrpoStage, rows: list[Row], policy: Policy) -> Notice:
    """Log-probs and experts of the sampling pass against those of the training pass."""
    prompts = [
        prompt_ids(policy, prompt_of(row, recipe.template, policy.tokenizer))
        for row in rows
        for _ in range(2)
    ]
    precision = choose_precision(recipe.run.precision, policy.device.type)
    with in_fp8(precision, recipe.run.fp8, policy.device.type, policy.model):
        found = measure(
            policy.model,
            prompts,
            ends=eos_ids(policy),
            max_tokens=min(stage.sampling.max_tokens, _COMPARED),
            temperature=stage.sampling.temperature,
            autocast=torch.bfloat16 if precision != "fp32" else None,
        )
    status, said, mend = diagnose(found, stage.router_replay)
    return Notice("mismatch", status, f"stage {stage.name}, {precision}: {said}", mend)


def _rehearse(
    recipe: Recipe,
    stage: GrpoStage,
    rewards: Sequence[Callable[..., Any]],
    rows: list[Row],
    policy: Policy,
) -> list[Notice]:
    prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
    size, how = stage.group.size, stage.sampling
    drawn = sample(
        policy, prompts, samples=size, temperature=how.temperature, max_tokens=how.max_tokens
    )
    flat = [rollout for group in drawn for rollout in group]
    spread = [row for row in rows for _ in range(size)]
    columns: dict[str, Any] = {k: [r.get(k) for r in spread] for k in rows[0] if k != "completion"}
    columns |= {"completion_ids": [[0]] * len(flat), "trainer_state": TrainerState()}
    columns |= dict.fromkeys(("log_extra", "log_metric"), lambda *logged: None)
    columns["prompts"] = [prompt for prompt in prompts for _ in range(size)]
    chat = not isinstance(prompts[0], str)
    texts = [[{"role": "assistant", "content": r.text}] if chat else r.text for r in flat]
    scored = [
        score_own_rows(continuing(function, rows), texts, columns, Limits()) for function in rewards
    ]
    specs = list(recipe.rewards.values())
    weights = [spec.weight for spec in specs]
    rules = [
        rule_of(f, spec.optional, spec.on_abstain) for f, spec in zip(rewards, specs, strict=True)
    ]
    totals = [total(row, weights, rules) for row in zip(*scored, strict=True)]
    lost = all(map(math.isnan, totals))
    found = [
        _judged(name, scores, lost or rule.on_abstain == "leave")
        for name, scores, rule in zip(recipe.rewards, scored, rules, strict=True)
    ]
    if (before := recipe.start_of(stage)) or stage.policy:
        why = f"stage {before} makes its policy first" if before else "it has a policy of its own"
        said = f"stage {stage.name}: not looked at, {why}"
        return [*found, *(Notice(name, "passed", said) for name in ("truncation", "variance"))]
    cut = sum(rollout.truncated for rollout in flat) / len(flat)
    groups = [totals[i : i + size] for i in range(0, len(totals), size)]
    same = sum(_flat(group) for group in groups) / len(groups)
    return [*found, _cut_off(stage, cut), _taught(stage, same, len(groups))]


def _judged(name: str, outcomes: Sequence[Outcome], needed: bool) -> Notice:
    """How the reward `name` judged completions; `needed`: rows on which it abstains are lost."""
    scores = [score for score in outcomes if score != NOT_ITS_ROW]
    values = [value for score in scores if not math.isnan(value := usable(score))]
    faults = [score for score in scores if isinstance(score, Fault)]
    silent = len(scores) - len(values) - len(faults)
    told = f"mean {sum(values) / len(values):.3g}" if values else "no score"
    said = f"{name}: {told} on {len(scores)} completions, {len(faults)} faults"
    said += f", abstained on {silent} of {len(scores)}" if silent else ""
    reason = next(
        (outcome_json(s)["reason"] for s in [*faults, *scores] if math.isnan(usable(s))), ""
    )
    said += f"; {reason}" if reason else ""
    bad, none = sum(map(failed, scores)), bool(scores) and not values
    if len(faults) * 2 > len(scores) or (none and (needed or bad)):
        return Notice("reward", "failed", said, "mend the reward")
    if bad or none:
        return Notice("reward", "warned", said, "mend the reward")
    return Notice("reward", "passed", said)


def _flat(totals: Sequence[float]) -> bool:
    """Whether a group teaches nothing; rows that are out of it (NaN) do not count."""
    known = [value for value in totals if not math.isnan(value)]
    return not known or max(known) - min(known) < 1e-9


def _cut_off(stage: GrpoStage, share: float) -> Notice:
    said = f"stage {stage.name}: {share:.0%} of the completions are cut off"
    if share > 0.5:
        return Notice("truncation", "warned", said, "a larger sampling.max_tokens")
    return Notice("truncation", "passed", said)


def _taught(stage: GrpoStage, share: float, groups: int) -> Notice:
    said = f"stage {stage.name}: {share:.0%} of {groups} groups have equal rewards"
    if share > 0.75:
        mend = "they teach nothing: easier or harder rows, larger groups, or a stage of sft before"
        return Notice("variance", "warned", said, mend)
    return Notice("variance", "passed", said)
