"""`SamplingOrder`: completions to be sampled, as a value that can go to another process.

`carry_out` samples them, with the routers' choices where they are wanted, and with the tools or the
environment that answer in the middle: what these gave is `GivenTurns`. Knows the engine; nothing of
who asks.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from rl_reasoner.moe.routing import Routes, Routing, SampledRoutes
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.episodes.environment_turns import (
    EnvironmentTurn,
    EnvironmentUse,
    EpisodeRecord,
    EpisodeTurns,
)
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.tool_turns import ToolEvent, ToolTurns, ToolUse
from rl_reasoner.types import Row

Answering = ToolUse | EnvironmentUse
"""What answers completions in the middle: a run's tools, or its environment."""


@dataclass(frozen=True)
class SamplingOrder:
    """Completions to be sampled: of row i for `prompts[i]`, drawn by `keys[i]`, not longer than
    `budgets[i]`.

    `autocast`: the dtype that the policy is computed in, None for its own. `routed`: the experts
    chosen are wanted. `rows`: the data's, where an environment answers.
    """

    prompts: Sequence[Sequence[int]]
    keys: Sequence[Sequence[int]]
    sampling: SamplingParams
    budgets: Sequence[int | None]
    autocast: torch.dtype | None = None
    routed: bool = False
    rows: Sequence[Row] = ()


@dataclass(frozen=True)
class GivenTurns:
    """What completions were given in the middle: their calls, or the steps of their episodes.

    `episodes`: what an environment made of each; None where tools answer.
    """

    turns: list[Sequence[ToolEvent | EnvironmentTurn]]
    episodes: list[EpisodeRecord] | None = None

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it: JSON values."""
        ends = None if self.episodes is None else [[e.ended, e.why] for e in self.episodes]
        return {"turns": [[asdict(turn) for turn in row] for row in self.turns], "ends": ends}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "GivenTurns":
        """What `state` gave."""
        turns, ends = state["turns"], state["ends"]
        if ends is None:
            return cls([[ToolEvent(**turn) for turn in row] for row in turns])
        played = [tuple(EnvironmentTurn(**turn) for turn in row) for row in turns]
        records = [EpisodeRecord(row, *end) for row, end in zip(played, ends, strict=True)]
        return cls([*played], records)


@dataclass(frozen=True)
class Sampled:
    """What came of an order: a completion for each row, their experts, the seconds it took.

    `given`: what answered gave them; None where nothing did.
    """

    completions: list[SampledCompletion]
    routes: Routes | None = field(default=None)
    seconds: float = 0.0
    given: GivenTurns | None = None


def turn_taker(
    by: Answering | None, rows: Sequence[Row], count: int, ends: Sequence[int]
) -> AbstractContextManager[ToolTurns | EpisodeTurns | None]:
    """Inside, `by` answers `count` completions of one call of the engine, of `rows` of the data.

    `ends`: the tokens that end a turn of the policy.
    """
    if isinstance(by, EnvironmentUse):
        return by.episodes(rows, ends)
    return nullcontext() if by is None else by.turns(count)


def given_by(
    turns: ToolTurns | EpisodeTurns | None, completions: Sequence[SampledCompletion]
) -> GivenTurns | None:
    """What the completions were given; None where nothing answered."""
    ids = [completion.ids for completion in completions]
    if isinstance(turns, EpisodeTurns):
        episodes = [turns.record(row, own) for row, own in enumerate(ids)]
        return GivenTurns([episode.turns for episode in episodes], episodes)
    if turns is None:
        return None
    return GivenTurns([turns.events(row, own) for row, own in enumerate(ids)])


def carry_out(
    model: nn.Module,
    order: SamplingOrder,
    routing: Routing | None,
    answering: Answering | None = None,
) -> Sampled:
    """Sample `order` from `model`, in evaluation mode; `routing` are its routers, if any."""
    started = time.perf_counter()
    device = next(model.parameters()).device.type
    inside = nullcontext() if order.autocast is None else torch.autocast(device, order.autocast)
    recorded = routing.record() if routing is not None and order.routed else nullcontext()
    turned = turn_taker(answering, order.rows, len(order.prompts), order.sampling.ends)
    with turned as turns, inside, recorded as passes:
        routes = None if passes is None else SampledRoutes(passes)
        completions = generate(
            *(model, order.prompts, order.keys, order.sampling, routes),
            budgets=order.budgets,
            turns=turns,
        )
        given = given_by(turns, completions)
    chosen = None if routes is None else routes.routes()
    return Sampled(completions, chosen, time.perf_counter() - started, given)
