"""Adapters on mixtures of experts: what is trained, and that merging loses nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM, LoraConfig, PromptTuningConfig, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from rl_reasoner import Policy, open_policy, train
from rl_reasoner.errors import UserError
from rl_reasoner.moe.experts import frozen_routers, linear_gates
from rl_reasoner.planning.shapes import shape_of
from rl_reasoner.policy.fp8.layers import covered_layers
from rl_reasoner.policy.lora import add_lora, lora_targets, merge_adapter
from rl_reasoner.policy.scratch import byte_tokenizer
from rl_reasoner.recipe.adapter import Lora
from support.mixtures import FAMILIES, model_of
from support.processes import build, weights
from support.tiny import grpo, recipe

IDS = torch.arange(24).reshape(2, 12)


def adapter_on(family: str, **settings: Any) -> Policy:
    """A policy of the family with an adapter whose update is not zero."""
    policy = Policy(model_of(family).eval(), byte_tokenizer(), family)
    add_lora(policy, Lora(rank=2, **settings), seed=0)
    random = torch.Generator().manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return policy


def trained(policy: Policy) -> set[str]:
    """The layers whose adapters are trained."""
    names = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    return {n.split(".lora_")[0].removesuffix(".base_layer").rsplit(".", 1)[-1] for n in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_linear_layers_and_experts_but_no_router(family: str) -> None:
    found = trained(adapter_on(family))
    assert "experts" in found and "o_proj" in found
    assert not {"gate", "router", "lm_head", "embed_tokens"} & found
    shared = {"Qwen2Moe": "shared_expert_gate", "DeepseekV3": "up_proj"}.get(family, "o_proj")
    assert shared in found


def test_named_targets_are_trained_alone() -> None:
    assert trained(adapter_on("Qwen3Moe", targets=("q_proj", "v_proj"))) == {"q_proj", "v_proj"}
    assert trained(adapter_on("Qwen3Moe", targets=("gate_up_proj",))) == {"experts"}
    assert trained(adapter_on("Mixtral", targets=("q_proj", "gate"))) == {"q_proj", "gate"}
    assert trained(adapter_on("GptOss", targets=("router",))) == {"router"}
    assert trained(adapter_on("Olmoe", targets=("self_attn.o_proj",))) == {"o_proj"}
    assert lora_targets(model_of("Qwen3Moe"), r".*\.q_proj") == {"target_modules": r".*\.q_proj"}


def test_names_in_one_text_are_names() -> None:
    assert trained(adapter_on("Qwen3Moe", targets="q_proj")) == {"q_proj"}
    assert trained(adapter_on("Qwen3Moe", targets="q_proj, v_proj")) == {"q_proj", "v_proj"}
    assert trained(adapter_on("Qwen3Moe", targets=r".*\.[kv]_proj")) == {"k_proj", "v_proj"}
    with pytest.raises(UserError, match=r"has no layer 'q_prj'\. Did you mean 'q_proj'"):
        adapter_on("Qwen3Moe", targets="q_prj,v_proj")
    with pytest.raises(ValidationError, match=r"neither layers' names nor a regular expression"):
        Lora(targets="*.q_proj")


@pytest.mark.parametrize("pattern", [r"q_p.*", r".*\.none", r".*norm"])
def test_a_pattern_that_fits_no_layer_is_told_with_a_whole_name(pattern: str) -> None:
    with pytest.raises(UserError) as caught:
        adapter_on("Qwen3Moe", targets=pattern)
    assert f"lora.targets {pattern!r}: Target module" in str(caught.value)
    assert "of whole names, such as model.layers.0.self_attn.q_proj" in str(caught.value)
    with pytest.raises(UserError, match=r"lora\.targets"):
        shape_of("scratch:dense-tiny", Lora(targets=pattern))


def test_experts_that_are_linear_layers_are_among_them() -> None:
    """Unfused, as in models of other libraries: one module an expert."""
    model = model_of("Qwen3Moe")
    for layer in model.model.layers:
        width = layer.mlp.experts.down_proj.shape[2]
        layer.mlp.experts = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {name: torch.nn.Linear(16, width) for name in ("gate_proj", "up_proj")}
                | {"down_proj": torch.nn.Linear(width, 16)}
            )
            for _ in range(6)
        )
    policy = Policy(model, byte_tokenizer(), "unfused")
    add_lora(policy, Lora(rank=2), seed=0)
    assert {"gate_proj", "up_proj", "down_proj", "q_proj"} <= trained(policy)
    assert "gate" not in trained(policy)


def test_names_that_are_not_there_and_dropout_on_experts_are_errors() -> None:
    with pytest.raises(UserError, match=r"lora\.targets: .* has no layer 'q_prj'\. Did you mean"):
        adapter_on("Qwen3Moe", targets=("q_prj",))
    with pytest.raises(UserError, match=r"not possible for experts.*experts\.down_proj"):
        adapter_on("Qwen3Moe", dropout=0.1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", ("gate", "router")])
def test_merging_changes_no_output(family: str, targets: Any, tmp_path: Path) -> None:
    """Against the adapter at work, and against peft and transformers that read what was saved."""
    router = "router" if family == "GptOss" else "gate"
    policy = adapter_on(family, targets=targets if isinstance(targets, str) else (router,))
    policy.model.config.name_or_path = str(tmp_path / "base")
    policy.model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model_of(family).save_pretrained(tmp_path / "base")
    with torch.no_grad():
        plain = model_of(family).eval()(input_ids=IDS).logits
        expected = policy.model(input_ids=IDS).logits
        assert (expected - plain).abs().max() > 1e-3, "the adapter does something"
        policy.model.save_pretrained(tmp_path / "adapter")
        again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        assert torch.allclose(again(input_ids=IDS).logits, expected, atol=1e-4)
        policy.model = policy.model.merge_and_unload()
        assert torch.allclose(policy.model(input_ids=IDS).logits, expected, atol=1e-4)
        policy.model.save_pretrained(tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert torch.allclose(merged(input_ids=IDS).logits, expected, atol=1e-4)


def test_a_run_with_adapters_on_experts_ends_in_a_plain_policy(tmp_path: Path) -> None:
    policy = {"source": "scratch:moe-tiny", "lora": {"rank": 2}}
    run = train(recipe(tmp_path, grpo(), policy=policy, evals={"sets": []}))
    before = open_policy("scratch:moe-tiny", device="cpu").model.state_dict()
    after = AutoModelForCausalLM.from_pretrained(run.folder / "policy").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.layers.0.mlp.experts.down_proj" in changed
    assert not any("gate.weight" in name or "norm" in name for name in changed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter, whose update is not zero, beside its base."""
    folder = tmp_path_factory.mktemp("adapter")
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.save(folder / "base")
    policy = open_policy(str(folder / "base"), device="cpu")
    add_lora(policy, Lora(rank=2), seed=0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    policy.save(folder / "adapter")
    return folder


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["all weights", "a new adapter"])
def test_a_run_trains_on_from_an_adapter(
    lora: Any, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = {"source": str(saved / "adapter"), "lora": lora}
    stage = grpo(steps=1, loss={"beta": 0.1})
    run = train(recipe(tmp_path, stage, policy=policy, evals={"sets": []}), quiet=True)
    after = AutoModelForCausalLM.from_pretrained(run.folder / "policy").state_dict()
    began = open_policy(str(saved / "adapter"), device="cpu")
    assert merge_adapter(began)
    moved = {n for n, w in began.model.state_dict().items() if not torch.allclose(w, after[n])}
    assert any("q_proj" in name for name in moved)
    assert any("norm" in name for name in moved) == (lora is None)
    apart = max(float((w - after[n]).abs().max()) for n, w in began.model.state_dict().items())
    assert apart < 0.02, "a step leads away from what the adapter had learned"


def test_the_drop_in_trains_an_adapter_that_is_opened(saved: Path, tmp_path: Path) -> None:
    trainer = build(str(saved / "adapter"), tmp_path, max_steps=1, save_strategy="no", beta=0.1)
    assert trainer.packed_forward.packs and trainer.engine_sampling.on
    before = weights(trainer)
    trainer.train()
    moved = {name for name, w in weights(trainer).items() if not torch.equal(w, before[name])}
    assert moved and all(".lora_" in name and ".default." in name for name in moved)


def test_an_adapter_that_cannot_be_merged_is_one_clear_error(saved: Path, tmp_path: Path) -> None:
    policy = open_policy(str(saved / "base"), device="cpu")
    learned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    policy.model = get_peft_model(policy.model, learned)
    policy.save(tmp_path / "prompts")
    with pytest.raises(UserError, match="of type PROMPT_TUNING, which cannot be merged"):
        train(recipe(tmp_path, grpo(), policy=str(tmp_path / "prompts"), evals={"sets": []}))


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_weights_leaves_the_other(layer: str) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    own = LoraConfig(r=2, target_modules=["q_proj", layer], task_type="CAUSAL_LM")
    policy.model = get_peft_model(policy.model, own).eval()
    for name, parameter in policy.model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    with torch.no_grad():
        expected = policy.model(input_ids=IDS).logits
        merge_adapter(policy)
        assert torch.allclose(policy.model(input_ids=IDS).logits, expected, atol=1e-4)


def test_an_adapter_without_a_merged_form_is_told() -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    own = LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True, task_type="CAUSAL_LM")
    policy.model = get_peft_model(policy.model, own)
    with pytest.raises(UserError, match="its adapter has no merged form: Impossible to merge"):
        merge_adapter(policy)


