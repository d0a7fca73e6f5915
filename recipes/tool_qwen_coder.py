"""GSM8K with Python on two CPU cores: Qwen2.5-Coder-0.5B-Instruct calls the sandbox.

    rl-reasoner train tool_qwen_coder                             # model and rows from the hub
    make real RECIPE=tool_qwen_coder SEED=0                       # offline, in runs/real
    rl-reasoner train tool_qwen_coder --policy FOLDER --data.path gsm8k_train.jsonl \\
      --data.config null --data.columns {} --evals.sets gsm8k_test.jsonl

The policy writes a program, reads what it printed, and says the answer; the reward is for right
answers alone. The prompt is plain text with four examples: as a chat, and asked for a program, this
model mostly reasons in prose, in more than twice the tokens (recipes/README.md). Like ToRL
(arXiv 2503.23383). Without the tool:
`rl-reasoner eval POLICY --tools none --template boxed --max-tokens 400`.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

# A sum that is written down but not done is equal to its answer; these rows ask for the number.
WORKED_OUT = {"value_only": True}

HEAD = "Each problem is solved with a short Python program. Its output gives the answer."
EXAMPLES = (  # problem, program, output, answer
    (
        "Ann has 3 boxes of 12 pens and gives away 7 pens. How many pens are left?",
        "pens = 3 * 12\nleft = pens - 7\nprint(left)",
        "29",
        "29",
    ),
    (
        "A shirt costs $40. Its price falls by 25%, and then Tom buys 3 of them. How much does he "
        "pay?",
        "price = 40 * (1 - 25 / 100)\ntotal = 3 * price\nprint(total)",
        "90.0",
        "90",
    ),
    (
        "Lea reads 15 pages a day from Monday to Friday and twice as many on each day of the "
        "weekend. How many pages does she read in 4 weeks?",
        "weekdays = 5 * 15\nweekend = 2 * (2 * 15)\npages = 4 * (weekdays + weekend)\nprint(pages)",
        "540",
        "540",
    ),
    (
        "Max is 4 years younger than twice the age of Ida. Ida is 9. How old will Max be in 6 "
        "years?",
        "ida = 9\nmax_now = 2 * ida - 4\nmax_then = max_now + 6\nprint(max_then)",
        "20",
        "20",
    ),
)


def template() -> str:
    """The examples, each a document that ends with Qwen's own token, and the problem.

    So does a completion end then. Without the token, every second sample went on with a problem of
    its own making until it was cut off.
    """
    solved = [
        f"{HEAD}\n\nProblem: {problem}\nSolution:\n```python\n{program}\n```\n"
        f"```output\n{output}\n```\nThe answer is \\boxed{{{answer}}}.<|endoftext|>"
        for problem, program, output, answer in EXAMPLES
    ]
    return "".join([*solved, f"{HEAD}\n\nProblem: {{problem}}\nSolution:\n"])


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
        template=template(),
        tools={"use": ["python"], "format": "fences", "calls": 3},
        rewards={"math_answer": {"weight": 1.0, "options": WORKED_OUT}},
        stages=[
            {
                "kind": "grpo",
                "steps": 50,
                "group": {"size": 8, "prompts": 8, "micro_batch": 8},
                "sampling": {"max_tokens": 256, "weights": "int8"},
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
