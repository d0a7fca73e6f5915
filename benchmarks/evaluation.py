"""Evaluation: its speed against transformers' `generate`, and real figures of a small model.

    python benchmarks/evaluation.py                          # all three parts
    python benchmarks/evaluation.py --only speed --rows 10   # a quick look
    python benchmarks/evaluation.py --only figures

`speed`: SmolLM2-135M-Instruct on GSM8K rows, 1 greedy and 4 sampled completions a problem, by this
project's `sample` and by `generate` in plain batches (rows in their order, padded on the left, each
prompt as often as it has completions) whose keys and values take the same memory. Greedy answers
are compared; speed is completion tokens a second of processor time (and of wall time, which says
little on a busy machine), end tokens included and padding not, because sampled lengths differ.
`tiny`: 10,000 problems on the tiny mixture of experts, by the whole `evaluate`. `figures`: GSM8K,
SVAMP and CMATH rows by the command line as a user runs it; what was drawn is kept and not drawn
again. The model comes from benchmarks/real/fetch.py, the rows from DATA.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = Path(".cache/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
PARTS = ("speed", "tiny", "figures")
SETS = {"gsm8k": 200, "svamp": 200, "cmath": 100}


# ------------------------------------------------------------------------------------- speed


def plain(
    policy: Any, prompts: Sequence[list[int]], samples: int, longest: int
) -> tuple[list[list[int]], int]:
    """Completions by transformers' `generate`, in plain batches of the memory that ours have.

    And the number of tokens, padding included, that went through the model.
    """
    import torch

    from rl_reasoner.rollout import engine, sampler

    budget = engine.cache_budget(policy.model)
    jobs = [ids for ids in prompts for _ in range(samples)]
    size = max(1, budget // (max(map(len, jobs)) + longest))
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    ends, pad = sampler.eos_ids(policy), policy.tokenizer.pad_token_id
    found: list[list[int]] = []
    passed = 0
    for first in range(0, len(jobs), size):
        batch = jobs[first : first + size]
        width = max(map(len, batch))
        with torch.no_grad():
            out = policy.model.generate(
                input_ids=torch.tensor([[pad] * (width - len(ids)) + ids for ids in batch]),
                attention_mask=torch.tensor(
                    [[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]
                ),
                max_new_tokens=longest,
                eos_token_id=ends,
                pad_token_id=pad,
                **(sampled if samples > 1 else greedy),
            )
        passed += out.numel()
        for row in out[:, width:].tolist():
            end = next((n + 1 for n, token in enumerate(row) if token in ends), len(row))
            found.append(row[:end])
    return found, passed


class _Clock:
    """Processor and wall time since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def rates(self, side: str, tokens: int) -> tuple[float, float]:
        """Tokens per second of processor time and of wall time; prints them."""
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        print(
            f"  {side}: {tokens:,} tokens in {cpu:.1f} s of processor time ({tokens / cpu:.0f}/s), "
            f"{wall:.1f} s of wall time ({tokens / wall:.0f}/s)",
            flush=True,
        )
        return tokens / cpu, tokens / wall


