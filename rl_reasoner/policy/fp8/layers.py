"""FP8 training: which layers compute in float8, and the rounding of their products, emulated.

`fp8` makes the linear layers and the fused experts of a model multiply in float8 (e4m3), forward
and in both backward products (DeepSeek-V3, arXiv 2412.19437, section 3.3). By "torchao" the
products are a GPU's own (`torchao_products`). By "emulation" both factors are scaled,
rounded to float8 and scaled back, and sums are those of float32: so the effect on losses and
gradients can be studied on any machine; nothing becomes faster. Embeddings, norms, routers and
other gates, and the head stay as they are, and so do the weights themselves, which are rounded for
each product anew.

Scalings: "tensor" (one scale a tensor), "row" (one a row, along the sum), "block" (DeepSeek's:
1 x 128 along the sum for activations and gradients, 128 x 128 for weights).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from rl_reasoner.errors import UserError
from rl_reasoner.moe.experts import gates_of
from rl_reasoner.policy.fp8 import torchao_products

Scaling = Literal["tensor", "row", "block"]
BLOCK = 128
_E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_E4M3).max  # 448


def quantise(values: Tensor, tile: tuple[int, int]) -> Tensor:
    """(M, K) `values` rounded to e4m3 with one scale for each tile of rows x columns; their type.

    The largest number of a tile becomes the largest of e4m3. A tile side of 0 means all of it.
    """
    rows, columns = values.shape
    tiles, scale = round_to_e4m3(values, tile)
    spread: Tensor = tiles.to(values.dtype) * scale
    return spread.flatten(2, 3).flatten(0, 1)[:rows, :columns]


def round_to_e4m3(values: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(M, K) -> (R, h, C, w) e4m3 tiles, filled up with zeros, and their (R, 1, C, 1) scales."""
    rows, columns = values.shape
    high, wide = tile[0] or max(rows, 1), tile[1] or max(columns, 1)
    padded = nn.functional.pad(values, (0, -columns % wide, 0, -rows % high))
    tiles = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, high))  # type: ignore[no-untyped-call]
    largest = tiles.abs().amax((1, 3), keepdim=True)
    least = torch.finfo(values.dtype).tiny  # below it the scale would be 0, and zeros 0/0
    scale = torch.where(largest > 0, (largest / _LARGEST).clamp_min(least), 1.0)
    return (tiles / scale).clamp(-_LARGEST, _LARGEST).to(_E4M3), scale


def tile_of(scaling: Scaling, weight: bool) -> tuple[int, int]:
    """The tile of a factor that is summed along its second dimension."""
    if scaling == "tensor":
        return 0, 0
    if scaling == "row":
        return 1, 0
    return (BLOCK, BLOCK) if weight else (1, BLOCK)


def emulated_product(a: Tensor, b: Tensor, scaling: Scaling, weight: bool) -> Tensor:
    """a b^T of (M, K) and (N, K), both rounded; `weight`: whether `b` is one."""
    return quantise(a, tile_of(scaling, False)) @ quantise(b, tile_of(scaling, weight)).T


class _Linear(torch.autograd.Function):
    """y = x w^T; dx = dy w, dw = dy^T x: each product of two rounded factors, in fp32 or wider."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scaling: Scaling) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scaling = scaling
        with torch.autocast(x.device.type, enabled=False):
            return emulated_product(_wide(x), _wide(weight), scaling, True).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wide_x, wide_w, dy = _wide(x), _wide(weight), _wide(grads[0])
        dx = dw = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                dx = emulated_product(dy, wide_w.T, ctx.scaling, True).to(x.dtype)
            if ctx.needs_input_grad[1]:
                dw = emulated_product(dy.T, wide_x.T, ctx.scaling, False).to(weight.dtype)
        return dx, dw, None


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


# ------------------------------------------------------------------------------------ the layers

Backend = Literal["emulation", "torchao"]
# (M, K) rows, (N, K) weight -> (M, N), with gradients
_Product = Callable[[Tensor, Tensor], Tensor]


def _product(scaling: Scaling, by: Backend) -> _Product:
    if by == "torchao":
        return torchao_products.fp8_product(scaling)
    return lambda rows, weight: _Linear.apply(rows, weight, scaling)  # type: ignore[no-untyped-call]


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scaling: Scaling, by: Backend = "emulation"
) -> Tensor:
    """As torch's `linear`, also under autocast: (..., K), (N, K), (N,) -> (..., N)."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    rows = _product(scaling, by)(x.reshape(-1, x.shape[-1]), weight)
    y = rows.view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias.to(y.dtype)


def _experts(
    self: Any,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    scaling: Scaling,
    by: Backend,
) -> Tensor:
    """transformers' interface of fused experts: the gated sum, expert by expert."""
    names = ("gate_up_proj", "down_proj")
    weights = [getattr(self, n).mT if self.is_transposed else getattr(self, n) for n in names]
    biases = [getattr(self, f"{n}_bias") if self.has_bias else None for n in names]
    chosen = top_k_index.flatten()
    order = chosen.argsort(stable=True)
    token = order // top_k_index.shape[-1]
    counts = torch.bincount(chosen, minlength=len(weights[0])).tolist()
    outs = []
    for expert, rows in enumerate(torch.split(hidden_states[token], counts)):
        if not len(rows):
            continue
        up_bias, down_bias = (None if bias is None else bias[expert] for bias in biases)
        inner = self._apply_gate(linear(rows, weights[0][expert], up_bias, scaling, by))
        outs.append(linear(inner, weights[1][expert], down_bias, scaling, by))
    gated = torch.cat(outs) * top_k_weights.flatten()[order, None]
    total = torch.zeros_like(hidden_states, dtype=torch.float32).index_add(0, token, gated.float())
    return total.to(hidden_states.dtype)


