"""Ours and Math-Verify on the same rows in one run: accuracy, pairs per CPU second, latency.

    python benchmarks/verifier.py ROWS.jsonl [--limit N] [--many N] [--fuzz N]

A row has `gold`, `completion` and `expected` (true or false); rows with `"disputed": true` are
left out. Both verifiers start with empty caches and see each row once, in the main thread
(Math-Verify works nowhere else). CPU time is this process's and its worker's, both started before.
`--many` times `verify_many` on N distinct made rows, on one and on two processes, wall clock,
workers started before. `--fuzz` judges N mutations of the rows from the main thread, from 8 threads
at once and from a spawned child, and prints faults, the longest call, memory and workers left.
Math-Verify is optional (`pip install math-verify`).
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rl_reasoner.answers import verify, verify_many
from rl_reasoner.answers.pool import worker_pool

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
        import math_verify as other  # type: ignore[import-untyped]
    except ImportError:
        return None

    def judge(completion: str, gold: str) -> bool | None:
        """Right, wrong, or None where it raised."""
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


def made(count: int, first: int) -> tuple[list[str], list[str]]:
    """Distinct ordinary rows from number `first` on; a third of them are wrong."""
    completions, golds = [], []
    for i in range(first, first + count):
        wrong = int(i % 3 == 0)
        forms = (
            (rf"\frac{{{2 * i + 2}}}{{14}}", rf"\frac{{{i + 1 + wrong}}}{{7}}"),
            (rf"{i}+\sqrt{{{4 * i + 8}}}", rf"2\sqrt{{{i + 2}}}+{i + wrong}"),
            (f"(x+{i})^2", f"x^2+{2 * i}x+{i * i + wrong}"),
            (f"{i + wrong}", f"{i}"),
        )
        answer, gold = forms[i % len(forms)]
        completions.append(f"Let us see. {'We compute. ' * 60} So it is $\\boxed{{{answer}}}$.")
        golds.append(gold)
    return completions, golds


def scaled(count: int) -> None:
    """Print rows per second of `verify_many` on one and on two processes, the best of three."""
    rates, attempt = {}, 0
    for workers in (1, 2):
        best = 0.0
        for _ in range(3):
            attempt += 1
            completions, golds = made(count, first=attempt * count)
            verify_many(completions[:64], golds[:64], workers=workers)
            start = time.perf_counter()
            verify_many(completions, golds, workers=workers)
            best = max(best, count / (time.perf_counter() - start))
        rates[workers] = best
    print(
        f"verify_many  {count} rows: {rates[1]:.0f} rows/s on one process, {rates[2]:.0f} on two, "
        f"ratio {rates[2] / rates[1]:.2f}"
    )


BITS = [
    r"\boxed{", "}", "{", r"\frac{", "^", "^{", "_{", "(", ")", "[", "|", r"\sqrt", "!", "9" * 50,
    "9" * 5000, "^9^9^9", "10^{10^{10}}", r"\pm", r"\binom{999999}{55555}", "(" * 50, "-" * 300,
    r"\infty", r"\sum_{k=1}^{10^9}", r"\sum_{k=1}^{n}", r"\int", "\x00", "\ud800", "½", r"\cup",
    r"\begin{pmatrix}", r"\end{pmatrix}", "&", r"\\", "$", "#### ", "<answer>", "</think>", "n!",
    "the answer is ", "e", "i", "1e999999", "1/0", r"\log 0", r"\Gamma(1000000)", ",", " or ",
    r"\text{", "%", r"^\circ", "_2", "...", r"\lim_{x\to0}", r"\exp(\exp(\exp 9))", "x^{x^{x}}",
    r"\cos(n\pi)", "(-1)^n", "*" * 50, " " * 500, "1," * 100, "a" * 4000, "1 " * 1000,
]  # fmt: skip


def mutated(rows: Sequence[Row], count: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs made hostile: pieces put in, cut out and doubled."""
    chooser = random.Random(seed)
    pairs = []
    for _ in range(count):
        row = chooser.choice(rows)
        sides = [row["completion"][-600:], row["gold"]]
        side = chooser.choice((0, 0, 1))
        for _ in range(chooser.randint(1, 6)):
            text = sides[side]
            at, to = sorted(chooser.randint(0, len(text)) for _ in range(2))
            odd = chr(chooser.randint(1, 0x2FFF))
            change = chooser.choice((chooser.choice(BITS), "", text[at:to] * 2, odd))
            sides[side] = text[:at] + change + text[min(to, at + 5) :]
        pairs.append((sides[0], sides[1]))
    return pairs


def judged(pairs: Sequence[tuple[str, str]]) -> tuple[float, int]:
    """The longest call in seconds and the number of faults."""
    longest, faults = 0.0, 0
    for pair in pairs:
        start = time.monotonic()
        faults += verify(*pair).reason.startswith("fault")
        longest = max(longest, time.monotonic() - start)
    return longest, faults


def fuzzed(rows: Sequence[Row], count: int) -> None:
    """Print what `count` hostile pairs did, from three kinds of places."""
    third = count // 3
    pairs = mutated(rows, count, seed=0)
    outcomes = {"main thread": judged(pairs[:third])}
    with ThreadPoolExecutor(8) as threads:
        parts = [pairs[third + k : 2 * third : 8] for k in range(8)]
        results = list(threads.map(judged, parts))
    outcomes["8 threads"] = (max(r[0] for r in results), sum(r[1] for r in results))
    with multiprocessing.get_context("spawn").Pool(1) as child:
        outcomes["spawned child"] = child.apply(judged, (pairs[2 * third :],))
    for place, (longest, faults) in outcomes.items():
        print(f"fuzz, {place}: {faults} faults, longest call {longest:.2f} s")
    workers = len(worker_pool().resting) + len(worker_pool().working)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"fuzz: {workers} workers alive of at most {worker_pool().size}, peak memory {peak} MiB")


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--fuzz", type=int, default=0)
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
        scaled(options.many)
    if options.fuzz:
        fuzzed(rows, options.fuzz)


if __name__ == "__main__":
    main()
