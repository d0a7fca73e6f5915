"""Instructions, tiny: a policy of half a million parameters learns to follow all instructions.

    python recipes/instructions_tiny.py          # or: rl-reasoner train instructions_tiny

Prompts ask for a few English words or Chinese characters: how many, with which letters, in which
case. The cold start learns from responses of which half forget one instruction. GRPO's only reward
is that a response follows all of them, checked by program; it is shown no right response.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe; its settings were chosen on the validation split."""
    return Recipe(
        name="instructions_tiny",
        policy="scratch:moe-tiny",
        template="plain",
        rewards={"instructions": 1.0},
        stages=[
            {
                "kind": "sft",
                "name": "forgetful",
                "data": {"task": "instructions_tiny", "count": 10000, "noise": 0.5},
                "steps": 500,
                "batch": 64,
                "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 50, "final_lr_share": 0.1},
            },
            {
                "kind": "grpo",
                "data": {"task": "instructions_tiny", "count": 4000, "seed": 2},
                "steps": 240,
                "group": {"size": 8, "prompts": 16},
                "sampling": {"max_tokens": 40},
                "optim": {"lr": 1.5e-4, "betas": (0.9, 0.99)},
                "router_aux": 0.0,
            },
        ],
        evals={"sets": ["instructions_tiny_test"], "samples": 4, "max_tokens": 40},
    )


if __name__ == "__main__":
    main_of(__file__)
