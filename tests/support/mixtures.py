"""Tiny mixtures of experts of every family, with random weights, for several test files."""

from typing import Any

import torch
import transformers

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {
        "head_dim": 8,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
    },
    "Qwen2Moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": 12,
        "decoder_sparse_step": 1,
    },
    "Mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "Olmoe": {"num_experts": 6, "num_experts_per_tok": 2},
    "DeepseekV3": {
        "num_key_value_heads": 2,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 12,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "GptOss": {"head_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 2},
}


def model_of(family: str, **changes: Any) -> Any:
    """A model of the family, the same one each time."""
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family], **changes})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)
