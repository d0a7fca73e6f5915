"""MBPP: a real small code model learns from tests of real tasks, run in the sandbox.

    rl-reasoner train code_mbpp                                          # from the hub, on a GPU
    rl-reasoner train code_mbpp --data.path mbpp.jsonl --data.columns {} --evals.sets humaneval

MBPP (CC BY 4.0) gives a task in a sentence and three assertions; the first one is shown to the
policy, which would not know the function's name without it. A completion earns 1 when its last
Python block passes all three. HumanEval is not trained on. It has been run for two steps on a CPU
with a tiny policy, which shows that every step works, not what a full run gives.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe for one GPU."""
    return Recipe(
        name="code_mbpp",
        policy="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        data={
            "path": "google-research-datasets/mbpp",
            "config": "full",
            "columns": {"problem": "text", "tests": "test_list"},
            "on_bad_row": "skip",
        },
        rewards={"code_tests": 1.0},
        stages=[
            {
                "kind": "grpo",
                "steps": 300,
                "group": {"size": 8, "prompts": 16, "micro_batch": 32},
                "sampling": {"max_tokens": 512},
                "optim": {"lr": 1e-6, "warmup": 10, "betas": (0.9, 0.99)},
            }
        ],
        evals={
            "sets": ["mbpp", "humaneval"],
            "samples": 4,
            "max_tokens": 512,
            "reward": "code_tests",
        },
    )


if __name__ == "__main__":
    main_of(__file__)
