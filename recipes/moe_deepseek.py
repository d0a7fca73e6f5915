"""DeepSeek-V2-Lite (16 billion parameters, 2.4 active) on GSM8K: all weights, experts balanced.

    rl-reasoner train moe_deepseek --launch 8      # eight GPUs of 80 GB; see docs/moe.md

Its routers have no correction bias, which came with V3, and transformers has no auxiliary loss for
them: DeepSeek's sequence-wise loss keeps the load. The experts of sampling are replayed. Not run at
its size: two steps of the same code with a tiny DeepSeek-V2 are tested on a CPU. By the planner
(`rl-reasoner env --plan moe_deepseek`) a GPU holds 58 GB at most, and the run takes 1.5 hours on
eight H100.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe for GPUs."""
    return Recipe(
        name="moe_deepseek",
        policy="deepseek-ai/DeepSeek-V2-Lite-Chat",
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
                "sampling": {"max_tokens": 1024},
                "optim": {"lr": 1e-6, "warmup": 10, "betas": (0.9, 0.99)},
                "router_replay": True,
                "router_sequence": 1e-4,
            }
        ],
        evals={"sets": ["gsm8k"], "max_tokens": 1024},
        run={"precision": "bf16", "parallel": "fsdp"},
    )


if __name__ == "__main__":
    main_of(__file__)
