"""Sampling while training (`overlap: one_step`) against one after the other, in wall time.

    python benchmarks/overlap.py                       # the tiny mixture and the 135M shape
    python benchmarks/overlap.py --cases quickstart --repeats 3
    python benchmarks/overlap.py --learning --seeds 0 1 2    # its effect on what is learnt

Three ways: synchronous with one thread, synchronous with two, and one_step, where one thread trains
and one samples. Each is a process of its own, in turn; seconds are those of a step, the median of
the steps after the first two. `quickstart` is GRPO's step of that recipe on its policy (16 prompts
x 8 rows of up to 64 tokens), `moe` and `smollm` are those of benchmarks/trainer.py (4.1M; the shape
of SmolLM2-135M), `moe_wide` has four times the rows of `moe`; random weights, so that all rows are
as long as they may. `--learning` trains `--recipe` both ways, GRPO from the same supervised policy,
and prints accuracy on its validation set after equal steps, and after equal seconds of GRPO.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "quickstart": {"prompts": 16, "group": 8, "micro": 128, "tokens": 64, "steps": 12},
    "moe": {"prompts": 8, "group": 8, "micro": 16, "tokens": 128, "steps": 6},
    "moe_wide": {"prompts": 32, "group": 8, "micro": 64, "tokens": 128, "steps": 5},
    "smollm": {"prompts": 2, "group": 8, "micro": 16, "tokens": 48, "steps": 4},
}
WAYS = {"1 thread": (1, "off"), "2 threads": (2, "off"), "one_step": (2, "one_step")}


def model_of(case: str) -> Any:
    """The case's model, the same each time."""
    if case == "quickstart":
        from rl_reasoner import open_policy

        return open_policy("scratch:moe-tiny", device="cpu").model
    import trainer  # benchmarks/trainer.py, beside this file

    return trainer.model_of(case.removesuffix("_wide"))


def config_of(case: str, overlap: str) -> Any:
    """The settings of the case, the same for all ways but for `overlap`."""
    from rl_reasoner import GRPOConfig

    shape = CASES[case]
    rows = shape["prompts"] * shape["group"]
    return GRPOConfig(
        tempfile.mkdtemp(),
        max_steps=shape["steps"],
        per_device_train_batch_size=min(shape["micro"], rows),
        gradient_accumulation_steps=max(1, rows // shape["micro"]),
        num_generations=shape["group"],
        max_completion_length=shape["tokens"],
        learning_rate=1e-5,
        overlap=overlap,
        isolate_rewards=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        generation_kwargs={"min_new_tokens": shape["tokens"] - 1},
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def measure(case: str, overlap: str) -> dict[str, Any]:
    """Seconds of each step, and its parts as they are logged."""
    from datasets import Dataset
    from transformers import TrainerCallback

    from rl_reasoner import GRPOTrainer
    from rl_reasoner.policy.scratch import byte_tokenizer

    def reward(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
        """Half of the groups are flat."""
        return [
            0.5 if len(p) % 2 else sum(c.encode()) % 97 / 97
            for c, p in zip(completions, prompts, strict=True)
        ]

    prompts = [
        f"What is {i} times {i + 7}, and then {i % 9} more?" + " " * (i % 2) for i in range(64)
    ]
    trainer = GRPOTrainer(
        model_of(case),
        reward_funcs=reward,
        args=config_of(case, overlap),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=byte_tokenizer(),
    )
    begun: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: Any, **named: Any) -> None:
            begun.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    steps = [later - earlier for earlier, later in itertools.pairwise(begun[2:])]
    parts = {
        name: statistics.median(row.get(name, 0.0) for row in trainer.state.log_history[2:-1])
        for name in ("timing/generation", "timing/training", "overlapped_time/generation")
    }
    return {"step": statistics.median(steps), **parts}


def run(case: str, way: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    threads, overlap = WAYS[way]
    done = subprocess.run(
        [sys.executable, __file__, "--worker", case, overlap],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )
    if done.returncode:
        raise SystemExit(done.stderr or f"ended by {done.returncode}, without a word")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(case: str, repeats: int) -> None:
    """The three ways in turn, and one_step's ratio to each synchronous one in each repeat.

    `at most` is what any way of sharing two cores could gain on two threads: half of the seconds of
    one thread, if nothing waits.
    """
    ratios: dict[str, list[float]] = {"1 thread": [], "2 threads": [], "at most": []}
    for _ in range(repeats):
        found = {way: run(case, way) for way in WAYS}
        step = {way: row["step"] for way, row in found.items()}
        ratios["1 thread"].append(step["1 thread"] / step["one_step"])
        ratios["2 threads"].append(step["2 threads"] / step["one_step"])
        ratios["at most"].append(2 * step["2 threads"] / step["1 thread"])
        told = ", ".join(
            f"{way} {r['step']:.2f} s (sampling {r['timing/generation']:.2f}, "
            f"training {r['timing/training']:.2f})"
            for way, r in found.items()
        )
        beside = found["one_step"]["overlapped_time/generation"]
        print(f"{case}: {told}; beside it sampling {beside:.2f} s", flush=True)
    said = {
        name: f"{statistics.median(some):.2f}x [{min(some):.2f}, {max(some):.2f}]"
        for name, some in ratios.items()
    }
    print(
        f"{case}: one_step is {said['1 thread']} one thread, {said['2 threads']} two threads; "
        f"two cores could be {said['at most']} two threads",
        flush=True,
    )


# --------------------------------------------------------------------------------- the learning


def learn(recipe: str, seeds: list[int], extra: list[str]) -> None:
    """Accuracy on the validation set while GRPO trains: both ways, each seed."""
    table: dict[str, list[list[float]]] = {"off": [], "one_step": []}
    for seed in seeds:
        for overlap, rows in table.items():
            with tempfile.TemporaryDirectory() as folder:
                run_folder = Path(folder) / "run"
                command = [sys.executable, "-m", "rl_reasoner.cli", "train", recipe, "--quiet"]
                command += ["--run.seed", str(seed), "--run.folder", str(run_folder)]
                command += ["--run.overlap", overlap, "--evals.sets", "[]", *extra]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr or f"ended by {done.returncode}, without a word")
                [file] = run_folder.glob("stages/*grpo/metrics.jsonl")
                lines = [json.loads(line) for line in file.read_text().splitlines()]
            rewards = [line["reward"] for line in lines if "reward" in line]
            seconds = [line["step_time"] for line in lines if "step_time" in line]
            rows.append(rewards)
            tail = statistics.mean(rewards[-10:])
            print(
                f"seed {seed}, {overlap}: reward of the last 10 of {len(rewards)} steps "
                f"{tail:.3f}, {sum(seconds):.0f} s of steps",
                flush=True,
            )
    for overlap, rows in table.items():
        tenths = [
            statistics.mean(
                statistics.mean(r[len(r) * i // 6 : len(r) * (i + 1) // 6]) for r in rows
            )
            for i in range(6)
        ]
        print(
            f"{overlap}: " + "  ".join(f"{value:.3f}" for value in tenths), "(sixths of the steps)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--learning", action="store_true")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args, extra = parser.parse_known_args()
    if args.worker:
        print(json.dumps(measure(*args.worker)))
    elif args.learning:
        learn(args.recipe, args.seeds, extra)
    else:
        for case in args.cases:
            compare(case, args.repeats)


if __name__ == "__main__":
    main()
