"""A pass over one new token of each live row, for the common families, without calling modules.

Calling transformers' modules for a few rows costs more than computing. `DecodePass` reads the
weights of a Llama, Mistral, Mixtral, Qwen2, Qwen3 or Qwen3-MoE once for a call of the engine, joins
the products that have the same input, lays them out for the processor, and runs a layer in four
products with one operation between two: compiled ones (rl_reasoner.kernels.decoding) on a CPU that
has them, torch's elsewhere. On a GPU the pass is a CUDA graph (rl_reasoner.rollout.decode_graphs).
Prompts go through the same weights, by torch's operations. Copies of the weights last as long as
the call. What passes of the model itself would do besides (hooks, adapters of other kinds, patched
modules) it cannot know: `decode_obstacle` refuses such a model, and rl_reasoner.rollout.agreement
tries the others before one is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, rms_norm, silu

from rl_reasoner.kernels import decoding
from rl_reasoner.kernels.fused_modules import own_experts
from rl_reasoner.kernels.own_code import asks_for_gradients, changed_everywhere, is_own
from rl_reasoner.kernels.packed_linear import PackedWeight, computed_in
from rl_reasoner.moe.experts import silent_hooks
from rl_reasoner.moe.routing import choice_type
from rl_reasoner.rollout.decode_graphs import Graphs, StaticRows
from rl_reasoner.rollout.kv_cache import KVCache
from rl_reasoner.rollout.prefill import Prefill

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = ("torch.nn.modules.", "transformers.activations")  # where modules without a state are from
_LORA = "peft.tuners.lora."
_RECORDER = "transformers.utils.output_capturing"  # its hooks stay, silent, when they were needed
_WIDE = 1 << 16  # numbers of an expert's weight, from which a product of its own is worth its call
_GRAPHED = ("cuda",)  # devices on which a pass is captured
_proved: "WeakSet[nn.Module]" = WeakSet()
forwards_as_its_class: "WeakSet[nn.Module]" = WeakSet()
"""Models whose own `forward` is that of their class, unless it is asked for something else."""


# ------------------------------------------------------------------------------- which models


def decode_obstacle(model: Any) -> str | None:
    """Why `DecodePass` does not run a causal language model, or None."""
    kind = model.config.model_type
    home = f"transformers.models.{kind}.modeling_{kind}"
    if kind not in _FAMILIES or type(model).__module__ != home:
        return f"models of type {type(model).__name__}"
    if not type(model).__name__.endswith("ForCausalLM") or model.config.hidden_act != "silu":
        return "layers of another form"
    if not own_experts(model.config):
        return "experts that a function of somebody's computes"
    if changed := changed_everywhere():
        return changed
    for kind_of in {type(module) for module in model.modules()}:
        if kind_of.__module__ == home and not is_own(kind_of):
            return f"another forward of {kind_of.__name__}"
    for module in model.modules():
        if "forward" in vars(module) and not (module is model and _is_silent(model)):
            return f"a {type(module).__name__} with a forward of its own"
        reason = _module_obstacle(module, home)
        if reason is not None:
            return reason
    tensors = [*model.parameters()]
    if any(type(t) not in (nn.Parameter, Tensor) or t.dtype not in _DTYPES for t in tensors):
        return "weights in parts or of other types"
    if len({t.device for t in tensors}) > 1 or tensors[0].device.type == "meta":
        return "weights on several devices"
    if any(w.ndim == 3 and any(size % 8 for size in w.shape[1:]) for w in tensors):
        return "experts of an odd size"
    return None


def _is_silent(model: nn.Module) -> bool:
    """Whether a model's own forward only adds to its class's: a trainer's, accelerate's cast."""
    return model in forwards_as_its_class or hasattr(model, "_original_forward")


def _module_obstacle(module: nn.Module, home: str) -> str | None:
    kind = type(module)
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    heard = [hook for hook in hooks if getattr(hook, "__module__", None) != _RECORDER]
    if any(hook not in silent_hooks and not asks_for_gradients(hook) for hook in heard):
        return f"hooks on a {kind.__name__}"
    if kind.__module__.startswith(_LORA):
        layer: Any = module
        plain = kind.__name__ == "Linear" and type(layer.base_layer) is nn.Linear
        variants = getattr(layer, "lora_variant", {}) or any(
            getattr(layer, "lora_bias", {}).values()
        )
        return None if plain and not variants else "an adapter that is not a plain LoRA"
    if kind.__module__ != home and not kind.__module__.startswith(_PLAIN):
        return f"a {kind.__name__}"
    return None


def proved(model: nn.Module, agrees: bool) -> None:
    """Note whether passes of a model were found to agree with the model's own."""
    if agrees:
        _proved.add(model)
    else:
        _proved.discard(model)


