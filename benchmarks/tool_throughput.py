"""Sampling with tools that behave, against the same tokens without tools, in one run.

    python benchmarks/tool_throughput.py
    python benchmarks/tool_throughput.py --cases smollm --rows 16 --tokens 96 --threads 2
    python benchmarks/tool_throughput.py --folder smollm=.cache/real/models/SmolLM2-135M-Instruct

Cases: `tiny` (scratch:dense-tiny) and `smollm` (SmolLM2-135M; random weights of that shape where no
`--folder` is named). Each row makes `--calls` calls, spread over its tokens and not in step with
other rows': policies without training write none, so when is said here, and what is called too. All
else is as in a run: each token is asked whether it ends a call, calls run in threads, the sandbox
and processes, results come back as tokens. Tools: `calculator` (in place), `python` (the sandbox)
and `own` (a process).

The same rows without tools have as many tokens, all sampled; and, for the second ratio, as many
as the rows with tools sample. Both times are medians of `--repeats`, sides in turn.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rl_reasoner import open_policy
from rl_reasoner.rollout import engine
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.tool_turns import ToolTurns, ToolUse
from rl_reasoner.tools.tool import ToolCall

SMOLLM: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 100000,
}
OWN = '''
def own(text: str) -> str:
    """Say it again."""
    return text
'''
CALLS = {
    "calculator": ToolCall("calculator", {"expression": "347*29"}),
    "python": ToolCall("python", {"code": "print(347*29)"}),
    "own": ToolCall("own", {"text": "10063"}),
}


class Calling(ToolTurns):
    """As in a run, but that rows call `call`, each behind `apart` sampled tokens, about."""

    call: ToolCall
    apart: int

    def stops(self, row: int, ids: Sequence[int]) -> bool:
        found = super().stops(row, ids)
        made = self._rows[row].events
        sampled = len(ids) - sum(event.given for event in made)
        due = self.apart * (len(made) + 1) + row % self.apart  # rows are not in step
        return found or (len(made) < self._use.calls and sampled >= due)

    def submit(self, row: int, ids: list[int]) -> None:
        at = self._rows[row]
        at.tool, at.length = self.call.tool, len(ids)
        self.waiting.add(row)
        running = self._runner.submit(at.session, self.call)
        running.add_done_callback(lambda done: self._done.put((row, done)))


class Case:
    """One policy, and its rows."""

    def __init__(self, name: str, folder: str | None, own: Path, args: argparse.Namespace) -> None:
        policy = open_policy(folder or "scratch:dense-tiny", device="cpu")
        self.tokenizer, self.model, self.args = policy.tokenizer, policy.model, args
        if name == "smollm" and folder is None:
            torch.manual_seed(0)
            named = {key: value for key, value in SMOLLM.items() if key != "model_type"}
            config = AutoConfig.for_model(SMOLLM["model_type"], **named)
            self.model = AutoModelForCausalLM.from_config(config).eval()
        tools = ["calculator", "python", f"{own}:own"]
        self.use = ToolUse(self.tokenizer, tools, call_format="tags", calls=args.calls)
        self.prompts = [[*range(10 + row // 8, 74 + row // 8)] for row in range(args.rows)]
        self.keys = [(0, row) for row in range(args.rows)]

    def plain(self, lengths: Sequence[int]) -> float:
        """The seconds that rows of these lengths take without tools."""
        began = time.perf_counter()
        found = engine.generate(
            self.model, self.prompts, self.keys, self._sampling(max(lengths)), budgets=[*lengths]
        )
        assert [len(row.ids) for row in found] == [*lengths]
        return time.perf_counter() - began

    def calling(self, tool: str) -> tuple[float, list[int], list[int]]:
        """The seconds with calls of `tool`; tokens of each row, and those that it sampled."""
        began = time.perf_counter()
        with self.use.turns(len(self.prompts)) as turns:
            turns.__class__ = Calling
            turns.call = CALLS[tool]
            turns.apart = self.args.tokens // (self.args.calls + 2)
            given = self.args.calls * (len(self.use.tokens("10063")) + 8)
            most = self.args.tokens + given
            found = engine.generate(
                self.model, self.prompts, self.keys, self._sampling(most), turns=turns
            )
        taken = time.perf_counter() - began
        return taken, [len(row.ids) for row in found], [sum(row.tool_mask) for row in found]

    def _sampling(self, longest: int) -> SamplingParams:
        return SamplingParams(max_tokens=longest, ends=(-1,), temperature=1.0)

    def measure(self, tool: str) -> dict[str, Any]:
        """Times of all three, and the ratios."""
        with self.use.running():
            _, lengths, sampled = self.calling(tool)  # warm; processes are started
            times: dict[str, list[float]] = {"tools": [], "same tokens": [], "same sampled": []}
            for _ in range(self.args.repeats):
                times["tools"].append(self.calling(tool)[0])
                times["same tokens"].append(self.plain(lengths))
                times["same sampled"].append(self.plain(sampled))
        middle = {name: statistics.median(some) for name, some in times.items()}
        return {
            "tokens": sum(lengths),
            "sampled": sum(sampled),
            **{f"{name} s": round(value, 3) for name, value in middle.items()},
            "ratio": round(middle["tools"] / middle["same tokens"], 2),
            "ratio to sampled": round(middle["tools"] / middle["same sampled"], 2),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=["tiny", "smollm"])
    parser.add_argument("--tools", nargs="+", default=[*CALLS], choices=[*CALLS])
    parser.add_argument("--folder", nargs="*", default=[], help="CASE=FOLDER of a real policy")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96, help="that a row samples, about")
    parser.add_argument("--calls", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folders = dict(one.split("=", 1) for one in args.folder)
    found = []
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        own = Path(name) / "own.py"
        own.write_text(OWN, encoding="utf-8")
        for case in args.cases:
            made = Case(case, folders.get(case), own, args)
            for tool in args.tools:
                found.append({"policy": case, "tool": tool, **made.measure(tool)})
                print("  ".join(f"{k} {v}" for k, v in found[-1].items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found), encoding="utf-8")
    return 0 if all(one["ratio"] <= 1.3 for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
