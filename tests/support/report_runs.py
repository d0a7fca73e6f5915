"""Shared by the tests of the report: a whole run's folder, and a page as a parser reads it."""

import base64
import gzip
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rl_reasoner.evaluation.statistics import wilson


def figures(accuracy: float, n: int = 400, **more: Any) -> dict[str, Any]:
    return {
        "problems": n,
        "samples": 1,
        "accuracy": accuracy,
        "interval": wilson(accuracy * n, n),
        "truncated": 0.01,
        "mean_length": 22.0 + 30 * accuracy,
        "temperature": 0.0,
        **more,
    }


def evaluation(name: str, greedy: float, chain: float, sampled: float) -> dict[str, Any]:
    curve = {str(k): 1 - (1 - sampled) ** (0.6 * k + 0.4) for k in (1, 2, 4, 8)}
    problem = "Compute (17 * 5 + 3) mod 11."
    return {
        "policy": "scratch:moe-tiny",
        "name": name,
        "sets": {
            "modular_test": figures(greedy, thinking=0.06 if name == "before" else 0.98),
            "modular_test@chain-forced": figures(chain),
            "modular_test@direct-forced": figures(0.13 if name == "before" else 0.14),
            "modular_test@sampled": figures(
                sampled, samples=8, temperature=1.0, pass_at=curve, thinking=0.3
            ),
            "sums_hard": figures(greedy * 0.6, 200),
        },
        "rows": {
            "modular_test": [
                {
                    "problem": problem,
                    "answer": "0",
                    "completions": ["<think>17*5=85, 85+3=88, 88 mod 11=0</think> 0"],
                    "scores": [1.0 if name == "after" else 0.0],
                    "reasons": ["equal as integers" if name == "after" else "expected 0, got 4"],
                }
            ]
        },
    }


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def grpo_metrics(steps: int, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        share = 0.12 + 0.62 / (1 + math.exp(-(step - 0.4 * steps) / (0.09 * steps)))
        reward = share + rng.gauss(0, 0.04)
        skew = [
            1 + 0.8 * math.exp(-step / 40) * math.sin(i * 2.1) + rng.random() / 5 for i in range(8)
        ]
        row: dict[str, Any] = {
            "step": step,
            "loss": rng.gauss(0, 0.01),
            "reward": reward,
            "reward_std": 0.35 - 0.2 * abs(share - 0.4),
            "rewards/math_answer/mean": reward - 0.05,
            "rewards/math_answer/std": 0.4,
            "rewards/format_tags/mean": min(1.0, share + 0.2),
            "completions/mean_length": 20 + 40 * share + rng.gauss(0, 1.5),
            "completions/min_length": 8 + 10 * share,
            "completions/max_length": 60 + 36 * share,
            "completions/clipped_ratio": max(0.0, 0.06 - 0.05 * share + rng.gauss(0, 0.004)),
            "kl": 0.002 * step / steps + abs(rng.gauss(0, 2e-4)),
            "entropy": 0.9 - 0.6 * share + rng.gauss(0, 0.02),
            "frac_reward_zero_std": min(1.0, abs(share - 0.4) + 0.1),
            "clip_ratio/region_mean": abs(rng.gauss(0.004, 0.002)),
            "grad_norm": abs(rng.gauss(0.6, 0.2)),
            "learning_rate": 1e-4,
            "step_time": 2.4 + rng.gauss(0, 0.1),
            "timing/generation": 1.3 + rng.gauss(0, 0.08),
            "timing/reward": 0.2 + rng.gauss(0, 0.02),
            "timing/training": 0.9 + rng.gauss(0, 0.05),
            "tokens_per_second": 3100 + rng.gauss(0, 120),
            "experts/load/layer0": [s / sum(skew) for s in skew],
            "experts/load/layer1": [s / sum(skew) for s in reversed(skew)],
            "experts/max_over_mean": max(skew) * 8 / sum(skew),
        }
        row |= {f"curriculum/success/{level}": share / level for level in (1, 2, 3)}
        row |= {f"curriculum/share/{level}": 1 / 3 for level in (1, 2, 3)}
        row["curriculum/level_mean"] = 1 + 2 * share
        if step % max(1, steps // 8) == 0:
            row["eval/modular_test/accuracy"] = share
            row["eval/modular_test/interval"] = wilson(share * 200, 200)
        rows.append(row)
    return rows


def rollout(step: int, group: int, index: int, right: bool) -> dict[str, Any]:
    fault = index == 5
    score: dict[str, Any] = {
        "value": float(right),
        "reason": "equal as integers",
        "outcome": "score",
    }
    if not right:
        score["reason"] = "expected 6, got 3"
    if fault:
        score = {"value": None, "reason": "timed out after 5 s", "outcome": "fault"}
    chain = "<think>\n7 * 8 = 56\n56 mod 10 = 6\n</think>\n"
    return {
        "step": step,
        "group": group,
        "prompt": f"Compute (7 * 8 + {group}) mod 10. Think first.",
        "completion": f"{chain if right else ''}The answer is {6 if right else 3}.",
        "answer": "6",
        "reward": None if fault else float(right),
        "scores": {
            "math_answer": score,
            "format_tags": {"value": float(right), "reason": "", "outcome": "score"},
        },
        "advantage": None if fault else (0.9 if right else -1.1),
        "truncated": index == 3,
    }


def make_run(folder: Path, *, steps: int = 60) -> Path:
    """A whole run as training leaves it: a cold start and GRPO, evaluated before and after."""
    rng = random.Random(0)
    (folder / "evals").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        "name: modular-r1-zero\npolicy: {source: 'scratch:moe-tiny'}\n"
        "stages: [{kind: sft}, {kind: grpo}]\nrun: {seed: 7}\n"
    )
    lock = {
        "policy": {"parameters": 3_145_728, "active_parameters": 1_204_224},
        "seed": 7,
        "device": "cpu (2 cores)",
        "git_commit": "0123abcd",
        "versions": {"torch": "2.9.0", "trl": "1.16.0"},
        "data": {"modular_train": "sha256:9f86d081884c7d65"},
        "command": "rl-reasoner train recipes/modular.py --run.seed 7",
    }
    (folder / "lock.json").write_text(json.dumps(lock))
    for result in (
        evaluation("before", 0.13, 0.74, 0.30),
        evaluation("after", 0.745, 0.75, 0.73),
    ):
        (folder / "evals" / f"{result['name']}.json").write_text(json.dumps(result))
    cold = [
        {
            "step": step,
            "loss": 2.4 * math.exp(-step / 15) + 0.3 + rng.gauss(0, 0.03),
            "grad_norm": abs(rng.gauss(1, 0.2)),
            "mean_token_accuracy": 0.9 - 0.6 * math.exp(-step / 15),
            "step_time": 0.5,
        }
        for step in range(1, 41)
    ]
    lines(folder / "stages" / "1-sft" / "metrics.jsonl", cold)
    lines(folder / "stages" / "2-grpo" / "metrics.jsonl", grpo_metrics(steps, rng))
    rows = [
        rollout(step, group, index, index % 3 != 1 or (step == steps and group == 0))
        for step in (1, 2, steps)
        for group in range(4)
        for index in range(10)
    ]
    lines(folder / "stages" / "2-grpo" / "rollouts.jsonl", rows)
    return folder


class Parsed(HTMLParser):
    """The page as a browser's parser sees it: tags, attributes, ids, texts."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def packs(page: str) -> dict[str, Any]:
    """What the page's script unpacks, by id."""
    found = re.findall(r'<script type="text/plain" id="pack-([\w-]+)">([^<]*)</script>', page)
    return {key: json.loads(gzip.decompress(base64.b64decode(text))) for key, text in found}
