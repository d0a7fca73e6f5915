"""The part of the recipe's schema that says how a low-rank adapter is put on the policy.

What puts it there is `policy.lora`. Knows nothing of torch.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from rl_reasoner.recipe.data import Part


def _named_layers(targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Names in one text, with commas, as names; raises ValueError for a text that is no pattern."""
    if not isinstance(targets, str) or targets == "all-linear":
        return targets
    names = tuple(name.strip() for name in targets.split(",") if name.strip())
    parts = [part for name in names for part in name.split(".")]
    if parts and all(part.isidentifier() or part.isdigit() for part in parts):
        return names
    try:
        re.compile(targets)
    except (re.error, RecursionError) as error:
        raise ValueError(
            f"{targets!r} is neither layers' names nor a regular expression ({error})"
        ) from error
    return targets


class Lora(Part):
    """A low-rank adapter (peft) instead of training all weights."""

    rank: int = Field(default=16, ge=1, description="rank r of the update")
    alpha: int = Field(default=32, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the update")
    targets: Annotated[str | tuple[str, ...], AfterValidator(_named_layers)] = Field(
        default="all-linear",
        description="layers' names, or 'all-linear': linear layers and experts, not the router; "
        "any other text is a regular expression of whole names",
    )
