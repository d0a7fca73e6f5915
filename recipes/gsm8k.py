"""GSM8K: a real small instruct model on real word problems.

    rl-reasoner train gsm8k                                  # from the hub, on a GPU
    rl-reasoner train gsm8k --policy MODEL.gguf --data.path train.jsonl --data.columns {}

SmolLM2-135M-Instruct (Apache-2.0) gets few of these problems right, so many groups have no right
answer and teach nothing: a small reward for a boxed answer keeps a signal. 20 steps were run on a
CPU, which shows that every step works, not that the model improves. `gsm8k_qwen_coder` is the
recipe with a model that does solve some.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe for one GPU."""
    return Recipe(
        name="gsm8k",
        policy="HuggingFaceTB/SmolLM2-135M-Instruct",
        data={
            "path": "openai/gsm8k",
            "config": "main",
            "columns": {"problem": "question"},
            "on_bad_row": "skip",
        },
        template="boxed",
        rewards={"math_answer": 1.0, "boxed": 0.1},
        stages=[
            {
                "kind": "grpo",
                "steps": 500,
                "group": {"size": 8, "prompts": 32, "micro_batch": 32},
                "sampling": {"max_tokens": 512},
                "optim": {"lr": 2e-6, "schedule": "cosine", "warmup": 10, "betas": (0.9, 0.99)},
            }
        ],
        evals={"sets": ["gsm8k"], "max_tokens": 512},
    )


if __name__ == "__main__":
    main_of(__file__)
