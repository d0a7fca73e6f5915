"""Mistakes that people make, typed as they type them: what comes, the exit code, and how long.

    python benchmarks/mistakes.py              # a table in Markdown
    python benchmarks/mistakes.py --limit 2    # exit code 1 where one computes for 2 s or more

Each is a process of its own, started in a folder with a recipe, a data file and a run that is not
finished; what loads torch takes several seconds. "s" is wall time, which a busy machine makes
longer; "CPU s" is what the process itself computed. Good is: one line, exit code 2, nothing on
standard output. `tests/cli/test_human_mistakes.py` holds the words of each line.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MISTAKES = (
    "trian quickstart",
    "--verbose",
    "train",
    "train quickstrat",
    "train quickstart other",
    "train mine.yml",
    "train mine.yaml --grup.size 4",
    "train mine.yaml --steps",
    "train mine.yaml --group.size 1",
    "train mine.yaml --evals.sets modular_tst",
    "train mine.yaml --data.path problms.jsonl",
    "train mine.yaml --data.path problems.jsonl",
    "train mine.yaml --data.task modulr",
    "train mine.yaml --data.count 3",
    "train mine.yaml --rewards '{lenght: 1}'",
    "train mine.yaml --rewards '{countdown: 1}'",
    "train mine.yaml --policy scratch:moe-tny",
    "train mine.yaml --policy runs/nope",
    "train mine.yaml --run.folder runs/one",
    "train mine.yaml --run.report_to wandbb",
    "train mine.yaml --trainer.sed 3",
    "train mine.yaml --until grop",
    "train --resume runs/noe",
    "eval runs/nope --sets modular_test",
    "eval scratch:moe-tiny --sets modular_tst",
    "eval scratch:moe-tiny --sets modular_test --sampels 9",
    "eval scratch:moe-tiny --sets modular_test --samples many",
    "eval scratch:moe-tiny --sets modular_test --reward boxd",
    "chat runs/anything",
    "check quickstrat",
    "compare before.json after.json",
    "score boxed problms.jsonl",
    "score boxd problems.jsonl",
    "filter scratch:moe-tiny problms.jsonl",
    "why runs/noe",
    "report runs/anything",
    "audit runs/noe",
    "export scratch:moe-tiny runs/one",
    "publish runs/noe out",
    "list recipies",
    "copy quickstrat",
    "env --gpus 3",
    "env --plan quickstart --gpu H1000",
    "completion bsh",
)
HABITS = (
    "train quickstart --lr 1e-5",
    "train quickstart --learning_rate=1e-5",
    "train quickstart --max-steps 10",
    "train quickstart --epochs 3",
    "train quickstart --batch-size 8",
    "train quickstart --model gpt2",
    "train quickstart --dataset gsm8k",
    "train quickstart --output-dir out",
    "train quickstart --beta 0.1",
    "train quickstart --num-generations 8",
    "train quickstart --max-completion-length 64",
    "eval scratch:moe-tiny --dataset gsm8k",
    "eval scratch:moe-tiny --sets modular_test --max-new-tokens 64",
    "eval scratch:moe-tiny --sets modular_test --batch-size 8",
)
"""Flags that other tools have, by the names that the field gives them."""


@dataclass(frozen=True)
class Came:
    """What came of a command."""

    code: int
    out: str
    err: str
    seconds: float
    cpu: float

    def faults(self, limit: float) -> list[str]:
        """What is not as it should be."""
        return [
            *([f"exit code {self.code}"] if self.code != 2 else []),
            *(["standard output"] if self.out else []),
            *([f"{len(self.err.splitlines())} lines"] if len(self.err.splitlines()) != 1 else []),
            *([f"{self.cpu:.1f} s of processor time"] if self.cpu >= limit else []),
        ]


def typed(command: str, folder: Path) -> Came:
    """`rl-reasoner COMMAND`, in a process of its own."""
    argv = [sys.executable, "-m", "rl_reasoner.cli", *shlex.split(command)]
    before, started = os.times(), time.monotonic()
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
    seconds, after = time.monotonic() - started, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Came(done.returncode, done.stdout, done.stderr.strip(), seconds, cpu)


def stocked(folder: Path) -> None:
    """The files that the commands name, in `folder`."""
    copied = typed("copy quickstart.yaml mine.yaml", folder)
    assert copied.code == 0, copied.err
    (folder / "runs" / "one").mkdir(parents=True)
    (folder / "runs" / "one" / "recipe.yaml").write_text("name: one\n", encoding="utf-8")
    (folder / "runs" / "one" / ".lock").touch()
    (folder / "problems.jsonl").write_text('{"question": "1+1=", "answr": "2"}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="seconds of processor time"
    )
    limit = parser.parse_args().limit
    bad = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stocked(folder)
        print("| typed after `rl-reasoner` | what came | exit | s | CPU s |\n|---|---|---|---|---|")
        for command in (*MISTAKES, *HABITS):
            came = typed(command, folder)
            line = " / ".join(came.err.splitlines()).replace("|", "\\|")
            shown = f"| `{command}` | {line} | {came.code}"
            print(f"{shown} | {came.seconds:.1f} | {came.cpu:.1f} |", flush=True)
            bad += [f"{command}: {fault}" for fault in came.faults(limit)]
    print(f"\n{len(MISTAKES)} mistakes and {len(HABITS)} habits", *bad, sep="\n")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