def is_proved(model: nn.Module) -> bool:
    """Whether passes of a model were found to agree."""
    return model in _proved


def decode_pass(model: nn.Module, dtype: torch.dtype | None = None) -> "DecodePass | None":
    """The pass of a model that is proved and may be run now, with its weights as they are now.

    `dtype`: that of the copies of the weights, by default that of autocast where it is on, else the
    model's own; with int8, all but linear layers is in fp32. None where transformers' modules have
    to be called.
    """
    if not is_proved(model) or decode_obstacle(model) is not None:
        return None
    kind = next(model.parameters()).device.type
    if dtype is None and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return DecodePass(model, dtype)


# --------------------------------------------------------------------------------- the weights


def _joined(modules: Sequence[Any], dtype: torch.dtype) -> PackedWeight:
    """One product for linear layers with the same input."""
    made_in = computed_in(dtype)
    weights = [_weight(module).to(made_in) for module in modules]
    biases = [getattr(module, "base_layer", module).bias for module in modules]
    bias = None if biases[0] is None else torch.cat([b.detach().to(made_in) for b in biases])
    return PackedWeight(torch.cat(weights) if len(weights) > 1 else weights[0], bias, dtype)


def _weight(module: Any) -> Tensor:
    """A layer's weight, with its active adapters added."""
    weight: Tensor = getattr(module, "base_layer", module).weight.detach()
    if not hasattr(module, "base_layer") or module.disable_adapters or module.merged:
        return weight
    for adapter in module.active_adapters:
        if adapter in module.lora_A:
            weight = weight + module.get_delta_weight(adapter).to(weight.dtype)
    return weight


@dataclass
class _Mlp:
    gate_up: PackedWeight
    down: PackedWeight


@dataclass
class _Mixture:
    """Experts one by one where each is worth a product of its own, else all in one piece."""

    router: PackedWeight
    chosen: int
    normalised: bool
    experts: list[_Mlp]  # empty where they are in one piece
    gate_up: Tensor  # (experts, 2 * inner, hidden)
    down: Tensor  # (experts, hidden, inner)
    panels: decoding.PanelExperts | None = None  # of experts in one piece


@dataclass
class _Layer:
    """A layer's weights; norms in fp32."""

    before: Tensor
    after: Tensor
    projections: PackedWeight  # queries, keys and values
    heads: decoding.Heads
    output: PackedWeight
    mlp: _Mlp | _Mixture


