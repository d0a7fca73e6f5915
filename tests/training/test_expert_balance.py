"""Balance of experts: the equations against plain sums, the trainer against their gradients."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy, train
from rl_reasoner.errors import UserError
from rl_reasoner.kernels import packing
from rl_reasoner.moe.balance import (
    BiasUpdate,
    affinities_of,
    balance_figures,
    packed_segments,
    padded_segments,
    sequence_loss,
    updated_bias,
)
from rl_reasoner.moe.experts import routers
from support.mixtures import model_of
from support.processes import build, same, together, weights
from support.stock import replay
from support.tiny import grpo, recipe, sft

# -------------------------------------------------------------------------------- the figures


@given(st.lists(st.integers(0, 50), min_size=2, max_size=9).filter(any))
def test_figures_are_those_of_the_definitions(counts: list[int]) -> None:
    total = sum(counts)
    shares = [count / total for count in counts]
    figures = balance_figures([shares, [1 / len(counts)] * len(counts)])
    assert figures["experts/max_over_mean"] == pytest.approx(max(counts) / (total / len(counts)))
    assert figures["experts/dead"] == counts.count(0)
    entropy = float(torch.special.entr(torch.tensor(shares)).sum()) / math.log(len(counts))
    assert figures["experts/entropy"] == pytest.approx((entropy + 1) / 2, abs=1e-5)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=9), st.floats(1e-4, 1.0))
def test_the_bias_moves_by_the_sign_of_what_an_expert_lacks(counts: list[int], u: float) -> None:
    mean = sum(counts) / len(counts)
    expected = [u * ((mean > c) - (mean < c)) for c in counts]
    found = updated_bias(torch.zeros(len(counts)), torch.tensor(counts), u)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


# ----------------------------------------------------------------------- the sequence-wise loss


def by_hand(affinities: Tensor, chosen: Tensor, sequences: list[list[int]]) -> float:
    """DeepSeek-V3's equations 17 to 20, token by token, in the mean of `sequences`."""
    experts, k = affinities.shape[1], chosen.shape[1]
    total = 0.0
    for tokens in sequences:
        for i in range(experts):
            f = experts / (k * len(tokens)) * sum(i in chosen[t].tolist() for t in tokens)
            p = sum(affinities[t, i].item() for t in tokens) / len(tokens)
            total += f * p
    return total / len(sequences)


@given(st.integers(0, 10**6))
def test_the_loss_is_that_of_the_equations_packed_and_padded(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 9, (4, 9), generator=random)
    ids[1, :4] = ids[0, :4]
    mask = torch.ones_like(ids)
    for row, (start, end) in enumerate([(1, 7), (1, 9), (0, 6), (2, 8)]):
        mask[row, :start] = 0
        mask[row, end:] = 0
    packed = packing.pack(ids, mask, 5)
    assert packed is not None
    n = packed.input_ids.shape[1]
    affinities = torch.rand(n, 6, generator=random).softmax(1)
    chosen = torch.rand(n, 6, generator=random).topk(2).indices
    sequences = []
    for group in packed.groups:
        at = group.start + group.prompt
        for length in group.rows:
            prompt = range(group.start, group.start + group.prompt)
            sequences.append([*prompt, *range(at, at + length)])
            at += length
    found = sequence_loss(affinities, chosen, packed_segments(packed))
    assert float(found) == pytest.approx(by_hand(affinities, chosen, sequences), rel=1e-5)

    affinities = torch.rand(36, 6, generator=random).softmax(1)
    chosen = torch.rand(36, 6, generator=random).topk(2).indices
    sequences = [[9 * row + i for i in range(9) if mask[row, i]] for row in range(4)]
    found = sequence_loss(affinities, chosen, padded_segments(mask))
    assert float(found) == pytest.approx(by_hand(affinities, chosen, sequences), rel=1e-5)


def test_even_load_has_the_smallest_loss() -> None:
    segments = padded_segments(torch.ones(1, 6))
    even = torch.full((6, 3), 1 / 3)
    chosen = torch.tensor([[0], [1], [2]] * 2)
    assert float(sequence_loss(even, chosen, segments)) == pytest.approx(1.0)
    one = torch.eye(3)[[0] * 6]
    assert float(sequence_loss(one, torch.zeros_like(chosen), segments)) == pytest.approx(3.0)


@pytest.mark.parametrize("family", ["Qwen3Moe", "DeepseekV3"])
def test_affinities_rank_experts_as_the_router_does(family: str) -> None:
    model = model_of(family)
    router: Any = model.model.layers[-1].mlp.gate
    logits, gates, chosen = router(torch.randn(20, 16))
    affinities = affinities_of(router, logits)
    assert torch.allclose(affinities.sum(1), torch.ones(20))
    own = affinities.gather(1, chosen)
    scale = getattr(router, "routed_scaling_factor", 1.0)
    assert torch.allclose(own / own.sum(1, keepdim=True) * scale, gates, atol=1e-6)


