"""Load of experts under RL, with DeepSeek's bias update and without it.

The tiny DeepSeek-V3 learns chains of modular arithmetic (supervised, with the bias update at
`--start-rate`, 0 for none), then GRPO trains it on their answers: once without, once with it.
Printed, for both: the busiest expert's load over the mean, in the worst layer, by parts of the run;
dead experts; and the share of right answers on held-out problems, with 95% intervals (Wilson).

    OMP_NUM_THREADS=1 python benchmarks/balance.py [--steps 200] [--seeds 0 1 2] [--rate 0.002]
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from rl_reasoner import Recipe, train


def recipe(folder: Path, policy: str, seed: int, *stages: dict[str, Any]) -> Recipe:
    """A run in `folder`, evaluated before GRPO and after the last stage."""
    return Recipe.model_validate(
        {
            "name": "balance",
            "policy": policy,
            "template": "plain",
            "rewards": {"math_answer": 1.0},
            "stages": list(stages),
            "evals": {"sets": ["modular_test"], "max_tokens": 96},
            "run": {"folder": str(folder), "device": "cpu", "seed": seed},
        }
    )


def supervised(steps: int, rate: float) -> dict[str, Any]:
    """Chains of thought."""
    return {
        "kind": "sft",
        "data": {"task": "modular", "count": 20000},
        "steps": steps,
        "batch": 64,
        "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 50, "final_lr_share": 0.1},
        "router_bias": rate,
    }


def rewarded(steps: int, rate: float) -> dict[str, Any]:
    """GRPO on the answers alone."""
    return {
        "kind": "grpo",
        "data": {"task": "modular", "count": 2000, "seed": 2},
        "steps": steps,
        "group": {"size": 8, "prompts": 16},
        "sampling": {"max_tokens": 64},
        "optim": {"lr": 1e-4, "betas": (0.9, 0.99)},
        "router_bias": rate,
        "trainer": {"skip_zero_advantage": False},  # both loads are of all tokens
    }


def measured(run: Any, title: str) -> None:
    """One line of the table."""
    file = run.folder / "stages" / "1-grpo" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    loads = [row["experts/max_over_mean"] for row in rows]
    half = len(loads) // 2
    above = mean(load > 1.5 for load in loads[half:])
    dead = mean(row["experts/dead"] for row in rows)
    evals = [run.evals[name].sets["modular_test"] for name in ("before", "after")]
    accuracies = [
        f"{e['accuracy']:.1%} [{e['interval'][0]:.1%}, {e['interval'][1]:.1%}]" for e in evals
    ]
    print(
        f"| {title} | {loads[0]:.2f} | {mean(loads[half:]):.2f} | {max(loads[half:]):.2f} "
        f"| {above:.0%} | {loads[-1]:.2f} | {dead:.1f} | {accuracies[0]} | {accuracies[1]} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--supervised", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--start-rate", type=float, default=0.004)
    wanted = parser.parse_args()
    print(
        "| run | max / mean, step 1 | second half: mean | max | steps above 1.5 | last step "
        "| dead experts | accuracy before | after |\n" + "| --- " * 9 + "|"
    )
    for seed in wanted.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            start = recipe(
                folder / "start",
                "scratch:deepseek-tiny",
                seed,
                supervised(wanted.supervised, wanted.start_rate),
            )
            train(start)
            for rate in (0.0, wanted.rate):
                made = recipe(
                    folder / f"rate{rate}",
                    str(folder / "start"),
                    seed,
                    rewarded(wanted.steps, rate),
                )
                title = f"seed {seed}, {f'bias update {rate}' if rate else 'no balancing'}"
                measured(train(made), title)


if __name__ == "__main__":
    main()
