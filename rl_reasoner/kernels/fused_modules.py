"""The modules of common families in fewer passes over memory, for a packed training pass on a CPU.

Inside `fused_modules` a model's linear layers multiply by `products`; where the machine has
compiled the operations of `cpp/`, norms, rotations, gated layers and experts are functions of
their own too: each reads and writes once what transformers' modules, operation by operation, go
over five to ten times, and keeps less for the backward pass. Modules are recognised by their class,
whose formulas are in the table below; any other module, and any that patches, hooks, adapters or
other weights have changed, is left as it is (`own_code`). Under bf16 autocast experts alone are
ours. Whether the model is the same with all of them, rl_reasoner.rollout.agreement finds out in
fp32. Knows modules and tensors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from rl_reasoner.kernels import native
from rl_reasoner.kernels.expert_products import experts
from rl_reasoner.kernels.own_code import changed_everywhere, is_own, is_unheard
from rl_reasoner.kernels.products import joint_layers, plain_layer
from rl_reasoner.kernels.training_operations import gated, rms_norm, rotated

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "qwen2_moe", "mixtral", "olmoe")
# implementations of experts that transformers' formula says; any other is a function of its own,
# as that of FP8
_OWN_EXPERTS = (None, "eager", "batched_mm", "grouped_mm")
Forward = Callable[..., Any]
Replacements = list[tuple[nn.Module, Forward]]
# of each model, and whether with compiled operations
_found: "WeakKeyDictionary[nn.Module, dict[bool, Replacements]]" = WeakKeyDictionary()


@contextmanager
def fused_modules(causal_lm: nn.Module) -> Iterator[None]:
    """Let the model's known modules compute by functions of ours inside; nothing is left after."""
    compiled, found = native.available(), _found.setdefault(causal_lm, {})
    if compiled not in found:
        found[compiled] = [*_replacements(causal_lm, compiled)]
    replaced: Replacements = []
    if changed_everywhere() is None:
        own = {kind: is_own(kind) for kind in {type(m) for m, _ in found[compiled]}}
        replaced += [
            (m, f) for m, f in found[compiled] if own[type(m)] and "forward" not in m.__dict__
        ]
    for module, forward in replaced:
        module.__dict__["forward"] = forward  # before the class's own, for this instance
    try:
        yield
    finally:
        for module, _ in replaced:
            del module.__dict__["forward"]


def kept_as_it_is(causal_lm: nn.Module) -> str | None:
    """Known modules of a model that are not fused, as their class was patched; None without."""
    kinds = {type(m) for m in causal_lm.modules() if _kind(m) is not None}
    patched = sorted(kind.__name__ for kind in kinds if not is_own(kind))
    return f"another forward of {', '.join(patched)}" if patched else None


def _replacements(causal_lm: nn.Module, compiled: bool) -> Iterator[tuple[nn.Module, Forward]]:
    for module in causal_lm.modules():
        if type(module) is nn.Linear:
            yield module, partial(_linear, module)
        elif compiled and (kind := _kind(module)) is not None:
            yield module, partial(kind, module)


def _kind(module: nn.Module) -> Forward | None:
    """What stands in for the module's forward; None for a class that is not known."""
    name, place = type(module).__name__, type(module).__module__.split(".")
    if place[:2] != ["transformers", "models"] or place[2] not in _FAMILIES:
        return None
    kinds: dict[str, Forward] = {
        "RMSNorm": _norm,
        "MLP": _mlp,
        "Attention": _attention,
        "Experts": _experts,
    }
    return next((kind for end, kind in kinds.items() if name.endswith(end)), None)


def _product_type() -> torch.dtype | None:
    """Autocast's where it is on, else fp32; None for fp16."""
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32
    return torch.bfloat16 if torch.get_autocast_dtype("cpu") == torch.bfloat16 else None


def _fits(*tensors: Tensor) -> bool:
    """Whether all are plain fp32 on a CPU, and nothing casts them."""
    return not torch.is_autocast_enabled("cpu") and _are_plain(*tensors)


def _are_plain(*tensors: Tensor) -> bool:
    return all(
        t.dtype == torch.float32 and t.device.type == "cpu" and type(t) in (Tensor, nn.Parameter)
        for t in tensors
    )