def _implementation(scaling: Scaling, by: Backend) -> str:
    return f"fp8_{by}_{scaling}"


for _scaling in get_args(Scaling):
    for _by in get_args(Backend):
        ALL_EXPERTS_FUNCTIONS.register(
            _implementation(_scaling, _by), partial(_experts, scaling=_scaling, by=_by)
        )


def covered_layers(model: Any) -> list[str]:
    """The names of the layers that FP8 is for: linear layers and fused experts, by rule.

    Not the head, no gate (neither routers nor that of a shared expert), no low-rank adapter.
    """
    head = model.get_output_embeddings()
    gates = {id(gate) for gate in gates_of(model)}
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module is not head and not name.endswith("_gate"))
        or is_experts(module)
        if id(module) not in gates and ".lora_" not in name
    ]


def is_experts(module: nn.Module) -> bool:
    """Whether these are fused experts that transformers lets one compute by a function of ours."""
    known = hasattr(module, "is_transposed") and not getattr(module, "has_post_expert_norm", False)
    return known and isinstance(getattr(module, "gate_up_proj", None), nn.Parameter)


def excluded_layers(model: Any, scaling: Scaling, by: Backend) -> list[str]:
    """Those of `covered_layers` whose sides the GPU's products do not take; none if emulated."""
    side = torchao_products.SIDES[scaling] if by == "torchao" else 1
    return [name for name in covered_layers(model) if any(n % side for n in _sides(model, name))]


def _sides(model: Any, name: str) -> list[int]:
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        return [*layer.weight.shape]
    return [*layer.gate_up_proj.shape[1:], *layer.down_proj.shape[1:]]


@contextmanager
def fp8(model: Any, scaling: Scaling = "block", by: Backend = "emulation") -> Iterator[None]:
    """Multiply in FP8 inside; weights, and what is saved, stay as they are.

    `excluded_layers` compute as before; fused experts all do or none, since their kind is a setting
    of the whole model.
    """
    out = {*excluded_layers(model, scaling, by)}
    layers = [model.get_submodule(name) for name in covered_layers(model) if name not in out]
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    experts = len(linears) < len(layers)
    if experts and any(is_experts(model.get_submodule(name)) for name in out):
        raise UserError("precision fp8: some of the experts have sides that FP8 does not take")
    config = model.config
    before = getattr(config, "_experts_implementation", None)
    for layer in linears:
        # before the class's own
        layer.__dict__["forward"] = partial(_forward, layer, scaling, by)
    if experts:
        config._experts_implementation = _implementation(scaling, by)
    try:
        yield
    finally:
        if experts:
            config._experts_implementation = before
        for layer in linears:
            del layer.__dict__["forward"]


def _forward(layer: nn.Linear, scaling: Scaling, by: Backend, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias, scaling, by)


# ---------------------------------------------------------------------------------------- a run


def fp8_backend(device: str, scaling: Scaling) -> Backend:
    """Choose how FP8 is computed on `device`: by the card if it can, else emulated.

    Raises `UserError` where the card has FP8 and something else is missing: what is emulated is
    never taken for the real one.
    """
    if not torchao_products.card_has_fp8(device):
        return "emulation"
    torchao_products.check(scaling)
    return "torchao"


@contextmanager
def in_fp8(precision: str, scaling: Scaling, device: str, *models: Any) -> Iterator[None]:
    """Compute inside as a run with this precision does; a model may be None."""
    with ExitStack() as stack:
        for model in models if precision == "fp8" else ():
            if model is not None:
                stack.enter_context(fp8(model, scaling, fp8_backend(device, scaling)))
        yield


def describe_fp8(
    model: Any, scaling: Scaling, by: Backend
) -> tuple[Literal["passed", "warned"], str]:
    """Describe a run's FP8, with the status of the check."""
    excluded = excluded_layers(model, scaling, by)
    count = len(covered_layers(model)) - len(excluded)
    summary = f"{count} layers multiply in FP8, one scale per {scaling}"
    if by == "emulation":
        slow = "emulated, since this machine has no FP8: nothing becomes faster"
        return "warned", f"{summary}; {slow}"
    if excluded:
        side = torchao_products.SIDES[scaling]
        summary += f"; {len(excluded)} stay in bf16, their sides are not multiples of {side}: "
        summary += f"{excluded[0]} …"
    return ("warned" if excluded else "passed"), summary


def fp8_facts(model: Any, scaling: Scaling, device: str) -> dict[str, Any]:
    """What a run's lock says about its FP8."""
    by = fp8_backend(device, scaling)
    out = excluded_layers(model, scaling, by)
    return {
        "scaling": scaling,
        "computed_by": "emulation" if by == "emulation" else torchao_products.torchao_version(),
        "layers": len(covered_layers(model)) - len(out),
        "left_in_bf16": out,
        "rollouts": "the same products; vLLM's own precision where vLLM samples",
        "saved_weights": "fp32",
    }
