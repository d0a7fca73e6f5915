"""FP8 training against bf16 and fp32: how far losses and accuracies lie apart.

For every seed and precision the tiny mixture of experts learns short chains of modular arithmetic
(supervised), then GRPO trains it on their answers; the same data, first weights and random numbers.
A share of the chains' steps is random (`--noise`), so that the loss has a floor which runs come to:
without it they end in the midst of learning, where any two courses lie far apart.
Printed for each seed: the mean supervised loss of the last quarter of the steps, and its distance
from bf16's in percent; after both stages the share of right answers on held-out problems with its
95% interval (Wilson). Then the distances' medians and ranges, and the accuracies over all seeds.
The measure is the spread that a harmless change of precision, fp32 against bf16, shows by itself.
On a GPU with FP8 it is the real one (--device cuda), elsewhere it is emulated.

    OMP_NUM_THREADS=1 python benchmarks/fp8.py [--seeds 0 1] [--scaling block] [--device cpu]
    OMP_NUM_THREADS=1 python benchmarks/fp8.py --before 400 --lr 1e-3 --supervised 150   # converged
    OMP_NUM_THREADS=1 python benchmarks/fp8.py --without-fp8    # bf16 training against fp32 alone
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from rl_reasoner import Recipe, train
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.evaluation.statistics import wilson
from rl_reasoner.recipe.data import TaskData

PRECISIONS = ("fp32", "bf16", "fp8")
POLICY = "scratch:moe-tiny"
TASK = {"task": "modular", "levels": (2, 3)}


def held_out(folder: Path, count: int) -> Path:
    """A file of problems like those of the training, none of which is one of them."""
    rows = load_rows(TaskData(**TASK, split="test", count=count))  # type: ignore[arg-type]
    file = folder.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def supervised(steps: int, lr: float, noise: float) -> dict[str, Any]:
    """Chains, a share of whose steps is random."""
    return {
        "kind": "sft",
        "data": {**TASK, "count": 4000, "noise": noise},
        "steps": steps,
        "batch": 64,
        "optim": {"lr": lr, "schedule": "linear", "warmup": 30, "final_lr_share": 0.1},
    }


def started(folder: Path, seed: int, wanted: argparse.Namespace) -> str:
    """The policy that all precisions go on from: one that has learned the chains in fp32."""
    if not wanted.before:
        return POLICY
    first = supervised(wanted.before, 5e-3, wanted.noise)
    run = {"folder": str(folder), "device": wanted.device, "seed": seed, "precision": "fp32"}
    made = {"name": "start", "policy": POLICY, "template": "plain", "rewards": {"math_answer": 1.0}}
    train(Recipe.model_validate({**made, "stages": [first], "run": run}), quiet=True)
    return str(folder / "policy")


def recipe(
    folder: Path, policy: str, precision: str, seed: int, wanted: argparse.Namespace
) -> Recipe:
    """Both stages, with an evaluation at the end."""
    return Recipe.model_validate(
        {
            "name": "fp8",
            "policy": policy,
            "template": "plain",
            "rewards": {"math_answer": 1.0},
            "stages": [
                supervised(wanted.supervised, wanted.lr, wanted.noise),
                {
                    "kind": "grpo",
                    "data": {**TASK, "count": 1000, "seed": 2},
                    "steps": wanted.steps,
                    "group": {"size": 8, "prompts": 8},
                    "sampling": {"max_tokens": 32},
                    "optim": {"lr": 1e-4, "betas": (0.9, 0.99)},
                },
            ],
            "evals": {"sets": [str(held_out(folder, wanted.problems))], "max_tokens": 48},
            "run": {
                "folder": str(folder),
                "device": wanted.device,
                "seed": seed,
                "precision": precision,
                "fp8": wanted.scaling,
            },
        }
    )


def measured(
    folder: Path, policy: str, precision: str, seed: int, wanted: argparse.Namespace
) -> dict[str, Any]:
    """One run: its losses, its rewards, what it gets right."""
    run = train(recipe(folder, policy, precision, seed, wanted), quiet=True)

    def rows(stage: str) -> list[dict[str, Any]]:
        file = run.folder / "stages" / stage / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    losses = [row["loss"] for row in rows("1-sft")]
    [found] = run.evals["after"].sets.values()
    lock = json.loads((run.folder / "lock.json").read_text())
    return {
        "loss": mean(losses[-max(1, len(losses) // 4) :]),
        "reward": mean(row["reward"] for row in rows("2-grpo")),
        "right": round(found["accuracy"] * found["problems"]),
        "problems": found["problems"],
        "computed": lock.get("fp8", {}).get("computed_by", precision),
    }


def share(right: int, problems: int) -> str:
    """A share with its interval."""
    low, high = wilson(right, problems)
    return f"{right / problems:.1%} [{low:.1%}, {high:.1%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--supervised", type=int, default=300)
    parser.add_argument("--before", type=int, default=0, help="steps in fp32 that all begin with")
    parser.add_argument("--lr", type=float, default=5e-3, help="of the supervised steps")
    parser.add_argument("--noise", type=float, default=0.2, help="share of random steps")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--scaling", choices=("tensor", "row", "block"), default="block")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--without-fp8", action="store_true", help="bf16 against fp32 alone")
    wanted = parser.parse_args()
    precisions = PRECISIONS[:-1] if wanted.without_fp8 else PRECISIONS
    print("| seed | precision | sft loss, last quarter | from bf16 | grpo reward | accuracy |")
    print("| --- | --- | --- | --- | --- | --- |")
    gaps: dict[str, list[float]] = {p: [] for p in precisions if p != "bf16"}
    right = dict.fromkeys(precisions, 0)
    problems = 0
    for seed in wanted.seeds:
        with tempfile.TemporaryDirectory() as name:
            policy = started(Path(name) / "start", seed, wanted)
            runs = {p: measured(Path(name) / p, policy, p, seed, wanted) for p in precisions}
        problems += runs["bf16"]["problems"]
        for precision, run in runs.items():
            gap = 100 * (run["loss"] / runs["bf16"]["loss"] - 1)
            if precision in gaps:
                gaps[precision].append(gap)
            right[precision] += run["right"]
            said = precision if precision != "fp8" else f"fp8, {run['computed']}"
            print(
                f"| {seed} | {said} | {run['loss']:.4f} | {gap:+.2f}% | {run['reward']:.3f} "
                f"| {share(run['right'], run['problems'])} |",
                flush=True,
            )
    for precision, found in gaps.items():
        sizes = sorted(map(abs, found))
        print(
            f"loss of {precision} from bf16's: median {median(sizes):.2f}%, "
            f"largest {sizes[-1]:.2f}%, mean with its sign {mean(found):+.2f}%"
        )
    if not wanted.without_fp8 and runs["fp8"]["computed"] != "emulation":
        print("DeepSeek-V3's bound for FP8, for converged runs: 0.25%")
    for precision in precisions:
        print(f"accuracy, all seeds, {precision}: {share(right[precision], problems)}")


if __name__ == "__main__":
    main()
