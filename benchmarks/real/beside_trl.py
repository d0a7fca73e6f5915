"""A step of a run with a real model, and the same step of stock trl beside it.

    python benchmarks/real/beside_trl.py runs/real/word_problems_smollm2-0 --steps 2 --threads 1

The run is one of run.py's; its folder may hold no more than its recipe, and the policies of its
stages before the last. Both sides get the last stage: the policy that it begins with, its rows,
prompts, rewards, batch, micro-batch and optimizer; each samples its own completions. So lengths
differ by chance, and seconds are also given per completion token. Each measurement is a process of
its own, sides in turn; seconds are of the wall, which needs a quiet machine; memory is the most
that the process held. What our side alone can do (weights in int8 for sampling, a curriculum) it
does as in the run. Stages with tools, environments or a reference policy are refused: the sides
would not do the same.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDES = ("trl", "ours")
SHARED = (  # of our config, what trl's has too and the stage may set
    *("max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "seed", "bf16", "use_cpu"),
    *("gradient_checkpointing", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("num_generations", "max_completion_length", "temperature", "top_p", "top_k", "beta"),
    *("loss_type", "epsilon", "epsilon_high", "scale_rewards", "importance_sampling_level"),
    *("num_iterations", "mask_truncated_completions", "reward_weights"),
    *("logging_steps", "report_to", "disable_tqdm"),
)


# --------------------------------------------------------------------------------- one process


def trainer_of(asked: argparse.Namespace) -> Any:
    """The side's trainer of the run's last stage, for the steps that are asked for."""
    import trl

    from rl_reasoner import GRPOTrainer
    from rl_reasoner.dataset.code_rows import as_dataset, continuing
    from rl_reasoner.dataset.templates import prompt_of
    from rl_reasoner.pipeline.inputs import read_stage_rows
    from rl_reasoner.pipeline.lineage import data_in
    from rl_reasoner.pipeline.placement import choose_placement
    from rl_reasoner.pipeline.trl_configs import config
    from rl_reasoner.policy.lora import add_lora
    from rl_reasoner.policy.opening import open_policy
    from rl_reasoner.recipe.load import load_recipe
    from rl_reasoner.recipe.stages import GrpoStage
    from rl_reasoner.scoring.registry import load_reward

    recipe = load_recipe(str(asked.run / "recipe.yaml"), ["--run.device", "cpu"])
    stage = recipe.stages[-1]
    if not isinstance(stage, GrpoStage) or recipe.tools or recipe.environment or stage.loss.beta:
        raise SystemExit(f"{asked.run}: its last stage is none that both sides do alike")
    rewards = {
        name: load_reward(name, spec.options, spec.source) for name, spec in recipe.rewards.items()
    }
    rows = read_stage_rows(recipe, stage, data_in(asked.run, recipe, stage), rewards)
    before = sorted(asked.run.glob("stages/*/policy"))[: len(recipe.stages) - 1]
    policy = open_policy(str(before[-1]) if before else recipe.policy.source, device="cpu")
    if recipe.policy.lora:
        add_lora(policy, recipe.policy.lora, recipe.run.seed)
    prompts = [
        {
            **{key: value for key, value in row.items() if key != "completion"},
            "prompt": prompt_of(row, recipe.template, policy.tokenizer),
        }
        for row in rows
    ]
    args = config(recipe, stage, Path(tempfile.mkdtemp()), choose_placement(recipe))
    args.max_steps, args.save_strategy = asked.steps, "no"
    kind: Any = GRPOTrainer
    if asked.side == "trl":
        shared = {name: getattr(args, name) for name in SHARED}
        args = trl.GRPOConfig(args.output_dir, save_strategy="no", **shared)
        kind = trl.GRPOTrainer
    return kind(
        policy.model,
        reward_funcs=[continuing(reward, prompts) for reward in rewards.values()],
        args=args,
        train_dataset=as_dataset(prompts),
        processing_class=policy.tokenizer,
    )


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step and of its sampling, completion tokens, and the highest memory."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(asked.threads)
    trainer = trainer_of(asked)
    steps: list[dict[str, float]] = []
    spent: dict[str, float] = {}
    generate = trainer._generate_single_turn

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = generate(*arguments, **named)
        spent["generation"] = time.perf_counter() - started
        spent["tokens"] = sum(map(len, found[0]))
        return found

    trainer._generate_single_turn = timed

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *others: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *others: Any, **kwargs: Any) -> None:
            steps.append({**spent, "step": time.perf_counter() - self.started})

        def on_log(self, *others: Any, logs: Any = None, **kwargs: Any) -> None:
            if "grad_norm" in logs:
                steps[-1]["reward"] = logs["reward"]
                steps[-1]["flat"] = logs["frac_reward_zero_std"]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.add_callback(Clock())
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"steps": steps, "peak_gb": peak / 1e6, "opened_gb": before / 1e6}


# ----------------------------------------------------------------------------------- the table


def worker(side: str, run: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """One side's measurement, in a process of its own."""
    given = [str(run), "--side", side, "--steps", str(asked.steps), "--threads", str(asked.threads)]
    done = subprocess.run(
        [sys.executable, __file__, *given],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(asked.threads)},
    )
    if done.returncode < 0:  # 9 without a word of its own: the system was out of memory
        raise SystemExit(f"{run}, {side}: its process was ended by signal {-done.returncode}")
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(run: Path, sides: dict[str, dict[str, Any]]) -> str:
    """A run as a line of the table: medians of the steps, and trl's over ours."""

    def middle(side: str, part: str) -> float:
        return float(statistics.median(step[part] for step in sides[side]["steps"]))

    def rate(side: str) -> float:  # seconds a token
        steps = sides[side]["steps"]
        return float(statistics.median(step["step"] / step["tokens"] for step in steps))

    cells = [run.name]
    for side in SIDES:
        cells += [f"{middle(side, 'step'):.0f} ({middle(side, 'generation'):.0f})"]
        cells += [f"{1 / rate(side):.1f}", f"{sides[side]['peak_gb']:.1f}"]
    cells += [f"{rate('trl') / rate('ours'):.1f}x"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure both sides of each run, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs of run.py")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        asked.run = asked.runs[0]
        print(json.dumps(measure(asked)))
        return
    heads = ["run"]
    for side in SIDES:
        heads += [f"{side}: step (sampling), s", "tokens/s", "memory, GB"]
    print(f"| {' | '.join([*heads, 'per token'])} |\n{'|---' * 8}|", flush=True)
    found = {}
    for run in asked.runs:
        found[run.name] = {side: worker(side, run, asked) for side in SIDES}
        print(line(run, found[run.name]), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
