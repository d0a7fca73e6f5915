"""When does `tool_tiny` call? Shares of calls and accuracies of its runs, with and without tools.

    python benchmarks/tools.py [FOLDER] [--seeds 0,1,2]

Runs `rl-reasoner train tool_tiny --run.seed S` into FOLDER/tool_tiny-S (default runs/figures), and
for the first seed also `--tools null` into FOLDER/no_tool-S; what is finished there is not done
again. Prints the accuracies before and after GRPO, and by tenth of its steps the share of
completions with calls: of products, and of products with powers of ten, which need none.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from rl_reasoner.files import read_jsonl

_TENS = re.compile(r"\*10{0,3}=")


def run(target: Path, seed: int, *flags: str) -> Path:
    """The folder of a finished run, begun or continued where it has to be."""
    if not (target / "report.html").is_file():
        command = [sys.executable, "-m", "rl_reasoner.cli", "train"]
        if (target / "recipe.yaml").is_file():
            command += ["--resume", str(target)]
        else:
            command += ["tool_tiny", "--run.seed", str(seed), "--run.folder", str(target), *flags]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=one_thread)
    return target


def accuracies(folder: Path) -> list[str]:
    """Each set's accuracy before and after GRPO, with the 95% intervals."""
    before, after = (
        json.loads((folder / "evals" / f"{when}.json").read_text())["sets"]
        for when in ("before", "after")
    )
    cells = []
    for name in before:
        spans = [f"{x['accuracy']:.1%} [{x['interval'][0]:.1%}, {x['interval'][1]:.1%}]"
                 for x in (before[name], after[name])]  # fmt: skip
        cells.append(f"| {folder.name} | {name} | {spans[0]} | {spans[1]} |")
    return cells


def calls(folder: Path, tenths: int = 10) -> list[str]:
    """The share of completions with calls, by tenth of the steps."""
    found: dict[tuple[bool, int], list[bool]] = defaultdict(list)
    rows = [*read_jsonl(folder / "stages" / "3-grpo" / "rollouts.jsonl")]
    last = max(row["step"] for row in rows)
    for row in rows:
        tenth = (row["step"] - 1) * tenths // last
        found[bool(_TENS.search(row["prompt"])), tenth].append(bool(row["turns"]))
    lines = []
    for tens, label in ((False, "products"), (True, "with powers of ten")):
        shares = " | ".join(f"{mean(found[tens, tenth]):.0%}" for tenth in range(tenths))
        lines.append(f"| {folder.name} | {label} | {shares} |")
    return lines


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/figures"))
    parser.add_argument("--seeds", default="0,1,2")
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    runs = [run(asked.folder / f"tool_tiny-{seed}", seed) for seed in seeds]
    without = run(asked.folder / f"no_tool-{seeds[0]}", seeds[0], "--tools", "null")
    print("| run | set | before GRPO | after |\n|---|---|---|---|")
    print("\n".join(line for folder in (*runs, without) for line in accuracies(folder)))
    print("\n| run | completions with calls, by tenth of the steps |" + " |" * 10)
    print("|---|---|" + "---|" * 10)
    print("\n".join(line for folder in runs for line in calls(folder)))


if __name__ == "__main__":
    main()
