"""A real model as a mixture of experts: SmolLM2-135M upcycled, on one-step word problems.

    make real RECIPE=word_problems_moe SEED=0              # offline, in runs/real
    rl-reasoner export HuggingFaceTB/SmolLM2-135M-Instruct smollm2-moe --upcycle 4 --chosen 2
    rl-reasoner train word_problems_moe --form.data.path word_problems_form.jsonl \\
      --data.path word_problems_train.jsonl --evals.sets word_problems_test.jsonl

Each layer's feed-forward part becomes four equal experts with a random router, two for a token, so
that the mixture (a Mixtral of 0.37B parameters) begins as the dense model. All else is as in
`word_problems_smollm2`, beside which it is to be read: rows, steps, completions, rates. In GRPO the
experts that sampling chose are replayed, and Mixtral's auxiliary loss keeps their load even, in
both stages. The page of the run draws the load of each expert. Not yet measured.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

TEMPLATE = "<|im_start|>user\n{problem}<|im_end|>\n<|im_start|>assistant\n"


def recipe() -> Recipe:
    """The recipe for two CPU cores; the policy is the folder that `export --upcycle` wrote."""
    return Recipe(
        name="word_problems_moe",
        policy="smollm2-moe",
        data="word_problems_train.jsonl",
        template=TEMPLATE,
        rewards={"math_answer": 1.0},
        stages=[
            {
                "kind": "sft",
                "name": "form",
                "data": "word_problems_form.jsonl",
                "steps": 25,
                "batch": 16,
                "optim": {"lr": 3e-5, "warmup": 3},
                "router_aux": 0.01,
            },
            {
                "kind": "grpo",
                "steps": 120,
                "group": {"size": 8, "prompts": 16, "micro_batch": 64, "curriculum": True},
                "sampling": {"max_tokens": 32},
                "optim": {"lr": 3e-5, "warmup": 5, "betas": (0.9, 0.99)},
                "router_replay": True,
                "router_aux": 0.01,
                "save_every": 25,
            },
        ],
        evals={"sets": ["word_problems_test.jsonl"], "samples": 4, "max_tokens": 32},
    )


if __name__ == "__main__":
    main_of(__file__)
