"""What may be packed and sampled by our layouts is proved on the model: families that differ."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM

from rl_reasoner import GRPOTrainer, open_policy
from rl_reasoner.kernels.packing import arguments, attention_of, pack
from rl_reasoner.rollout import agreement
from rl_reasoner.rollout.agreement import (
    engine_runs,
    fusing_obstacle,
    in_mode,
    obstacle,
    packing_obstacle,
    sampling_obstacle,
)
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from support.processes import build, same, weights
from support.stock import TOLERANCE, gradients, half_flat, worst

VOCABULARY = 260
WINDOW = 12
DIFFERS = "a model that computes different values in our layout of its tokens"
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
WINDOWED = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}


def model_of(family: str, **settings: Any) -> Any:
    """A tiny model of a family, in fp32."""
    own: dict[str, dict[str, Any]] = {
        "HrmText": {
            "num_layers_per_stack": 1,
            "H_cycles": 2,
            "L_cycles": 2,
            "num_hidden_layers": 6,
            "head_dim": 8,
        },
        "JetMoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
        "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 24},
        "Phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "Qwen2": {"max_window_layers": 1},
        "OPT": {"dropout": 0.0, "word_embed_proj_dim": 32},
        "SeedOss": {"head_dim": 8, "attention_dropout": 0.0},
    }
    config = getattr(transformers, f"{family}Config")(**SMALL | own.get(family, {}) | settings)
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config).float().eval()


def rows(count: int, length: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randint(6, 200, (count, length), generator=random)


# ------------------------------------------------------------------------- what is right, is used

TWICE = ("DiffLlama", "HrmText", "JetMoe")


@pytest.mark.parametrize("family", TWICE)
def test_log_probs_of_layers_that_attend_more_than_once(family: str) -> None:
    """Two attention calls a layer, layers that are run again, layers that view the output."""
    model = model_of(family)
    prompts = [row.tolist() for row in (*rows(2, 9), *rows(1, 4))]
    prompts = [prompt for prompt in prompts for _ in range(2)]
    found = generate(
        model, prompts, [[i] for i in range(6)], SamplingParams(max_tokens=8, ends=(1,))
    )
    for prompt, completion in zip(prompts, found, strict=True):
        ids = torch.tensor([[*prompt, *completion.ids]])
        with torch.no_grad():
            logps = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        alone = logps.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        assert completion.logps == pytest.approx(alone.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", [*TWICE, "Llama", "Gemma3Text", "Mistral", "Qwen3Moe", "OPT"])
def test_families_that_agree_with_themselves(family: str) -> None:
    settings = {"sliding_window": WINDOW} if family in ("Gemma3Text", "Mistral") else {}
    model = model_of(family, **settings)
    with in_mode(model, training=True):
        assert packing_obstacle(model) is None and sampling_obstacle(model) is None
    assert engine_runs(model)


# ------------------------------------------------------------------------- what is not, is refused


@pytest.mark.parametrize(
    ("family", "settings"), [("Qwen2Moe", WINDOWED), ("Phimoe", {"sliding_window": WINDOW})]
)
@pytest.mark.parametrize("spread", [0.3, 0.02], ids=["trained", "untrained"])
def test_a_window_that_stands_in_the_mask_alone_is_seen(
    family: str, settings: dict[str, Any], spread: float
) -> None:
    """The layers do not tell the attention: a packed row beyond the window is another one."""
    quiet = {"router_jitter_noise": 0.0, "input_jitter_noise": 0.0} if family == "Phimoe" else {}
    model = model_of(family, initializer_range=spread, **settings, **quiet)
    config = model.config.to_dict()
    assert packing_obstacle(model) == sampling_obstacle(model) == DIFFERS
    assert model.config.to_dict() == config and model.config.sliding_window == WINDOW
    # without its window the same model is packed
    without = {"sliding_window": None, "use_sliding_window": False}
    model = model_of(family, **{**settings, **quiet, **without})
    assert packing_obstacle(model) is None and sampling_obstacle(model) is None


def test_windows_are_as_they_were_after_the_proof() -> None:
    model = model_of("Qwen2", **{**WINDOWED, "max_window_layers": 1})
    before = [layer.self_attn.sliding_window for layer in model.model.layers]
    assert packing_obstacle(model) is None and sampling_obstacle(model) is None
    assert [layer.self_attn.sliding_window for layer in model.model.layers] == before
    assert before == [None, WINDOW] and model.config.sliding_window == WINDOW


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("Granite", {"attention_dropout": 0.1}, "attention dropout"),
        ("SeedOss", {"residual_dropout": 0.1}, "the model's own dropout or noise"),
        ("Phimoe", {"input_jitter_noise": 0.1}, "the model's own dropout or noise"),
    ],
)
def test_noise_while_training_is_seen_and_none_is_drawn(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    model = model_of(family, **settings)
    state = torch.get_rng_state()
    with in_mode(model, training=True):
        assert packing_obstacle(model) == reason
    assert engine_runs(model), "at rest there is none"
    assert torch.equal(torch.get_rng_state(), state) and not model.training


def test_a_mask_of_the_models_own_is_seen() -> None:
    model = model_of("Doge", keep_window_size=64)
    assert "a mask that the model makes" in (packing_obstacle(model) or "")
    assert not engine_runs(model)


def test_positions_by_place_in_the_row_are_seen() -> None:
    model = open_policy("scratch:moe-tiny", device="cpu").model
    assert packing_obstacle(model) is None
    model.base_model.layers[1].self_attn.scaling *= 2  # both sides alike: still equal
    assert packing_obstacle(model) is None
    original = model.base_model.rotary_emb.forward
    model.base_model.rotary_emb.forward = lambda x, position_ids: original(
        x, torch.arange(x.shape[1])[None]
    )
    assert packing_obstacle(model) == DIFFERS


def test_a_layer_that_looks_at_the_whole_row_is_seen() -> None:
    """The engine's passes see a token of it."""
    model = open_policy("scratch:dense-tiny", seed=4, device="cpu").model

    def looks_around(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + output.cumsum(1)

    model.model.layers[0].register_forward_hook(looks_around)
    assert not engine_runs(model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_types_that_are_nested_by_the_kind_of_layer(kind: str) -> None:
    model = model_of("Gemma3Text")
    assert obstacle(model) is None
    parameters = model.config.rope_parameters
    assert {*parameters} == {"full_attention", "sliding_attention"}
    parameters["full_attention"]["rope_type"] = kind
    assert obstacle(model) == f"rotary embeddings of the type {kind}"


def test_modes_of_parts_are_put_back() -> None:
    model = model_of("Llama").train()
    model.model.layers[0].eval()
    with in_mode(model, training=False):
        assert not any(module.training for module in model.modules())
    assert model.training and not model.model.layers[0].training


# ------------------------------------------------------------------------------- in the trainer


@pytest.mark.parametrize(
    ("family", "settings", "packed", "sampled"),
    [
        ("JetMoe", {}, None, None),
        ("Granite", {"attention_dropout": 0.1}, "attention dropout", None),
        ("Qwen2Moe", WINDOWED, DIFFERS, DIFFERS),
    ],
)
def test_a_run_of_such_a_model_trains_and_says_once_how(
    family: str,
    settings: dict[str, Any],
    packed: str | None,
    sampled: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.model = model_of(family, **settings, vocab_size=len(policy.tokenizer))
    policy.save(tmp_path / "policy")
    trainer = build(str(tmp_path / "policy"), tmp_path, max_steps=1, save_strategy="no")
    trainer.train()
    assert trainer.state.global_step == 1
    assert (trainer.packed_forward.packs, trainer.engine_sampling.on) == (
        packed is None,
        sampled is None,
    )
    said = [r.getMessage() for r in caplog.records if r.name.startswith("rl_reasoner")]
    slower = [text for text in said if "faster sampling: transformers' modules make" in text]
    assert len(slower) <= (sampled is None), "of a family that the compiled pass does not know"
    said = [text for text in said if text not in slower]
    assert len(said) == (packed is not None)
    ways = "share_prompts and fast_rollouts: trl's own training pass and sampling are used, for "
    ways = ways if sampled else "share_prompts: trl's own training pass is used, for "
    assert all(text.startswith(f"{ways}{packed}") for text in said)


@pytest.mark.parametrize(
    ("family", "settings"), [*((family, {}) for family in TWICE), ("Qwen2Moe", WINDOWED)]
)
def test_gradients_of_such_a_model_are_those_of_stock_trl(
    family: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Rows of up to 44 tokens, which is beyond the window."""
    found = []
    for kind in (trl.GRPOTrainer, GRPOTrainer):
        policy = open_policy("scratch:dense-tiny", device="cpu")
        policy.model = model_of(family, **settings, vocab_size=len(policy.tokenizer))
        steps, _, trainer = gradients(kind, policy, tmp_path, half_flat, max_steps=1)
        found.append(steps)
    assert trainer.packed_forward.packs == (family in TWICE)
    assert worst(*found) <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "whole"), [("ModernBertDecoder", False), ("Cohere", True), ("Gemma2", True)]
)
def test_a_head_that_does_more_than_trl_scores_by_is_said(
    family: str, whole: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Layers before the matrix; scales and soft caps behind it, which trl knows."""
    policy = open_policy("scratch:dense-tiny", device="cpu")
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    policy.model = model_of(family, vocab_size=len(policy.tokenizer), **ends)
    policy.save(tmp_path / "policy")
    build(str(tmp_path / "policy"), tmp_path)
    assert (f"the head of {family}ForCausalLM does more" in caplog.text) == (not whole)


def test_with_neftune_the_weights_are_those_of_trl(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its noise is scaled by the length of the padded row, in training and in sampling."""
    found = []
    for kind in (trl.GRPOTrainer, GRPOTrainer):
        changes = {"neftune_noise_alpha": 5.0, "max_steps": 2, "save_strategy": "no"}
        trainer = build("scratch:dense-tiny", tmp_path, kind=kind, **changes)
        torch.manual_seed(3)
        trainer.train()
        found.append(weights(trainer))
    assert same(*found)
    assert "training pass and sampling are used, for the noise of NEFTune" in caplog.text


def test_packed_hidden_states_reach_beyond_a_window() -> None:
    """Of a model whose layers do tell: rows of three windows."""
    model = model_of("Mistral", sliding_window=4)
    ids = rows(2, 14)
    ids[1, :8] = ids[0, :8]
    packed = pack(ids, torch.ones_like(ids), 6)
    assert packed is not None
    with torch.no_grad():
        with attention_of(model):
            found = model.base_model(**arguments(packed)).last_hidden_state[0]
        alone = model.base_model(ids, use_cache=False).last_hidden_state[:, 7:-1].flatten(0, 1)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["Olmoe", "Qwen2", "Qwen3"])
def test_modules_are_fused_where_norms_or_windows_are_not_alike(family: str) -> None:
    """OLMoE norms queries over all heads; here only the second layer has a window."""
    sizes: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
    }
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    own = {"num_experts": 8, "num_experts_per_tok": 2} if family == "Olmoe" else windows
    config = getattr(transformers, f"{family}Config")(**sizes, **own)
    torch.manual_seed(0)
    assert fusing_obstacle(AutoModelForCausalLM.from_config(config).train()) is None


def test_a_layout_without_numbers_is_equal_to_one_without_them_alone() -> None:
    some, none = torch.ones(2, 3), torch.tensor([[1.0, torch.nan, 1.0], [1.0, 1.0, torch.inf]])
    for agree in (agreement._equal, agreement._alike):
        assert agree(none, none.clone()) and agree(some, some.clone())
        assert not agree(none, some) and not agree(some, none)
        assert not agree(none, none.nan_to_num())
