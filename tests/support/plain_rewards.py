"""Rewards in a module that loads little: a reward's worker imports the module that it stands in.

Beside torch and trl each of them would take a worker five seconds to start.
"""

from typing import Any

from rl_reasoner import Score, reward

PROMPTS = ["1+1=", "Is it?", "7", "a longer prompt, of thirty chars", "22*3=", "x"]


def half_flat(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
    """Rewards between 0 and 1; every other prompt's group has the same reward throughout."""
    return [
        0.5 if PROMPTS.index(p) % 2 else len(set(c)) / 16
        for c, p in zip(completions, prompts, strict=True)
    ]


def never_flat(completions: list[str], **columns: Any) -> list[float]:
    return [len(set(c)) / 16 + c.count("e") for c in completions]


def always_flat(completions: list[str], **columns: Any) -> list[float]:
    return [0.25 for c in completions]


@reward
def digits(completion: str, answer: str) -> Score:
    """The share of digits in the completion, and 1 more for the answer."""
    share = sum(c.isdigit() for c in completion) / max(1, len(completion))
    return Score(share + (answer in completion), f"{share:.0%} digits")
