"""A real model as a mixture of experts: SmolLM2-135M upcycled, on one-step word problems.

    make real RECIPE=word_problems_moe SEED=0              # offline, in runs/real
    rl-reasoner export HuggingFaceTB/SmolLM2-135M-Instruct smollm2-moe --upcycle 4 --chosen 2
    rl-reasoner train word_problems_moe --form.data.path word_problems_form.jsonl \\
      --data.path word_problems_train.jsonl --evals.sets word_problems_test.jsonl

Each layer's feed-forward part becomes four equal experts with a random router, two for a token, so
that the mixture (a Mixtral of 0.37B parameters) begins as the dense model. All else is as in
`word_problems_smollm2`, beside which it is to be read: rows, steps, completions, rates. In GRPO the
experts that sampling chose are replayed, and Mixtral's auxiliary loss keeps their load even, in
both stages. The run's page draws the load of each expert. `make real` upcycles the 4-bit
file (Q4_1), dequantised; of the hub's weights there is no figure. What it came to:
docs/real-models.md.
"""

from rl_reasoner.recipes.word_problems_smollm2 import recipe as dense

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The dense recipe with a balanced mixture, the folder that `export --upcycle` wrote."""
    run = dense()
    stages = tuple(stage.model_copy(update={"router_aux": 0.01}) for stage in run.stages)
    policy = run.policy.model_copy(update={"source": "smollm2-moe"})
    update = {"name": "word_problems_moe", "policy": policy, "stages": stages}
    return run.model_copy(update=update)


if __name__ == "__main__":
    main_of(__file__)
