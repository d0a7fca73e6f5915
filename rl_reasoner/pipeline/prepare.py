"""Everything a run needs before a model is loaded: its inputs, and configs that trl accepts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rl_reasoner.pipeline.inputs import (
    Inputs,
    Problems,
    check_filled,
    data_place,
    made_in_run,
    read_inputs,
)
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.trl_configs import check_configs
from rl_reasoner.policy.fp8.layers import fp8_backend
from rl_reasoner.recipe.load import Locate
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.types import Row


@dataclass(frozen=True)
class Prepared:
    """What is read before any model is loaded."""

    rows: Mapping[str, list[Row]]
    """by stage; empty where another stage makes them, or the stage reuses a result"""
    rewards: Mapping[str, Callable[..., Any]]
    """by their names in the recipe"""
    step_prompts: Mapping[str, int]
    """how many prompts a step of a grpo or distill stage takes, by stage"""
    read: Mapping[str, str]
    """the hash of each file of data or code when it was read"""


def prepare(
    recipe: Recipe,
    placement: Placement,
    locate: Locate | None = None,
    inputs: Inputs | None = None,
) -> Prepared:
    """What a run of `recipe` needs, checked with what trl and the machine refuse.

    `inputs` are the recipe's, where they have been read; `locate` gives the place of a field. Every
    mistake is in one `UserError`; those of the inputs come before those of the configs.
    """
    inputs = inputs or read_inputs(recipe, locate)
    problems = Problems(locate)
    if placement.precision == "fp8":
        with problems.field("run", "precision"):
            fp8_backend(placement.device, recipe.run.fp8)
    step_prompts: Mapping[str, int] = {}
    if not problems.found:
        with problems.field("stages"):  # what the trainers' configs refuse
            step_prompts = check_configs(recipe, placement)
    for index, stage in enumerate(recipe.stages):
        if not made_in_run(recipe, index):
            with problems.field(*data_place(recipe, index)):
                needed = step_prompts.get(stage.name, 0)
                check_filled(stage, len(inputs.rows[stage.name]), needed)
    problems.tell()
    return Prepared(inputs.rows, inputs.rewards, step_prompts, inputs.read)
