"""Rollout against training pass: nothing apart in fp32, flips and their mending in bf16."""

from typing import Any

import pytest
import torch

from rl_reasoner import open_policy
from rl_reasoner.rollout.mismatch import Gap, Mismatch, diagnose, measure
from support.mixtures import FAMILIES, model_of

PROMPTS = [prompt for prompt in ([5, 6, 7, 8], [9, 10], [3, 4, 5]) for _ in range(6)]
TOKENS = {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2, "initializer_range": 0.3}


@pytest.mark.parametrize("family", FAMILIES)
def test_in_fp32_nothing_is_apart(family: str) -> None:
    model = model_of(family, **TOKENS).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = measure(model, PROMPTS, ends=(1,), max_tokens=8, router_gradients=True)
    assert 18 < found.tokens <= 18 * 8
    assert found.replayed is not None
    assert found.plain.largest < 1e-4 and found.plain.flips == 0.0
    assert found.replayed == found.plain, "replay changes no bit"
    assert found.plain.router_gradient is not None and found.plain.router_gradient > 0
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_in_fp32_nothing_is_apart_where_transformers_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(model: Any) -> bool:
        model(input_ids=torch.tensor([[5, 6, 7]]))  # a pass that is none of the rows'
        return False

    monkeypatch.setattr("rl_reasoner.rollout.mismatch.engine_runs", tried)
    found = measure(model_of("Qwen3Moe", **TOKENS).eval(), PROMPTS, ends=(1,), max_tokens=8)
    assert 18 < found.tokens <= 18 * 8
    assert found.plain.largest < 1e-4 and found.plain.flips == 0.0
    assert found.replayed == found.plain


def test_in_bf16_flips_go_and_so_does_most_of_the_difference() -> None:
    wide = {**TOKENS, "num_hidden_layers": 4, "moe_intermediate_size": 32}
    model = model_of("Qwen3Moe", **wide).eval().to(torch.bfloat16)
    found = measure(model, PROMPTS * 4, ends=(1,), max_tokens=24, router_gradients=True)
    plain, replayed = found.plain, found.replayed
    assert replayed is not None and plain.flips is not None
    assert plain.flips > 0 and replayed.flips == 0.0
    assert plain.largest > 5 * replayed.largest
    assert replayed.router_gradient is not None and replayed.router_gradient > 0


def test_temperature_and_end_tokens_are_those_of_sampling() -> None:
    model = model_of("Mixtral", **TOKENS).eval()
    found = measure(model, PROMPTS, ends=(1, 7), max_tokens=8, temperature=0.6, seed=3)
    assert found.plain.largest < 1e-4


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_dense_models_have_no_flips(autocast: Any) -> None:
    model = open_policy("scratch:dense-tiny", device="cpu").model
    found = measure(model, PROMPTS, ends=(1,), max_tokens=8, autocast=autocast)
    assert found.replayed is None
    assert found.plain.flips is None and found.plain.router_gradient is None
    assert (found.plain.largest > 1e-4) == (autocast is not None)


def test_a_mismatch_is_told_with_what_mends_it() -> None:
    flipping, calm = Gap(0.8, 0.02, 0.04, 0.1), Gap(0.03, 0.006, 0.0, 0.1)
    both = Mismatch(100, flipping, calm)
    assert diagnose(both, True)[::2] == ("passed", "")
    status, said, mend = diagnose(both, False)
    assert status == "warned" and "router_replay: true" in mend
    assert "4.00% of the tokens change experts" in said and "0.8 at most" in said
    status, _, mend = diagnose(Mismatch(100, flipping, flipping), True)
    assert status == "warned" and "fp32" in mend
    status, said, mend = diagnose(Mismatch(100, Gap(0.5, 0.1, None, None), None), True)
    assert status == "warned" and "fp32" in mend and "experts" not in said


@pytest.mark.parametrize(("mean", "status"), [(0.06, "passed"), (0.3, "warned")])
def test_rounded_weights_may_differ_as_far_as_importance_corrects(mean: float, status: str) -> None:
    told = diagnose(Mismatch(100, Gap(0.5, mean, None, None), None, rounded=True), True)
    assert told[0] == status
    assert ("sampling.weights: own" in told[2]) == (status == "warned")
    far = Mismatch(100, Gap(30.0, mean, None, None), None, rounded=True)
    assert diagnose(far, True)[0] == "warned"
    flipping = Mismatch(100, Gap(1.5, mean, 0.03, None), Gap(0.1, 0.01, 0.0, None), rounded=True)
    assert "router_replay: true" in diagnose(flipping, False)[2]
