"""2,000 completions whose tools raise, hang, exit, fork, print 10 MB, return what is no text.

    python benchmarks/hostile_tools.py               # 2,048 completions, some minutes
    python benchmarks/hostile_tools.py --steps 2     # the same, small

An `sft` stage teaches a tiny policy to write calls of such tools, and nothing else; then GRPO
trains it. The reward teaches nothing in particular. Said at the end: how the calls ended, and
whether the run ended as it should, each completion has its verdict in the ledger, every call that
was run stands there with its end, the tokens of each completion are trained on as they were sampled
and given, and no process is left (found by a mark in its environment).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

TOOLS = '''
import os
import subprocess
import sys
import time
from typing import Any

from rl_reasoner import tool


@tool
def raises(text: str) -> str:
    """Raise."""
    raise KeyError(text)


@tool
def hangs(text: str) -> str:
    """Hang."""
    time.sleep(600)
    return text


@tool
def leaves(text: str) -> str:
    """End the process."""
    os._exit(3)


@tool
def quits(text: str) -> str:
    """End as scripts do."""
    sys.exit(text)


@tool
def dies(text: str) -> str:
    """Be killed."""
    os.kill(os.getpid(), 9)
    return text


@tool
def huge(text: str) -> str:
    """Return 10 MB."""
    return "0123456789" * 1_000_000


@tool
def forks(text: str) -> str:
    """Come back twice."""
    return "parent" if os.fork() else "child"


@tool
def spawns(text: str) -> str:
    """Leave a process behind, in a session of its own, and die."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os._exit(4)


@tool
def wrong(text: str) -> Any:
    """Return what is no text."""
    return [None, b"x", object(), {1}][len(text) % 4]


@tool
def eats(text: str) -> str:
    """Take more memory than there is."""
    return str(len(bytearray(1 << 40)))


@tool
def shouts(text: str) -> str:
    """Write on every pipe that there is."""
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"x" * 65536)
        except OSError:
            continue
    return text
'''
REWARD = '''
from rl_reasoner import reward


@reward
def letters(completion: str) -> float:
    """Nothing to be learned, but different from row to row."""
    return len(set(completion)) / 64
