"""A long run with faults in it ends like the same run without: weights, ledger, memory, files.

    python benchmarks/soak.py                         # 2,000 steps, 2% faulty calls, 5 kills
    python benchmarks/soak.py --steps 60 --kills 2    # the same, small

One tiny GRPO run is trained twice. Both have the same faulty reward: of its calls `--faults`, by
chance, raise, hang, crash or eat memory, but not one that comes soon after a fault on the same
completion: the second try gives the score, so that the weights stay comparable. One of the runs is
killed with signal 9 `--kills` times, at moments spread over it, and resumed. Said at the end:
whether the final weights are equal bit by bit, whether the ledger has a row for every completion of
every step, the share of calls that faulted, and how memory and open files of the run that was left
alone went, from a tenth of it to its end.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REWARD = '''
import ctypes
import os
import random
import time
import zlib

from rl_reasoner import reward

FAULTS = {faults}
SEEN = {seen!r}
SOON = 10.0  # seconds within which the second try comes


def fresh(place):
    """Whether a call on the same completion faulted just now."""
    try:
        return time.time() - os.stat(place).st_mtime < SOON
    except OSError:
        return False


@reward
def shaky(completion: str, answer: str) -> float:
    """Nothing to be learned, so that completions stay different; some calls meet a fault."""
    number = zlib.crc32((answer + completion).encode("utf-8", "surrogatepass"))
    place = os.path.join(SEEN, str(number))
    kind = random.SystemRandom().random() / FAULTS
    if kind < 1 and not fresh(place):
        with open(place, "a") as file:
            file.write("x")
        if kind < 0.25:
            raise ValueError("a planted fault")
        if kind < 0.5:
            time.sleep(30)
        if kind < 0.75:
            ctypes.string_at(0)
        hoard = bytearray(1 << 40)
    return number % 997 / 997
'''


def recipe_of(args: argparse.Namespace, folder: Path, name: str) -> Path:
    """The recipe file of one of the two runs."""
    (folder / name).mkdir()
    (folder / name / "seen").mkdir()
    source = REWARD.format(faults=args.faults, seen=str(folder / name / "seen"))
    (folder / name / "shaky.py").write_text(source, encoding="utf-8")
    recipe = {
        "name": "soak",
        "policy": "scratch:dense-tiny",
        "template": "plain",
        "rewards": {f"{folder / name}/shaky.py:shaky": 1.0},
        "stages": [
            {
                "kind": "grpo",
                "data": {"task": "modular", "count": 512},
                "steps": args.steps,
                "group": {"size": 4, "prompts": 4},
                "sampling": {"max_tokens": 8},
                "optim": {"lr": 1e-4},
                "save_every": max(5, args.steps // 40),
                "trainer": {"reward_timeout_s": 1.0, "reward_memory_mb": 1024},
            }
        ],
        "run": {"folder": str(folder / name / "run"), "device": "cpu"},
    }
    path = folder / name / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """`rl-reasoner train ARGUMENTS`, in silence but for its errors."""
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--quiet"], env=environment, stdout=subprocess.DEVNULL)


def usage(pid: int) -> tuple[float, int]:
    """(resident memory in MB, open files) of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024, len(list(Path(f"/proc/{pid}/fd").iterdir()))


def steps_of(run: Path) -> int:
    """Steps that the run has written down."""
    path = run / "stages" / "1-grpo" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def undisturbed(recipe: Path, args: argparse.Namespace) -> list[tuple[int, float, int]]:
    """The run without kills; (step, memory, files) as it goes."""
    process, found = start(str(recipe)), []
    while process.poll() is None:
        time.sleep(0.25)
        try:
            found.append((steps_of(recipe.parent / "run"), *usage(process.pid)))
        except (OSError, ValueError):
            continue
    assert process.returncode == 0, process.returncode
    return [sample for sample in found if sample[0] > 0]


def killed(recipe: Path, args: argparse.Namespace) -> list[int]:
    """The run with kills; the steps at which it was killed."""
    run = recipe.parent / "run"
    draw = random.Random(args.seed)
    points = sorted(draw.sample(range(2, args.steps - 1), args.kills))
    process, at = start(str(recipe)), []
    for point in points:
        while process.poll() is None and steps_of(run) < point:
            time.sleep(0.01)
        time.sleep(0.3 * draw.random())  # anywhere in a step
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            at.append(steps_of(run))
            process.wait()
            process = start("--resume", str(run))
    assert process.wait() == 0, process.returncode
    return at


def verdict(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What the two finished runs have to show."""
    import torch
    from safetensors.torch import load_file

    from rl_reasoner.scoring.ledger import entries

    runs = [folder / name / "run" for name in ("whole", "killed")]
    a, b = (load_file(run / "policy" / "model.safetensors") for run in runs)
    ledgers = [list(entries(run / "stages" / "1-grpo")) for run in runs]
    places = [[(e["step"], e["group"], e["index"], e["hash"]) for e in found] for found in ledgers]
    return {
        "weights equal": a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a),
        "ledger rows": [len(found) for found in ledgers],
        "ledger complete": [len(set(p)) == len(p) == 16 * args.steps for p in places],
        "ledgers equal": places[0] == places[1],
        "faulty calls": [
            f"{sum(f.stat().st_size for f in (run.parent / 'seen').iterdir()) / len(rows):.1%}"
            for run, rows in zip(runs, ledgers, strict=True)
        ],
        "faults left": [sum(e["outcome"] == "fault" for e in found) for found in ledgers],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--faults", type=float, default=0.025, help="share of faulty reward calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = undisturbed(recipe_of(args, folder, "whole"), args)
        at = killed(recipe_of(args, folder, "killed"), args)
        found = {"killed at steps": at, **verdict(folder, args)}
    early = [s for s in samples if s[0] >= args.steps // 10][:5] or samples[:5]
    late = samples[-5:]
    for what, column in (("memory in MB", 1), ("open files", 2)):
        found[what] = [max(s[column] for s in part) for part in (early, late)]
    for key, value in found.items():
        print(f"{key:16} {value}")
    if args.json:
        args.json.write_text(json.dumps(found), encoding="utf-8")
    sound = found["weights equal"] and all(found["ledger complete"]) and found["ledgers equal"]
    flat = found["memory in MB"][1] < 1.1 * found["memory in MB"][0]
    return 0 if sound and flat and found["open files"][1] <= found["open files"][0] + 2 else 1


if __name__ == "__main__":
    raise SystemExit(main())
