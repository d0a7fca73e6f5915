"""The figures of the recipes' table: run the tiny recipes and print them as Markdown.

    python benchmarks/recipes.py [FOLDER] [--seeds 0,1,2] [--only quickstart,noisy_start,...]

Each recipe is run as a user runs it, by `rl-reasoner train NAME --run.seed S`, into FOLDER/NAME-S
(default runs/figures); a run that is finished there is not done again, one that was interrupted is
continued. Seconds are the wall time of the whole command, on an otherwise idle machine please.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from rl_reasoner.files import read_jsonl
from rl_reasoner.recipe.load import load_recipe

RECIPES = (
    *("quickstart", "noisy_start", "skill", "code_tiny"),
    *("instructions_tiny", "moe_tiny", "tool_tiny", "no_tool", "game_tiny"),
)
VARIANTS = {"no_tool": ("tool_tiny", "--tools", "null")}  # a recipe with flags, by a name of ours
_TENS = re.compile(r"\*10{0,3}=")  # the end of a product that needs no calculator


def run(name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run a recipe with a seed, if it is not finished yet; its evaluations and its wall time."""
    target = folder / f"{name}-{seed}"
    clock = folder / f"{name}-{seed}.seconds"
    if not (target / "report.html").is_file():
        command = [sys.executable, "-m", "rl_reasoner.cli", "train"]
        fresh = not (target / "recipe.yaml").is_file()
        command += (
            [*VARIANTS.get(name, (name,)), "--run.seed", str(seed), "--run.folder", str(target)]
            if fresh
            else ["--resume", str(target)]
        )
        started = time.monotonic()
        # one thread: another number of them rounds otherwise, and training takes another course
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_thread)
        before = float(clock.read_text()) if clock.is_file() and not fresh else 0.0
        clock.write_text(f"{before + time.monotonic() - started:.0f}\n")
    evals = {
        when: json.loads((target / "evals" / f"{when}.json").read_text())["sets"]
        for when in ("before", "after")
    }
    return {**evals, "seconds": float(clock.read_text())}


def span(figures: dict[str, Any]) -> str:
    """An accuracy with its interval, in percent."""
    low, high = figures["interval"]
    return f"{figures['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def rows(name: str, seed: int, found: dict[str, Any]) -> list[str]:
    """The Markdown rows of one run: every set, before and after."""
    lines = []
    for label, before in found["before"].items():
        after = found["after"][label]
        thinking = f"{before.get('thinking', 0):.0%} → {after.get('thinking', 0):.0%}"
        length = f"{before['mean_length']:.1f} → {after['mean_length']:.1f}"
        first, last = before.get("pass_at", {}), after.get("pass_at", {})
        top = max(first, key=int, default="")
        passes = f"pass@{top} {first[top]:.1%} → {last[top]:.1%}" if top else ""
        lines.append(
            f"| {name} | {seed} | {label} | {span(before)} | {span(after)} | {thinking} "
            f"| {length} | {passes} |"
        )
    return lines


def loads(run: Path) -> str:
    """How evenly the last GRPO stage of a run that balances its experts used them; else ""."""
    stage = max(run.glob("stages/*-grpo"), key=lambda path: int(path.name.split("-")[0]))
    rows = list(read_jsonl(stage / "metrics.jsonl"))
    if not any("router_sequence_loss" in row for row in rows):
        return ""
    found = [row["experts/max_over_mean"] for row in rows]
    dead = sum(row["experts/dead"] for row in rows)
    return f"{mean(found[:10]):.2f} → {mean(found[-10:]):.2f}, dead experts {dead:.0f}"


def calls(run: Path) -> list[str]:
    """The share of completions with calls, by tenth of the GRPO steps; nothing without tools."""
    if not load_recipe(str(run / "recipe.yaml")).tools:  # an environment has turns as well
        return []
    stage = max(run.glob("stages/*-grpo"), key=lambda path: int(path.name.split("-")[0]))
    rows = list(read_jsonl(stage / "rollouts.jsonl"))
    last = max(row["step"] for row in rows)
    found: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for row in rows:
        kind = "with powers of ten" if _TENS.search(row["prompt"]) else "products"
        found[kind, (row["step"] - 1) * 10 // last].append(bool(row["turns"]))
    return [
        f"{kind} | " + " | ".join(f"{mean(found[kind, tenth]):.0%}" for tenth in range(10))
        for kind in ("products", "with powers of ten")
    ]


def main() -> None:
    """Run what is asked and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/figures"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(RECIPES))
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| recipe | seed | set | before GRPO | after GRPO | thinks | tokens | best of k |")
    print("|---|---|---|---|---|---|---|---|")
    seconds, balance, called = [], [], list[str]()
    for name in asked.only.split(","):
        for seed in map(int, asked.seeds.split(",")):
            found = run(name, seed, asked.folder)
            seconds.append(f"{name} seed {seed}: {found['seconds']:.0f} s")
            print("\n".join(rows(name, seed, found)), flush=True)
            if load := loads(asked.folder / f"{name}-{seed}"):
                balance.append(f"{name} seed {seed}: {load}")
            called += [f"| {seed} | {line} |" for line in calls(asked.folder / f"{name}-{seed}")]
    if balance:
        print("\nbusiest expert over the mean, first and last 10 GRPO steps: " + "; ".join(balance))
    if called:
        numbers = " | ".join(map(str, range(1, 11)))
        print(f"\n| seed | completions with calls | {numbers} |\n|" + "---|" * 12)
        print("\n".join(called))
    print("\nwall time: " + "; ".join(seconds))


if __name__ == "__main__":
    main()
