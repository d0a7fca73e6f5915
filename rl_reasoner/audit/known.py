"""What an audit has of a recipe without running code that the run brings: its rows and rewards.

A reward that is not loaded (`trust`) still has its name and its weight: all that the figures of a
run need. What is asked of a stage whose rows cannot be read raises why.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.inputs import made_in_run, read_stage_rows
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.scoring.registry import function_name, load_reward
from rl_reasoner.types import Row


@dataclass
class Known:
    """The rows and rewards of a recipe, as far as they are to be had."""

    rewards: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """those that were loaded, by their names in the recipe"""
    refused: dict[str, UserError] = field(default_factory=dict)
    """why the others were not"""
    rows: dict[str, list[Row] | UserError] = field(default_factory=dict)
    """by stage, or why they cannot be read; empty where another stage makes them"""

    @property
    def named(self) -> Mapping[str, Any]:
        """All rewards; of those that were not loaded there is something of that name."""
        others = {name: SimpleNamespace(__name__=function_name(name)) for name in self.refused}
        return {**self.rewards, **others}

    def rows_of(self, stage: str) -> list[Row]:
        """The rows of a stage; raises `UserError` where they cannot be read."""
        rows = self.rows[stage]
        if isinstance(rows, UserError):
            raise rows
        return rows

    @property
    def errors(self) -> list[str]:
        """Why something cannot be read, each once."""
        errors = [*self.refused.values(), *self.rows.values()]
        found = [text for e in errors if isinstance(e, UserError) for text in e.messages]
        return [*dict.fromkeys(found)]


def read_known(recipe: Recipe) -> Known:
    """Read what `recipe` names; nothing of it is called, and nobody asked."""
    known = Known()
    for name, spec in recipe.rewards.items():
        try:
            known.rewards[name] = load_reward(name, spec.options, spec.source)
        except UserError as error:
            known.refused[name] = error
    for index, stage in enumerate(recipe.stages):
        try:
            made = made_in_run(recipe, index)
            data = recipe.data_of(stage)
            known.rows[stage.name] = (
                [] if made else read_stage_rows(recipe, stage, data, known.named)
            )
        except UserError as error:
            known.rows[stage.name] = error
    return known
