"""A recipe on a quiet machine, and beside loops that keep its cores busy: how much slower?

    python benchmarks/busy_machine.py                          # the quickstart beside 4 loops
    python benchmarks/busy_machine.py --loops 8 --recipe moe_tiny -- --grpo.steps 20

Each is `rl-reasoner train RECIPE` in a process of its own, in wall time, one after the other. What
is said behind `--` goes to both. By its fair share alone, one thread beside `n` loops on `c` cores
takes (n + 1) / c times as long, where that is more than 1. The number of threads is the command's
own choice: a variable OMP_NUM_THREADS in this environment changes it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Inside, so many processes do nothing but count."""
    started = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def trained(recipe: str, extra: list[str]) -> tuple[float, str]:
    """Seconds of a whole run, and the line that says how it computes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "rl_reasoner.cli", "train", recipe, *extra]
        command += ["--run.folder", str(Path(folder) / "run")]
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(done.stderr or f"ended by {done.returncode}, without a word")
    said = [line.strip() for line in done.stderr.splitlines() if "thread" in line]
    return seconds, said[0] if said else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--loops", type=int, default=4)
    args, extra = parser.parse_known_args()
    extra = [word for word in extra if word != "--"]
    quiet, how = trained(args.recipe, extra)
    print(f"quiet: {quiet:.1f} s ({how})", flush=True)
    with busy(args.loops):
        beside, how = trained(args.recipe, extra)
    print(f"beside {args.loops} loops: {beside:.1f} s ({how})")
    fair = max(1.0, (args.loops + 1) / len(os.sched_getaffinity(0)))
    print(f"{beside / quiet:.2f}x; the fair share of one thread: {fair:.2f}x")


if __name__ == "__main__":
    main()
