"""What router replay is good for: rollout against training pass, every family, fp32 and bf16.

A tiny model of each family samples token by token; the same completions are then passed over as
whole rows, without replay and with it. Printed: the share of tokens with a flip (some layer takes
other experts), the largest and the mean difference of log-probabilities, and the norm of the
routers' gradient under replay. fp32 is the oracle: nothing may change there.

    OMP_NUM_THREADS=1 python benchmarks/router_replay.py [--rows 64] [--tokens 40] [--seeds 3]
"""

import argparse

import torch
import transformers
from torch import nn

from rl_reasoner.rollout.mismatch import Mismatch, measure

_COMMON = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.1,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 2,
}
_SPARSE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
FAMILIES: dict[str, dict[str, object]] = {
    "Qwen3Moe": {**_SPARSE, "head_dim": 16, "norm_topk_prob": True, "decoder_sparse_step": 1},
    "Qwen2Moe": {**_SPARSE, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1},
    "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "DeepseekV3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 64,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
    "GptOss": {"head_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 2},
}


def model_of(family: str, seed: int) -> nn.Module:
    """A random model in which experts matter, as they do in trained ones."""
    config = getattr(transformers, f"{family}Config")(**{**_COMMON, **FAMILIES[family]})
    torch.manual_seed(seed)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def measured(
    family: str, dtype: torch.dtype, seed: int, rows: int, tokens: int, device: str = "cpu"
) -> Mismatch:
    """One model of the family, weights in `dtype`; four rows a prompt."""
    model = model_of(family, seed).to(device, dtype)
    random = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, 200, (rows // 4, 24), generator=random).tolist()
    repeated = [prompt[: 8 + i % 17] for i, prompt in enumerate(prompts) for _ in range(4)]
    return measure(model, repeated, ends=(1,), max_tokens=tokens, seed=seed, router_gradients=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    wanted = parser.parse_args()
    print("| model | dtype | seed | tokens | flips | max abs dlogp | fall | mean | router grad |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for family in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            for seed in range(wanted.seeds):
                found = measured(family, dtype, seed, wanted.rows, wanted.tokens)
                a, b = found.plain, found.replayed
                assert b is not None and a.flips is not None and b.flips is not None
                case = f"{family} | {str(dtype).removeprefix('torch.')} | {seed}"
                print(
                    f"| {case} | {found.tokens} | {a.flips:.2%} -> {b.flips:.2%}"
                    f" | {a.largest:.2g} -> {b.largest:.2g} | {a.largest / b.largest:.1f}x"
                    f" | {a.mean:.2g} -> {b.mean:.2g} | {b.router_gradient:.2g} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
