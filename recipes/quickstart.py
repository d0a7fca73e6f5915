"""Quickstart: a tiny mixture of experts learns to think before it answers.

    python recipes/quickstart.py --run.seed 1    # or: rl-reasoner train quickstart

The policy (0.54M parameters, 8 experts, 2 active) learns chains of modular arithmetic in `chains`.
`habit` gives it a bad habit: 60% of its rows answer at once. GRPO rewards right answers alone; that
drops the habit and adds no skill, as the report says. Like R1-Zero (arXiv 2501.12948), but small.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe; its settings were chosen on the validation split."""
    return Recipe(
        name="quickstart",
        policy="scratch:moe-tiny",
        template="plain",
        rewards={"math_answer": 1.0},
        stages=[
            {
                "kind": "sft",
                "name": "chains",
                "data": {"task": "modular", "count": 20000},
                "steps": 400,
                "batch": 64,
                "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 50, "final_lr_share": 0.1},
            },
            {
                "kind": "sft",
                "name": "habit",
                "data": {"task": "modular", "count": 5000, "seed": 1, "direct": 0.6},
                "steps": 80,
                "batch": 64,
                "optim": {"lr": 1.5e-3, "schedule": "linear", "final_lr_share": 0.2},
            },
            {
                "kind": "grpo",
                "data": {"task": "modular", "count": 2000, "seed": 2},
                "steps": 60,
                "group": {"size": 8, "prompts": 16},
                "sampling": {"max_tokens": 64},
                "optim": {"lr": 1e-4, "betas": (0.9, 0.99)},
                "loss": {"beta": 0.001},
                "router_aux": 0.0,
            },
        ],
        evals={
            "sets": ["modular_test", "modular_ood"],
            "samples": 4,
            "forced": True,
            "max_tokens": 96,
            "validation": "modular_validation",
        },
    )


if __name__ == "__main__":
    main_of(__file__)
