"""The part of the recipe's schema that says what answers the policy, turn by turn.

`rl_reasoner.rollout.episodes` makes it work, in training and evaluation.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from rl_reasoner.recipe.data import Part


class EnvironmentSettings(Part):
    """An environment, and how long it plays; `environment: guess` gives only the first."""

    use: str = Field(description="environment: guess, grid, or a class of yours as FILE.py:NAME")
    options: Mapping[str, Any] = Field(
        default_factory=dict, description="what the class is made with, by name"
    )
    turns: int = Field(default=8, ge=1, description="turns of the policy in one completion")
    seconds: float | None = Field(
        default=None, gt=0, description="seconds of a completion's steps together"
    )
    timeout_s: float = Field(default=10.0, gt=0, description="seconds of one step")
    memory_mb: int = Field(
        default=1024,
        ge=64,
        description="memory of one process, in MiB, for all episodes that it plays at once",
    )
    output_chars: int = Field(
        default=4000, ge=20, description="characters of a message that the policy is shown"
    )
    processes: int = Field(default=4, ge=1, description="processes that play at the same time")

    @model_validator(mode="before")
    @classmethod
    def _name(cls, data: Any) -> Any:
        """A name alone is what `use` would be."""
        return {"use": data} if isinstance(data, str) else data
