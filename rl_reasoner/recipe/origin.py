"""Where the policy that a recipe ends with comes from: its model, its stages, who taught it.

A recipe can train several models: a student has a `policy` of its own, and the stages before it
made its teacher. So what is published is followed back from the last stage that trains. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rl_reasoner.foreign import printable
from rl_reasoner.recipe.data import StageData, data_sources
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import DistillStage, RowStage, SampleStage, Stage


@dataclass(frozen=True)
class Origin:
    """The policy that weights come from, and the stages that made them of it, in their order.

    `reused`: it is a folder that stood in for the first of these stages.
    """

    source: str
    reused: bool = False
    stages: tuple[Stage, ...] = ()

    @property
    def name(self) -> str:
        """The policy, as a card names it."""
        return f"`{printable(self.source)}`"


def published_origin(recipe: Recipe) -> Origin:
    """Where the policy that a run of `recipe` ends with comes from."""
    trained = [stage for stage in recipe.stages if not isinstance(stage, RowStage)]
    return _made_by(recipe, trained[-1]) if trained else Origin(recipe.policy.source)


def starting_origin(recipe: Recipe, stage: Stage) -> Origin:
    """Where the policy that `stage` starts from, or samples, comes from."""
    if (name := recipe.start_of(stage)) is None:
        return Origin(getattr(stage, "policy", None) or recipe.policy.source)
    return _made_by(recipe, next(one for one in recipe.stages if one.name == name))


def two_models(recipe: Recipe) -> str:
    """What is to be said where "before" and "after" are two models; else an empty string.

    Before is what the first grpo stage starts from, without one the first stage.
    """
    first = next((s for s in recipe.stages if s.kind == "grpo"), recipe.stages[0])
    before, after = starting_origin(recipe, first), published_origin(recipe)
    if before.source == after.source:
        return ""
    return (
        f'The policy "before" comes from {before.name}, the one "after", with which the run ends, '
        f"from {after.name}: their difference is not a gain of one model."
    )


def stages_in_words(recipe: Recipe) -> tuple[str, str]:
    """The stages that led to what is published, with those whose rows it had; the others."""
    leading = _leading(recipe)
    told: tuple[list[str], list[str]] = [], []
    for stage in recipe.stages:
        told[stage.name not in leading].append(_in_words(stage))
    return ", ".join(told[0]), ", ".join(told[1])


def teachers(recipe: Recipe) -> Iterator[str]:
    """A sentence for each model that taught what is published: by probabilities or by samples."""
    named = {stage.name: stage for stage in recipe.stages}
    own, leading = published_origin(recipe), _leading(recipe)
    for stage in (one for one in recipe.stages if one.name in leading and one.reuse is None):
        if isinstance(stage, DistillStage):
            known = named.get(stage.teacher)
            teacher = Origin(stage.teacher) if known is None else _made_by(recipe, known)
            yield f"The teacher of stage {stage.name} is {_policy_in_words(teacher)}."
        elif isinstance(stage, SampleStage):
            sampled = starting_origin(recipe, stage)
            if sampled.source != own.source:
                yield f"The samples of stage {stage.name} are of {_policy_in_words(sampled)}."


def _made_by(recipe: Recipe, stage: Stage) -> Origin:
    """Where the policy that `stage` makes comes from."""
    if stage.reuse is not None:
        return Origin(stage.reuse, reused=True, stages=(stage,))
    start = starting_origin(recipe, stage)
    return Origin(start.source, start.reused, (*start.stages, stage))


def _leading(recipe: Recipe) -> set[str]:
    """The names of the stages that led to what is published, and of those that made its rows."""
    named = {stage.name: stage for stage in recipe.stages}
    left, found = [*published_origin(recipe).stages], set()
    while left:
        stage = left.pop()
        found.add(stage.name)
        rows = data_sources(recipe.data_of(stage)) if stage.reuse is None else ()
        left += [named[source.stage] for source in rows if isinstance(source, StageData)]
    return found


def _in_words(stage: Stage) -> str:
    if stage.reuse is not None:
        return f"{stage.name} ({stage.kind}, reused)"
    steps = "" if isinstance(stage, RowStage) else f", {stage.steps:,} steps"
    return f"{stage.name} ({stage.kind}{steps})"


def _policy_in_words(origin: Origin) -> str:
    if not origin.stages:
        return origin.name
    return f"the policy of stage {origin.stages[-1].name}, which comes from {origin.name}"
