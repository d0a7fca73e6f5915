"""Advantages by name on policies that are tables, and what bf16 and fp16 do to log-probabilities.

`tables`: 256 prompts with 64 answers each, one of them right, whose chance at the start is spread
evenly in log p from 0.1% to 50%. A policy is a table of logits; nothing is shared between prompts.
Every step draws a group of 8 for each prompt and moves the table by a fixed length along the
gradient of the mean of A log pi, so that only the direction tells the algorithms apart. A seed is
that of the table and of what is drawn.

`precision`: what a token's log-probability is when it is sampled, one token at a time, and what it
is in the training pass, under fp32, bf16 and fp16; of the policy that `adaptive.py` starts with.

    OMP_NUM_THREADS=1 python benchmarks/algorithms.py tables [--seeds 0 1 2] [--steps 150]
    OMP_NUM_THREADS=1 python benchmarks/algorithms.py precision
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from rl_reasoner.training.advantages import (
    group_relative,
    over_group_mean,
    positive_weighed,
    without_baseline,
)

SIZE, ANSWERS, PROMPTS = 8, 64, 256
LENGTH = 1.0  # of a step, over all prompts
ADVANTAGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "grpo": lambda r: group_relative(r, SIZE, "group"),
    "dr_grpo": lambda r: group_relative(r, SIZE, "none"),
    "max_rl": lambda r: over_group_mean(r, SIZE),
    "w_reinforce": lambda r: positive_weighed(without_baseline(r), 0.1),
    "nsr": lambda r: positive_weighed(without_baseline(r), 0.0),
}


def trained(name: str, seed: int, steps: int) -> list[float]:
    """A table after `steps`: pass@1, pass@8, the share of prompts below 1%, entropy in nats."""
    random = torch.Generator().manual_seed(seed)
    chance = 10 ** torch.linspace(-3, -0.30103, PROMPTS)
    logits = torch.randn(PROMPTS, ANSWERS, generator=random)
    logits[:, 0] = -torch.inf
    logits[:, 0] = logits.logsumexp(1) + torch.log(chance / (1 - chance))
    for _ in range(steps):
        pi = logits.softmax(1)
        drawn = torch.multinomial(pi, SIZE, replacement=True, generator=random)
        found = ADVANTAGES[name]((drawn == 0).float().flatten()).view_as(drawn)
        # grad log pi(drawn) is e_drawn - pi
        gradient = torch.zeros_like(pi).scatter_add_(1, drawn, found)
        gradient -= pi * found.sum(1, keepdim=True)
        norm = gradient.norm()
        logits = logits + gradient * (LENGTH / norm if norm > 0 else 0.0)
    pi = logits.softmax(1)
    right = pi[:, 0]
    entropy = -(pi * pi.clamp(min=1e-30).log()).sum(1)
    shares = (right, 1 - (1 - right) ** SIZE, (right < 0.01).float(), entropy)
    return [one.mean().item() for one in shares]


def compare_tables(seeds: Sequence[int], steps: int) -> None:
    print("| advantages | pass@1 | pass@8 | prompts below 1% | entropy |\n|---|---|---|---|---|")
    for name in ADVANTAGES:
        columns = [*zip(*(trained(name, seed, steps) for seed in seeds), strict=True)]
        cells = [f"{mean(c):.1%} [{min(c):.1%}, {max(c):.1%}]" for c in columns[:3]]
        print(f"| {name} | {' | '.join(cells)} | {mean(columns[3]):.2f} |", flush=True)


def compare_precisions(hardest: int = 7, max_tokens: int = 24) -> None:
    from adaptive import rows, start

    from rl_reasoner import open_policy
    from rl_reasoner.policy.device import autocast_dtype
    from rl_reasoner.rollout.mismatch import measure
    from rl_reasoner.rollout.sampler import eos_ids

    with tempfile.TemporaryDirectory() as folder:
        policy = open_policy(str(start(Path(folder), (200, 60), noise=0.5)), device="cpu")
    problems = rows(range(2, hardest + 1), 8, held_out=True)
    prompts = [policy.tokenizer(row["problem"])["input_ids"] for row in problems for _ in range(4)]
    for precision in ("fp32", "bf16", "fp16"):
        found = measure(
            policy.model,
            prompts,
            ends=eos_ids(policy),
            max_tokens=max_tokens,
            autocast=autocast_dtype(precision),
        )
        gap = found.plain
        print(f"{precision}: {found.tokens} tokens, gap mean {gap.mean:.2e}, max {gap.largest:.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["tables", "precision"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    if given.what == "tables":
        compare_tables(given.seeds, given.steps)
    else:
        compare_precisions()


if __name__ == "__main__":
    main()
