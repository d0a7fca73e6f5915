"""Rewards with faults, in stock trl and here: does a tiny run come through?

    python benchmarks/faults.py                  # all scenarios on both sides, about five minutes
    python benchmarks/faults.py --only raises segfaults

Four steps of 2 prompts x 4 completions; at the second step the reward misbehaves. A run comes
through when it makes all four steps with finite weights within `--limit` seconds (its start
counted; a hanging reward sleeps for 120). Each is a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REWARD = '''
import ctypes
import os
import time

CALLS = [0]


def shaky(completions, **kwargs):
    """Well-behaved but for its second batch."""
    values = [float(len(text) % 3) for text in completions]
    if len(completions) > 1:
        CALLS[0] += 1
    if CALLS[0] != 2:
        return values
    CALLS[0] += 1
    return misbehave(values)
'''
SCENARIOS = {
    "raises": 'raise ValueError("planted")',
    "hangs": "time.sleep(120)",
    "segfaults": "ctypes.string_at(0)",
    "ends its process": "os._exit(1)",
    "takes 64 GB": "bytearray(64 << 30)",
    "NaN": "return [float('nan')] * len(values)",
    "one NaN": "return [float('nan')] + values[1:]",
    "inf": "return [float('inf')] + values[1:]",
    "1e38": "return [1e38] + values[1:]",
    "one None": "return [None] + values[1:]",
    "all None": "return [None] * len(values)",
    "too few": "return values[1:]",
    "strings": "return [str(value) for value in values]",
}


def train(side: str, folder: Path) -> dict[str, Any]:
    """Four steps; what became of them."""
    import torch
    import trl
    from datasets import Dataset

    from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy

    sys.path.insert(0, str(folder))
    from shaky import shaky

    kind, configured = (
        (trl.GRPOTrainer, trl.GRPOConfig) if side == "trl" else (GRPOTrainer, GRPOConfig)
    )
    limits = {} if side == "trl" else {"reward_timeout_s": 5, "reward_batch_timeout_s": 10}
    policy = open_policy("scratch:dense-tiny", device="cpu")
    trainer = kind(
        policy.model,
        reward_funcs=shaky,
        args=configured(
            str(folder / "out"),
            max_steps=4,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            scale_rewards="none",
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **limits,
        ),
        train_dataset=Dataset.from_dict({"prompt": [f"{i}+1=" for i in range(8)]}),
        processing_class=policy.tokenizer,
    )
    trainer.train()
    finite = all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    return {"steps": trainer.state.global_step, "finite": finite}


def run(side: str, scenario: str, limit: float) -> tuple[bool, str]:
    """(whether the run came through, how it ended)."""
    with tempfile.TemporaryDirectory() as name:
        body = f"def misbehave(values):\n    {SCENARIOS[scenario]}\n    return values\n"
        Path(name, "shaky.py").write_text(f"{REWARD}\n\n{body}", encoding="utf-8")
        command = [sys.executable, __file__, "--side", side, "--folder", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return False, f"still hanging after {limit:g} s"
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2][:60]
        return False, last if done.returncode > 0 else f"killed by signal {-done.returncode}"
    found = json.loads(done.stdout.splitlines()[-1])
    if found["steps"] < 4 or not found["finite"]:
        return False, "weights that are not finite" if not found["finite"] else "stopped early"
    return True, "4 steps, finite weights"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--limit", type=float, default=90.0)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(train(args.side, args.folder)))
        return
    counts = {"trl": 0, "ours": 0}
    for scenario in args.only:
        for side in counts:
            passed, how = run(side, scenario, args.limit)
            counts[side] += passed
            print(f"{scenario:18}{side:6}{'passes' if passed else 'FAILS':8}{how}", flush=True)
    total = len(args.only)
    print(f"trl {counts['trl']} of {total}, ours {counts['ours']} of {total}")


if __name__ == "__main__":
    main()
