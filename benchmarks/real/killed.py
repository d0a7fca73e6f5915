"""kill -9 in the middle of a real run, continued: are its weights those of the unbroken run?

    python benchmarks/real/killed.py mbpp_qwen_coder --seed 7 --grpo.steps 6 --evals.limit 16

Gives one command of run.py twice, with the flags that follow. In runs/killed/unbroken nothing
disturbs it. In runs/killed/broken each of its processes ends by signal 9 in the middle of step
`--at` of its grpo stage, behind a checkpoint (--grpo.save_every), and the same command continues
it. Then the two are held against each other: byte by byte the policy, the checkpoints' weights,
optimizer and scheduler, rollouts, and the completions and scores of the evaluations; row by row
the metrics, without times. Control arms are not looked at. results/killed.json has the weights'
hashes and what differs.
Given again after the kill, it goes on where it was stopped. Exit codes: 0 equal, 1 not, or not
killed as asked, or a command's own.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from run import JOBS, ROOT, processor

from rl_reasoner.files import read_jsonl, sha256_of, write_json
from rl_reasoner.foreign import json_object
from rl_reasoner.training.checkpointing.checkpoints import last_checkpoint

_TIMED = ("time", "timing/", "tokens_per_second")
_METRICS = "stages/*/metrics.jsonl"
_SAVED = "stages/*/checkpoints/*"
# Not rng_state*.pth: beside random states it lists the kernels that a process has chosen, and a
# continued process takes over those of another. That draws go on is seen in rollouts.
_STATES = ("*.safetensors", "optimizer.pt", "scheduler.pt")


class Unusable(Exception):
    """The runs are not what they should be to be compared; the message says why."""


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Metrics of the steps that the run's grpo stage has made; none before it begins."""
    return [row for file in folder.glob("stages/*-grpo/metrics.jsonl") for row in read_jsonl(file)]


def kill(running: subprocess.Popen[bytes]) -> int:
    """Signal 9 to a process and to all that it has started; how many they were.

    Not by their group: trainers of --launch have their own, and would end their step in peace.
    """
    started = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    running.wait()
    if alive := psutil.wait_procs(started, timeout=30)[1]:
        raise Unusable(f"{len(alive)} processes are alive after signal 9")
    return 1 + len(started)


def kill_in_step(command: Sequence[str], folder: Path, at: int) -> int:
    """Run the command until half of step `at` is over, as long as the one before; then signal 9.

    Returns the step from which the run can be continued. Raises `Unusable`.
    """
    if folder.exists():
        raise Unusable(f"{folder} is there, and was not cut in step {at}: remove it, begin again")
    running = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        while len(made := steps_of(folder)) < at - 1:
            if running.poll() is not None:
                raise Unusable(f"the run ended (code {running.returncode}) before step {at}")
            time.sleep(0.05)
        time.sleep(float(made[-1]["step_time"]) / 2)
    finally:
        killed = kill(running) if running.poll() is None else 0
    if len(made := steps_of(folder)) != at - 1 or running.returncode != -signal.SIGKILL:
        raise Unusable(f"step {at} was not cut: {len(made)} steps are there")
    print(f"killed {killed} processes in step {at}", file=sys.stderr)
    for place in folder.glob("stages/*-grpo/checkpoints"):
        if found := last_checkpoint(place, print):
            return found[1]
    raise Unusable(f"no checkpoint before step {at}: give --grpo.save_every {at - 1} or less")


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
    exact = ["policy/*", *(f"{_SAVED}/{name}" for name in _STATES)]
    yield from bytes_unlike(one, other, [*exact, "stages/*/rollouts*", "evals/*.rows.jsonl"])
    found = {p.relative_to(root) for root in (one, other) for p in root.glob(_METRICS)}
    for name in sorted(found):
        files = [root / name for root in (one, other)]
        lines = [file.read_bytes().count(b"\n") if file.exists() else 0 for file in files]
        ours, theirs = ([untimed(row) for row in read_jsonl(file)] for file in files)
        if ours != theirs or lines != [len(ours), len(theirs)]:
            yield f"{name}: other rows"


def result(whole: Path, broken: Path, cut: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """What both runs came to, for results/killed.json. Raises `Unusable`."""
    lock = json_object(whole / "lock.json")
    weights = sorted((whole / "policy").glob("*.safetensors"))
    if not weights:
        raise Unusable(f"{whole}/policy has no weights")
    return {
        "run": whole.name,
        "flags": list(flags),
        "commit": lock["commit"],
        "steps": len(steps_of(whole)),
        "killed_in_step": cut["step"],
        "continued_from_step": cut["checkpoint"],
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
    folders = {kind: ROOT / place / name for kind, place in places.items()}
    cut = folders["broken"].with_name(f"{name}.cut.json")
    try:
        if not cut.is_file():
            saved = kill_in_step(commands["broken"], folders["broken"], asked.at)
            write_json(cut, {"step": asked.at, "checkpoint": saved})
        for kind, folder in folders.items():
            if folder.with_name(f"{name}.json").is_file():
                continue  # it has come to its end
            if kind == "unbroken" and folder.exists():
                raise Unusable(f"{folder} was stopped, so it is not unbroken: remove it")
            subprocess.run(commands[kind], cwd=ROOT, check=True)
        found = result(folders["unbroken"], folders["broken"], json_object(cut), flags)
    except Unusable as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except KeyboardInterrupt:
        return 130
    write_json(ROOT / asked.out, found)
    for line in found["differences"] or ["no difference"]:
        print(line)
    print(asked.out)
    return 1 if found["differences"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