'''
NAMES = [line[4 : line.index("(")] for line in TOOLS.splitlines() if line.startswith("def ")]
PYTHON = ["import os; os._exit({})", "print('{}' * 10**7)", "while True: {}", "1 / 0 + {}"]
MARK = "RL_REASONER_HOSTILE_TOOLS"


def recipe_of(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe, whose files are written into `folder`."""
    (folder / "hostile.py").write_text(TOOLS, encoding="utf-8")
    (folder / "letters.py").write_text(REWARD, encoding="utf-8")
    rows = []
    for number in range(100, 150):
        texts = {name: str(number) for name in NAMES}
        texts |= {f"python {i}": code.format(number) for i, code in enumerate(PYTHON)}
        for name, text in texts.items():
            tag = name.split()[0]
            call = f"<{tag}>{text}</{tag}>"
            rows.append({"problem": f"{name} {number}=", "answer": "0", "completion": call})
    data = folder / "calls.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "name": "hostile",
        "policy": "scratch:dense-tiny",
        "template": "plain",
        "tools": {
            "use": ["python", *(f"{folder / 'hostile.py'}:{name}" for name in NAMES)],
            "format": "tags",
            "calls": 2,
            "timeout_s": 1.0,
            "memory_mb": 512,
            "output_chars": 40,
        },
        "rewards": {f"{folder / 'letters.py'}:letters": 1.0},
        "stages": [
            {
                "kind": "sft",
                "data": str(data),
                "steps": args.taught,
                "batch": 32,
                "optim": {"lr": 5e-3},
            },
            {
                "kind": "grpo",
                "data": str(data),
                "steps": args.steps,
                "group": {"size": 8, "prompts": 16},
                "sampling": {"max_tokens": 160},
                "optim": {"lr": 1e-5},
            },
        ],
        "run": {"folder": str(folder / "run"), "device": "cpu", "report_to": "none"},
    }


def train(folder: Path) -> None:
    """The run itself; what was sampled, trained on and called goes to `seen.json`."""
    from rl_reasoner import Recipe, train
    from rl_reasoner.tools.runner import ToolRunner
    from rl_reasoner.training.engine_sampling import EngineSampling
    from rl_reasoner.training.packed_forward import PackedForward

    sampled: Counter[tuple[int, ...]] = Counter()
    trained: Counter[tuple[int, ...]] = Counter()
    calls = []  # a runner's, while the training samples: other looks at the policy call, too
    training = [False]
    sample, loss_of, submit = EngineSampling.sample, PackedForward.loss_of, ToolRunner.submit

    def watched_sample(self: Any, *given: Any) -> Any:
        training[0] = True
        found = sample(self, *given)
        training[0] = False
        sampled.update(map(tuple, found[0]))
        return found

    def watched_loss(self: Any, inputs: dict[str, Any]) -> Any:
        for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True):
            trained[tuple(ids[mask.bool()].tolist())] += 1
        return loss_of(self, inputs)

    def watched_submit(self: Any, *given: Any) -> Any:
        if training[0]:
            calls.append(given)
        return submit(self, *given)

    EngineSampling.sample = watched_sample  # type: ignore[method-assign]
    PackedForward.loss_of = watched_loss  # type: ignore[method-assign]
    ToolRunner.submit = watched_submit  # type: ignore[method-assign]
    train(Recipe(**json.loads((folder / "recipe.json").read_text(encoding="utf-8"))))
    seen = {
        "completions": sampled.total(),
        "tokens": sum(len(ids) * count for ids, count in sampled.items()),
        "trained as sampled": sampled == trained,
        "calls": len(calls),
    }
    (folder / "seen.json").write_text(json.dumps(seen), encoding="utf-8")


def left(mark: str) -> list[int]:
    """The processes with `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def verdict(folder: Path, args: argparse.Namespace, code: int) -> dict[str, Any]:
    """What the ended run has to show."""
    from rl_reasoner.files import read_jsonl
    from rl_reasoner.scoring.ledger import entries

    stage = folder / "run" / "stages" / "2-grpo"
    ledger, kept = list(entries(stage)), list(read_jsonl(stage / "rollouts.jsonl"))
    seen = json.loads((folder / "seen.json").read_text(encoding="utf-8")) if code == 0 else {}
    calls = [call for row in ledger for call in row.get("calls", [])]
    turns = [turn for row in kept for turn in row["turns"]]
    expected = args.steps * 128
    return {
        "exit code": code,
        **seen,
        "completions with calls": sum(bool(row["turns"]) for row in kept),
        "how calls ended": dict(Counter(call["kind"] for call in calls).most_common()),
        "calls by tool": dict(Counter(call["tool"] for call in calls).most_common()),
        "verdicts": [len(ledger), sum(row["outcome"] == "score" for row in ledger)],
        "nothing lost": code == 0
        and seen["completions"] == len(kept) == len(ledger) == expected
        and all(row["outcome"] == "score" for row in ledger)
        and seen["trained as sampled"]
        and seen["calls"] == len(calls) == len(turns)
        and [c["kind"] for c in calls] == [t["kind"] for t in turns],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=16, help="of GRPO, of 128 completions each")
    parser.add_argument("--taught", type=int, default=150, help="steps of sft before")
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        train(args.run)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder, mark = Path(name), uuid.uuid4().hex
        recipe = recipe_of(folder, args)
        (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark}
        command = [sys.executable, __file__, "--run", str(folder)]
        began = time.monotonic()
        code = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode
        found = verdict(folder, args, code)
        found["minutes"] = round((time.monotonic() - began) / 60, 1)
        time.sleep(2)
        found["processes left"] = len(left(mark))
    for key, value in found.items():
        print(f"{key:24} {value}")
    if args.json:
        args.json.write_text(json.dumps(found), encoding="utf-8")
    return 0 if found["nothing lost"] and not found["processes left"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
