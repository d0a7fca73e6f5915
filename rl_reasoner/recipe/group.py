"""The part of the recipe's schema that says which prompts a step of GRPO takes, and how many.

What draws them is `training.curriculum`. Knows nothing of torch.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rl_reasoner.errors import did_you_mean
from rl_reasoner.recipe.data import Part

_BAND = (0.3, 0.7)  # of success: a group of 8 has right and wrong ones nearly always


def _curriculum(value: Any) -> Any:
    """True, False, also as text, or "levels"; raises ValueError for anything else."""
    if isinstance(value, bool) or value == "levels":
        return value
    text = str(value).strip().lower()
    if text not in ("true", "false"):
        hint = did_you_mean(text, ("true", "false", "levels"))
        raise ValueError(f"expected true, false or levels, not {value!r:.40}.{hint}")
    return text == "true"


Band = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]


class Group(Part):
    """Batch of one GRPO step: `prompts` prompts with `size` completions each."""

    size: int = Field(default=8, ge=2, description="completions per prompt (G in the GRPO paper)")
    prompts: int = Field(default=16, ge=1, description="prompts per step")
    micro_batch: int | None = Field(
        default=None, ge=1, description="completions in one forward pass (default: all of the step)"
    )
    curriculum: Annotated[bool | Literal["levels"], BeforeValidator(_curriculum)] = Field(
        default=False,
        description="curriculum: draw prompts of medium difficulty more often; levels: draw the "
        "levels (column level) whose success is in the band",
    )
    band: Band = Field(
        default=_BAND, description="curriculum levels: lowest and highest share of success"
    )

    @model_validator(mode="after")
    def _banded(self) -> Self:
        low, high = self.band
        if not low < high:
            raise ValueError(f"band [{low:g}, {high:g}]: the lowest share has to come first")
        if self.curriculum != "levels" and self.band != _BAND:
            raise ValueError("band belongs to curriculum: levels")
        return self
