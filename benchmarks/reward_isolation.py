"""What running a reward in a process of its own costs, as a share of a quickstart step.

    python benchmarks/reward_isolation.py                 # 12 steps, 3 repeats
    python benchmarks/reward_isolation.py --steps 6 --repeats 1

The grpo stage of quickstart (16 prompts x 8 completions of up to 64 tokens, the tiny mixture of
experts) with its verifier as the reward, three ways in turn: the shipped reward; the same function
in a file of the user's, isolated; and that one on a thread of the trainer (`isolate_rewards` off).
Steps after the first two count. Rewards are not run beside the sampling here, so that their whole
cost shows: the seconds in which the trainer waits for them. Whole steps are shown beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

OWN = """
from rl_reasoner import Score, reward
from rl_reasoner.answers import verify


@reward
def own(completion: str, answer: str) -> Score:
    return verify(completion, answer)
"""
WAYS = {
    "shipped": ("math_answer", {}),
    "isolated": ("own.py:own", {}),
    "thread": ("own.py:own", {"isolate_rewards": False}),
}
WARM = 2


def measure(way: str, steps: int) -> dict[str, float]:
    """Median seconds of a step, and of it those that wait for rewards."""
    reward, extra = WAYS[way]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "own.py").write_text(OWN, encoding="utf-8")
        recipe = {
            "name": "isolation",
            "policy": "scratch:moe-tiny",
            "template": "plain",
            "rewards": {reward: 1.0},
            "stages": [
                {
                    "kind": "grpo",
                    "data": {"task": "modular", "count": 2000, "seed": 2},
                    "steps": steps + WARM,
                    "group": {"size": 8, "prompts": 16},
                    "sampling": {"max_tokens": 64},
                    "optim": {"lr": 1e-4},
                    "router_aux": 0.0,
                    "trainer": {"overlap_rewards": False, **extra},
                }
            ],
            "run": {"folder": "run", "device": "cpu"},
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "rl_reasoner.cli", "train", "recipe.yaml", "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr or f"ended by {done.returncode}, without a word")
        text = (folder / "run/stages/1-grpo/metrics.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()][WARM:]
    return {
        "step": statistics.median(row["step_time"] for row in rows),
        "reward": statistics.median(row["timing/reward"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.repeats):
        for way in WAYS:
            found[way].append(measure(way, args.steps))
    base = statistics.median(m["step"] for m in found["thread"])
    for way, measured in found.items():
        reward = statistics.median(m["reward"] for m in measured)
        step = statistics.median(m["step"] for m in measured)
        spread = [m["reward"] for m in measured]
        print(
            f"{way:9} waits {1000 * reward:7.2f} ms a step "
            f"[{1000 * min(spread):.2f}, {1000 * max(spread):.2f}], "
            f"{reward / base:6.2%} of a step; step {1000 * step:.0f} ms"
        )
    cost = [
        i["reward"] - t["reward"] for i, t in zip(found["isolated"], found["thread"], strict=True)
    ]
    print(f"isolation costs {statistics.median(cost) / base:+.2%} of a step (target: 5% at most)")
    if args.json:
        args.json.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
