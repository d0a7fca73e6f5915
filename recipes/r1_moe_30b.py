"""R1 on a mixture of experts of 30 billion parameters, 3 billion active, English and Chinese.

    accelerate launch recipes/r1_moe_30b.py      # GPUs of 80 GB; see docs/scaling.md

The stages, data and sizes of r1_qwen_7b; routers are trained with the experts of sampling replayed,
and without the auxiliary loss. Not run: each stage has been taken at a reduced size with scratch
policies, no more.
"""

from collections.abc import Mapping
from typing import Any

from rl_reasoner.recipes.r1_qwen_7b import DATA, EVALS, SIZES
from rl_reasoner.recipes.r1_qwen_7b import recipe as dense

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

MIXTURE = {**SIZES, "grpo": {**SIZES["grpo"], "router_replay": True, "router_aux": 0.0}}


def recipe(
    policy: str = "Qwen/Qwen3-30B-A3B-Base",
    student: str = "Qwen/Qwen3-4B-Base",
    data: Mapping[str, Any] = DATA,
    sizes: Mapping[str, Any] = MIXTURE,
    evals: Mapping[str, Any] = EVALS,
) -> Recipe:
    """The recipe for GPUs."""
    return dense(policy, student, data, sizes, evals).model_copy(update={"name": "r1_moe_30b"})


if __name__ == "__main__":
    main_of(__file__)
