"""How long a policy's completions are before it is trained: what cuts them, and what `auto` takes.

A completion that is cut off before its answer is wrong whatever it says, and trains the policy to
be short. So a few rows of a stage are sampled first. Where `sampling.max_tokens` cuts many
completions, the number that would not is said; where it is `auto`, that number is taken: the
smallest multiple of 64 that cuts at most 5%, within the policy's positions and `AUTO_MOST`. A run
keeps what it found in `lock.json`, so that it goes on with the same number. Knows policies and
rows; nothing of trainers.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Self

from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.pipeline.lineage import facts_of_turns
from rl_reasoner.pipeline.preflight import Notice
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import AUTO_MOST, AUTO_STEP, SampledStage
from rl_reasoner.rollout.episodes.environment_turns import episodes_of
from rl_reasoner.rollout.long_prompts import declared_places
from rl_reasoner.rollout.sampler import prompt_ids, sample
from rl_reasoner.rollout.tool_turns import ToolUse
from rl_reasoner.types import Rollout, Row

_ROWS = 16  # that are sampled
_EACH = 4  # completions of a row
_CUT = 0.05  # share of completions that `auto` may cut off
_MANY = 0.1  # share that is warned of
_FARTHER = 4  # times a given max_tokens: so far completions are followed to advise another


@dataclass(frozen=True)
class Lengths:
    """Lengths of completions in tokens, rising; `cut` of them were cut off at `bound` tokens."""

    tokens: Sequence[int]
    cut: int
    bound: int

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], bound: int) -> Self:
        """The lengths of completions that were sampled with at most `bound` tokens."""
        tokens = sorted(rollout.tokens or 0 for rollout in rollouts)
        return cls(tokens, sum(rollout.truncated for rollout in rollouts), bound)

    def share_cut(self, longest: int) -> float:
        """The share that would be cut off at `longest` tokens (at most `bound`)."""
        over = self.cut if longest == self.bound else sum(n > longest for n in self.tokens)
        return over / len(self.tokens)

    def fitting(self) -> int:
        """The smallest multiple of 64 that cuts at most 5%, or else `bound`."""
        steps = range(AUTO_STEP, self.bound, AUTO_STEP)
        return next((n for n in steps if self.share_cut(n) <= _CUT), self.bound)

    def facts(self, longest: int) -> dict[str, Any]:
        """What is written down of them, where completions end at `longest` tokens."""
        return {
            "max_tokens": longest,
            "median": median(self.tokens),
            "cut": round(self.share_cut(longest), 4),
            "completions": len(self.tokens),
            "followed_to": self.bound,
        }


def find_max_tokens(
    recipe: Recipe, stage: SampledStage, rows: Sequence[Row], policy: Policy
) -> Lengths:
    """Lengths of completions of some `rows`, as far as `auto` may go; their `fitting()` is auto's.

    The same for the same policy, rows and seed.
    """
    room = _room(recipe, stage, rows, policy)
    return _measure(recipe, stage, rows, policy, min(AUTO_MOST, room))


def facts_of_evals(recipe: Recipe) -> list[Any]:
    """What decides `max_tokens: auto` of the evaluations, as JSON values."""
    stage = next(stage for stage in recipe.stages if stage.kind == "grpo")
    parts = stage.sampling, recipe.data_of(stage), recipe.policy
    settings = [part.model_dump(mode="json") for part in parts]
    return [*settings, recipe.template, recipe.system, *facts_of_turns(recipe)]


def length_notice(
    recipe: Recipe,
    stage: SampledStage,
    rows: Sequence[Row],
    policy: Policy,
    sampled: Lengths | None = None,
) -> Notice:
    """Whether the number given as max_tokens cuts completions off, and which would not.

    `sampled` are completions that were drawn already. Where it cuts more than 5%, completions are
    followed to four times that length.
    """
    given = stage.sampling.longest
    lengths = sampled or _measure(recipe, stage, rows, policy, given)
    if lengths.share_cut(given) > _CUT:
        bound = min(_FARTHER * given, _room(recipe, stage, rows, policy))
        lengths = _measure(recipe, stage, rows, policy, max(bound, given))
    share = lengths.share_cut(given)
    message = _cut_words(stage, lengths)
    better = lengths.fitting()
    left = lengths.share_cut(better)
    fix = f"set sampling.max_tokens {better}"
    fix += f", where {left:.0%} are still cut off" if left > _CUT else ""
    if share > _MANY and better <= given:
        fix = "there is no room for longer ones: train on shorter answers first (sft)"
    if share > _MANY:
        return Notice("truncation", "warned", message, fix)
    return Notice("truncation", "passed", message)


def auto_words(stage: str, facts: Mapping[str, Any]) -> str:
    """What `auto` came to, in a sentence."""
    return (
        f"stage {stage}: max_tokens auto is {facts['max_tokens']}: median {facts['median']:g} "
        f"tokens, {facts['cut']:.0%} of {facts['completions']} completions cut off"
    )


def measured(
    recipe: Recipe,
    stage: SampledStage,
    rows: Sequence[Row],
    policy: Policy,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Look at the lengths of a stage that begins; `note` hears what is to be said of them.

    Samples 64 completions, of which none is longer than the stage's own may be.
    """
    if stage.sampling.max_tokens != "auto":
        # Not followed further, as `check` does: a policy that never ends would take many steps.
        lengths = _measure(recipe, stage, rows, policy, stage.sampling.longest)
        facts = lengths.facts(lengths.bound)
        if lengths.share_cut(lengths.bound) > _MANY:
            note(
                f"{_cut_words(stage, lengths)} (rl-reasoner check says which max_tokens would not; "
                "auto takes it)"
            )
        return facts
    lengths = find_max_tokens(recipe, stage, rows, policy)
    facts = lengths.facts(lengths.fitting())
    note(auto_words(stage.name, facts))
    return facts


