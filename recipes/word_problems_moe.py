"""A real model as a mixture of experts: SmolLM2-135M upcycled, on one-step word problems.

    rl-reasoner export HuggingFaceTB/SmolLM2-135M-Instruct smollm2-moe --upcycle 4 --chosen 2
    rl-reasoner train word_problems_moe                           # rows from the hub
    make real RECIPE=word_problems_moe SEED=0                     # offline, in runs/real
    rl-reasoner train word_problems_moe --policy FOLDER --data.path word_problems_train.jsonl \\
      --data.columns {} --evals.sets word_problems_test.jsonl

Each layer's feed-forward part becomes four equal experts with a random router, two for a token, so
that the mixture (a Mixtral of 0.37B parameters) begins as the dense model, to the last digits. The
experts that sampling chose are replayed in training, and Mixtral's auxiliary loss keeps their load
even. The page of the run draws the load of each expert. From the hub it trains on SVAMP; offline on
MAWPS, ASDiv and SVAMP as benchmarks/real/splits.py writes them. Not yet measured.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe for two CPU cores; the policy is the folder that `export --upcycle` wrote."""
    return Recipe(
        name="word_problems_moe",
        policy="smollm2-moe",
        data={
            "path": "ChilleD/SVAMP",
            "columns": {"problem": "question_concat", "answer": "Answer"},
            "on_bad_row": "skip",
        },
        template="boxed",
        rewards={"math_answer": 1.0},
        stages=[
            {
                "kind": "grpo",
                "steps": 50,
                "group": {"size": 8, "prompts": 8, "micro_batch": 16},
                "sampling": {"max_tokens": 160},
                "optim": {"lr": 1e-5, "warmup": 5, "betas": (0.9, 0.99)},
                "router_replay": True,
                "router_aux": 0.01,
                "save_every": 10,
            }
        ],
        evals={"sets": ["svamp"], "limit": 500, "samples": 1, "max_tokens": 160},
    )


if __name__ == "__main__":
    main_of(__file__)