def _plain(layer: Any) -> bool:
    """Whether a layer is torch's own linear one, and nobody looks at what goes through it."""
    if type(layer) is not nn.Linear:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks)
    backward = (layer._backward_hooks, layer._backward_pre_hooks)
    forward = layer.__dict__.get("forward")
    ours = forward is None or (isinstance(forward, partial) and forward.func is _linear)
    return ours and not any(hooks) and not any(backward) and _fits(layer.weight)


def _linear(module: Any, rows: Tensor) -> Tensor:
    if not _fits(rows, module.weight):
        return nn.Linear.forward(module, rows)
    return plain_layer(rows, module.weight, module.bias)


def _norm(module: Any, states: Tensor) -> Tensor:
    if not _fits(states, module.weight) or module.weight.shape != states.shape[-1:]:
        out: Tensor = type(module).forward(module, states)
        return out
    return rms_norm(states, module.weight, float(module.variance_epsilon))


def _mlp(module: Any, states: Tensor) -> Tensor:
    layers = module.gate_proj, module.up_proj, module.down_proj
    if not (_fits(states) and is_silu(module.act_fn)):
        out: Tensor = type(module).forward(module, states)
        return out
    gate, up = _joined(states, *layers[:2])
    down = layers[2]
    if not _plain(down) or down.bias is not None:
        hidden: Tensor = down(gated(gate, up))
        return hidden
    return gated(gate, up, down.weight)


def _joined(states: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """The outputs of several layers of one input."""
    if not all(map(_plain, layers)):
        return tuple(layer(states) for layer in layers)
    return joint_layers(
        states, [layer.weight for layer in layers], [layer.bias for layer in layers]
    )


def is_silu(function: Any) -> bool:
    """Whether an activation of transformers is x sigmoid(x), and nobody looks at it."""
    kind = type(function)
    known = kind is nn.SiLU or kind is SiLUActivation
    return known and is_own(kind) and is_unheard(function)


def _attention(module: Any, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
    """As transformers' attention of these families, in a packed pass; any other is the module's."""
    layout: Any = named.get("packed")
    angles: Any = named.get("position_embeddings")
    dropout = module.training and module.attention_dropout
    whole = not given and layout is not None and angles is not None and not dropout
    whole = whole and not _norms_whole_width(module)
    if not whole or named.get("attention_mask") is not None or not _fits(hidden_states, *angles):
        return type(module).forward(module, hidden_states, *given, **named)
    layers = module.q_proj, module.k_proj, module.v_proj
    tokens = hidden_states.shape[1]
    query, key, value = (
        states.view(1, tokens, -1, module.head_dim) for states in _joined(hidden_states, *layers)
    )
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    query, key = (rotated(states, *angles).transpose(1, 2) for states in (query, key))
    out = layout.attend(query, key, value.transpose(1, 2), module.scaling, _window(module))
    return module.o_proj(out.reshape(1, tokens, -1)), None


def own_experts(config: Any) -> bool:
    """Whether a model with this config computes its experts by transformers' own formula."""
    return getattr(config, "_experts_implementation", None) in _OWN_EXPERTS


def _norms_whole_width(module: Any) -> bool:
    """Whether queries are normed, or clipped, before they are split into heads, as in OLMoE."""
    norm = getattr(module, "q_norm", None)
    clips = getattr(module.config, "clip_qkv", None) is not None
    return clips or (norm is not None and norm.weight.shape[0] != module.head_dim)


def _window(module: Any) -> int:
    """The attention's window as the module passes it on; 0 for none. Llama's has none."""
    if type(module).__name__ == "LlamaAttention":
        return 0
    if hasattr(module, "sliding_window"):  # None in the layers that see everything
        return module.sliding_window or 0
    return getattr(module.config, "sliding_window", None) or 0


def _experts(module: Any, states: Tensor, index: Tensor, gates: Tensor) -> Tensor:
    """As linear layers do under autocast: products in its type, of weights in fp32."""
    weights, dtype = (module.gate_up_proj, module.down_proj), _product_type()
    known = is_silu(module.act_fn) and not getattr(module, "has_bias", False)
    known = known and own_experts(getattr(module, "config", None))
    fits = known and dtype is not None and _are_plain(*weights)
    if dtype == torch.float32:
        fits = fits and _are_plain(states, gates)
    if not fits or getattr(module, "is_transposed", False):
        out: Tensor = type(module).forward(module, states, index, gates)
        return out
    assert dtype is not None
    return experts(states.float(), *weights, index, gates.float(), dtype).to(states.dtype)
