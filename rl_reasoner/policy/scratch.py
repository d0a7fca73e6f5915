"""Small random policies for trying things out (`scratch:NAME`), with a byte-level tokenizer."""

from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rl_reasoner.language.thinking import TAGS
from rl_reasoner.policy.names import check_scratch
from rl_reasoner.policy.policy import Policy

_TINY: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "max_position_embeddings": 1024,  # the default of 512 new tokens leaves room for a prompt
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "use_cache": True,
}
SCRATCH: dict[str, tuple[str, dict[str, Any]]] = {
    "moe-tiny": (
        "Qwen3MoeConfig",
        {
            **_TINY,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "moe_intermediate_size": 96,
            "intermediate_size": 192,
            "decoder_sparse_step": 1,
            "router_aux_loss_coef": 0.001,
        },
    ),
    "deepseek-tiny": (
        "DeepseekV3Config",
        {
            **{name: value for name, value in _TINY.items() if name != "head_dim"},
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
            "moe_intermediate_size": 96,
            "intermediate_size": 192,
            "q_lora_rank": None,
            "kv_lora_rank": 48,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 24,
        },
    ),
    "dense-tiny": ("Qwen3Config", {**_TINY, "intermediate_size": 384}),
}


def scratch_policy(name: str, seed: int) -> Policy:
    """A new policy of the kind `name`, one of `SCRATCH`. Raises `UserError` for another name."""
    check_scratch(name)
    tokenizer = byte_tokenizer()
    kind, settings = SCRATCH[name]
    config = getattr(transformers, kind)(
        **settings,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return Policy(model, tokenizer, f"scratch:{name}")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte, plus the think and answer tags as single tokens.

    Any text goes through it and back unchanged; the tags are ordinary tokens, kept when decoding.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *TAGS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_tokens(list(TAGS))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
