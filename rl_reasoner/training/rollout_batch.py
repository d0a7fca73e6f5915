"""`RolloutBatch`: what is known of one batch of completions between sampling and the advantages.

trl hands its own batch on as a dict of tensors; this is what travels beside it, in one place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rl_reasoner.moe.routing import Routes, join_routes
from rl_reasoner.rollout.answering import GivenTurns
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.episodes.environment_turns import EnvironmentTurn, EpisodeRecord
from rl_reasoner.rollout.tool_turns import ToolEvent
from rl_reasoner.training.overlapped_rewards import OverlappedRewards
from rl_reasoner.types import Outcome


@dataclass
class RolloutRow:
    """One completion with all that is known of it, so that it can change places."""

    row: dict[str, Any]
    ids: list[int]
    logps: list[float] | None
    kept: Tensor | None
    tool_mask: list[int] | None
    turns: Sequence[ToolEvent | EnvironmentTurn] | None
    ended: str | None
    episode: EpisodeRecord | None
    routes: Routes | None
    outcomes: list[Outcome]
    logged: dict[str, Any]


@dataclass
class RolloutBatch:
    """This process's rows of a batch, a completion each, as they are sampled and scored.

    `earlier`: rows of all processes that were sampled for the same batch before these. `scored`:
    sampled and scored before, so that trl's path is to take what is here. `logps`: each token's
    under the policy that sampled it, nothing cut off. `kept`: the sets of tokens that each row's
    were drawn from, where the passes to come take them (rl_reasoner.training.sampling_mask):
    `logps` are over these then. `tool_masks`: 1 for tokens that the policy
    sampled, 0 for those that tools gave, and `turns` what was called, `ended` why each completion
    did (`SampledCompletion`); None without tools. `episodes`: what an environment gave, `turns` are
    its turns then. `routes`: the experts chosen. `outcomes` by reward; `rewards` (rows of all
    processes, reward functions). `logged`: what rewards logged about the rows, by column.
    """

    rows: list[dict[str, Any]]
    earlier: int = 0
    scored: bool = False
    ids: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logps: list[list[float]] | None = None
    kept: list[Tensor] | None = None
    tool_masks: list[list[int]] | None = None
    turns: Sequence[Sequence[ToolEvent | EnvironmentTurn]] | None = None
    ended: list[str] | None = None
    episodes: list[EpisodeRecord] | None = None
    routes: Routes | None = None
    outcomes: list[list[Outcome]] = field(default_factory=list)
    rewards: Tensor = field(default_factory=partial(torch.empty, 0))
    logged: dict[str, list[Any]] = field(default_factory=dict)
    overlapped: OverlappedRewards | None = None  # rewards that began beside the sampling

    def take(self, completions: Sequence[SampledCompletion]) -> None:
        """What the engine tells of the rows' completions beside tokens and their log-probs."""
        self.kept = [c.kept for c in completions if c.kept is not None] or None

    def take_turns(
        self, completions: Sequence[SampledCompletion], given: GivenTurns | None
    ) -> None:
        """What tools or an environment gave the rows' completions."""
        if given is None:
            return
        self.tool_masks = [c.tool_mask for c in completions]
        self.turns, self.episodes = given.turns, given.episodes
        self.ended = [c.ended for c in given.episodes or completions]

    def sampled_tokens(self, output: Mapping[str, Any]) -> list[int]:
        """How many tokens the policy sampled of each row, trained on or not; `output` is trl's."""
        if self.tool_masks is not None:
            return [*map(sum, self.tool_masks)]
        if "tool_mask" not in output and len(self.ids) == len(self.rows):
            return [*map(len, self.ids)]
        # trl's own loop has its masks nowhere else, rewards of the user's own may leave no ids
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        lengths: list[int] = mask.sum(1).tolist()
        return lengths

    def split(self) -> list[RolloutRow]:
        """The rows, each with all that is known of it."""
        return [
            RolloutRow(
                row,
                self.ids[i],
                self.logps[i] if self.logps else None,
                self.kept[i] if self.kept is not None else None,
                self.tool_masks[i] if self.tool_masks is not None else None,
                self.turns[i] if self.turns is not None else None,
                self.ended[i] if self.ended is not None else None,
                self.episodes[i] if self.episodes is not None else None,
                self.routes.rows([i]) if self.routes is not None else None,
                [outcomes[i] for outcomes in self.outcomes],
                {name: values[i] for name, values in self.logged.items()},
            )
            for i, row in enumerate(self.rows)
        ]

    @classmethod
    def of(
        cls, inputs: list[dict[str, Any]], rows: Sequence[RolloutRow], rewards: Tensor
    ) -> "RolloutBatch":
        """A batch that is sampled and scored, made of `rows`; `inputs` become theirs."""
        inputs[:] = [row.row for row in rows]
        routes = [row.routes for row in rows if row.routes is not None]
        names = {name for row in rows for name in row.logged}
        return cls(
            inputs,
            scored=True,
            ids=[row.ids for row in rows],
            logps=_of_all([row.logps for row in rows]),
            kept=[row.kept for row in rows if row.kept is not None] or None,
            tool_masks=[row.tool_mask for row in rows if row.tool_mask is not None] or None,
            turns=[row.turns for row in rows if row.turns is not None] or None,
            ended=[row.ended for row in rows if row.ended is not None] or None,
            episodes=[row.episode for row in rows if row.episode is not None] or None,
            routes=join_routes(routes) if routes else None,
            outcomes=[list(outcomes) for outcomes in zip(*(r.outcomes for r in rows), strict=True)],
            rewards=rewards,
            logged={name: [row.logged.get(name) for row in rows] for name in names},
        )


def _of_all(rows: list[list[float] | None]) -> list[list[float]] | None:
    """What each row has; None if some have none."""
    found = [row for row in rows if row is not None]
    return found if found and len(found) == len(rows) else None
