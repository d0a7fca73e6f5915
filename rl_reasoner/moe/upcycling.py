"""Upcycling: from a dense policy to a mixture of experts that computes the same function.

Sparse upcycling (arXiv 2212.05055): every expert of a layer begins as a copy of the dense layer's
feed-forward part, the router at random. Gates that sum to 1 make the mixture's output that of the
copy, whichever experts are chosen; in training each expert sees other tokens, and they grow apart.
Knows models of transformers; nothing of recipes.
"""

from typing import Any

import torch
import transformers

from rl_reasoner.errors import UserError

# The mixture that a dense family's attention and norms fit into, and how its config says experts.
_MIXTURES = {
    "qwen3": ("Qwen3MoeConfig", "num_experts"),
    "llama": ("MixtralConfig", "num_local_experts"),
    "mistral": ("MixtralConfig", "num_local_experts"),
}


def upcycle(model: Any, experts: int, chosen: int = 2, seed: int = 0) -> Any:
    """A mixture of `experts` a layer, `chosen` of them for a token, that gives `model`'s logits.

    Qwen3 becomes Qwen3-MoE, Llama and Mistral become Mixtral; on the CPU, in the model's type.
    `seed` sets the routers. Raises `UserError` for other families, and for a model with something
    that its mixture has not (biases, layers of other kinds).
    """
    kind = model.config.model_type
    if kind not in _MIXTURES:
        raise UserError(
            f"--upcycle makes a mixture of {', '.join(_MIXTURES)} policies; this one is {kind}"
        )
    if len(set(getattr(model.config, "layer_types", None) or ())) > 1:
        raise UserError("--upcycle: this policy has layers of several kinds")
    if not 1 <= chosen <= experts or experts < 2:
        raise UserError(
            f"--upcycle {experts} --chosen {chosen}: give 2 experts or more, and 1 to "
            "that many chosen ones"
        )
    mixture = _empty(model, experts, chosen, seed)
    _fill(mixture, model)
    ids = torch.arange(64).mul(37).remainder(model.config.vocab_size).view(2, 32)
    with torch.no_grad():
        apart = (mixture(input_ids=ids).logits - model(input_ids=ids).logits).abs().max()
        limit = 1e-4 if model.dtype == torch.float32 else 0.1  # of rounding in many layers
        if not apart <= limit * model(input_ids=ids).logits.abs().max():
            raise UserError(
                f"--upcycle: {type(mixture).__name__} cannot compute what this policy does (logits "
                f"{float(apart):.2g} apart): it has biases or layers that the mixture does not have"
            )
    return mixture


def _empty(model: Any, experts: int, chosen: int, seed: int) -> Any:
    """A mixture with the dense model's config, and random weights."""
    name, count = _MIXTURES[model.config.model_type]
    given = model.config.to_dict()
    width = given["intermediate_size"]
    if {*(given.get("layer_types") or ["sliding"])} == {"full_attention"}:
        given |= {"use_sliding_window": False, "sliding_window": None}  # the mixture's is for all
    for key in ("model_type", "architectures", "transformers_version", "layer_types"):
        given.pop(key, None)
    given |= {count: experts, "num_experts_per_tok": chosen, "output_router_logits": False}
    if name == "Qwen3MoeConfig":
        given |= {"moe_intermediate_size": width, "norm_topk_prob": True, "decoder_sparse_step": 1}
        given["mlp_only_layers"] = []
    config = getattr(transformers, name)(**given)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixture = transformers.AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, trust_remote_code=False
        )
    mixture.generation_config = model.generation_config
    return mixture.train(model.training)


def _fill(mixture: Any, model: Any) -> None:
    """Put the dense weights into the mixture; the routers stay."""
    dense = {n: t for n, t in model.state_dict().items() if ".mlp." not in n}
    missing = mixture.load_state_dict(dense, strict=False)
    if missing.unexpected_keys:
        raise UserError(f"--upcycle: {type(mixture).__name__} has no {missing.unexpected_keys[0]}")
    for sparse, layer in zip(mixture.model.layers, model.model.layers, strict=True):
        both = torch.cat((layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight))
        with torch.no_grad():
            sparse.mlp.experts.gate_up_proj.copy_(both.expand_as(sparse.mlp.experts.gate_up_proj))
            down = layer.mlp.down_proj.weight
            sparse.mlp.experts.down_proj.copy_(down.expand_as(sparse.mlp.experts.down_proj))
