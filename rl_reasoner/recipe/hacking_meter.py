"""The part of the recipe's schema that says how the hacking meter looks at a run.

`rl_reasoner.hacking` makes it work while GRPO trains. It changes nothing of what is trained.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from rl_reasoner.recipe.data import JudgeName, Part


class HackingMeterSettings(Part):
    """How often the best-paid completions are judged again, how many, and by whom."""

    every: int = Field(
        default=5, ge=0, description="steps of a window, at whose end it judges; 0 = off"
    )
    completions: int = Field(
        default=32,
        ge=1,
        le=256,
        description="best-paid completions of a window that are judged again, one a group at most",
    )
    rewards: tuple[str, ...] = Field(
        default=(),
        description="the rewards that say an answer is good (default: all but those of form: "
        "format_tags, boxed, length, repetition, language, step_arithmetic)",
    )
    judge: JudgeName = Field(
        default=None,
        description="a reward that judges independently, right from 0.5 on (default: as the rows "
        "allow: their gold answers, hidden or mutated tests, texts without praise and repeats)",
    )
    judge_options: Mapping[str, Any] = Field(
        default_factory=dict, description="options of that reward"
    )