# -------------------------------------------------------------------------------- the trainer

ONE: dict[str, Any] = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1}


@pytest.mark.parametrize("policy", ["scratch:deepseek-tiny", "scratch:moe-tiny"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_sequence_loss_trains_routers_without_any_advantage(
    policy: str, shared: bool, tmp_path: Path
) -> None:
    def flat(completions: list[str], **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    moved = []
    for coef in (0.0, 0.1):
        trainer = build(
            policy,
            tmp_path,
            reward=flat,
            router_aux_loss_coef=0.0 if "moe" in policy else None,
            router_sequence_loss_coef=coef,
            share_prompts=shared,
            **ONE,
        )
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        name = "model.layers.1.mlp.gate.weight"
        moved.append(float((after[name] - before[name]).abs().max()))
        logged = trainer.state.log_history[0]
        assert ("router_sequence_loss" in logged) == bool(coef)
    assert moved[0] == 0.0 and moved[1] > 1e-4
    assert 1.9 < logged["router_sequence_loss"] < 8, "two layers, 1 each where even"


def test_the_bias_follows_the_load_of_the_step(tmp_path: Path) -> None:
    trainer = build("scratch:deepseek-tiny", tmp_path, router_bias_update=0.01, **ONE)
    biases: list[Any] = [router.e_score_correction_bias for _, router in routers(trainer.model)]
    seen: list[list[float]] = []

    class Look(BiasUpdate):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            for name, counts in self._load.take_counts().items():
                router = self._routers[name]
                wanted = (counts.float().mean() - counts).sign() * 0.01
                seen.append((router.e_score_correction_bias - wanted).tolist())

    trainer.add_callback(Look(trainer.model, 1.0))
    trainer.args.max_steps = 1
    trainer.train()
    assert len(seen) == 2, "layers"
    for difference in seen:
        assert difference == pytest.approx([0.0] * 8, abs=1e-7)
    assert all(bias.abs().max() > 0 for bias in biases)


@pytest.mark.parametrize("changes", [{"router_sequence_loss_coef": 0.1}, {"router_replay": True}])
def test_a_prompt_counts_for_each_of_its_rows_shared_or_not(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Load, sequence-wise loss, and the bias after a packed step: those of a padded one."""
    policy = open_policy("scratch:deepseek-tiny", seed=1, device="cpu")
    policy.save(str(tmp_path / "policy"))
    texts = ["long as a prompt is " * 4, "and another one, of 17 apples " * 3]
    loads, biases, losses = [], [], []
    for shared in (True, False):
        trainer = build(
            str(tmp_path / "policy"),
            tmp_path / "run",
            kind=replay(GRPOTrainer),
            columns={"prompt": texts},
            prompts=2,
            router_bias_update=0.01,
            share_prompts=shared,
            **{**ONE, **changes, "max_steps": 1},
        )
        trainer.train()
        assert trainer.packed_forward.packs == shared
        loads.append(trainer.last_expert_load)
        losses.append(trainer.state.log_history[0].get("router_sequence_loss", 0.0))
        biases.append(
            [router.e_score_correction_bias.tolist() for _, router in routers(trainer.model)]
        )
    assert len(loads[0]) == 2, "layers"
    for packed, padded in zip(*loads, strict=True):
        assert packed == pytest.approx(padded, abs=1e-7)
    assert biases[0] == biases[1] and any(map(any, biases[0]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (losses[0] > 0) == ("router_sequence_loss_coef" in changes)


def test_the_bias_counts_rows_without_advantage_too(tmp_path: Path) -> None:
    """Else a policy that is nearly always right would be balanced by the few rows it gets wrong."""
    counted = []
    for rate in (0.0, 0.01):
        trainer = build(
            "scratch:deepseek-tiny",
            tmp_path,
            reward=lambda completions, **_: [1.0] * len(completions),
            router_bias_update=rate,
            max_steps=1,
            save_strategy="no",
            gradient_accumulation_steps=1,
        )
        tokens = []

        def count(router: Any, inputs: Any, output: Any, tokens: list[int] = tokens) -> None:
            tokens.append(len(output[2]) if torch.is_grad_enabled() else 0)

        class Counting(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
                next(router for _, router in routers(model)).register_forward_hook(count)

        trainer.add_callback(Counting())
        trainer.train()
        counted.append(sum(tokens))
    assert counted[1] > 1.5 * counted[0]


def test_the_bias_is_saved_resumed_and_used_in_plain_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    changes: dict[str, Any] = {"router_bias_update": 0.01, "save_steps": 2, "max_steps": 4}
    changes |= {"lr_scheduler_type": "constant"}
    whole = build("scratch:deepseek-tiny", tmp_path / "whole", **changes)
    whole.train()
    part = build("scratch:deepseek-tiny", tmp_path / "part", **{**changes, "max_steps": 2})
    part.train()
    resumed = build("scratch:deepseek-tiny", tmp_path / "part", **changes)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))
    whole.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    names = [name for name in saved if name.endswith("e_score_correction_bias")]
    assert len(names) == 2
    for name in names:
        bias = whole.model.state_dict()[name]
        assert bias.abs().max() > 0 and torch.equal(saved[name], bias)
        assert torch.equal(resumed.model.state_dict()[name], bias)


def test_a_frozen_router_stays(tmp_path: Path) -> None:
    trainer = build("scratch:moe-tiny", tmp_path, freeze_router=True, **ONE)
    before = weights(trainer)
    trainer.train()
    for name, after in weights(trainer).items():
        assert torch.equal(after, before[name]) == ("gate.weight" in name), name


def test_what_does_not_fit_the_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Qwen3MoeForCausalLM has none"):
        build("scratch:moe-tiny", tmp_path, router_bias_update=0.01)
    with pytest.raises(UserError, match="mixtures of experts, which Qwen3ForCausalLM is not"):
        build("scratch:dense-tiny", tmp_path, router_sequence_loss_coef=0.1)
    for policy in ("scratch:deepseek-tiny", "scratch:dense-tiny"):
        with pytest.raises(UserError, match="router_sequence_loss_coef"):
            build(policy, tmp_path, router_aux_loss_coef=0.01)
    model = open_policy("scratch:deepseek-tiny", device="cpu").model
    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"]))
    with pytest.raises(UserError, match="use only one of them"):
        BiasUpdate(adapted, 0.01)


def test_slow_experts_are_refused(tmp_path: Path) -> None:
    policy = open_policy("scratch:moe-tiny", device="cpu")
    policy.model.set_experts_implementation("batched_mm")
    with pytest.raises(UserError, match="grouped_mm"):
        GRPOTrainer(
            policy.model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            train_dataset=Dataset.from_dict({"prompt": ["1+1="] * 8}),
            processing_class=policy.tokenizer,
        )


def test_router_logits_are_off_in_every_saved_config(tmp_path: Path) -> None:
    """trl's SFT leaves them on, in checkpoints too; generation with padding would crash."""
    run = train(recipe(tmp_path, sft(save_every=2), grpo(steps=1), evals={"sets": []}))
    configs = sorted(run.folder.rglob("config.json"))
    assert len(configs) > 4
    for config in configs:
        assert '"output_router_logits": true' not in config.read_text(), config
    policy = open_policy(str(run.folder), device="cpu")
    policy.model.config.output_router_logits = True
    policy.save(tmp_path / "again")
    assert not open_policy(str(tmp_path / "again"), device="cpu").model.config.output_router_logits


def test_a_recipe_reaches_both_kinds_of_stages(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        sft(router_bias=0.01, freeze_router=True),
        grpo(router_bias=0.01, router_sequence=0.1, steps=2),
        policy="scratch:deepseek-tiny",
        evals={"sets": []},
    )
    run = train(made)
    first, second = (
        open_policy(str(folder / "policy"), device="cpu").model.state_dict()
        for folder in sorted((run.folder / "stages").iterdir())
    )
    start = open_policy("scratch:deepseek-tiny", device="cpu").model.state_dict()
    name = "model.layers.0.mlp.gate."
    bias = f"{name}e_score_correction_bias"
    assert torch.equal(start[f"{name}weight"], first[f"{name}weight"])
    assert not torch.equal(first[f"{name}weight"], second[f"{name}weight"])
    assert start[bias].abs().max() == 0 < first[bias].abs().max() <= 0.03 + 1e-6
    assert not torch.equal(first[bias], second[bias])


def test_two_processes_move_the_bias_as_one_does(tmp_path: Path) -> None:
    """The same rows, halved: each process sees half of the load, both add up to all of it."""

    def biases(processes: int) -> list[list[Tensor]]:
        def job(rank: int) -> None:
            trainer = build(
                "scratch:deepseek-tiny",
                tmp_path,
                router_bias_update=0.01,
                max_steps=2,
                save_strategy="no",
                gradient_accumulation_steps=1,
                per_device_train_batch_size=8 // processes,
                shuffle_dataset=False,
                learning_rate=1e-6,
            )
            trainer.train()
            state = trainer.model.state_dict()
            found = [state[name] for name in state if name.endswith("correction_bias")]
            torch.save(found, tmp_path / f"{processes}-{rank}.pt")

        assert together(processes, job) == [0] * processes
        return [torch.load(tmp_path / f"{processes}-{rank}.pt") for rank in range(processes)]

    [alone] = biases(1)
    for found in biases(2):
        assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))
    assert alone[0].abs().max() == pytest.approx(0.02)
