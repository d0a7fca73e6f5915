"""An environment: a tiny policy learns to walk a grid with a wall that it cannot see.

    python recipes/game_tiny.py                  # or: rl-reasoner train game_tiny

"11>34?" asks the policy to go from row 1, column 1 to row 3, column 4 of a grid of 4 x 4, in eight
steps at most. A turn is a step; the environment `grid` says where the goal lies from there, or that
there was a wall: one cell is, another in each row. `form` teaches what a walk looks like, from
steps drawn at random. The environment pays half for coming closer, turn by turn (going away takes
it back), and half for arriving; right is who arrives. Ways are held out: those of evaluations stand
in no training row. What the environment says is no token of the policy's: it has no loss, in `form`
neither.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe."""
    return Recipe(
        name="game_tiny",
        policy="scratch:dense-tiny",
        template="plain",
        environment={"use": "grid", "options": {"moves": 8}, "turns": 8},
        rewards={"environment": 1.0},
        stages=[
            {
                "kind": "sft",
                "name": "form",
                "data": {"task": "grid", "count": 2000, "noise": 1.0},
                "steps": 150,
                "batch": 64,
                "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 20, "final_lr_share": 0.1},
            },
            {
                "kind": "grpo",
                "data": {"task": "grid", "count": 2000, "seed": 1},
                "steps": 200,
                "group": {"size": 16, "prompts": 16},
                "sampling": {"max_tokens": 96},
                "optim": {"lr": 1e-3, "betas": (0.9, 0.99)},
            },
        ],
        evals={"sets": ["grid_test"], "samples": 4, "max_tokens": 96},
    )


if __name__ == "__main__":
    main_of(__file__)