K: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
GATED = {
    "Afmoe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "HunYuanMoEV1": {"num_experts": 8, "moe_topk": 2, "head_dim": 16},
    "Phimoe": {"num_local_experts": 8, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("family", GATED)
def test_gates_that_are_linear_layers_are_no_targets_and_can_be_frozen(family: str) -> None:
    extra = {"num_dense_layers": 1, "head_dim": 16} if family == "Afmoe" else {}
    config = getattr(transformers, f"{family}Config")(**K, **GATED[family], **extra)
    model = AutoModelForCausalLM.from_config(config)
    gates = {n for n, p in model.named_parameters() if p.dim() == 2 and len(p) == 8}
    assert gates
    with frozen_routers(model):
        assert not any(p.requires_grad for n, p in model.named_parameters() if n in gates)
    assert not {name.removesuffix(".weight") for name in gates} & {*covered_layers(model)}
    policy = Policy(model, byte_tokenizer(), family)
    add_lora(policy, Lora(rank=2), seed=0)
    adapted = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert adapted and not any("router" in name or ".wg" in name for name in adapted)
    if family != "Phimoe":
        last = {"Afmoe": "gate", "HunYuanMoEV1": "wg"}[family]
        named = lora_targets(AutoModelForCausalLM.from_config(config), (last,))
        assert named == {"target_modules": [last]}


def test_a_shared_expert_as_wide_as_there_are_experts_is_no_gate() -> None:
    """Qwen3-Next's, by default."""
    sizes = {"num_experts": 8, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    model = model_of("Qwen2Moe", **sizes)
    assert [*linear_gates(model)] == []


def test_gpt2s_layers_are_linear_ones() -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=300)
    for targets in ("all-linear", ("c_attn",)):
        policy = Policy(AutoModelForCausalLM.from_config(config), byte_tokenizer(), "gpt2")
        add_lora(policy, Lora(rank=2, targets=targets), seed=0)
        assert "c_attn" in trained(policy)
