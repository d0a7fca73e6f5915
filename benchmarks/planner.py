"""The planner's seconds of a step on this CPU, beside the steps of finished runs.

    OMP_NUM_THREADS=1 python benchmarks/planner.py RUN ... [--first 30] [--fresh]

For each grpo stage of each run: the seconds that `env --plan RECIPE --gpu cpu` has equations for
(`rl_reasoner/planning/cpu_time.py`), with the lengths, prompts and rows without advantage that the
run had, and what it logged: medians over its steps after the second; of whole steps also the time
that a tenth of them stayed below, for a run that shared its processor. Constants of the processor
are those that the run recorded, else those measured here; `--fresh` measures what passes cost
again, which wants a quiet machine.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

import torch

from rl_reasoner.errors import UserError
from rl_reasoner.files import read_jsonl, write_json
from rl_reasoner.machine import choices, choices_file
from rl_reasoner.planning.cpu_time import seconds_on_cpu
from rl_reasoner.planning.gpus import Gpu
from rl_reasoner.planning.load import StepLoad, load_of_step
from rl_reasoner.planning.plan import processors_of
from rl_reasoner.planning.shapes import Shape, shape_of
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage

WARM = 2
PARTS = ("sampling", "training")


def shape_in(run: Path, recipe: Recipe) -> Shape:
    """The shape of a run's policy, by what it has saved, for its source may lie elsewhere."""
    saved = [*run.glob("policy/config.json"), *sorted(run.glob("stages/*/policy/config.json"))]
    return shape_of(str(saved[0].parent) if saved else recipe.policy.source, recipe.policy.lora)


def load_of(recipe: Recipe, stage: GrpoStage, shape: Shape, rows: list[dict[str, Any]]) -> StepLoad:
    """The stage's step with the lengths and the share of rows that were trained on."""
    load = load_of_step(recipe, stage, 1, shape, Gpu(1.0, 1.0, 1.0, 1.0))
    mean = fmean(row["completions/mean_length"] for row in rows)
    totals = [row["num_tokens"] for row in rows]
    a_step = (totals[-1] - totals[0]) / (len(rows) - 1)
    flat = fmean(row.get("frac_reward_zero_std", 0.0) for row in rows)
    return replace(
        load,
        mean=mean,
        longest=fmean(row["completions/max_length"] for row in rows),
        prompts=(a_step - load.rows * mean) / stage.group.size,
        trained=1.0 if stage.loss.beta else 1.0 - flat,
    )


def compared(run: Path, first: int | None) -> list[str]:
    """A line of the table for each grpo stage."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    lock = json.loads((run / "lock.json").read_text(encoding="utf-8"))
    torch.set_num_threads(lock["threads"])
    shape, lines = shape_in(run, recipe), []
    for number, stage in enumerate(recipe.stages, 1):
        metrics = run / "stages" / f"{number}-{stage.name}" / "metrics.jsonl"
        rows = [row for row in read_jsonl(metrics) if "completions/mean_length" in row]
        rows = rows[WARM:first]
        if not isinstance(stage, GrpoStage) or len(rows) < 2:
            continue
        with choices.during(lock.get("choices", {})):
            cpus = processors_of(recipe, stage, shape)
        load = load_of(recipe, stage, shape, rows)
        told = seconds_on_cpu(shape, *cpus, load)
        told["training"] += told.pop("log_probs")
        took = {
            "sampling": median(row["timing/generation"] for row in rows),
            "training": median(row["timing/training"] for row in rows),
        }
        steps = [row["step_time"] for row in rows]
        middle, quick = median(steps), quantiles(steps, n=10)[0]
        parts = " | ".join(f"{told[part]:.3g} / {took[part]:.3g} s" for part in PARTS)
        step = sum(told.values())
        what = f"{run.name}, {stage.name} | {shape.total / 1e6:.3g}M | {len(rows)} | {parts}"
        ratios = f"{step / middle:.2f} | {step / quick:.2f}"
        lines.append(f"| {what} | {step:.3g} / {middle:.3g} / {quick:.3g} s | {ratios} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="finished runs' folders")
    parser.add_argument("--first", type=int, help="the first so many steps of a stage alone")
    parser.add_argument("--fresh", action="store_true", help="measure what passes cost again")
    args = parser.parse_args()
    if args.fresh and choices_file().is_file():
        kept = json.loads(choices_file().read_text(encoding="utf-8"))
        names = [name for name in kept["choices"] if name.startswith("step_costs")]
        kept["choices"] = {k: v for k, v in kept["choices"].items() if k not in names}
        write_json(choices_file(), kept)
    columns = ["run, stage", "parameters", "steps", "sampling: planned / took", "training"]
    columns += ["step: planned / median / quickest tenth", "over the median", "over the tenth"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for run in args.runs:
        try:
            print("\n".join(compared(run, args.first)), flush=True)
        except UserError as error:
            print(f"| {run.name} | not planned: {error} | | | | | | |", flush=True)


if __name__ == "__main__":
    main()
