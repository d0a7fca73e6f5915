"""What mixture-of-experts policies need beside transformers' own code.

A sparse layer computes y = Σ G(x)_i · E_i(x) over the top-k experts i, with gates G that sum to 1.
Here: parameter counts (total, and active for one token), and the load of each expert while the
policy trains. Knows modules and tensors; nothing of the trainer.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def routers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The router modules of `model`, by name, in layer order; none for a dense model.

    Recognised by what transformers' top-k routers share: a weight of shape (experts, hidden) and
    an expert count (`num_experts` or `n_routed_experts`), in Qwen3-MoE, Mixtral, OLMoE, DeepSeek.
    """
    for name, module in model.named_modules():
        experts = expert_count(module)
        weight = getattr(module, "weight", None)
        if experts and isinstance(weight, torch.Tensor) and tuple(weight.shape[:1]) == (experts,):
            yield name, module


def expert_count(router: nn.Module) -> int:
    """How many experts a router chooses from; 0 for a module that is no router."""
    for name in ("num_experts", "n_routed_experts"):
        if isinstance(count := getattr(router, name, None), int):
            return count
    return 0


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(total parameters, parameters active for one token) of `model`.

    Active: everything but the experts that the router leaves out: k of n experts count.
    Embeddings count in full, as model cards do.
    """
    total = sum(p.numel() for p in model.parameters())
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    chosen = getattr(text, "num_experts_per_tok", None)
    experts = getattr(text, "num_experts", None) or getattr(text, "num_local_experts", None)
    experts = experts or getattr(text, "n_routed_experts", None)
    if not chosen or not experts:
        return total, total
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return total, total - routed + routed * chosen // experts


class ExpertLoad:
    """Counts which experts the routers choose in passes with gradients, while its hooks are on.

    `take()` gives the shares since the last call: one list of n shares, summing to 1, a layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._counts: dict[str, torch.Tensor] = {}
        self._handles = [
            module.register_forward_hook(self._hook(name, expert_count(module)))
            for name, module in routers(model)
        ]

    def _hook(self, name: str, experts: int) -> Any:
        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            chosen = next((t for t in parts if not t.is_floating_point()), None)
            if chosen is None or not torch.is_grad_enabled():  # rollouts do not count
                return
            counts = torch.bincount(chosen.reshape(-1), minlength=experts).cpu()
            self._counts[name] = self._counts.get(name, torch.zeros_like(counts)) + counts

        return count

    def take(self) -> list[list[float]]:
        """Shares of the choices by expert, one list a layer; then counting starts anew."""
        shares = [(c / c.sum().clamp(min=1)).tolist() for c in self._counts.values()]
        self._counts.clear()
        return shares

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
