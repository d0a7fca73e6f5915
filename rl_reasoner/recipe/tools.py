"""The part of the recipe's schema that says what the policy may call in the middle of a completion.

`rl_reasoner.rollout.tool_turns` makes it work, in training, evaluation and wherever a run samples.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from rl_reasoner.recipe.data import Part


class ToolSettings(Part):
    """Tools, the form of calls, and what they may take; `tools: [python]` gives only the first."""

    use: tuple[str, ...] = Field(
        min_length=1,
        description="tools: calculator, python, or functions of yours as FILE.py:NAME",
    )
    format: Literal["auto", "hermes", "llama3", "fences", "tags"] = Field(
        default="auto",
        description="how calls are written; auto: as the policy's chat template has it; fences: "
        "```python blocks; tags: <python>...</python>",
    )
    calls: int = Field(
        default=4, ge=1, description="calls in one completion; one more ends the completion"
    )
    timeout_s: float = Field(default=10.0, gt=0, description="seconds of one call")
    memory_mb: int = Field(default=1024, ge=64, description="memory of one call, in MiB")
    output_chars: int = Field(
        default=1000, ge=20, description="characters of a result that the policy is shown"
    )

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """A list of names, or one with commas, is what `use` would be."""
        if isinstance(data, str):
            data = [name.strip() for name in data.split(",")]
        return {"use": data} if isinstance(data, (list, tuple)) else data
