"""The part of the recipe's schema that says which samples of a policy are kept as rows.

What keeps them is `pipeline.rejection_sampling`. Knows nothing of torch.
"""

from pydantic import Field

from rl_reasoner.recipe.data import Part


class Keep(Part):
    """Which of the right completions a `sample` stage keeps."""

    per_prompt: int = Field(default=1, ge=1, description="at most this many per prompt")
    readable: bool = Field(
        default=True,
        description="only those not cut off, not repetitive, with tags (if any) once each "
        "and in order",
    )
    language: str | None = Field(
        default=None, description="the language of the chains, such as en or zh"
    )
    language_share: float = Field(
        default=1.0, ge=0, le=1, description="minimum share of a chain's words in that language"
    )
    min_tokens: int = Field(default=1, ge=1, description="shortest completion, in tokens")
    max_tokens: int | None = Field(default=None, ge=1, description="longest completion, in tokens")
