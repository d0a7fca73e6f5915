"""A training run whose policy calls nothing but tools that misbehave: nothing ends, or is lost."""

import json
from pathlib import Path
from typing import Any

from rl_reasoner import Recipe, open_policy
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.stage_trainers import Job, trainer_of
from rl_reasoner.recipe.data import TaskData
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.rewards.math_answer import math_answer
from rl_reasoner.sandbox.host import pool
from support.places import ROOT
from support.processes import children
from support.stock import drawn

FILE = ROOT / "tests" / "support" / "hostile_tools.py"
CALLS = {  # what the policy writes, how it ends
    "<raises>x</raises>": "failed",
    "<hangs>{}</hangs>": "timeout",
    '<leaves>{"code": 3}</leaves>': "died",
    "<quits>{}</quits>": "failed",
    '<dies>{"number": 11}</dies>': "died",
    "<huge>{}</huge>": "cut",
    "<shouts>{}</shouts>": "died",
    "<forks>{}</forks>": "ok",
    "<returns>none</returns>": "failed",
    "<returns>object</returns>": "failed",
    "<eats>{}</eats>": "failed",
    "<dirty>{}</dirty>": "ok",
    "<python>import os; os._exit(3)</python>": "died",
    "<python>print('x' * 10**7)</python>": "cut",
    "<python>while True: pass</python>": "timeout",
    '<good>{"text": 3}</good>': "malformed",
}
TOOLS = ["good", "raises", "hangs", "leaves", "quits", "dies", "huge", "shouts", "forks", "returns",
         "eats", "dirty"]  # fmt: skip
RECIPE: dict[str, Any] = {
    "policy": "scratch:dense-tiny",
    "template": "plain",
    "tools": {
        "use": ["python", *(f"{FILE}:{name}" for name in TOOLS)],
        "format": "tags",
        "timeout_s": 1.0,
        "memory_mb": 512,
        "output_chars": 40,
    },
    "rewards": {"math_answer": 1.0},
    "stages": [
        {
            "kind": "grpo",
            "data": {"task": "product", "count": 4},
            "steps": 2,
            "group": {"size": 8, "prompts": 2},
            "sampling": {"max_tokens": 240},
        }
    ],
    "run": {"report_to": "none", "device": "cpu"},
}


def test_no_run_ends_and_nothing_is_lost(tmp_path: Path) -> None:
    before = children()
    recipe = Recipe(**RECIPE)
    stage = recipe.stages[0]
    assert isinstance(stage, GrpoStage)
    rows = load_rows(TaskData(task="product", count=4))
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    rewards = {"math_answer": math_answer}
    job = Job(recipe, stage, choose_placement(recipe), rows, rewards, policy, tmp_path)
    trainer = trainer_of(job)
    tokenizer, end = policy.tokenizer, trainer.eos_token_ids[0]
    written = [tokenizer(call, add_special_tokens=False)["input_ids"] for call in CALLS]
    sampled: list[list[int]] = []
    write = trainer.rollout_sink

    def watched(found: list[dict[str, Any]]) -> None:
        batch = trainer.rollout_batch
        for ids, mask in zip(batch.ids, batch.tool_masks, strict=True):
            sampled.append([token for token, own in zip(ids, mask, strict=True) if own])
        write(found)

    trainer.rollout_sink = watched
    with drawn([[*ids, *[end] * (240 - len(ids))] for ids in written], size=8):
        trainer.train()

    assert trainer.state.global_step == 2
    assert sampled == [[*ids, end] for ids in written] * 2
    kept = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [row["outcome"] for row in ledger] == ["score"] * 32
    assert [row["turns"][0]["kind"] for row in kept] == [*CALLS.values()] * 2
    assert [[call["kind"] for call in row["calls"]] for row in ledger] == [
        [turn["kind"] for turn in row["turns"]] for row in kept
    ]
    for row, call in zip(kept, [*CALLS] * 2, strict=True):
        [turn] = row["turns"]
        start, stop = turn["text"]
        assert row["completion"][:start] == call and turn["given"]
        assert row["completion"][start:stop].startswith("\n<output>\n")
        assert row["completion"][stop:] == ""
    pool.close()  # of the sandbox: idle ones end with this process
    assert children() <= before
