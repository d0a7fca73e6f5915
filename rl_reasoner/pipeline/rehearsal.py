"""A few groups sampled and scored before a run: what its first steps would show.

Reports the share of completions cut off, rewards that fault or judge nothing, groups that teach
nothing, and how far log-probabilities of sampling and training are apart. `rl-reasoner check
RECIPE` prints it with the checks of `preflight`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rl_reasoner.dataset.code_rows import columns_of, continuing
from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.environments.environment import EPISODE
from rl_reasoner.evaluation.forecast import FlatGroups, flat_groups
from rl_reasoner.judging.trial import is_judge, try_judge
from rl_reasoner.pipeline.completion_lengths import (
    Lengths,
    auto_words,
    find_max_tokens,
    length_notice,
)
from rl_reasoner.pipeline.inputs import trl_columns, unfiltered
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.preflight import Notice, warn_if
from rl_reasoner.pipeline.prepare import Prepared
from rl_reasoner.policy.device import autocast_dtype
from rl_reasoner.policy.fp8.layers import in_fp8
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage, with_max_tokens
from rl_reasoner.rollout.episodes.environment_turns import episodes_of
from rl_reasoner.rollout.mismatch import diagnose, measure
from rl_reasoner.rollout.sampler import eos_ids, prompt_ids, sample, without_long
from rl_reasoner.rollout.tool_turns import ToolUse
from rl_reasoner.scoring.batch import POLICY_TEXT, score_own_rows
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.outcome import NOT_ITS_ROW, failed, outcome_json, usable
from rl_reasoner.scoring.reward import GROUPS
from rl_reasoner.scoring.rule import rule_of, total
from rl_reasoner.types import Outcome, Prompt, Rollout, Row

_ROWS = 8  # that groups are sampled for
_PROBE = 16  # tokens of a completion that tell how fast a policy is
REHEARSAL_S = 40.0
"""Seconds that sampling may take by estimate: slow policies are shown by fewer rows."""
_COMPARED = 256  # tokens of a completion


@dataclass(frozen=True)
class Rehearsal:
    """What a few groups of a grpo stage showed: notices, total rewards, seconds of sampling."""

    stage: GrpoStage
    notices: list[Notice]
    groups: list[list[float | None]]
    seconds: float


def rehearse(
    recipe: Recipe, placement: Placement, prepared: Prepared, policy: Policy
) -> Iterator[Rehearsal]:
    """Sample a group for each of a few rows of every grpo stage, and score it.

    Truncation and variance are reported only for stages that begin with `policy`: for the others
    they are not known before the stage that makes their policy has run.
    """
    for stage in recipe.stages:
        rows = unfiltered(recipe, stage, prepared.rows)
        if isinstance(stage, GrpoStage) and rows:
            if stage.long_prompts == "skip":
                prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
                rows = without_long(prompts, rows, stage.sampling.needed, policy, recipe.tools)
            stage, found = _with_length(recipe, stage, rows, policy)
            some = _some_of_each_task(rows)
            seen = _score_groups(recipe, stage, prepared.rewards, some, policy, columns_of(rows))
            mismatch = _compare_passes(recipe, stage, placement, some, policy)
            yield replace(seen, notices=[*found, *seen.notices, mismatch])


def try_judges(recipe: Recipe, prepared: Prepared) -> Iterator[Notice]:
    """Ask each judge among the rewards two questions, and say what a step will ask of it."""
    for name, fn in prepared.rewards.items():
        if not is_judge(fn):
            continue
        status, message = try_judge(fn).told()
        votes = int({**fn.defaults, **fn.options}["votes"])
        asked = [
            stage.group.prompts * votes * (1 if fn.group else stage.group.size)
            for stage in recipe.stages
            if isinstance(stage, GrpoStage)
        ]
        many = f"; a step asks up to {max(asked):,} questions" if asked else ""
        fix = "see docs/judges.md" if status != "passed" else ""
        yield Notice("judge", status, f"{name}: {message}{many}", fix)


def _with_length(
    recipe: Recipe, stage: GrpoStage, rows: Sequence[Row], policy: Policy
) -> tuple[GrpoStage, list[Notice]]:
    """`stage` with the number that `max_tokens: auto` comes to, and what is said of it."""
    if stage.sampling.max_tokens != "auto":
        return stage, []
    if recipe.start_of(stage) or stage.policy:  # another policy's completions
        return with_max_tokens(stage, _COMPARED), []
    lengths = find_max_tokens(recipe, stage, rows, policy)
    longest = lengths.fitting()
    words = auto_words(stage.name, lengths.facts(longest))
    return with_max_tokens(stage, longest), [Notice("max_tokens", "passed", words)]


def _some_of_each_task(rows: Sequence[Row]) -> list[Row]:
    """A few rows, the same number of each task."""
    tasks: dict[Any, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row.get("task"), []).append(row)
    each = max(1, _ROWS // len(tasks))
    return [row for part in tasks.values() for row in part[:each]]


def _compare_passes(
    recipe: Recipe, stage: GrpoStage, placement: Placement, rows: list[Row], policy: Policy
) -> Notice:
    """Log-probs and experts of the sampling pass against those of the training pass."""
    schemas = ToolUse.told(recipe.tools, policy.tokenizer)
    prompts = [
        prompt_ids(policy, prompt_of(row, recipe.template, policy.tokenizer), schemas=schemas)
        for row in rows
        for _ in range(2)
    ]
    precision = placement.precision
    with in_fp8(precision, recipe.run.fp8, placement.device, policy.model):
        mismatch = measure(
            policy.model,
            prompts,
            ends=eos_ids(policy),
            max_tokens=min(stage.sampling.longest, _COMPARED),
            temperature=stage.sampling.temperature,
            autocast=autocast_dtype(precision),
            weights=stage.sampling.weights,
        )
    status, message, fix = diagnose(mismatch, stage.router_replay)
    if unlike := not_its_policy(recipe, stage):
        message += f"; measured on the run's first policy: {unlike}"
    return Notice("mismatch", status, f"stage {stage.name}, {precision}: {message}", fix)


def _score_groups(
    recipe: Recipe,
    stage: GrpoStage,
    rewards: Mapping[str, Callable[..., Any]],
    rows: list[Row],
    policy: Policy,
    names: Sequence[str],
) -> Rehearsal:
    size = stage.group.size
    sampled, seconds = _sample_in_time(recipe, stage, rows, policy)
    rows = rows[: len(sampled)]
    flat = [rollout for group in sampled for rollout in group]
    scored = _score(recipe, rewards, rows, flat, size, policy, names)
    specs = list(recipe.rewards.values())
    weights = [spec.weight for spec in specs]
    rules = [
        rule_of(function, spec.optional, spec.on_abstain)
        for function, spec in zip(rewards.values(), specs, strict=True)
    ]
    totals = [total(row, weights, rules) for row in zip(*scored, strict=True)]
    lost = all(map(math.isnan, totals))
    unlike = not_its_policy(recipe, stage)
    notices = [
        _reward(name, scores, lost or rule.on_abstain == "leave", unlike)
        for name, scores, rule in zip(rewards, scored, rules, strict=True)
    ]
    known = [None if math.isnan(value) else value for value in totals]
    groups = [known[i : i + size] for i in range(0, len(known), size)]
    if unlike:
        message = f"stage {stage.name}: not judged: {unlike}"
        notices += [Notice(name, "skipped", message) for name in ("truncation", "variance")]
    else:
        drawn = Lengths.of(flat, stage.sampling.longest)
        truncation = length_notice(recipe, stage, rows, policy, drawn)
        notices += [truncation, _variance(stage, flat_groups(groups, None))]
    return Rehearsal(stage, notices, groups, seconds)


def _sample_in_time(
    recipe: Recipe, stage: GrpoStage, rows: Sequence[Row], policy: Policy
) -> tuple[list[list[Rollout]], float]:
    """Groups of as many of the rows (two at least) as there is time for, and their seconds."""
    prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
    longest = stage.sampling.longest

    def groups_of(some: Sequence[Prompt], max_tokens: int) -> tuple[list[list[Rollout]], float]:
        started = time.monotonic()
        found = sample(
            policy,
            some,
            samples=stage.group.size,
            **stage.sampling.shares,
            max_tokens=max_tokens,
            weights=stage.sampling.weights,
            tools=recipe.tools,
            episodes=episodes_of(recipe, rows[: len(some)]),
        )
        return found, time.monotonic() - started

    few = min(_PROBE, longest)
    _, seconds = groups_of(prompts, few)  # and what is made once is made
    room = REHEARSAL_S / (seconds / few * longest)
    return groups_of(prompts[: max(2, int(len(prompts) * room))], longest)


def _score(
    recipe: Recipe,
    rewards: Mapping[str, Callable[..., Any]],
    rows: Sequence[Row],
    sampled: Sequence[Rollout],
    size: int,
    policy: Policy,
    names: Sequence[str],
) -> list[list[Outcome]]:
    """Outcomes by reward, a list with one for each completion, `size` for each row.

    Rewards get the columns `names`, None where a row lacks one: as in training.
    """
    prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
    spread = [row for row in rows for _ in range(size)]
    columns: dict[str, Any] = {k: [r.get(k) for r in spread] for k in names if k != "completion"}
    columns |= trl_columns(len(sampled))
    columns[EPISODE] = [rollout.episode for rollout in sampled]
    columns[POLICY_TEXT] = [rollout.policy_text for rollout in sampled]
    columns["prompts"] = [prompt for prompt in prompts for _ in range(size)]
    columns[GROUPS] = [i // size for i in range(len(sampled))]
    chat = not isinstance(prompts[0], str)
    texts = [[{"role": "assistant", "content": r.text}] if chat else r.text for r in sampled]
    return [
        score_own_rows(continuing(function, rows), texts, columns, Limits())
        for function in rewards.values()
    ]


def not_its_policy(recipe: Recipe, stage: GrpoStage) -> str:
    """Why the policy that is there is not the one that `stage` begins with; "" where it is."""
    if stage.policy:
        return "it has a policy of its own"
    if before := recipe.start_of(stage):
        return f"the stages before it have not run (stage {before} makes its policy)"
    return ""


def _reward(name: str, outcomes: Sequence[Outcome], needed: bool, unlike: str) -> Notice:
    """How the reward `name` judged completions; `needed`: rows on which it abstains are lost.

    `unlike` says why the completions are another policy's: their scores then say nothing of it.
    """
    scores = [score for score in outcomes if score != NOT_ITS_ROW]
    values = [value for score in scores if not math.isnan(value := usable(score))]
    faults = [score for score in scores if failed(score)]
    silent = len(scores) - len(values) - len(faults)
    mean = f"mean {sum(values) / len(values):.3g}" if values else "no score"
    message = f"{name}: {mean} on {len(scores)} completions, {len(faults)} faults"
    message += f", abstained on {silent} of {len(scores)}" if silent else ""
    unusable = [score for score in [*faults, *scores] if math.isnan(usable(score))]
    reason = outcome_json(unusable[0])["reason"] if unusable else ""
    message += f"; {reason}" if reason else ""
    if unlike:
        message += "; only that it runs is judged: the stage will score another policy"
    none = bool(scores) and not values
    if len(faults) * 2 > len(scores) or (none and (faults or (needed and not unlike))):
        return Notice("reward", "failed", message, "fix the reward")
    return warn_if(bool(faults) or none, "reward", message, "fix the reward")


def _variance(stage: GrpoStage, flat: FlatGroups) -> Notice:
    message = f"stage {stage.name}: {flat.share:.0%} of {flat.groups} groups have equal rewards"
    fix = "they teach nothing: use easier or harder rows, larger groups, or an sft stage first"
    return warn_if(flat.share > 0.75, "variance", message, fix)
