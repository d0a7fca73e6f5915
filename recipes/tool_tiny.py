"""Tools: a tiny policy learns when to call a calculator.

    python recipes/tool_tiny.py                  # or: rl-reasoner train tool_tiny
    rl-reasoner train tool_tiny --tools null     # the same without the tool

A policy of 0.3 million parameters cannot multiply numbers of two or three digits in its head.
`calls` teaches it to call: a call with its result in the chain of thought, then the answer. `habit`
gives it a bad habit: seven of eight products are answered at once, wrong of course. So are products
with 1, 10, 100 and 1000, rightly: for those it needs no calculator. GRPO rewards right answers
alone: what grows is the share of calls, and where the problem needs one. What the calculator gives
is no token of the policy's: it has no loss. Like ToRL (arXiv 2503.23383), but small.
"""

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The recipe; its settings were chosen on the validation splits."""
    return Recipe(
        name="tool_tiny",
        policy="scratch:dense-tiny",
        template="plain",
        tools={"use": ["calculator"], "format": "tags", "calls": 2},
        rewards={"math_answer": {"weight": 1.0, "options": {"value_only": True}}},
        stages=[
            {
                "kind": "sft",
                "name": "calls",
                "data": [
                    {"task": "product", "count": 10000, "called": 1.0, "share": 2.0},
                    {"task": "tens", "count": 1700, "direct": 0.8, "called": 1.0, "share": 1.0},
                ],
                "steps": 600,
                "batch": 64,
                "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 50, "final_lr_share": 0.1},
            },
            {
                "kind": "sft",
                "name": "habit",
                "data": [
                    {"task": "product", "count": 4000, "seed": 1, "direct": 0.875, "called": 1.0},
                    {"task": "tens", "count": 1700, "seed": 1, "direct": 0.95, "called": 1.0},
                ],
                "steps": 80,
                "batch": 64,
                "optim": {"lr": 1.5e-3, "schedule": "linear", "final_lr_share": 0.2},
            },
            {
                "kind": "grpo",
                "data": [
                    {"task": "product", "count": 1000, "seed": 2, "share": 1.0},
                    {"task": "tens", "count": 500, "seed": 2, "share": 1.0},
                ],
                "steps": 120,
                "group": {"size": 8, "prompts": 16},
                "sampling": {"max_tokens": 96},
                "optim": {"lr": 2e-4, "betas": (0.9, 0.99)},
            },
        ],
        evals={"sets": ["product_test", "tens_test"], "samples": 4, "max_tokens": 96},
    )


if __name__ == "__main__":
    main_of(__file__)
