"""What several test files share: a reward of their own, tiny recipes, and weights to compare."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rl_reasoner.recipe.recipe import Recipe

# What trl's config is told in every trainer of the tests: one CPU, fp32, no dashboards, no bars.
QUIET: dict[str, Any] = {
    "logging_steps": 1,
    "seed": 7,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}

REWARD = '''
from rl_reasoner import Score, reward


@reward
def near(completion: str, answer: str) -> Score:
    """1 where the answer stands in the completion, else the share of its characters from 0 to 9."""
    if answer in completion:
        return Score(1.0, "the answer is in it")
    digits = sum(c.isdigit() for c in completion)
    return Score(0.5 * digits / max(1, len(completion)), f"{digits} digits", {"digits": digits})
'''


# The same reward, which at its TRAP_AT-th call for the trainer sends a signal to the trainer.
TRAPPED = (
    REWARD.replace("from rl_reasoner", "import os\nimport signal\n\nfrom rl_reasoner", 1).replace(
        "    if answer",
        """    global CALLS
    CALLS += 1
    if str(CALLS) == os.environ.get("TRAP_AT"):
        os.kill(os.getppid(), int(os.environ["TRAP_SIGNAL"]))
    if answer""",
    )
    + "\n\nCALLS = 0\n"
)


def reward_file(folder: Path, source: str = REWARD) -> str:
    """The reference of the reward `near`, written to a file in `folder`."""
    path = folder / "near.py"
    path.write_text(source, encoding="utf-8")
    return f"{path}:near"


def sft(**changes: Any) -> dict[str, Any]:
    """Three supervised steps on modular chains."""
    data = {"task": "modular", "count": 64}
    stage = {"kind": "sft", "data": data, "steps": 3, "batch": 8, "optim": {"lr": 5e-3}}
    return {**stage, **changes}


def grpo(**changes: Any) -> dict[str, Any]:
    """Three GRPO steps of 2 prompts with 4 completions each."""
    stage = {
        "kind": "grpo",
        "data": {"task": "modular", "count": 64, "seed": 2},
        "steps": 3,
        "group": {"size": 4, "prompts": 2},
        "sampling": {"max_tokens": 8},
        "optim": {"lr": 1e-3},
    }
    return {**stage, **changes}


def recipe(folder: Path, *stages: dict[str, Any], source: str = REWARD, **changes: Any) -> Recipe:
    """A run in `folder`/run; the reward's file lies in `folder`."""
    near = reward_file(folder, source)
    evals = {"sets": ["modular_test"], "limit": 4, "max_tokens": 8, "reward": near}
    fields = {
        "name": "tiny",
        "policy": "scratch:moe-tiny",
        "template": "plain",
        "rewards": {near: 1.0},
        "stages": list(stages),
        "run": {"folder": str(folder / "run"), "device": "cpu"},
        **changes,
        "evals": {**evals, **changes.get("evals", {})},
    }
    return Recipe.model_validate(fields)


def weights(policy: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved policy, by name."""
    tensors: dict[str, torch.Tensor] = load_file(policy / "model.safetensors")
    return tensors


def same(one: Path, other: Path) -> bool:
    """Whether two saved policies are equal bit by bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(one: Path, other: Path) -> bool:
    """Whether two saved policies are equal but for rounding: a few steps at a rate of 1e-6."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], atol=2e-5) for n in a)


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def untimed(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file without what the clock says."""
    timed = ("time", "timing/", "tokens_per_second")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows(path)]


def two_stages(folder: Path, **changes: Any) -> Recipe:
    """Three supervised and seven GRPO steps, with every kind of evaluation."""
    evals = {"samples": 2, "forced": True, "validation": "modular_validation", "every": 2}
    return recipe(
        folder, sft(), grpo(steps=7, save_every=2), source=TRAPPED, **{"evals": evals, **changes}
    )
