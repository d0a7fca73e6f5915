"""`SamplingOrder`: completions to be sampled, as a value that can go to another process.

`carry_out` samples them, with the routers' choices where they are wanted. Knows the engine; nothing
of who asks.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from rl_reasoner.moe.routing import Routes, Routing, SampledRoutes
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams


@dataclass(frozen=True)
class SamplingOrder:
    """Completions to be sampled: of row i for `prompts[i]`, drawn by `keys[i]`, not longer than
    `budgets[i]`.

    `autocast`: the dtype that the policy is computed in, None for its own. `routed`: the experts
    chosen are wanted.
    """

    prompts: Sequence[Sequence[int]]
    keys: Sequence[Sequence[int]]
    sampling: SamplingParams
    budgets: Sequence[int | None]
    autocast: torch.dtype | None = None
    routed: bool = False


@dataclass(frozen=True)
class Sampled:
    """What came of an order: a completion for each row, their experts, the seconds it took."""

    completions: list[SampledCompletion]
    routes: Routes | None = field(default=None)
    seconds: float = 0.0


def carry_out(model: nn.Module, order: SamplingOrder, routing: Routing | None) -> Sampled:
    """Sample `order` from `model`, in evaluation mode; `routing` are its routers, if any."""
    started = time.perf_counter()
    device = next(model.parameters()).device.type
    inside = nullcontext() if order.autocast is None else torch.autocast(device, order.autocast)
    recorded = routing.record() if routing is not None and order.routed else nullcontext()
    with inside, recorded as passes:
        routes = None if passes is None else SampledRoutes(passes)
        completions = generate(
            model, order.prompts, order.keys, order.sampling, routes, budgets=order.budgets
        )
    chosen = None if routes is None else routes.routes()
    return Sampled(completions, chosen, time.perf_counter() - started)
