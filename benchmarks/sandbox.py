"""How fast the sandbox is, beside plain Python processes in the same run; and how right.

    python benchmarks/sandbox.py                    # rates and latencies
    python benchmarks/sandbox.py --sets DIR         # code sets: references and wrong programs
    python benchmarks/sandbox.py --stress 2000      # a batch with a tenth of hostile programs

`python` starts `sys.executable` for each program, without any isolation; the others are the levels
that work here. Latencies are of one program at a time, taken in turns; rates are of batches on all
processors. Every figure is of programs that passed.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl_reasoner import sandbox
from rl_reasoner.sandbox import host, levels

SCRIPT = "n = int(input())\nprint(sum(i * i for i in range(n)))"
IMPORTS = (
    "import math, re, json, itertools, functools, collections, heapq, bisect, string, random\n"
)
IMPORTS += "import decimal, fractions, dataclasses, typing\n"
PROGRAMS: dict[str, tuple[str, sandbox.Test]] = {
    "script": (SCRIPT, {"stdin": "100", "stdout": "328350"}),
    "script, 14 imports": (IMPORTS + SCRIPT, {"stdin": "100", "stdout": "328350"}),
    "call": ("def f(n): return n * n", {"call": "f", "args": [7], "expected": 49}),
    "check function": ("def f(n): return n * n", "def check(c):\n    assert c(7) == 49\ncheck(f)"),
}


@contextmanager
def at(level: str) -> Iterator[None]:
    """Everything in the block runs at `level`."""
    before = os.environ.get(levels.LIMIT_VARIABLE, "")
    os.environ[levels.LIMIT_VARIABLE] = level
    try:
        yield
    finally:
        os.environ[levels.LIMIT_VARIABLE] = before


def plain(program: str, test: Any) -> bool:
    """Whether a plain Python process passes a test of the stdin form."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=test["stdin"].encode(),
        capture_output=True,
        check=False,
    )
    return bool(done.stdout.decode().split() == test["stdout"].split())


def subjects() -> list[str]:
    """What is measured: plain Python, and the strong levels that work here."""
    found = ["python"]
    for level in levels.STRONG:
        with at(level):
            if sandbox.strength().level == level:
                found.append(level)
    return found


def once(subject: str, program: str, test: sandbox.Test) -> float:
    """Seconds that one program takes."""
    began = time.perf_counter()
    if subject == "python":
        passed = plain(program, test)
    else:
        with at(subject):
            passed = sandbox.run(program, [test]).passed
    if not passed:
        raise SystemExit(f"{subject}: the program did not pass")
    return time.perf_counter() - began


def rate(subject: str, program: str, test: sandbox.Test, count: int) -> float:
    """Programs a second in a batch of `count`, on all processors."""
    began = time.perf_counter()
    if subject == "python":
        with ThreadPoolExecutor(host.processors()) as pool:
            passed = list(pool.map(plain, [program] * count, [test] * count))
    else:
        with at(subject):
            results = sandbox.run_many([program] * count, [[test]] * count)
        passed = [result.passed for result in results]
    if not all(passed):
        raise SystemExit(f"{subject}: {passed.count(False)} of {count} did not pass")
    return count / (time.perf_counter() - began)


