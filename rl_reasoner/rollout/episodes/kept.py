"""The episodes of a run's rollouts, for rewards that read them: made again of what was kept.

A rollout keeps the turns of its environment and how it ended. Where it kept too little, its episode
is not known, and a reward that reads episodes is not asked about it. Knows nothing of models.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_reasoner.environments.environment import EPISODE
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.rollout.episodes.environment_turns import EpisodeRecord
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.types import Row

NOT_KEPT = "the run did not keep why the environment failed"
"""Why a completion is not judged by a reward that reads episodes."""


def episodes_column(recipe: Recipe, rollouts: Sequence[Row]) -> dict[str, list[Any]]:
    """The column `episode` of a batch, None where one is not known; empty without an environment.

    Raises `ValueError` for rollouts that no environment has answered.
    """
    if recipe.environment is None:
        return {}
    records = [EpisodeRecord.of(rollout) for rollout in rollouts]
    return {EPISODE: [record and record.told() for record in records]}


def known_rows(
    fn: Callable[..., Any], columns: Mapping[str, Any], groups: Sequence[Any]
) -> list[int]:
    """The rows of a batch that `fn` may be asked about; all where it does not read episodes.

    Where it may see several rows at once, those of whole groups. `groups`: that of each row.
    """
    if EPISODE not in columns or not _reads_episode(fn):
        return [*range(len(groups))]
    alone = isinstance(fn, Reward) and not fn.group
    places: Sequence[Any] = range(len(groups)) if alone else groups
    pairs = zip(places, columns[EPISODE], strict=True)
    unknown = {place for place, episode in pairs if episode is None}
    return [i for i, place in enumerate(places) if place not in unknown]


def _reads_episode(fn: Callable[..., Any]) -> bool:
    """Whether a reward may read episodes: a plain function may where it takes any column."""
    if isinstance(fn, Reward):
        return EPISODE in (*fn.columns, *fn.missing)
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return True
    catches = (p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return EPISODE in parameters or any(catches)
