"""What of a policy counts for a plan, by its configuration alone: nothing is allocated.

The configurations of the policies that shipped recipes for GPUs name are kept here, so that these
are planned without the hub; any other is found as a policy is (`policy.names`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.adapter import Lora


@dataclass(frozen=True)
class Shape:
    """What of a policy counts: parameters, layers, width, bytes a token of its KV cache."""

    total: float
    active: float
    layers: int
    hidden: int
    vocabulary: int
    cache: float
    """bytes of keys and values of one token in all layers, in bf16"""
    adapter: float = 0.0
    """parameters of a low-rank adapter, which alone are trained; 0: all weights are"""

    @property
    def experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return self.active < 0.9 * self.total

    @property
    def trained(self) -> float:
        """Parameters that have gradients and moments."""
        return self.adapter or self.total


def _qwen2(hidden: int, layers: int, heads: int, ffn: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": "qwen2", **sizes, "intermediate_size": ffn, "vocab_size": 151_936, **more}


_QWEN3_30B = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "vocab_size": 151_936,
}
_DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2",
    "hidden_size": 2048,
    "intermediate_size": 10_944,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "vocab_size": 102_400,
}
_SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "Qwen/Qwen2.5-7B": _qwen2(3584, 28, 28, 18_944, num_key_value_heads=4, vocab_size=152_064),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": _qwen2(
        896, 24, 14, 4864, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "Qwen/Qwen3-30B-A3B": _QWEN3_30B,
    "Qwen/Qwen3-30B-A3B-Base": _QWEN3_30B,
    "deepseek-ai/DeepSeek-V2-Lite-Chat": _DEEPSEEK_V2_LITE,
}
"""Hub name -> the fields of its config.json that give the shape."""


def shape_of(source: str, lora: Lora | None = None) -> Shape:
    """The shape of a policy, with an adapter where it gets one. Raises `UserError`."""
    import torch
    from transformers import AutoModelForCausalLM

    from rl_reasoner.moe.experts import parameter_counts
    from rl_reasoner.policy.opening import reason_of

    try:
        config = _config(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        total, active = parameter_counts(model)
        text = config.get_text_config()
        layers, hidden, vocabulary = text.num_hidden_layers, text.hidden_size, text.vocab_size
        cache = 2.0 * layers * _cache_width(text)
    except UserError:
        raise
    except Exception as error:  # a model's class may raise anything at sizes that cannot be
        told = f"{source}: no configuration to plan with ({reason_of(error)})"
        raise UserError(told) from error
    adapter = _adapter_parameters(model, lora) if lora else 0.0
    return Shape(total, active, layers, hidden, vocabulary, cache, adapter)


def _config(source: str) -> Any:
    """The configuration of a policy: a scratch name, a known one, a folder, a file, a hub id."""
    from transformers import AutoConfig

    from rl_reasoner.policy.gguf import gguf_config
    from rl_reasoner.policy.names import locate
    from rl_reasoner.policy.opening import load_config, open_policy

    if source.startswith("scratch:"):
        return open_policy(source, device="cpu").model.config
    if (published := PUBLISHED.get(source)) is not None:
        return AutoConfig.for_model(**published)
    if source.endswith(".gguf"):
        return gguf_config(Path(source).expanduser())
    with locate(source) as path:
        return load_config(path)


def _adapter_parameters(model: Any, lora: Lora) -> float:
    """Parameters of the adapter that training would put on `model`."""
    import torch

    from rl_reasoner.policy.lora import adapted_model

    with torch.device("meta"):
        trained = adapted_model(model, lora)
    return float(sum(p.numel() for p in trained.parameters() if p.requires_grad))


def _cache_width(text: Any) -> int:
    """Numbers that a layer keeps of a token."""
    if (rank := getattr(text, "kv_lora_rank", None)) is not None:  # DeepSeek's latent attention
        return int(rank + text.qk_rope_head_dim)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * heads * head)