class DecodePass:
    """One new token of each live row through a model; see the module. For one call of the engine.

    `chosen`: the experts of the last pass, (rows, layers with experts, k), or None.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        backbone, config = model.model, model.config
        self.copies = dtype or next(model.parameters()).dtype
        self.dtype = computed_in(self.copies)
        self.device = next(model.parameters()).device
        self.eps = float(config.rms_norm_eps)
        able = self.device.type == "cpu" and self.dtype in (torch.float32, torch.bfloat16)
        self.operations = decoding.operations() if able else None
        self.embedding = backbone.embed_tokens.weight.detach()
        self.layers = [self._layer(layer, config) for layer in backbone.layers]
        self.norm = backbone.norm.weight.detach().float()
        head = model.get_output_embeddings()
        self.head = _joined([head], self.copies)
        self.rotary = backbone.rotary_emb
        self.rotation = self._rotation(1024)
        self.chosen: Tensor | None = None
        self._choice_type = choice_type(getattr(config, "num_experts", 0))
        self._graphs = Graphs(self._by_torch) if self.device.type in _GRAPHED else None
        self._kept: dict[str, Any] = {}  # of the rows at hand
        self._state: tuple[int, int] | None = None
        self.states: list[Tensor] | None = None  # of each pass, as the head gets them, if a list

    def _layer(self, layer: Any, config: Any) -> _Layer:
        attention = layer.self_attn
        window = getattr(attention, "sliding_window", None)
        if config.model_type in ("mistral", "mixtral"):
            window = config.sliding_window
        query, key = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        return _Layer(
            layer.input_layernorm.weight.detach().float(),
            layer.post_attention_layernorm.weight.detach().float(),
            _joined([attention.q_proj, attention.k_proj, attention.v_proj], self.copies),
            decoding.Heads(
                heads=config.num_attention_heads,
                shared=config.num_key_value_heads,
                dim=attention.head_dim,
                scale=attention.scaling,
                window=window or 0,
                query_norm=None if query is None else query.weight.detach().float(),
                key_norm=None if key is None else key.weight.detach().float(),
                eps=self.eps,
            ),
            _joined([attention.o_proj], self.copies),
            self._mixture(layer.mlp) if hasattr(layer.mlp, "experts") else self._mlp(layer.mlp),
        )

    def _mlp(self, mlp: Any) -> _Mlp:
        return _Mlp(
            _joined([mlp.gate_proj, mlp.up_proj], self.copies),
            _joined([mlp.down_proj], self.copies),
        )

    def _mixture(self, block: Any) -> _Mixture:
        router, experts = block.gate, block.experts
        gate_up, down = experts.gate_up_proj.detach(), experts.down_proj.detach()
        mixture = _Mixture(
            PackedWeight(router.weight.detach(), None, self.dtype),
            router.top_k,
            getattr(router, "norm_topk_prob", True),
            [],
            gate_up,
            down,
        )
        if self.device.type == "cpu" and down[0].numel() >= _WIDE:
            mixture.experts = [
                _Mlp(*(PackedWeight(weight, None, self.dtype) for weight in one))
                for one in zip(gate_up, down, strict=True)
            ]
            return mixture
        gate_up, down = gate_up.to(self.dtype), down.to(self.dtype)
        if self.operations is None:
            mixture.gate_up, mixture.down = gate_up, down
        else:  # the panels are the only copy
            mixture.panels = decoding.PanelExperts(
                gate_up, down, mixture.chosen, mixture.normalised
            )
        return mixture

    def _rotation(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (positions, dim), fp32."""
        index = torch.arange(positions, device=self.device)[None]
        cosine, sine = self.rotary(torch.zeros(1, device=self.device), index)
        return cosine[0].contiguous(), sine[0].contiguous()

    # ------------------------------------------------------------------------------- the pass

    def step(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """(rows,) tokens of the live rows -> their logits (rows, V); `cache` is to be advanced."""
        self._lengthen(cache.longest_prompt + cache.longest + 1)
        with torch.autocast(self.device.type, enabled=False):
            state, chosen = self._run(tokens.to(self.device), cache)
            self._tell(chosen)
            if self.states is not None:
                self.states.append(state)
            return self.head(state)

    def prefill(self, tokens: Tensor, layout: Prefill, kept: Tensor) -> Tensor:
        """(n,) tokens of parts of prompts -> logits behind those at `kept` (m,), (m, V)."""
        with torch.autocast(self.device.type, enabled=False):
            self._lengthen(layout.reach)
            state, chosen = self._by_torch(tokens.to(self.device), layout)
            self._tell(chosen)
            return self.head(state[kept])

    def _tell(self, chosen: Tensor | None) -> None:
        self.chosen = None if chosen is None else chosen.to(self._choice_type)

    def _lengthen(self, positions: int) -> None:
        """Have the rotation of so many positions."""
        while positions > len(self.rotation[0]):
            self.rotation = self._rotation(2 * len(self.rotation[0]))
            self._state = None
            if self._graphs is not None:
                self._graphs = Graphs(self._by_torch)

    def _run(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, Tensor | None]:
        if self.operations is not None:
            return self._compiled(tokens, cache)
        if self._graphs is not None:
            return self._graphs.step(tokens, cache)
        return self._by_torch(tokens, cache)

    def _compiled(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, Tensor | None]:
        """(rows, hidden) as the head gets them, and the experts, by compiled operations."""
        operations = self.operations
        assert operations is not None
        rows, attentions = self._rows(cache)
        hidden = self.embedding[tokens].float()
        chosen: list[Tensor] = []
        normed = hidden.new_empty(hidden.shape, dtype=self.dtype)
        change: Tensor | None = None
        for layer, attention in zip(self.layers, attentions, strict=True):
            operations.norm(hidden, change, layer.before, self.eps, normed)
            projected = layer.projections(normed)
            width = layer.heads.heads * layer.heads.dim
            joined = operations.attend(
                attention[0], rows, projected, projected.new_empty(len(hidden), width)
            )
            change = layer.output(joined)
            operations.norm(hidden, change, layer.after, self.eps, normed)
            if isinstance(mlp := layer.mlp, _Mlp):
                wide = mlp.gate_up(normed)
                change = mlp.down(
                    operations.gated(wide, wide.new_empty(len(wide), wide.shape[1] // 2))
                )
            else:
                change, experts = self._mixed(mlp, normed)
                chosen.append(experts)
        return operations.norm(hidden, change, self.norm, self.eps, normed), _stacked(chosen)

    def _rows(self, cache: KVCache) -> tuple[decoding.Rows, list[Any]]:
        """Where keys and values of the live rows lie; the same objects until the cache changes."""
        state = (cache.version, cache.membership)
        if self._state != state:
            cache.make_room()
            rows = decoding.Rows(
                cache.own_lengths,
                cache.prompt_of[: cache.rows],
                cache.prompt_lengths,
                self.rotation,
                self.layers[0].heads.heads,
            )
            layers = [
                decoding.layer_of(layer.heads, prompt, own)
                for layer, prompt, own in zip(self.layers, cache.prompt, cache.own, strict=True)
            ]
            self._kept, self._state = {"rows": rows, "layers": layers}, state
        return self._kept["rows"], self._kept["layers"]

    def _by_torch(
        self, tokens: Tensor, cache: KVCache | StaticRows | Prefill
    ) -> tuple[Tensor, Tensor | None]:
        """The same by torch's operations, for prompts too."""
        positions = cache.positions
        cosine, sine = (table[positions][:, None] for table in self.rotation)
        hidden = self.embedding[tokens].float()
        chosen: list[Tensor] = []
        width = hidden.shape[1:]
        for layer in self.layers:
            normed = rms_norm(hidden, width, layer.before, self.eps).to(self.dtype)
            joined = _attended(layer, layer.projections(normed), cache, (cosine, sine))
            hidden = hidden + layer.output(joined)
            normed = rms_norm(hidden, width, layer.after, self.eps).to(self.dtype)
            if isinstance(mlp := layer.mlp, _Mlp):
                gates, others = mlp.gate_up(normed).chunk(2, dim=-1)
                hidden = hidden + mlp.down(silu(gates).mul_(others))
            else:
                change, experts = self._mixed(mlp, normed)
                hidden = hidden + change
                chosen.append(experts)
        return rms_norm(hidden, width, self.norm, self.eps).to(self.dtype), _stacked(chosen)

    def _mixed(self, mlp: _Mixture, given: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, hidden) through their experts, and which these are (rows, k)."""
        if mlp.panels is None or self.operations is None:
            mixed, chosen = _mixed_by_torch(mlp, given)
            return mixed.to(self.dtype), chosen
        chosen = torch.empty(len(given), mlp.chosen, dtype=torch.long)
        logits, out = mlp.router(given), torch.empty_like(given)
        return self.operations.mixture(mlp.panels, given, logits, chosen, out), chosen


def _stacked(chosen: list[Tensor]) -> Tensor | None:
    """(rows, layers, k) of each layer's choices; None of a model without experts."""
    return torch.stack(chosen, dim=1) if chosen else None


def _attended(
    layer: _Layer,
    projected: Tensor,
    cache: KVCache | StaticRows | Prefill,
    rotation: tuple[Tensor, Tensor],
) -> Tensor:
    """Attention of a layer by torch: (rows, all heads * dim) -> (rows, heads * dim)."""
    heads = layer.heads
    parts = projected.unflatten(1, (-1, heads.dim))  # type: ignore[no-untyped-call]
    query, key, value = parts.split([heads.heads, heads.shared, heads.shared], dim=1)
    turned = []
    for part, norm in ((query, heads.query_norm), (key, heads.key_norm)):
        part = part.float()
        if norm is not None:
            part = rms_norm(part, (heads.dim,), norm, heads.eps)
        first, second = part.chunk(2, dim=-1)
        swapped = torch.cat((-second, first), dim=-1)
        turned.append((part * rotation[0] + swapped * rotation[1]).to(projected.dtype))
    # (rows, heads, 1, dim), or all tokens of prompts in one row
    one_row = isinstance(cache, Prefill)
    query, key, value = (
        t.transpose(0, 1)[None] if one_row else t.unsqueeze(2) for t in (*turned, value)
    )
    return cache.attend(query, key, value, heads.scale, heads.window).reshape(len(projected), -1)


def _mixed_by_torch(mlp: _Mixture, given: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, hidden) through their experts by torch, and which these are (rows, k)."""
    shares = mlp.router(given).softmax(-1, dtype=torch.float32)
    gates, chosen = shares.topk(mlp.chosen, dim=-1)
    if mlp.normalised:
        gates = gates / gates.sum(-1, keepdim=True)
    experts, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(len(mlp.down), device=given.device)
    ends = torch.searchsorted(experts, numbers, right=True).int()
    parts = _through(mlp, given[order // mlp.chosen], ends)
    products = torch.empty_like(parts)
    products[order] = parts
    products = products.unflatten(0, chosen.shape)  # type: ignore[no-untyped-call]
    return (products * gates.unsqueeze(-1)).sum(1), chosen


def _through(mlp: _Mixture, rows: Tensor, ends: Tensor) -> Tensor:
    """Rows (pairs, hidden) in the order of their experts, each through its own."""
    if not mlp.experts:
        first, second = grouped_mm(rows, mlp.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        return grouped_mm(silu(first).mul_(second), mlp.down.transpose(1, 2), offs=ends)
    parts, start = [], 0
    for expert, end in zip(mlp.experts, ends.tolist(), strict=True):
        if end > start:
            first, second = expert.gate_up(rows[start:end]).chunk(2, dim=-1)
            parts.append(expert.down(silu(first).mul_(second)))
        start = end
    return torch.cat(parts)