def _cut_words(stage: SampledStage, lengths: Lengths) -> str:
    given = stage.sampling.longest
    share = lengths.share_cut(given)
    cut = f"{share:.0%} cut off at {given}" if share else f"none cut off at {given}"
    return f"stage {stage.name}: median {_at_least(lengths)} tokens, {cut}"


def _at_least(lengths: Lengths) -> str:
    """The median; of completions that were mostly cut off it is only known what it exceeds."""
    middle = median(lengths.tokens)
    return f"over {middle:g}" if lengths.cut * 2 > len(lengths.tokens) else f"{middle:g}"


def _measure(
    recipe: Recipe, stage: SampledStage, rows: Sequence[Row], policy: Policy, bound: int
) -> Lengths:
    """Sample rows that stand evenly in `rows`, with completions of at most `bound` tokens."""
    free = [row for row in rows if not row.get("max_tokens")] or rows
    some = free[:: math.ceil(len(free) / _ROWS)]
    groups = sample(
        policy,
        [prompt_of(row, recipe.template, policy.tokenizer) for row in some],
        samples=_EACH,
        **stage.sampling.shares,
        max_tokens=bound,
        seed=recipe.run.seed,
        weights=getattr(stage.sampling, "weights", "own"),
        tools=recipe.tools,
        episodes=episodes_of(recipe, some),
    )
    return Lengths.of([rollout for group in groups for rollout in group], bound)


def _room(recipe: Recipe, stage: SampledStage, rows: Sequence[Row], policy: Policy) -> int:
    """The tokens that the policy's positions leave for a completion behind the longest prompt.

    Where a stage skips prompts that are too long, those that leave no room do not count.
    """
    places = declared_places(policy.model)
    if places is None:
        return sys.maxsize
    prompts = (prompt_of(row, recipe.template, policy.tokenizer) for row in rows)
    schemas = ToolUse.told(recipe.tools, policy.tokenizer)
    lengths = [len(prompt_ids(policy, prompt, schemas=schemas)) for prompt in prompts]
    if getattr(stage, "long_prompts", "stop") == "skip":
        lengths = [n for n in lengths if n + AUTO_STEP <= places] or lengths
    return max(1, int(places) - max(lengths))
