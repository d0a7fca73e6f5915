"""MBPP on two CPU cores: Qwen2.5-Coder-0.5B-Instruct, rewarded by the sandbox alone.

    rl-reasoner train mbpp_qwen_coder                             # model and rows from the hub
    make real RECIPE=mbpp_qwen_coder SEED=0                       # offline, in runs/real
    rl-reasoner train mbpp_qwen_coder --policy FOLDER --data.path mbpp_train.jsonl \\
      --data.config null --data.columns {} --evals.sets mbpp_test.jsonl,humaneval

3,200 completions for rows of MBPP's train split (CC BY 4.0), of which the first assertion is shown;
a completion earns 1 when its last Python block passes all three. Its test split is evaluated before
and after, and HumanEval, by which the 512 tokens were chosen. The system prompt asks for the
function alone: without it the model explains, in three times the tokens, and tests its own
function, wrongly at times (recipes/README.md). Adapter, rate and batch are those of
`tool_qwen_coder`.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

SYSTEM = "Write only the function, in one Python code block: no explanation, no tests."


def recipe() -> Recipe:
    """The recipe for two CPU cores; `code_mbpp` is the one for a GPU."""
    return Recipe(
        name="mbpp_qwen_coder",
        policy={"source": "Qwen/Qwen2.5-Coder-0.5B-Instruct", "lora": {"rank": 16}},
        data={
            "path": "google-research-datasets/mbpp",
            "config": "full",
            "columns": {"problem": "text", "tests": "test_list"},
            "on_bad_row": "skip",
        },
        system=SYSTEM,
        rewards={"code_tests": 1.0},
        stages=[
            {
                "kind": "grpo",
                "steps": 50,
                "group": {"size": 8, "prompts": 8, "micro_batch": 8},
                "sampling": {"max_tokens": 256},
                "optim": {"lr": 5e-5, "warmup": 5, "betas": (0.9, 0.99)},
                "save_every": 5,
            }
        ],
        evals={
            "sets": ["mbpp", "humaneval"],
            "samples": 1,
            "max_tokens": 512,
            "reward": "code_tests",
        },
    )


if __name__ == "__main__":
    main_of(__file__)
