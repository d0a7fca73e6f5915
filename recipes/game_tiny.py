"""An environment: a tiny policy is to learn to guess a number by halving what is left.

    python recipes/game_tiny.py                  # or: rl-reasoner train game_tiny

The policy is asked "23-38?" and guesses; the environment `guess` says "higher" or "lower", five
guesses at most. `form` teaches what a game looks like, from careless play: four of five guesses are
drawn at random from the range, whatever was said of the ones before. The environment pays half for
what hints tell of the number, turn by turn, and half for the number; right is who has all. What is
to be learned is to heed the hints, and to guess in the middle. Ranges are held out: those of
evaluations stand in no training row. What the environment says is no token of the policy's: it has
no loss, in `form` neither.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe."""
    return Recipe(
        name="game_tiny",
        policy="scratch:dense-tiny",
        template="plain",
        environment={"use": "guess", "options": {"guesses": 5}, "turns": 5},
        rewards={"environment": 1.0},
        stages=[
            {
                "kind": "sft",
                "name": "form",
                "data": {"task": "guess", "count": 800, "noise": 0.8},
                "steps": 300,
                "batch": 64,
                "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 20, "final_lr_share": 0.1},
            },
            {
                "kind": "grpo",
                "data": {"task": "guess", "count": 800, "seed": 1},
                "steps": 400,
                "group": {"size": 16, "prompts": 16},
                "sampling": {"max_tokens": 64},
                "optim": {"lr": 2e-3, "betas": (0.9, 0.99)},
            },
        ],
        evals={"sets": ["guess_test"], "samples": 4, "max_tokens": 64},
    )


if __name__ == "__main__":
    main_of(__file__)
