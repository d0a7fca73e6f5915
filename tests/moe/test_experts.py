"""Mixtures of experts: the layer against its formula, counts by hand, the load of experts."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner import open_policy
from rl_reasoner.moe.experts import ExpertLoad, parameter_counts, routers
from rl_reasoner.policy.scratch import SCRATCH
from rl_reasoner.rollout.decode_pass import decode_obstacle
from support.mixtures import FAMILIES, SIZES, model_of

# ---------------------------------------------------------------------------------- the layer


def sparse_layer(x: torch.Tensor, weights: dict[str, torch.Tensor], k: int) -> torch.Tensor:
    """y = sum over the k likeliest experts of G_i(x) E_i(x), gates summing to 1; one x at a time.

    E_i(x) = down_i (silu(gate_i x) * up_i x), as in Qwen3-MoE.
    """
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        logits = weights["gate.weight"] @ token
        chosen = sorted(range(len(logits)), key=lambda i: -logits[i].item())[:k]
        gates = torch.exp(logits[chosen]) / torch.exp(logits[chosen]).sum()
        assert gates.sum().item() == pytest.approx(1.0, abs=1e-6)
        y = torch.zeros_like(token)
        for gate, expert in zip(gates, chosen, strict=True):
            both = weights["experts.gate_up_proj"][expert] @ token
            half = both.shape[0] // 2
            inner = both[:half] / (1 + torch.exp(-both[:half])) * both[half:]
            y = y + gate * (weights["experts.down_proj"][expert] @ inner)
        rows.append(y)
    return torch.stack(rows).reshape(x.shape)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 10.0), st.integers(1, 5))
def test_the_layer_is_the_gated_sum_of_its_experts(seed: int, scale: float, tokens: int) -> None:
    policy = open_policy("scratch:moe-tiny", seed=seed % 3, device="cpu")
    layer = policy.model.model.layers[seed % 2].mlp
    x = scale * torch.randn(1, tokens, 96, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = layer(x)
        expected = sparse_layer(x, dict(layer.state_dict()), k=2)
    found = found[0] if isinstance(found, tuple) else found
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


def test_gates_are_normalised_in_the_scratch_policy() -> None:
    """The gates that the router gives sum to 1 for every token; the softmax over all would not."""
    model = open_policy("scratch:moe-tiny", device="cpu").model
    layer = model.model.layers[0].mlp
    outputs: list[Any] = []
    handle = layer.gate.register_forward_hook(lambda m, i, o: outputs.append(o))
    layer(torch.randn(1, 50, 96))
    handle.remove()
    gates = next(t for t in outputs[0] if t.is_floating_point() and t.shape[-1] == 2)
    assert torch.allclose(gates.sum(-1), torch.ones(50))


# ------------------------------------------------------------------------------------- counts


def test_parameters_of_the_scratch_policy_by_hand() -> None:
    h, layers, experts, width, vocabulary = 96, 2, 8, 96, 262
    attention = 4 * h * h + 2 * 24  # q k v o without bias, and the norms of q and k
    expert = 3 * h * width
    shared = vocabulary * h + h  # embedding, tied with the head, and the last norm
    layer = attention + 2 * h + experts * h  # norms, router
    total = shared + layers * (layer + experts * expert)
    active = shared + layers * (layer + 2 * expert)
    policy = open_policy("scratch:moe-tiny", device="cpu")
    assert policy.parameter_counts == (total, active) == (543_360, 211_584)
    assert SCRATCH["moe-tiny"][1]["num_experts"] == experts


def test_a_dense_policy_uses_all_its_parameters() -> None:
    total, active = open_policy("scratch:dense-tiny", device="cpu").parameter_counts
    assert total == active > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_active_parameters_leave_out_unchosen_experts_alone(family: str) -> None:
    model = model_of(family)
    total, active = parameter_counts(model)
    width = FAMILIES[family].get("moe_intermediate_size", SIZES["intermediate_size"])
    sparse = len(list(routers(model)))
    assert sparse == (1 if family == "DeepseekV3" else 2)
    assert total == sum(p.numel() for p in model.parameters())
    biases = 2 * width + 16 if family == "GptOss" else 0
    assert total - active == sparse * (6 - 2) * (3 * 16 * width + biases)


# --------------------------------------------------------------------------------------- load


@pytest.mark.parametrize("family", FAMILIES)
def test_load_counts_the_experts_chosen(family: str) -> None:
    model = model_of(family)
    load = ExpertLoad(model)
    ids = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids)
    shares = load.take()
    assert len(shares) == len(list(routers(model)))
    for layer in shares:
        assert len(layer) == 6 and sum(layer) == pytest.approx(1.0)
        counts = [share * 3 * 7 * 2 for share in layer]
        assert counts == pytest.approx([round(c) for c in counts], abs=1e-4)
    assert load.take() == [], "counting starts anew"


def test_load_is_what_the_routers_weights_say() -> None:
    model = model_of("Qwen3Moe", num_hidden_layers=1)
    load = ExpertLoad(model)
    seen: list[torch.Tensor] = []
    gate = model.model.layers[0].mlp.gate
    handle = gate.register_forward_hook(lambda m, i, o: seen.append(i[0].detach()))
    model(input_ids=torch.arange(30).reshape(2, 15))
    handle.remove()
    logits = seen[0].reshape(-1, 16) @ gate.weight.detach().T
    chosen = logits.topk(2).indices.reshape(-1)
    expected = torch.bincount(chosen, minlength=6) / 60
    assert load.take()[0] == pytest.approx(expected.tolist())


def test_a_router_that_sends_all_to_one_pair_is_seen() -> None:
    model = model_of("Qwen3Moe")
    load = ExpertLoad(model)
    gate = model.model.layers[1].mlp.gate
    with torch.no_grad():
        gate.weight.zero_()
    model(input_ids=torch.arange(10).reshape(1, 10))
    assert sorted(load.take()[1]) == [0, 0, 0, 0, 0.5, 0.5]


def test_rollouts_do_not_count_and_hooks_come_off() -> None:
    policy = open_policy("scratch:moe-tiny", device="cpu")
    load = ExpertLoad(policy.model)
    ids = policy.tokenizer("1+1=", return_tensors="pt")["input_ids"]
    policy.model.generate(input_ids=ids, max_new_tokens=3)
    assert load.take() == []
    load.remove()
    policy.model(input_ids=ids)
    assert load.take() == []


def test_padding_counts_in_no_load() -> None:
    policy = open_policy("scratch:deepseek-tiny", device="cpu")
    lengths = [24, 3, 8]
    rows = [torch.arange(10, 10 + n)[None] for n in lengths]
    ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : row.shape[1]], mask[at, : row.shape[1]] = row[0], 1

    def counts(*passes: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        load = ExpertLoad(policy.model)
        for given_ids, given_mask in passes:
            policy.model(input_ids=given_ids, attention_mask=given_mask)
        load.remove()
        return load.take_counts()

    mixture = open_policy("scratch:moe-tiny", device="cpu").model
    watched = ExpertLoad(mixture)
    assert decode_obstacle(mixture) is None  # what is told nothing of sampling does not stop it
    watched.remove()
    padded = counts((ids, mask))
    alone = counts(*((row, torch.ones_like(row)) for row in rows))
    assert padded.keys() == alone.keys() and padded
    for name, count in padded.items():
        assert count.tolist() == alone[name].tolist() and int(count.sum()) == 2 * sum(lengths)
