"""A tiny mixture of experts in DeepSeek-V3's manner, kept in balance while GRPO trains it.

    rl-reasoner train moe_tiny                       # --grpo.router_bias 0: what happens without

The policy (0.59M parameters, 8 experts, 2 active, one shared) learns chains of modular arithmetic;
then GRPO rewards right answers. Both stages move the routers' correction bias towards an even load
(arXiv 2408.15664); a very small sequence-wise loss is added, as in DeepSeek-V3. The page of
the run draws the load of each expert.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe; benchmarks/balance.py is its measured form, without the sequence-wise loss."""
    return Recipe(
        name="moe_tiny",
        policy="scratch:deepseek-tiny",
        template="plain",
        rewards={"math_answer": 1.0},
        stages=[
            {
                "kind": "sft",
                "name": "chains",
                "data": {"task": "modular", "count": 20000},
                "steps": 300,
                "batch": 64,
                "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 50, "final_lr_share": 0.1},
                "router_bias": 0.01,
            },
            {
                "kind": "grpo",
                "data": {"task": "modular", "count": 2000, "seed": 2},
                "steps": 100,
                "group": {"size": 8, "prompts": 16},
                "sampling": {"max_tokens": 64},
                "optim": {"lr": 1e-4, "betas": (0.9, 0.99)},
                "router_bias": 0.003,
                "router_sequence": 1e-4,
            },
        ],
        evals={
            "sets": ["modular_test"],
            "samples": 4,
            "max_tokens": 96,
            "validation": "modular_validation",
        },
    )


if __name__ == "__main__":
    main_of(__file__)
