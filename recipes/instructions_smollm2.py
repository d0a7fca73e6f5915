"""Verifiable instructions on two CPU cores: SmolLM2-135M-Instruct learns to follow all of them.

    rl-reasoner train instructions_smollm2                        # the hub's weights: no figure
    make real RECIPE=instructions_smollm2 SEED=0                  # offline, in runs/real
    rl-reasoner train instructions_smollm2 --policy FOLDER --data instructions_train.jsonl \\
      --evals.sets instructions_test.jsonl

"Tell me about the moon. Do not use any commas. Begin with the words ...": one or two instructions a
prompt, generated, checked by program; a response earns 1 when it follows all. The generator writes
half of its prompts in Chinese, which this model hardly knows: the files that `make real` makes
(benchmarks/real/splits.py) hold the English ones. 3,200 completions; responses are short so that
two cores draw them in an afternoon. `make real` trains the 4-bit file (Q4_1), dequantised. What
came of it: docs/real-models.md.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe for two CPU cores."""
    return Recipe(
        name="instructions_smollm2",
        policy="HuggingFaceTB/SmolLM2-135M-Instruct",
        data={"task": "instructions", "levels": (1, 2), "count": 2000},
        system="Answer in a few sentences.",
        rewards={"instructions": 1.0},
        stages=[
            {
                "kind": "grpo",
                "steps": 50,
                "group": {"size": 8, "prompts": 8, "micro_batch": 16},
                "sampling": {"max_tokens": 160},
                "optim": {"lr": 1e-5, "warmup": 5, "betas": (0.9, 0.99)},
                "save_every": 10,
            }
        ],
        evals={"sets": ["instructions_test"], "samples": 1, "max_tokens": 160},
    )


if __name__ == "__main__":
    main_of(__file__)
