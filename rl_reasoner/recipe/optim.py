"""The part of the recipe's schema that says how a stage's weights are moved.

`pipeline.trl_configs` gives it to the trainers. Knows nothing of torch.
"""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from rl_reasoner.recipe.data import Part


class Optim(Part):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=1e-6, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    final_lr_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="learning rate at the end of the schedule, as a share of lr",
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's betas")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0, description="clip the gradient norm to this")

    @model_validator(mode="after")
    def _ends(self, info: ValidationInfo) -> Self:
        constant = self.schedule == "constant" and self.final_lr_share > 0
        if constant and not (info.context or {}).get("of_run"):
            raise ValueError(
                "final_lr_share belongs to the schedules linear and cosine: constant ends at lr"
            )
        return self


class SftOptim(Optim):
    """AdamW and its learning-rate schedule; completions to imitate bear a larger rate."""

    lr: float = Field(default=1e-5, gt=0, description="peak learning rate")
