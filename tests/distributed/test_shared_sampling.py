"""Evaluations, and stages that sample, by all processes of a job: the same completions."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Recipe, open_policy, train
from rl_reasoner.distributed import processes
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.rollout import sampler
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.rollout.sampler import help_to_sample, sample
from support.processes import together
from support.tiny import grpo, recipe

PROMPTS = [f"{'x' * n}{n}+1=" for n in (1, 9, 4, 2, 7, 3, 5)]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many completions each call of the engine in this process draws, outside of training."""
    drawn: list[int] = []
    generate = sampler.engine.generate

    def count(model: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        drawn.append(len(prompts))
        return generate(model, prompts, *rest, **more)

    monkeypatch.setattr(sampler.engine, "generate", count)
    return drawn


@pytest.mark.parametrize("part", [256, 3])
def test_each_process_draws_its_part_of_the_same_completions(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 14 completions, then of the greedy ones; those that were kept are drawn by nobody."""
    monkeypatch.setattr(sampler, "_PART", part)
    how: dict[str, Any] = {"samples": 2, "temperature": 1.0, "max_tokens": 6, "seed": 3}
    policy = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    alone = sample(policy, PROMPTS, **how), sample(policy, PROMPTS, max_tokens=6)
    kept = SampleCache(tmp_path, "tiny")
    sample(policy, PROMPTS[:2], **how, cache=kept)

    def job(rank: int) -> None:
        drawn = counted(monkeypatch)
        processes.join("cpu")
        own = open_policy("scratch:dense-tiny", seed=1, device="cpu")
        if rank:
            help_to_sample(own)
        else:
            with processes.shared(own):
                both = sample(own, PROMPTS, **how, cache=kept), sample(own, PROMPTS, max_tokens=6)
            assert both == alone
            other = open_policy("scratch:dense-tiny", seed=1, device="cpu")
            with processes.shared(own):  # a judge's policy, say: nobody helps with that
                assert sample(other, PROMPTS, max_tokens=6) == alone[1]
        if rank:
            help_to_sample(own)
        (tmp_path / f"{rank}.json").write_text(json.dumps(drawn))

    assert together(2, job) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert sum(second) == 5 + 3 and sum(first) == 5 + 4 + 7
    assert len(kept) == 14


def test_what_the_first_process_draws_is_kept_before_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill loses little: the other process draws nothing before it sees completions kept."""
    kept, generate = SampleCache(tmp_path, "tiny"), sampler.engine.generate

    def late(*given: Any, **more: Any) -> Any:
        while not len(kept):
            time.sleep(0.02)
        assert len(kept) == 4
        return generate(*given, **more)

    def job(rank: int) -> None:
        processes.join("cpu")
        own = open_policy("scratch:dense-tiny", seed=1, device="cpu")
        if rank:
            monkeypatch.setattr(sampler.engine, "generate", late)
            help_to_sample(own)
        else:
            with processes.shared(own):
                sample(own, PROMPTS, max_tokens=6, cache=kept)

    assert together(2, job) == [0, 0]
    assert len(kept) == len(PROMPTS)


def wanted(folder: Path, **changes: Any) -> Recipe:
    """A filter, samples and a step of GRPO on them, with all evaluations and a control arm."""
    folder.mkdir()
    told = {"reward": f"{folder / 'near.py'}:near", "sampling": {"max_tokens": 8}, "samples": 2}
    data = {"task": "modular", "count": 6, "seed": 3}
    stages: list[dict[str, Any]] = [
        {"kind": "filter", "name": "kept", "keep": "0.0..1.0", "data": data, **told},
        {"kind": "sample", "name": "own", "min_score": 0.0, "data": data, **told},
        grpo(steps=1),
    ]
    stages[1]["keep"] = {"readable": False, "per_prompt": 2}
    evals = {"limit": 5, "samples": 2, "stages": True}
    evals |= {"validation": "modular_validation", "every": 1}
    return recipe(folder, *stages, evals=evals, controls=["random_reward"], **changes)


@pytest.mark.parametrize(
    "parallel",
    ["ddp", pytest.param("fsdp", marks=pytest.mark.matrix), pytest.param("", id="adapter")],
)
def test_a_run_samples_by_all_processes_what_one_samples(
    parallel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of filter and sample, evaluations before GRPO, in it, after it, of its control arm."""
    source = {"source": "scratch:moe-tiny"}
    policy = source if parallel else {**source, "lora": {"rank": 4}}
    alone = train(wanted(tmp_path / "alone", policy=policy), quiet=True).folder
    made = wanted(tmp_path / "both", policy=policy)
    made = made.model_copy(
        update={"run": made.run.model_copy(update={"parallel": parallel or "ddp"})}
    )

    def job(rank: int) -> None:
        drawn = counted(monkeypatch)
        train(made, quiet=True)
        (tmp_path / f"{rank}.json").write_text(json.dumps(drawn))

    assert together(2, job) == [0, 0]
    both = tmp_path / "both/run"
    for file in ("stages/1-kept/data.jsonl", "stages/2-own/data.jsonl"):
        assert (both / file).read_bytes() == (alone / file).read_bytes()
    ours, theirs = (EvalResult.load(run / "evals/before.json").rows for run in (both, alone))
    assert [*ours] == [*theirs]
    for label, found in ours.items():
        assert [row["completions"] for row in found] == [
            row["completions"] for row in theirs[label]
        ]
    after = EvalResult.load(both / "controls/random_reward/evals/after.json")
    assert [len(found) for found in after.rows.values()] == [5, 5]
    drawn = json.loads((tmp_path / "1.json").read_text())
    # Half of six rows twice for each of two stages; of three evaluations, two of five rows
    # greedily, and five of ten samples; of the validation in GRPO and in its control arm, two of
    # five rows.
    assert sum(drawn) == 2 * 6 + 3 * (2 + 5) + 2 * 2
