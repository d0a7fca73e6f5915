"""R1 on a mixture of experts of 30 billion parameters, 3 billion active, English and Chinese.

    sbatch recipes/launch/slurm.sh r1_moe_30b runs/r1      # 32 GPUs of 80 GB; see docs/scaling.md

The stages, data and sizes of r1_qwen_7b. vLLM samples on the same GPUs, four to an engine: the
whole weights do not fit beside the training. Routers are trained without the auxiliary loss, with
the experts of the pass for old log-probs replayed (vLLM does not tell its own). Not run: each stage
has been taken at a reduced size with scratch policies, no more. By the planner (`rl-reasoner env
--plan r1_moe_30b --gpus 32`) a GPU holds 58 GB at most, and each of the three grpo stages takes 51
hours on 32 H100, 1,600 GPU-hours.
"""

from collections.abc import Mapping
from typing import Any

from rl_reasoner.recipes.r1_qwen_7b import DATA, EVALS, SIZES
from rl_reasoner.recipes.r1_qwen_7b import recipe as dense

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

_GRPO = {"vllm": {"memory": 0.5, "gpus": 4}, "router_replay": True, "router_aux": 0.0}
MIXTURE = {**SIZES, "grpo": {**SIZES["grpo"], **_GRPO}}


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
