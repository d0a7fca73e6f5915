"""What answers completions in the middle: a run's tools, or its environment.

`turn_taker` has it answer one call of the engine; what it gave is `GivenTurns`. Knows the engine's
turns; nothing of who asks.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.episodes.environment_turns import (
    EnvironmentTurn,
    EnvironmentUse,
    EpisodeRecord,
    EpisodeTurns,
)
from rl_reasoner.rollout.tool_turns import ToolEvent, ToolTurns, ToolUse
from rl_reasoner.types import Row

Answering = ToolUse | EnvironmentUse
"""What answers completions in the middle: a run's tools, or its environment."""


@dataclass(frozen=True)
class GivenTurns:
    """What completions were given in the middle: their calls, or the steps of their episodes.

    `episodes`: what an environment made of each; None where tools answer.
    """

    turns: list[Sequence[ToolEvent | EnvironmentTurn]]
    episodes: list[EpisodeRecord] | None = None


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
