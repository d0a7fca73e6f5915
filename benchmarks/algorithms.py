"""Algorithms on policies that are tables, and what bf16 and fp16 do to log-probabilities.

`tables`: 256 prompts with 64 answers each, one of them right, whose chance at the start is spread
evenly in log p from 0.1% to 50%. A policy is a table of logits; nothing is shared between prompts.
Every step draws a group of 8 for each prompt and moves the table by a fixed length along the
gradient of the mean of A log pi, so that only the direction tells the algorithms apart. A seed is
that of the table and of what is drawn.

`precision`: what a token's log-probability is when it is sampled, one token at a time, and what it
is in the training pass, under fp32, bf16 and fp16; of the policy that `adaptive.py` starts with.

`cut-off`: what it costs to train pi where top-p drew from pi on a set of tokens
(`keep_sampling_mask`). 64 prompts, completions of three tokens out of twelve, a table of logits
behind each prefix, one completion in ten right. Nothing is estimated but what the policy draws: the
gradients that are compared are sums over all completions, and so is the reward under the cut-off.

    OMP_NUM_THREADS=1 python benchmarks/algorithms.py tables [--seeds 0 1 2] [--steps 150]
    OMP_NUM_THREADS=1 python benchmarks/algorithms.py cut-off [--seeds 0 1 2] [--steps 150]
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


Tables = list[Tensor]  # of logits behind 0, 1 and 2 tokens: (prompts, tokens, ..., tokens)
CUT_PROMPTS, CUT_TOKENS, CUT_LENGTH = 64, 12, 3


def of_sets(tables: Tables, top_p: float | None) -> Tables:
    """Log-probs of the next token; with `top_p` over the set that it leaves, which is frozen."""
    if top_p is None:
        return [table.log_softmax(-1) for table in tables]
    found = []
    for table in tables:
        ordered, places = table.detach().softmax(-1).sort(-1, descending=True)
        kept = (ordered.cumsum(-1) - ordered) < top_p  # as transformers: up to the one that reaches
        table = table.masked_fill(~kept.scatter(-1, places, kept), -torch.inf)
        found.append(table.log_softmax(-1))
    return found


def whole(parts: Tables) -> Tensor:
    """(prompts, completions) log-probs of all completions."""
    total = parts[0]
    for part in parts[1:]:
        total = total[..., None] + part
    return total.flatten(1)


def directions(tables: Tables, right: Tensor, top_p: float) -> dict[str, Tensor]:
    """The exact gradient of the reward under the cut-off, and what GRPO's two losses expect."""
    chance = whole(of_sets(tables, top_p)).exp()
    paid = (chance * right).sum()
    advantage = right - (chance * right).sum(1, keepdim=True)  # over the mean of a large group
    weight = (chance * advantage).detach()
    # where nothing is drawn the weight is 0, and a log-prob may be minus infinity
    losses = {"exact": paid} | {
        name: (weight * whole(of_sets(tables, cut)).clamp(min=-1e4)).sum()
        for name, cut in (("pi", None), ("set", top_p))
    }
    gradients = {
        name: torch.autograd.grad(loss, tables, retain_graph=True) for name, loss in losses.items()
    }
    return {name: torch.cat([g.flatten() for g in found]) for name, found in gradients.items()}


def cut_off(seed: int, top_p: float, steps: int) -> list[float]:
    """Cosine to the exact gradient and ratio to what was drawn, rewards after `steps`; of both."""
    random = torch.Generator().manual_seed(seed)
    shape = [CUT_PROMPTS, *[CUT_TOKENS] * CUT_LENGTH]
    start = [1.5 * torch.randn(*shape[: i + 2], generator=random) for i in range(CUT_LENGTH)]
    right = (torch.rand(shape, generator=random).flatten(1) < 0.1).float()
    tables = [table.clone().requires_grad_() for table in start]
    found = directions(tables, right, top_p)
    near = [torch.cosine_similarity(found[k], found["exact"], 0).item() for k in ("pi", "set")]
    logps = whole(of_sets(start, top_p))
    ratio = ((whole(of_sets(start, None)) - logps).exp() * logps.exp()).nansum(1).mean().item()
    rewards = []
    for cut in (None, top_p):
        draws = torch.Generator().manual_seed(seed + 100)
        tables = [table.clone().requires_grad_() for table in start]
        for _ in range(steps):
            logps = whole(of_sets(tables, top_p)).exp().detach()
            drawn = torch.multinomial(logps, SIZE, replacement=True, generator=draws)
            paid = group_relative(right.gather(1, drawn).flatten(), SIZE, "none").view_as(drawn)
            loss = (paid * whole(of_sets(tables, cut)).gather(1, drawn)).sum()
            gradients = torch.autograd.grad(loss, tables)
            norm = torch.cat([g.flatten() for g in gradients]).norm().clamp(min=1e-9)
            with torch.no_grad():
                for table, gradient in zip(tables, gradients, strict=True):
                    table += gradient * (LENGTH / norm)
        with torch.no_grad():
            chance = whole(of_sets(tables, top_p)).exp()
        rewards.append((chance * right).sum(1).mean().item())
    return [*near, ratio, *rewards]


def compare_cut_offs(seeds: Sequence[int], steps: int) -> None:
    print("| top_p | cosine: pi | pi on the set | ratio: pi | reward: pi | pi on the set |")
    print("|---|---|---|---|---|---|")
    for top_p in (0.95, 0.9, 0.7, 0.5):
        columns = [*zip(*(cut_off(seed, top_p, steps) for seed in seeds), strict=True)]
        near = [f"{mean(c):.4f}" for c in columns[:2]]
        paid = [f"{mean(c):.1%} [{min(c):.1%}, {max(c):.1%}]" for c in columns[3:]]
        print(f"| {top_p} | {' | '.join([*near, f'{mean(columns[2]):.2f}', *paid])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["tables", "cut-off", "precision"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    given = parser.parse_args()
    if given.what == "tables":
        compare_tables(given.seeds, given.steps)
    elif given.what == "cut-off":
        compare_cut_offs(given.seeds, given.steps)
    else:
        compare_precisions()


if __name__ == "__main__":
    main()
