"""Qwen3-30B-A3B (30 billion parameters, 3 active) on GSM8K: an adapter, FP8, replayed experts.

    rl-reasoner train moe_qwen3 --launch 8    # eight GPUs with FP8: pip install -e '.[fp8]'

The adapter is on attention and experts; routers stay as they are. Linear layers and experts
multiply in FP8, one scale a block as in DeepSeek-V3 (Hopper; `--run.fp8 row` on Ada). Not run at
its size: two steps of the same code with a tiny Qwen3-MoE are tested on a CPU, where FP8 is
emulated. FP8 is good enough if the loss of a converged run lies within 0.25% of bf16's
(DeepSeek-V3's bound): compare with `--run.precision bf16`. vLLM samples on the same GPUs, so what
is replayed are the experts of the pass for old log-probs; on GPUs of 141 GB `--vllm none` samples
in the trainer and replays those of sampling. By the planner (`rl-reasoner env --plan moe_qwen3`) a
GPU holds 60 GB at most, and the run takes 2.8 hours on eight H100.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe for GPUs."""
    return Recipe(
        name="moe_qwen3",
        policy={"source": "Qwen/Qwen3-30B-A3B", "lora": {"rank": 32, "alpha": 64}},
        data={
            "path": "openai/gsm8k",
            "config": "main",
            "columns": {"problem": "question"},
            "on_bad_row": "skip",
        },
        template="boxed",
        rewards={"math_answer": 1.0},
        stages=[
            {
                "kind": "grpo",
                "steps": 200,
                "group": {"size": 8, "prompts": 16, "micro_batch": 8},
                "sampling": {"max_tokens": 2048},
                "optim": {"lr": 2e-5, "warmup": 10, "betas": (0.9, 0.99)},
                "loss": {"algorithm": "dapo"},
                "vllm": {"memory": 0.5, "gpus": 4},
                "router_replay": True,
                "router_aux": 0.0,
            }
        ],
        evals={"sets": ["gsm8k"], "max_tokens": 2048},
        run={"precision": "fp8", "fp8": "block", "parallel": "fsdp"},
    )


if __name__ == "__main__":
    main_of(__file__)
