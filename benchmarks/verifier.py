"""Ours and Math-Verify on the same rows in one run: accuracy, pairs per CPU second, latency.

    python benchmarks/verifier.py ROWS.jsonl [--limit N] [--many N]

A row has `gold`, `completion` and `expected` (true or false); rows with `"disputed": true` are left
out. Both verifiers start with empty caches and see each row once, in the main thread (Math-Verify
works nowhere else). CPU time is this process's and its worker's, both started before. `--many`
repeats the rows up to N and times `verify_many` on one and on two processes, wall clock, workers
started before.
Math-Verify is optional (`pip install math-verify`).
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl_reasoner.answers import verify, verify_many

Row = dict[str, Any]


def cpu_s() -> float:
    """CPU seconds of this process and of its living children (Linux)."""
    total = time.process_time()
    tick = os.sysconf("SC_CLK_TCK")
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def ours(completion: str, gold: str) -> bool | None:
    """Our verdict as right, wrong or abstained."""
    value = verify(completion, gold).value
    return None if value is None else value == 1.0


def math_verify() -> Callable[[str, str], bool | None] | None:
    """Math-Verify's verdict with the gold in a box, or None where it is not installed."""
    try:
        import math_verify as other
    except ImportError:
        return None

    def judge(completion: str, gold: str) -> bool | None:
        try:
            boxed = gold if "boxed" in gold else rf"\boxed{{{gold.strip('$')}}}"
            return bool(other.verify(other.parse(boxed), other.parse(completion)))
        except Exception:
            return None

    return judge


def measured(name: str, judge: Callable[[str, str], bool | None], rows: Sequence[Row]) -> float:
    """Run `judge` over `rows`, print one line of figures, give pairs per CPU second."""
    judge(r"\boxed{x+1}", "1+x")  # imports and the start of a worker are not counted
    judge(r"\boxed{\cos(n\pi)}", "(-1)^n")
    seconds, right, false_positives, false_negatives = [], 0, 0, 0
    start = cpu_s()
    for row in rows:
        before = time.process_time()
        verdict = judge(row["completion"], row["gold"])
        seconds.append(time.process_time() - before)
        right += verdict is row["expected"]
        false_positives += verdict is True and not row["expected"]
        false_negatives += verdict is not True and row["expected"]
    rate = len(rows) / (cpu_s() - start)
    cuts = statistics.quantiles(seconds, n=100)
    print(
        f"{name:12} accuracy {right / len(rows):.4f} ({false_positives} false positives, "
        f"{false_negatives} false negatives)  {rate:8.0f} pairs per CPU s  "
        f"p50 {cuts[49] * 1e3:.3f} ms  p99 {cuts[98] * 1e3:.3f} ms  max {max(seconds) * 1e3:.1f} ms"
    )
    return rate


def scaled(rows: Sequence[Row], count: int) -> None:
    """Print rows per second of `verify_many` on one and on two processes."""
    chosen = [rows[i % len(rows)] for i in range(count)]
    completions = [f"{row['completion']} " + " " * (i % 97) for i, row in enumerate(chosen)]
    golds = [row["gold"] for row in chosen]
    rates = {}
    for workers in (1, 2):
        verify_many(completions[:64], golds[:64], workers=workers)
        start = time.perf_counter()
        verify_many(completions, golds, workers=workers)
        rates[workers] = count / (time.perf_counter() - start)
    print(
        f"verify_many  {count} rows: {rates[1]:.0f} rows/s on one process, {rates[2]:.0f} on two, "
        f"ratio {rates[2] / rates[1]:.2f}"
    )


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--many", type=int, default=0)
    options = parser.parse_args()
    lines = options.rows.read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if not row.get("disputed")]
    rows = rows[: options.limit or None]
    print(f"{len(rows)} rows of {options.rows.name}")
    rate = measured("ours", ours, rows)
    other = math_verify()
    if other is None:
        print("Math-Verify is not installed: pip install math-verify")
    else:
        print(f"ratio {rate / measured('Math-Verify', other, rows):.0f}")
    if options.many:
        scaled(rows, options.many)


if __name__ == "__main__":
    main()
