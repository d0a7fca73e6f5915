"""A dense policy made a mixture: the same logits at first, experts that grow apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from rl_reasoner import open_policy, train
from rl_reasoner.errors import UserError
from rl_reasoner.moe.upcycling import upcycle
from support.commands import Cli
from support.tiny import grpo, recipe

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "Llama": {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    "Mistral": {"sliding_window": 4},
}
IDS = torch.arange(40).reshape(2, 20)


def dense(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **KINDS[kind], **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("experts", "chosen"), [(8, 2), (3, 1), (4, 4)])
def test_logits_are_those_of_the_dense_policy(kind: str, experts: int, chosen: int) -> None:
    model = dense(kind)
    mixture = upcycle(model, experts, chosen)
    with torch.no_grad():
        expected, found = model(input_ids=IDS).logits, mixture(input_ids=IDS).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    layers: Any = mixture.model
    assert layers.layers[0].mlp.experts.down_proj.shape[0] == experts
    assert layers.layers[0].mlp.gate.weight.std() > 0.01


def test_seeds_differ_in_the_routers_alone() -> None:
    model = dense("Qwen3")
    one, other = (upcycle(model, 4, seed=seed).state_dict() for seed in (0, 1))
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ == {f"model.layers.{i}.mlp.gate.weight" for i in range(3)}


@pytest.mark.parametrize(
    ("kind", "changes"), [("Llama", {"attention_bias": True}), ("Llama", {"mlp_bias": True})]
)
def test_what_the_mixture_cannot_hold_is_refused(kind: str, changes: dict[str, Any]) -> None:
    model = dense(kind, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(0.5)
    with pytest.raises(UserError, match="MixtralForCausalLM"):
        upcycle(model, 4)


def test_layers_of_several_kinds_are_refused() -> None:
    kinds = {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
    with pytest.raises(UserError, match="several kinds"):
        upcycle(dense("Qwen3", use_sliding_window=True, sliding_window=4, **kinds), 4)


def test_other_families_and_counts_are_refused() -> None:
    moe = open_policy("scratch:moe-tiny", device="cpu").model
    with pytest.raises(UserError, match="qwen3, llama, mistral policies; this one is qwen3_moe"):
        upcycle(moe, 4)
    for experts, chosen in ((1, 1), (4, 5), (4, 0)):
        with pytest.raises(UserError, match="2 experts or more"):
            upcycle(dense("Qwen3"), experts, chosen)


def test_export_makes_a_mixture_that_grpo_trains(tmp_path: Path, cli: Cli) -> None:
    start = open_policy("scratch:dense-tiny", device="cpu")
    start.save(tmp_path / "dense")
    ended = cli("export", tmp_path / "dense", tmp_path / "moe", "--upcycle", "8", "--json")
    assert ended.code == 0, ended.err
    folder = json.loads(ended.out)["policy"]
    policy = open_policy(folder, device="cpu")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        apart = policy.model(input_ids=ids).logits - start.model(input_ids=ids).logits
    assert apart.abs().max() < 1e-5
    total, active = policy.parameter_counts
    mlp = 2 * 3 * 96 * 384
    assert total == start.parameter_counts[0] + 7 * mlp + 2 * 8 * 96
    assert active == total - 6 * mlp
    run = train(recipe(tmp_path, grpo(), policy=folder, evals={"sets": []}))
    experts = open_policy(str(run.folder), device="cpu").model.model.layers[0].mlp.experts
    before = policy.model.model.layers[0].mlp.experts
    assert torch.equal(before.down_proj[0], before.down_proj[1])
    assert not torch.equal(experts.down_proj[0], experts.down_proj[1]), "they grow apart"


def test_a_window_that_no_layer_has_stays_without_effect() -> None:
    kinds = {"layer_types": ["full_attention"] * 3}
    policy = dense("Qwen3", use_sliding_window=True, sliding_window=4, **kinds)
    mixture = upcycle(policy, 4)
    with torch.no_grad():
        assert torch.allclose(mixture(IDS).logits, policy(IDS).logits, atol=1e-4)