def speed(asked: argparse.Namespace) -> None:
    """Both sides in turn, one process, the same number of threads."""
    import torch

    from rl_reasoner import open_policy
    from rl_reasoner.dataset.rows import load_rows
    from rl_reasoner.dataset.sets import set_data
    from rl_reasoner.dataset.templates import render
    from rl_reasoner.rollout.sampler import prompt_ids, sample

    torch.set_num_threads(asked.threads)
    policy = open_policy(str(asked.model), device="cpu")
    rows = load_rows(set_data("gsm8k"))[: asked.rows]
    prompts = [render(row["problem"], "auto", policy.tokenizer) for row in rows]
    ids = [prompt_ids(policy, prompt) for prompt in prompts]
    print(f"{len(rows)} rows of gsm8k, at most {asked.max_tokens} tokens, {asked.threads} threads")
    for samples in (1, 4):
        temperature = 1.0 if samples > 1 else 0.0
        clock = _Clock()
        ours = sample(
            policy, prompts, samples=samples, temperature=temperature, max_tokens=asked.max_tokens
        )
        rates = [clock.rates("ours", sum(out.tokens for group in ours for out in group))]
        clock = _Clock()
        theirs, passed = plain(policy, ids, samples, asked.max_tokens)
        rates.append(clock.rates("generate", sum(map(len, theirs))))
        cpu, wall = (mine / other for mine, other in zip(*rates, strict=True))
        print(f"n={samples}: {cpu:.2f}x by processor time, {wall:.2f}x by wall time", flush=True)
        # where multiplying is all, this is the most that not computing tokens twice can give
        ours_n, theirs_n = (sum(out.tokens for g in ours for out in g), sum(map(len, theirs)))
        needed = sum(map(len, set(map(tuple, ids)))) + ours_n
        limit = passed / theirs_n / (needed / ours_n)
        print(f"n={samples}: {limit:.2f}x fewer tokens through the model for each one kept")
        if samples == 1:
            texts = [policy.tokenizer.decode(out, skip_special_tokens=True) for out in theirs]
            same = sum(o.text == text for [o], text in zip(ours, texts, strict=True))
            print(f"n=1: {same} of {len(rows)} greedy answers are the same, letter by letter")


# -------------------------------------------------------------------------------------- tiny


def tiny(asked: argparse.Namespace) -> None:
    """10,000 problems on the tiny policy: sampling, judging, figures."""
    import tempfile

    import torch

    from rl_reasoner import evaluate
    from rl_reasoner.dataset.tasks.generate import generate_problems

    os.environ["OMP_NUM_THREADS"] = str(asked.threads)  # said: else a tiny policy has one
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "problems.jsonl"
        problems = generate_problems("modular", split="test", count=asked.problems)
        file.write_text("".join(json.dumps(problem.row()) + "\n" for problem in problems))
        started = time.perf_counter()
        result = evaluate("scratch:moe-tiny", [str(file)], max_tokens=64)
        seconds = time.perf_counter() - started
    [figures] = result.sets.values()
    tokens = round(figures["mean_length"] * figures["problems"])
    print(
        f"{figures['problems']:,} problems, {tokens:,} tokens on scratch:moe-tiny: {seconds:.0f} s"
    )


# ----------------------------------------------------------------------------------- figures


def figures(asked: argparse.Namespace) -> None:
    """The table of docs/evaluation.md (a real model as published), by the commands it names."""
    print(
        "| set | problems | samples | accuracy | pass@4 | maj@4 | cut off | no answer | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, most in SETS.items():
        for samples in (1, 4):
            out = asked.out / f"{name}-{samples}.json"
            command = ["eval", str(asked.model), "--sets", name, "--data-dir", str(asked.data)]
            command += ["--limit", str(min(most, asked.rows)), "--samples", str(samples)]
            command += ["--max-tokens", str(asked.max_tokens), "--out", str(out)]
            clock = out.with_suffix(".seconds")
            if not out.is_file():
                started = time.monotonic()
                program = [sys.executable, "-m", "rl_reasoner.cli", *command]
                environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
                subprocess.run(program, check=True, stdout=subprocess.DEVNULL, env=environment)
                clock.write_text(f"{time.monotonic() - started:.0f}\n")
            s = json.loads(out.read_text(encoding="utf-8"))["sets"][name]
            at = [_at(s, kind) for kind in ("pass_at", "maj_at")]
            cells = [name, s["problems"], samples, _span(s["accuracy"], s["interval"]), *at]
            cells += [f"{s['truncated']:.1%}", f"{s['no_answer']:.1%}", clock.read_text().strip()]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    print(f"\nrl-reasoner {' '.join(command)}")


def _at(s: dict[str, Any], kind: str) -> str:
    return _span(s[kind]["4"], s[f"{kind}_interval"]["4"]) if kind in s else ""


def _span(value: float, interval: Sequence[float]) -> str:
    return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    os.environ["RL_REASONER_DATA"] = str(asked.data)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    parts = {"speed": speed, "tiny": tiny, "figures": figures}
    for name in asked.only.split(","):
        print(f"\n{name}", flush=True)
        parts[name](asked)


if __name__ == "__main__":
    main()
