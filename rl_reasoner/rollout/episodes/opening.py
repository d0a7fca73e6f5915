"""Rows as their environments begin with them: the seed of each, and what is asked first.

An environment's first messages take the place of the row's problem; so prompts, their lengths and
their templates are those of any row.
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

from rl_reasoner.dataset.conversations import TURNS
from rl_reasoner.environments.environment import PLAYED, SEED, EnvironmentReply, own_seed
from rl_reasoner.environments.runner import EnvironmentRunner
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.rollout.episodes.environment_turns import limits_of
from rl_reasoner.types import Row


def open_rows(settings: EnvironmentSettings | None, rows: Sequence[Row], seed: int) -> list[Row]:
    """`rows` with a seed each, made of `seed` and the row, and what its environment asks first.

    Without an environment, the rows as they are. Raises `UserError` for an environment that cannot
    be reset with a row, and for a row whose own seed is none.
    """
    if settings is None:
        return [*rows]
    seeded = [{SEED: row_seed(row, seed), **row} for row in rows]
    for number, row in enumerate(seeded, 1):
        try:
            own_seed(row)
        except UserError as error:
            raise UserError(
                f"environment {settings.use}: row {number} of the data: {error}"
            ) from error
    with EnvironmentRunner(settings.use, settings.options, limits_of(settings)) as runner:
        episodes = [runner.episode(row) for row in seeded]
        begun = [runner.begin(episode) for episode in episodes]
        replies = []
        for episode, done in zip(episodes, begun, strict=True):
            replies.append(done.result())
            runner.forget(episode)
    return [_asked(row, reply, settings.use) for row, reply in zip(seeded, replies, strict=True)]


def row_seed(row: Row, seed: int) -> int:
    """The seed of a row in a run with `seed`; all completions of the row have it."""
    facts = {name: value for name, value in row.items() if name not in (PLAYED, "completion")}
    return zlib.crc32(json.dumps([seed, facts], sort_keys=True, default=str).encode())


def _asked(row: Row, reply: EnvironmentReply, name: str) -> Row:
    if not reply.usable:
        of_row = f"row {row.get('id', row.get('problem'))!r:.60}"
        raise UserError(f"environment {name}: {of_row}: reset: {reply.why}")
    if not reply.messages:
        return row
    messages: list[Any] = [dict(message) for message in reply.messages]
    system = [m["content"] for m in messages if m["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    asked: dict[str, Any] = {"problem": "\n".join(m["content"] for m in turns)}
    if system:
        asked["system"] = "\n".join(system)
    if len(turns) != 1:
        asked[TURNS] = turns
    return {**row, **asked}
