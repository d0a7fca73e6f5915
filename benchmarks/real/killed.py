"""kill -9 in the middle of a real run, continued: are its weights those of the unbroken run?

    python benchmarks/real/killed.py mbpp_qwen_coder --seed 7 --grpo.steps 6 --evals.limit 16

Gives one command of run.py twice, with the flags that follow. In runs/killed/unbroken nothing
disturbs it. In runs/killed/broken all its processes end by signal 9 in the middle of step `--at`
of its last stage, and the same command continues it. Then the two are held against each other:
byte by byte the policy, the weights, optimizer and random state of the checkpoints, and the
completions and scores of the evaluations; row by row the metrics (without times) and rollouts.
results/killed.json has the weights' hashes and what differs.
Given again after the kill, it goes on where it was stopped. Exit codes: 0 equal, 1 not, 2 not
killed as asked, or a command's own.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from run import JOBS, ROOT, processor

from rl_reasoner.files import read_jsonl, sha256_of, write_json
from rl_reasoner.foreign import json_object

_TIMED = ("time", "timing/", "tokens_per_second")
_SAVED = "stages/*/checkpoints/*"
_STATES = ("*.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth")


class NotCut(Exception):
    """The kill did not come where it was asked for; the message says what happened."""


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Metrics of the steps that the run's last stage has made; none before it begins."""
    stages = sorted((folder / "stages").glob("*/metrics.jsonl"))
    return [*read_jsonl(stages[-1])] if stages and "grpo" in stages[-1].parent.name else []


def kill_in_step(command: Sequence[str], folder: Path, at: int) -> None:
    """Run the command until half of step `at` is over, as long as the one before; then signal 9.

    Raises `NotCut`.
    """
    if folder.exists():
        raise NotCut(f"{folder} was stopped before the kill: remove it, and begin again")
    running = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        while len(made := steps_of(folder)) < at - 1:
            if running.poll() is not None:
                raise NotCut(f"the run ended (code {running.returncode}) before step {at}")
            time.sleep(0.05)
        time.sleep(float(made[-1]["step_time"]) / 2)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    if len(made := steps_of(folder)) != at - 1 or running.returncode != -signal.SIGKILL:
        raise NotCut(f"step {at} was not cut: {len(made)} steps are there")


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics without what the clock says."""
    return {key: value for key, value in row.items() if not any(word in key for word in _TIMED)}


def bytes_unlike(one: Path, other: Path, patterns: Sequence[str]) -> Iterator[str]:
    """Which of the files that match in either folder are not the same in both."""
    found = {p.relative_to(r) for r in (one, other) for name in patterns for p in r.glob(name)}
    for name in sorted(found):
        files = [root / name for root in (one, other)]
        if not all(file.exists() for file in files):
            yield f"{name}: in one run only"
        elif files[0].is_file() and sha256_of(files[0]) != sha256_of(files[1]):
            yield f"{name}: other bytes"


def differences(one: Path, other: Path) -> Iterator[str]:
    """What two finished run folders do not have in common, file by file."""
    yield from bytes_unlike(one, other, ["policy/*", *(f"{_SAVED}/{name}" for name in _STATES)])
    for file in sorted((one / "stages").glob("*/*.jsonl")):
        name = file.relative_to(one)
        if file.name in ("metrics.jsonl", "rollouts.jsonl"):
            ours, theirs = (
                [untimed(row) for row in read_jsonl(root / name)] for root in (one, other)
            )
            if ours != theirs:
                yield f"{name}: other rows"
    yield from bytes_unlike(one, other, ["evals/*.rows.jsonl"])


def result(runs: Path, name: str, at: int, flags: Sequence[str]) -> dict[str, Any]:
    """What both runs came to, for results/killed.json."""
    whole, broken = (ROOT / runs / kind / name for kind in ("unbroken", "broken"))
    lock = json_object(whole / "lock.json")
    weights = sorted((whole / "policy").glob("*.safetensors"))
    return {
        "run": name,
        "flags": list(flags),
        "commit": lock["commit"],
        "steps": len(steps_of(whole)),
        "killed_in_step": at,
        "weights": {
            file.name: {
                "bytes": file.stat().st_size,
                "unbroken": sha256_of(file),
                "broken": sha256_of(broken / "policy" / file.name),
            }
            for file in weights
        },
        "differences": [*differences(whole, broken)],
        "machine": {"system": lock["machine"], "processor": processor()},
    }


def main() -> int:
    """Train twice, kill the second, and compare."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="further flags go to run.py, and from it to rl-reasoner train",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", choices=JOBS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=int, default=4, help="the step that is cut (2 or later)")
    parser.add_argument("--runs", type=Path, default=Path("runs/killed"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/real/results/killed.json"))
    asked, flags = parser.parse_known_args()
    if asked.at < 2:
        parser.error(f"--at {asked.at}: 2 or later; how long a step takes is known from the first")
    name = f"{asked.recipe}-{asked.seed}"
    script = str(Path(__file__).with_name("run.py"))
    command = [sys.executable, script, asked.recipe, "--seed", str(asked.seed), *flags]
    places = {kind: str(asked.runs / kind) for kind in ("unbroken", "broken")}
    commands = {
        kind: [*command, "--runs", place, "--results", place] for kind, place in places.items()
    }
    cut = ROOT / asked.runs / "broken" / f"{name}.cut.json"
    try:
        if not cut.is_file():
            kill_in_step(commands["broken"], ROOT / asked.runs / "broken" / name, asked.at)
            write_json(cut, {"step": asked.at})
        for command in (commands["broken"], commands["unbroken"]):
            subprocess.run(command, cwd=ROOT, check=True)
    except NotCut as error:
        print(error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except KeyboardInterrupt:
        return 130
    found = result(asked.runs, name, int(json_object(cut)["step"]), flags)
    write_json(ROOT / asked.out, found)
    for line in found["differences"] or ["no difference"]:
        print(line)
    print(asked.out)
    return 1 if found["differences"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
