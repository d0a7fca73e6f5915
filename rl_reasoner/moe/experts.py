"""What mixture-of-experts policies need beside transformers' own code.

A sparse layer computes y = Σ G(x)_i · E_i(x) over the top-k experts i, with gates G that sum to 1.
Here: parameter counts (total, and active for one token), the load of each expert while the policy
trains, and guards against settings that fail late or cost dearly. Knows modules and tensors;
nothing of the trainer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from rl_reasoner.errors import UserError
from rl_reasoner.moe import EXPERT_COUNTS

silent_hooks: "WeakSet[Any]" = WeakSet()
"""Hooks on routers that a pass of sampling does not miss when it calls no modules: those that look
at passes with gradients alone, and those that are told the choices (`SampledRoutes.told`)."""


def routers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The router modules of `model`, by name, in layer order; none for a dense model.

    Recognised by what transformers' top-k routers share: a weight of shape (experts, hidden) and
    an expert count (`num_experts` or `n_routed_experts`), in Qwen3-MoE, Mixtral, OLMoE, DeepSeek.
    """
    for name, module in model.named_modules():
        experts = expert_count(module)
        weight = getattr(module, "weight", None)
        if not experts or not isinstance(weight, torch.Tensor):
            continue
        if weight.dim() == 2 and len(weight) == experts:
            yield name, module


def linear_gates(model: nn.Module) -> Iterator[nn.Module]:
    """Plain linear layers that choose experts, or are part of what does (AFMoE, Hunyuan).

    They have an output for each expert, and stand beside the experts or just below. Their choices
    are not seen here: they count no load, and are not replayed.
    """
    text = _text_config(model)
    count = next((n for key in EXPERT_COUNTS if isinstance(n := getattr(text, key, None), int)), 0)
    routed = {name.rpartition(".")[0] for name, _ in routers(model)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and count > 1 and module.out_features == count:
            within = name.rpartition(".")[0]
            places = (within, within.rpartition(".")[0])
            if not routed & {*places} and any(
                hasattr(model.get_submodule(place), "experts") for place in places
            ):
                yield module


def gates_of(model: nn.Module) -> list[nn.Module]:
    """All that chooses experts: routers, and gates that are plain linear layers."""
    return [*(router for _, router in routers(model)), *linear_gates(model)]


def expert_count(router: nn.Module) -> int:
    """How many experts a router chooses from; 0 for a module that is no router."""
    for name in ("num_experts", "n_routed_experts"):
        if isinstance(count := getattr(router, name, None), int):
            return count
    return 0


def _text_config(model: nn.Module) -> Any:
    """The config of a model's language part; None where it has none."""
    config: Any = getattr(model, "config", None)
    return None if config is None else config.get_text_config()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(total parameters, parameters active for one token) of `model`.

    Active: everything but the experts that the router leaves out: k of n experts count.
    Embeddings count in full, as model cards do.
    """
    total = sum(p.numel() for p in model.parameters())
    text = _text_config(model)
    chosen = getattr(text, "num_experts_per_tok", None)
    experts = next((n for key in EXPERT_COUNTS if (n := getattr(text, key, None))), None)
    if not chosen or not experts:
        return total, total
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return total, total - routed + routed * chosen // experts


# ---------------------------------------------------------------------------------- the guards


def without_router_logits(model: nn.Module) -> None:
    """Turn router logits off in the model's config, where they do not belong.

    Left on in a config that is saved, they make `generate` crash for padded batches
    (load_balancing_loss_func meets a mask that is longer than the cached step). Trainers ask for
    them pass by pass.
    """
    text = _text_config(model)
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


def check_experts(model: nn.Module) -> None:
    """Raises `UserError` for an implementation of the experts that cannot be trained with here.

    `batched_mm` copies an expert's weights for every token: on a CPU a training pass took 33 to 96
    times as long as with `eager` or `grouped_mm`.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "_experts_implementation", None)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if kind == "batched_mm" and on_cpu and any(True for _ in routers(model)):
        raise UserError(
            "experts_implementation='batched_mm' is tens of times slower than the others for "
            "training on a CPU: open the policy with 'grouped_mm' or 'eager'"
        )


def check_auxiliary_loss(model: nn.Module, coefficient: float | None) -> None:
    """Raises `UserError` for an auxiliary loss that transformers does not have for `model`.

    trl would say that DeepSeek's are no mixtures of experts, or fail in the first step.
    """
    text = _text_config(model)
    known = hasattr(text, "output_router_logits") and hasattr(text, "router_aux_loss_coef")
    if coefficient and not known:
        raise UserError(
            f"router_aux_loss_coef (router_aux in a recipe) is {coefficient}, and "
            f"{type(model).__name__} has no such loss in transformers: leave it out. Mixtures "
            "without it, as DeepSeek's, are balanced by router_bias_update and "
            "router_sequence_loss_coef (router_bias and router_sequence)"
        )


@contextmanager
def frozen_routers(model: nn.Module) -> Iterator[None]:
    """Freeze the routers inside; those that were trained are trained again after."""
    trained = [
        (router, name)
        for router in gates_of(model)
        for name, parameter in router.named_parameters()
        if parameter.requires_grad
    ]
    for router, name in trained:
        router.get_parameter(name).requires_grad_(False)
    try:
        yield
    finally:
        for router, name in trained:
            router.get_parameter(name).requires_grad_(True)


# ------------------------------------------------------------------------------------ the load


class ExpertLoad:
    """Counts the experts that the routers choose in passes with gradients, by hooks.

    Tokens count as often as the attention mask of a pass says: padding, which chooses too, not at
    all; a prompt's token in a packed pass once for each row that shares it.
    `take()` gives the shares since the last call: one list of n shares, summing to 1, a layer.
    `take_counts()` gives the counts themselves, by the router's name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._counts: dict[str, torch.Tensor] = {}
        self._times: torch.Tensor | None = None  # (tokens,) of the pass that is under way
        self._handles = [model.register_forward_pre_hook(self._mask_hook(), with_kwargs=True)]
        self._handles += [
            module.register_forward_hook(self._hook(name, expert_count(module)))
            for name, module in routers(model)
        ]

    def _mask_hook(self) -> Any:
        def begin(model: nn.Module, inputs: Any, given: Mapping[str, Any]) -> None:
            mask = given.get("attention_mask")
            self._times = None
            if isinstance(mask, torch.Tensor) and mask.dim() == 2:
                self._times = mask.long().reshape(-1)

        silent_hooks.add(begin)
        return begin

    def _hook(self, name: str, experts: int) -> Any:
        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            chosen = next((t for t in parts if not t.is_floating_point()), None)
            if chosen is None or not torch.is_grad_enabled():  # rollouts do not count
                return
            chosen = chosen.reshape(-1, chosen.shape[-1])
            if self._times is not None and len(self._times) == len(chosen):
                chosen = chosen.repeat_interleave(self._times.to(chosen.device), dim=0)
            self.add({name: torch.bincount(chosen.reshape(-1), minlength=experts).cpu()})

        silent_hooks.add(count)
        return count

    def take(self) -> list[list[float]]:
        """Shares of the choices by expert, one list a layer; then counting starts anew."""
        return [(c / c.sum().clamp(min=1)).tolist() for c in self.take_counts().values()]

    def take_counts(self) -> dict[str, torch.Tensor]:
        """How often each expert was chosen; then counting starts anew."""
        counts, self._counts = self._counts, {}
        return counts

    def add(self, counts: Mapping[str, torch.Tensor]) -> None:
        """Count what was counted elsewhere, by the router's name, too."""
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, torch.zeros_like(count)) + count

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
