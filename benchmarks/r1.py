"""R1 in one run, measured: the table of stages, what it has to show, and runs that are killed.

    python benchmarks/r1.py [FOLDER] [--seeds 0,1,2] [--kills 6] [--only r1_tiny]

For each seed `rl-reasoner train r1_tiny` into FOLDER/r1_tiny-SEED (default runs/r1); what is
finished there is not done again. Then reasoning RL once more without the reward for one language,
in a copy of which only that stage is done again. With --kills, the run of the first seed once more
from the start, without evaluations, killed with SIGKILL at random points of random stages and
continued each time: its stages have to come to the same weights. One thread, so that rounding is
the same.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.report.gain import moved
from rl_reasoner.report.pipeline import Reached, reached, text_table
from rl_reasoner.report.run_data import read_run

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
MATHS, CODE, WORDS = "modular_test", "functions_test", "instructions_tiny_test"


def command(*words: str) -> list[str]:
    """`rl-reasoner train` with these words."""
    return [sys.executable, "-m", "rl_reasoner.cli", "train", *words, "--quiet", "--json"]


def go(recipe: str, seed: int, folder: Path) -> float:
    """Run the recipe to its end in `folder`, as far as it is not there; seconds it took."""
    begun = (folder / "recipe.yaml").is_file()
    words = ["--resume", str(folder)] if begun else [recipe, "--run.seed", str(seed)]
    words += [] if begun else ["--run.folder", str(folder)]
    started = time.monotonic()
    subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL, env=ENV)
    return time.monotonic() - started


def made(folder: Path) -> dict[str, str]:
    """The hash of what each stage has made."""
    return {
        file.parent.name.partition("-")[2]: json.loads(file.read_text())["made"]
        for file in folder.glob("stages/*/done.json")
    }


def overall(each: Reached) -> float:
    """The mean accuracy over the sets."""
    return sum(result.accuracy for result in each.sets.values()) / len(each.sets)


def shown(folder: Path) -> list[str]:
    """What R1 has to show, each with its figures."""
    found = {each.name: each for each in reached(read_run(folder))}

    def pair(before: str, after: str, name: str) -> str:
        a, b = found[before].sets[name], found[after].sets[name]
        return f"{a.accuracy:.1%} -> {b.accuracy:.1%} ({moved(a, b)})"

    kept = [
        found["sft"].sets[name].accuracy / max(1e-9, found["reasoning"].sets[name].accuracy)
        for name in (MATHS, CODE)
    ]
    best = max(found.values(), key=overall)
    mixes = [found[name].habits[MATHS].mixed or 0.0 for name in ("cold_start", "reasoning")]
    return [
        f"R1-Zero against its base, maths: {pair('pretrain', 'zero', MATHS)}",
        f"R1-Zero against its base, code: {pair('pretrain', 'zero', CODE)}",
        f"reasoning RL against cold start, maths: {pair('cold_start', 'reasoning', MATHS)}",
        f"reasoning RL against cold start, code: {pair('cold_start', 'reasoning', CODE)}",
        f"SFT on samples keeps {kept[0]:.1%} of reasoning RL in maths, {kept[1]:.1%} in code",
        f"final RL, mean of the sets: {overall(found['all']):.1%}; best: {best.name} "
        f"{overall(best):.1%}",
        f"student by samples against RL alone, maths: {pair('student_rl', 'student', MATHS)}",
        f"student by samples against RL alone, code: {pair('student_rl', 'student', CODE)}",
        f"chains that mix languages: {mixes[0]:.1%} after cold start, {mixes[1]:.1%} after RL",
    ]


def without_language_reward(folder: Path) -> str:
    """Reasoning RL without the reward for one language, from the same cold start."""
    other = folder.with_name(f"{folder.name}-any-language")
    if not other.exists():
        shutil.copytree(folder, other)
    flags = ["--reasoning.data.mix.0.rewards", "math_answer,format_tags"]
    words = ["r1_tiny", "--resume", str(other), *flags, "--until", "reasoning"]
    subprocess.run(command(*words), check=True, stdout=subprocess.DEVNULL, env=ENV)
    pairs = []
    for run in (other, folder):
        each = next(e for e in reached(read_run(run)) if e.name == "reasoning")
        result = each.sets[MATHS]
        low, high = result.interval or (0.0, 1.0)
        mixed = each.habits[MATHS].mixed or 0.0
        pairs.append(f"{result.accuracy:.1%} [{low:.1%}, {high:.1%}], {mixed:.1%} of chains mixed")
    return f"maths without the language reward: {pairs[0]}; with it: {pairs[1]}"


def killed(recipe: str, seed: int, folder: Path, kills: int) -> int:
    """A run that is killed at random points; how many kills came before its end."""
    stages = load_recipe(recipe).stages
    rng = random.Random(seed)
    points = sorted(rng.sample(range(len(stages)), min(kills, len(stages))))
    done = 0
    for index in points:
        stage = stages[index]
        place = folder / "stages" / f"{index + 1}-{stage.name}"
        file = place / ("samples.jsonl" if stage.kind == "sample" else "metrics.jsonl")
        steps = getattr(stage, "steps", 2000)
        wanted = rng.randrange(1, max(2, int(0.9 * steps)))
        begun = (folder / "recipe.yaml").is_file()
        words = ["--resume", str(folder)] if begun else [recipe, "--run.seed", str(seed)]
        words += [] if begun else ["--run.folder", str(folder), "--evals.sets", ""]
        child = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, env=ENV)
        while child.poll() is None and _lines(file) < wanted:
            time.sleep(0.05)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            done += 1
            print(f"killed in {stage.name} at {_lines(file)} lines of {file.name}", flush=True)
        child.wait()
    go(recipe, seed, folder)
    return done


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/r1"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--only", default="r1_tiny", help="another recipe for the kills")
    asked = parser.parse_args(argv)
    asked.folder.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for seed in seeds:
        folder = asked.folder / f"{asked.only}-{seed}"
        seconds = go(asked.only, seed, folder)
        print(f"\n## {asked.only}, seed {seed} ({seconds:.0f} s now)\n")
        print(text_table(read_run(folder)), flush=True)
        if asked.only == "r1_tiny":
            print("\n" + "\n".join(f"- {line}" for line in shown(folder)))
            print(f"- {without_language_reward(folder)}", flush=True)
    if asked.kills:
        whole = asked.folder / f"{asked.only}-{seeds[0]}"
        again = asked.folder / f"{asked.only}-{seeds[0]}-killed"
        count = killed(asked.only, seeds[0], again, asked.kills)
        differ = [n for n, value in made(whole).items() if made(again).get(n) != value]
        verdict = "the same weights in every stage" if not differ else f"differ: {differ}"
        print(f"\nkilled {count} times: {verdict}")


if __name__ == "__main__":
    main()
