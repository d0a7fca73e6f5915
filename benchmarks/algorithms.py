"""Algorithms by name from one start, and what fp16 and bf16 do to log-probabilities.

The task, its rows and the policy's start are those of `adaptive.py`: numbers of 2 to `--hardest`
digits times a power of ten are written down, by a tiny policy that is right now and then where they
are short, and seldom where they are long. Each arm trains it by GRPO from that one start, with the
same settings and as many completions; it is compared by pass@1 and pass@8 (samples at temperature
1) on fixed held-out problems. A seed is one of GRPO: of its samples, and of the order of its rows.

`--precision` compares instead what a token's log-probability is when it is sampled, one token at a
time, with what it is in the training pass, under fp32, bf16 and fp16.

    OMP_NUM_THREADS=1 python benchmarks/algorithms.py [--seeds 0 1 2] [--arms grpo max_rl]
    OMP_NUM_THREADS=1 python benchmarks/algorithms.py --precision
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptive import PROMPTS, SIZE, rows, start, write
from datasets import Dataset

from rl_reasoner import GRPOConfig, GRPOTrainer, evaluate, open_policy
from rl_reasoner.policy.device import autocast_dtype
from rl_reasoner.rewards.math_answer import math_answer
from rl_reasoner.rollout.mismatch import measure
from rl_reasoner.rollout.sampler import eos_ids

ARMS: Mapping[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo", "beta": 0.0},
    "max_rl": {"algorithm": "max_rl"},
    "w_reinforce": {"algorithm": "w_reinforce"},
    "nsr": {"algorithm": "w_reinforce", "positive_advantage_weight": 0.0},
    "scalerl": {"algorithm": "scalerl"},
    "kl": {"algorithm": "grpo", "beta": 0.04},
    "kl_reset": {
        "algorithm": "grpo",
        "beta": 0.04,
        "sync_ref_model": True,
        "ref_model_sync_steps": 10,
        "ref_model_mixup_alpha": 1.0,
    },
}
SAMPLES = 8


def config_of(name: str, seed: int, given: argparse.Namespace) -> GRPOConfig:
    return GRPOConfig(
        tempfile.mkdtemp(),
        max_steps=given.steps,
        per_device_train_batch_size=SIZE * PROMPTS,
        num_generations=SIZE,
        max_completion_length=given.max_tokens,
        learning_rate=given.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        isolate_rewards=False,
        seed=seed,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        **ARMS[name],
    )


def figures(policy: Any, held_out: str, max_tokens: int) -> list[float]:
    """pass@1 and pass@8 on the held-out problems."""
    result = evaluate(
        policy,
        [held_out],
        samples=SAMPLES,
        temperature=1.0,
        max_tokens=max_tokens,
        template="plain",
    )
    [found] = result.sets.values()
    return [found["accuracy"], found["pass_at"][str(SAMPLES)]]


def arm(name: str, begun: Path, held_out: str, seed: int, given: argparse.Namespace) -> list[float]:
    """Train one arm; its figures at the end."""
    policy = open_policy(str(begun), device="cpu")
    data = [{"prompt": row["problem"], **row} for row in rows(range(2, given.hardest + 1))]
    for row in data:
        del row["completion"]
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=math_answer,
        args=config_of(name, seed, given),
        train_dataset=Dataset.from_list(data),
        processing_class=policy.tokenizer,
    )
    trainer.train()
    return figures(policy, held_out, given.max_tokens)


def compare_precisions(begun: Path, hardest: int, max_tokens: int) -> None:
    """The gap of log-probabilities between sampling and training, by precision."""
    policy = open_policy(str(begun), device="cpu")
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
    parser.add_argument("--hardest", type=int, default=7, help="the highest level")
    parser.add_argument("--held-out", type=int, default=20, help="problems of each level")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--supervised", type=int, nargs=2, default=[200, 60])
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--precision", action="store_true", help="compare precisions instead")
    parser.add_argument("--folder", type=Path, help="keep the start there")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        begun = start(folder, tuple(given.supervised), given.noise)
        if given.precision:
            compare_precisions(begun, given.hardest, given.max_tokens)
            return
        levels = range(2, given.hardest + 1)
        apart = rows(levels, given.held_out, held_out=True)
        held_out = write(folder / f"held-out-{given.hardest}.jsonl", apart)
        before = figures(open_policy(str(begun), device="cpu"), held_out, given.max_tokens)
        print(f"start: pass@1 {before[0]:.1%}, pass@{SAMPLES} {before[1]:.1%}", flush=True)
        found: dict[str, dict[str, list[float]]] = {}
        for seed in given.seeds:
            for one in given.arms:
                after = arm(one, begun, held_out, seed, given)
                found.setdefault(one, {})[str(seed)] = after
                told = f"pass@1 {after[0]:.1%}, pass@{SAMPLES} {after[1]:.1%}"
                print(f"seed {seed}, {one}: {told}", flush=True)
                if given.json:
                    given.json.write_text(json.dumps({"start": before, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