def speed(rounds: int) -> None:
    """Print a table of rates and latencies."""
    print(f"{host.processors()} processors, load {os.getloadavg()[0]:.1f}")
    print(f"{'program':20} {'level':12} {'p50 ms':>8} {'p99 ms':>8} {'a second':>9} {'ratio':>6}")
    for name, (program, test) in PROGRAMS.items():
        chosen = [
            s for s in subjects() if s != "python" or (isinstance(test, dict) and "stdin" in test)
        ]
        taken: dict[str, list[float]] = {subject: [] for subject in chosen}
        for _ in range(rounds):
            for subject in chosen:
                taken[subject].append(once(subject, program, test))
        batches = {s: [rate(s, program, test, rounds) for _ in range(3)] for s in chosen}
        for subject in chosen:
            each = sorted(taken[subject])
            p50, p99 = each[len(each) // 2] * 1e3, each[int(len(each) * 0.99)] * 1e3
            a_second = statistics.median(batches[subject])
            base = statistics.median(batches["python"]) if "python" in batches else float("nan")
            ratio = f"{a_second / base:6.2f}" if base == base else "     -"
            print(f"{name:20} {subject:12} {p50:8.2f} {p99:8.2f} {a_second:9.1f} {ratio}")


def sets(folder: Path) -> None:
    """Print how many references pass and how many wrong programs fail, for each code set."""
    for name in ("humaneval", "mbpp", "leetcode_200", "code_contests_stdio"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        tests = [row["tests"] for row in rows]
        began = time.perf_counter()
        right = sandbox.run_many([r["reference_solution"] for r in rows], tests, timeout_s=10)
        took = time.perf_counter() - began
        failed = [r["id"] for r, got in zip(rows, right, strict=True) if not got.passed]
        print(f"{name}: {len(rows) - len(failed)} of {len(rows)} references pass in {took:.1f} s")
        for one in failed:
            print(f"  fails: {one}")
        for kind, make in WRONG.items():
            programs = [make(row) for row in rows]
            limit = 0.05 if kind == "loop" else 2.0
            wrong = sandbox.run_many(programs, tests, timeout_s=limit, stop_early=True)
            earned = [r["id"] for r, got in zip(rows, wrong, strict=True) if got.passed]
            print(f"  {kind}: {len(earned)} of {len(rows)} pass {earned[:5] or ''}")


def _body(row: dict[str, Any], statement: str) -> str:
    """A program of the row's shape in which every function of it does `statement`."""
    name = str(row["entry_point"] or "main").rpartition(".")[2].removesuffix("()")
    function = f"def {name}(*args, **kwargs):\n    {statement}\n"
    if "Solution" in str(row["entry_point"]):
        return f"class Solution:\n    {function.replace(chr(10), chr(10) + '    ')}"
    return function + ("" if row["entry_point"] else "main(input())")


def _expected(row: dict[str, Any]) -> str:
    """All that a row's tests say, printed and returned at every chance."""
    said = [t["stdout"] if isinstance(t, dict) else t for t in row["tests"]]
    return f"said = {said!r}\nprint(*said)\n" + _body(row, f"print({said!r}); return {said!r}")


WRONG: dict[str, Callable[[dict[str, Any]], str]] = {
    "return None": lambda row: _body(row, "return None"),
    "raise": lambda row: _body(row, "raise ValueError"),
    "loop": lambda row: _body(row, "while True: pass"),
    "print the expected": _expected,
    "exit": lambda row: "import os; os._exit(0)",
}


def stress(count: int) -> None:
    """Print whether a batch with a tenth of hostile programs is judged right, and leaks."""
    hostile = itertools.cycle(
        [
            "import os; os._exit(0)",
            "while True: pass",
            "x = bytearray(4 << 30)",
            "import os; os.fork()",
            "import os; os.kill(os.getppid(), 9)",
            "while True: print('x' * 1_000_000)",
            "for i in range(10 ** 6): open(str(i), 'w')",
            "def f(x): return type('A', (int,), {'__eq__': lambda s, o: True})()",
        ]
    )
    choose = random.Random(0)
    programs: list[str] = []
    tests: list[list[sandbox.Test]] = []
    right: list[bool] = []
    for n in range(count):
        right.append(choose.random() < 0.9)
        programs.append(f"def f(x): return x + {n}" if right[-1] else next(hostile))
        tests.append([{"call": "f", "args": [1], "expected": n + 1}, f"assert f(2) == {n + 2}"])
    for attempt in ("first", "second"):
        began = time.perf_counter()
        results = sandbox.run_many(programs, tests, timeout_s=1.0, stop_early=True)
        took = time.perf_counter() - began
        wrong = sum(got.passed != want for got, want in zip(results, right, strict=True))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) >> 8
        files = len(list(Path("/proc/self/fd").iterdir()))
        children = sum(
            len(task.joinpath("children").read_text().split())
            for task in Path("/proc/self/task").iterdir()
        )
        print(
            f"{attempt}: {wrong} of {count} verdicts wrong, {count / took:.0f} a second, "
            f"{files} open files, {resident} MB resident, "
            f"{children} child processes, {len(host.pool._all)} zygotes"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=200, help="programs of each kind")
    parser.add_argument("--sets", type=Path, help="the folder of humaneval.jsonl and others")
    parser.add_argument("--stress", type=int, help="number of programs in the batch")
    options = parser.parse_args()
    print(sandbox.strength())
    if options.sets:
        sets(options.sets)
    elif options.stress:
        stress(options.stress)
    else:
        speed(options.rounds)


if __name__ == "__main__":
    main()
