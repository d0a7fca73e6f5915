"""A model that somebody has changed is trained as it was changed: gradients are stock trl's.

Patches of classes, of functions, of instances; hooks of one module and of all; subclasses; modes of
torch. Each where the trainer is made, and where it is made already.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from torch import nn
from torch.nn.modules import module as everywhere
from torch.overrides import TorchFunctionMode
from transformers.activations import ACT2FN, SiLUActivation
from transformers.models.llama import modeling_llama as llama
from transformers.models.mixtral import modeling_mixtral as mixtral

from rl_reasoner import GRPOTrainer
from rl_reasoner.policy.opening import open_policy
from support.stock import Policies, gradients, saved_policies, worst
from support.ways import multiplied

Change = Callable[[Any, pytest.MonkeyPatch], Any]


def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
    return [float(len(text) % 5) for text in completions]


def layer(model: Any) -> Any:
    return model.base_model.layers[0]


def halved(kind: Any, scale: float = 0.5) -> Change:
    """The class's forward, and half of what it gives."""

    def change(model: Any, patch: pytest.MonkeyPatch) -> None:
        own = kind.forward

        def forward(self: Any, *given: Any, **named: Any) -> Any:
            out = own(self, *given, **named)
            if kind is llama.LlamaRotaryEmbedding:  # both, as places count by their distance alone
                return tuple(x * scale for x in out)
            return (out[0] * scale, *out[1:]) if isinstance(out, tuple) else out * scale

        patch.setattr(kind, "forward", forward)

    return change


def hooked(find: Callable[[Any], Any], register: str = "register_forward_hook") -> Change:
    """A hook on a module that halves what goes through it."""

    def change(model: Any, patch: pytest.MonkeyPatch) -> Any:
        def hook(module: Any, *given: Any) -> Any:
            last = given[0 if "backward" in register else -1]  # gradients of inputs come first
            return tuple(x * 0.5 for x in last) if isinstance(last, tuple) else last * 0.5

        return getattr(find(model), register)(hook)

    return change


def swapped(find: Callable[[Any], Any], made: Callable[[Any], Any]) -> Change:
    """Another forward of one module."""

    def change(model: Any, patch: pytest.MonkeyPatch) -> None:
        module = find(model)
        module.forward = made(module)

    return change


def subclassed(find: Callable[[Any], Any]) -> Change:
    def change(model: Any, patch: pytest.MonkeyPatch) -> None:
        kind = type(find(model))
        own = type(f"Own{kind.__name__}", (kind,), {"forward": lambda s, x: kind.forward(s, x) / 2})
        find(model).__class__ = own

    return change


def rounded(model: Any, patch: pytest.MonkeyPatch) -> None:
    """Weights of 4 bits in every linear layer, gradients straight through."""

    def forward(self: nn.Linear, given: torch.Tensor) -> torch.Tensor:
        scale = self.weight.detach().abs().amax(1, keepdim=True) / 7
        low = (self.weight / scale).round() * scale
        return nn.functional.linear(given, self.weight + (low - self.weight).detach(), self.bias)

    patch.setattr(nn.Linear, "forward", forward)


