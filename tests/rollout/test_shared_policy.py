"""A policy that is sent to another process: tensors by their place, modules as each says itself."""

import copyreg
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl_reasoner.rollout.shared_policy import SharedPolicy, opened


def sent(model: nn.Module) -> nn.Module:
    """The copy that the other process has, made from what is sent."""
    shared = SharedPolicy(model)
    shared.publish()
    try:
        return opened(shared.modules, os.dup(shared.file.fileno()), shared.size, "cpu").model
    finally:
        shared.close()


class Scaled(nn.Module):
    """A module that a user could have; `factor` is no tensor."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(3.0))
        self.factor = factor

    def forward(self, states: Tensor) -> Tensor:
        return states * self.weight * self.factor


def scaled(factor: int, weight: nn.Parameter) -> nn.Module:
    """What a class inside a function is made again by."""
    made = local("plain")(factor)
    made.weight = weight
    return made


def reduced(self: Any, *protocol: int) -> tuple[Any, ...]:
    return scaled, (self.factor, self.weight)


def local(how: str) -> Any:
    """A class of a function, as `kernels` has: pickle does not find it by its name."""

    class Func(Scaled):
        if how == "__reduce__":
            __reduce__ = reduced
        if how == "__reduce_ex__":
            __reduce_ex__ = reduced

    return Func


@pytest.fixture
def registered() -> Iterator[Any]:
    kind = local("copyreg")
    copyreg.pickle(kind, reduced)
    yield kind
    del copyreg.dispatch_table[kind]


@pytest.mark.parametrize("how", ["__reduce__", "__reduce_ex__"])
def test_a_class_of_a_function_travels_by_its_own_reduction(how: str) -> None:
    model = nn.Sequential(local(how)(5))
    assert torch.equal(sent(model)(torch.ones(3)), model(torch.ones(3)))


def test_a_class_of_a_function_travels_by_copyreg(registered: Any) -> None:
    model = nn.Sequential(registered(5))
    assert torch.equal(sent(model)(torch.ones(3)), model(torch.ones(3)))


class Stateful(Scaled):
    """Says by itself what of it is kept, and how it is taken back."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "factor": ("kept", self.factor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        _, factor = state["factor"]
        super().__setstate__({**state, "factor": factor + 10})


class Sized(Scaled):
    """Cannot be made without an argument."""

    def __new__(cls, factor: int) -> "Sized":
        made = super().__new__(cls)
        made.__dict__["made_for"] = factor
        return made

    def __getnewargs__(self) -> tuple[int]:
        return (self.factor,)


def test_a_class_says_what_its_state_is() -> None:
    assert sent(nn.Sequential(Stateful(5)))[0].factor == 15


def test_a_class_is_made_with_its_own_arguments() -> None:
    assert sent(nn.Sequential(Sized(5)))[0].made_for == 5


@pytest.mark.parametrize("kind", [Scaled, Stateful, Sized])
def test_hooks_and_a_forward_of_the_trainer_stay_where_they_are(kind: Any) -> None:
    """They hold what cannot travel, as a function inside another."""
    module = kind(5)
    module.handles = [module.register_forward_hook(lambda *given: None)]
    module.forward = lambda states: states
    copy = sent(nn.Sequential(module))[0]
    assert not copy._forward_hooks and not {"handles", "forward"} & vars(copy).keys()
    assert torch.equal(copy.weight, module.weight)


def test_tensors_are_shared_not_sent() -> None:
    model = nn.Linear(512, 512)
    shared = SharedPolicy(model)
    assert len(shared.modules) < 4096 < shared.size
    copy = opened(shared.modules, os.dup(shared.file.fileno()), shared.size, "cpu").model
    with torch.no_grad():
        model.weight.fill_(3.0)
    shared.publish()
    assert torch.equal(copy.weight, model.weight), "published after it was opened"
    shared.close()
