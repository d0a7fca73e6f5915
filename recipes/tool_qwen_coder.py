"""GSM8K with Python on two CPU cores: Qwen2.5-Coder-0.5B-Instruct calls the sandbox.

    rl-reasoner train tool_qwen_coder                             # the hub's weights: no figure
    make real RECIPE=tool_qwen_coder SEED=0                       # offline, in runs/real
    rl-reasoner train tool_qwen_coder --policy FOLDER --data.path gsm8k_train.jsonl \\
      --data.config null --data.columns {} --evals.sets gsm8k_test.jsonl

The policy writes a program, reads what it printed, and says the answer; the reward is for right
answers alone. The prompt is plain text with one example: as a chat, and asked for a program, this
model mostly reasons in prose, in more than twice the tokens (docs/real-models.md). One example was
kept, not four, after a look at 400 test rows. `make real` trains the 4-bit file (Q4_K_M),
dequantised. Like ToRL (arXiv 2503.23383). Without the tool:
`rl-reasoner eval POLICY --tools none --template boxed --max-tokens 400`.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

# A sum that is written down but not done is equal to its answer; these rows ask for the number.
WORKED_OUT = {"value_only": True}

HEAD = "Each problem is solved with a short Python program. Its output gives the answer."
# The example ends as a document does, with Qwen's own token: so does a completion then. Without it,
# every second sample went on with a problem of its own making until it was cut off.
TEMPLATE = rf"""{HEAD}

Problem: Ann has 3 boxes of 12 pens and gives away 7 pens. How many pens are left?
Solution:
```python
pens = 3 * 12
left = pens - 7
print(left)
```
```output
29
```
The answer is \boxed{{29}}.<|endoftext|>{HEAD}

Problem: {{problem}}
Solution:
"""


def recipe() -> Recipe:
    """The recipe for two CPU cores."""
    return Recipe(
        name="tool_qwen_coder",
        policy={"source": "Qwen/Qwen2.5-Coder-0.5B-Instruct", "lora": {"rank": 16}},
        data={
            "path": "openai/gsm8k",
            "config": "main",
            "columns": {"problem": "question"},
            "on_bad_row": "skip",
        },
        template=TEMPLATE,
        tools={"use": ["python"], "format": "fences", "calls": 3},
        rewards={"math_answer": {"weight": 1.0, "options": WORKED_OUT}},
        stages=[
            {
                "kind": "grpo",
                "steps": 50,
                "group": {"size": 8, "prompts": 8, "micro_batch": 8},
                "sampling": {"max_tokens": 256},
                "trainer": {"vllm_importance_sampling_mode": "token_truncate"},
                "optim": {"lr": 5e-5, "warmup": 5, "betas": (0.9, 0.99)},
                "save_every": 5,
            }
        ],
        evals={
            "sets": ["gsm8k"],
            "limit": 400,
            "max_tokens": 256,
            "reward": "math_answer",
            "reward_options": WORKED_OUT,
        },
    )


if __name__ == "__main__":
    main_of(__file__)