def function(name: str, made: Callable[[Any], Any]) -> Change:
    def change(model: Any, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(nn.functional, name, made(getattr(nn.functional, name)))

    return change


def everywhere_hooked(register: str) -> Change:
    """A hook of torch's on all modules, which halves what linear layers are given, or give."""

    def change(model: Any, patch: pytest.MonkeyPatch) -> Any:
        def hook(module: Any, *given: Any) -> Any:
            if type(module) is not nn.Linear:
                return None
            last = given[0 if "backward" in register else -1]
            return tuple(x * 0.5 for x in last) if isinstance(last, tuple) else last * 0.5

        return getattr(everywhere, register)(hook)

    return change


class Halving(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 0.5 if func is torch._C._nn.silu or func is nn.functional.silu else out


def moded(model: Any, patch: pytest.MonkeyPatch) -> Any:
    mode = Halving()
    mode.__enter__()
    return mode


def turned(model: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(llama, "apply_rotary_pos_emb", lambda q, k, *others, **named: (q * 2, k * 0.5))


def called(model: Any, patch: pytest.MonkeyPatch) -> None:
    own = nn.Module.__call__

    def call(self: Any, *given: Any, **named: Any) -> Any:
        out = own(self, *given, **named)
        return out * 0.5 if type(self) is SiLUActivation else out

    patch.setattr(nn.Module, "__call__", call)


def another_activation(model: Any, patch: pytest.MonkeyPatch) -> None:
    layer(model).mlp.act_fn = ACT2FN["gelu"]


def inherited_activation(model: Any, patch: pytest.MonkeyPatch) -> None:
    class Own(nn.SiLU):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return super().forward(given) * 0.5

    layer(model).mlp.act_fn = Own()


def borrowed(model: Any, patch: pytest.MonkeyPatch) -> None:
    """A forward of another class of transformers."""
    patch.setattr(llama.LlamaMLP, "forward", lambda self, x: self.down_proj(self.up_proj(x)))


def wrapped_as_its_own(model: Any, patch: pytest.MonkeyPatch) -> None:
    """By functools.wraps, which gives it the name of what it stands for."""
    from functools import wraps

    own = llama.LlamaRMSNorm.forward

    @wraps(own)
    def forward(self: Any, states: torch.Tensor) -> torch.Tensor:
        return own(self, states) * 0.5

    patch.setattr(llama.LlamaRMSNorm, "forward", forward)


def detached_gates(model: Any, patch: pytest.MonkeyPatch) -> None:
    own = mixtral.MixtralExperts.forward

    def forward(self: Any, states: Any, index: Any, gates: Any) -> Any:
        return own(self, states, index, gates.detach())

    patch.setattr(mixtral.MixtralExperts, "forward", forward)


def parametrized(model: Any, patch: pytest.MonkeyPatch) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * 2

    nn.utils.parametrize.register_parametrization(layer(model).mlp.down_proj, "weight", Doubled())


def of(path: str) -> Callable[[Any], Any]:
    def find(model: Any) -> Any:
        found = layer(model)
        for name in path.split("."):
            found = getattr(found, name)
        return found

    return find


DENSE: dict[str, Change] = {
    "class: mlp": halved(llama.LlamaMLP),
    "class: norm": halved(llama.LlamaRMSNorm),
    "class: attention": halved(llama.LlamaAttention),
    "class: decoder layer": halved(llama.LlamaDecoderLayer, 0.9),
    "class: activation": halved(SiLUActivation),
    "class: rotary embedding": halved(llama.LlamaRotaryEmbedding),
    "class: embedding": halved(nn.Embedding),
    "class: linear": halved(nn.Linear, 0.9),
    "class: linear, 4 bits": rounded,
    "class: another's forward": borrowed,
    "class: wraps": wrapped_as_its_own,
    "function: linear": function("linear", lambda f: lambda x, w, b=None: f(x, w * 0.9, b)),
    "function: silu": function("silu", lambda f: lambda x, **named: f(x, **named) * 0.5),
    "function: rotation": turned,
    "call": called,
    "hook: activation": hooked(of("mlp.act_fn")),
    "hook: activation, before": hooked(of("mlp.act_fn"), "register_forward_pre_hook"),
    "hook: activation, gradient": hooked(of("mlp.act_fn"), "register_full_backward_hook"),
    "hook: mlp": hooked(of("mlp")),
    "hook: mlp, gradient": hooked(of("mlp"), "register_full_backward_hook"),
    "hook: down": hooked(of("mlp.down_proj")),
    "hook: gate, before": hooked(of("mlp.gate_proj"), "register_forward_pre_hook"),
    "hook: up, gradient": hooked(of("mlp.up_proj"), "register_full_backward_hook"),
    "hook: query": hooked(of("self_attn.q_proj")),
    "hook: norm": hooked(of("input_layernorm")),
    "hooks: all": everywhere_hooked("register_module_forward_hook"),
    "hooks: all, before": everywhere_hooked("register_module_forward_pre_hook"),
    "hooks: all, gradient": everywhere_hooked("register_module_full_backward_hook"),
    "instance: mlp": swapped(of("mlp"), lambda m: lambda x: m.down_proj(m.up_proj(x))),
    "instance: down": swapped(
        of("mlp.down_proj"), lambda m: lambda x: nn.functional.linear(x, m.weight) * 0.5
    ),
    "instance: activation": swapped(of("mlp.act_fn"), lambda m: torch.tanh),
    "subclass: down": subclassed(of("mlp.down_proj")),
    "subclass: activation": subclassed(of("mlp.act_fn")),
    "subclass: norm": subclassed(of("input_layernorm")),
    "subclass: silu": inherited_activation,
    "activation": another_activation,
    "parametrization": parametrized,
    "mode": moded,
}
SPARSE: dict[str, Change] = {
    "class: experts": halved(mixtral.MixtralExperts),
    "class: detached gates": detached_gates,
    "class: router": halved(mixtral.MixtralTopKRouter, 0.9),
    "class: block": halved(mixtral.MixtralSparseMoeBlock),
    "hook: activation of experts": hooked(of("mlp.experts.act_fn")),
}
WAYS = [("llama", *one) for one in DENSE.items()] + [("mixtral", *one) for one in SPARSE.items()]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    return saved_policies(tmp_path_factory.mktemp("policies"))


@contextmanager
def changed(model: Any, change: Change) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if (handle := change(model, patch)) is not None:
            leave = getattr(handle, "remove", None)
            stack.callback(leave or (lambda: handle.__exit__(None, None, None)))
        yield


def first_gradient(kind: Any, policy: Path, change: Change, late: bool, folder: Path) -> Any:
    opened = open_policy(str(policy), device="cpu")

    class Late(kind):  # type: ignore[misc]
        def train(self, *given: Any, **named: Any) -> Any:
            with changed(self.model, change):
                return super().train(*given, **named)

    options = {"max_steps": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
    if late:
        return gradients(Late, opened, folder, reward, **options)[0]
    with changed(opened.model, change):
        return gradients(kind, opened, folder, reward, **options)[0]


@pytest.mark.parametrize("late", [False, True], ids=["before the trainer", "after it"])
@pytest.mark.parametrize(("family", "way", "change"), WAYS, ids=[way for _, way, _ in WAYS])
def test_the_gradient_is_stock_trls(
    family: str, way: str, change: Change, late: bool, policies: Policies, tmp_path: Path
) -> None:
    with multiplied("torch, fused") as able:
        if not able:
            pytest.skip("no compiler here: no operations of ours that could stand in")
        ours, theirs = (
            first_gradient(kind, policies(family), change, late, tmp_path / kind.__module__)
            for kind in (GRPOTrainer, trl.GRPOTrainer)
        )
    assert worst(ours, theirs) < 1e-5, way
