"""Environments as turns of a completion: what a policy wrote goes in, messages come back as tokens.

`EnvironmentUse` is the environment of a run; `EpisodeTurns` answers the rows of one call of the
engine (rl_reasoner.rollout.turns), a row an episode. When a row's policy ends its turn, its text is
handed to the row's environment, while other rows are sampled. What a row's environment has given is
its `EpisodeRecord`.
"""

import inspect
import math
import queue
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any, get_args

from rl_reasoner.environments.environment import (
    PLAYED,
    SEED,
    USABLE,
    EnvironmentLimits,
    EnvironmentReply,
    Factory,
    ReplyKind,
)
from rl_reasoner.environments.runner import EnvironmentRunner, Episode
from rl_reasoner.foreign import mapping
from rl_reasoner.foreign import number as finite
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.rollout.episodes.turn_form import TurnForm
from rl_reasoner.rollout.turns import Answer
from rl_reasoner.scoring.beside import text_of_code
from rl_reasoner.scoring.registry import source_file
from rl_reasoner.types import Row

_ENDS = ("done", "turns", "seconds", "length", "failed")
_KINDS: tuple[ReplyKind, ...] = get_args(ReplyKind)
_DIGITS = 12  # behind the point: a full reward in shares of 1/n comes to 1, not to a little less


@dataclass(frozen=True, slots=True)
class EnvironmentTurn:
    """One turn: how the environment's step ended, its reward, and where its messages stand.

    They are the tokens `at` to `at + given` of the completion.
    """

    kind: ReplyKind
    reward: float | None
    at: int
    given: int
    seconds: float

    def told(self) -> dict[str, Any]:
        """The turn as rollouts keep it, as a call of the tool "environment"; without seconds,
        which differ in a resumed run."""
        facts = {key: value for key, value in asdict(self).items() if key != "seconds"}
        return {"tool": "environment", **facts}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "EnvironmentTurn":
        """The turn that `told` gave. Raises `ValueError` for what no turn is told as."""
        kind, paid, at, given = (told.get(name) for name in ("kind", "reward", "at", "given"))
        reward = finite(paid)
        if kind not in _KINDS or (reward is None) != (paid is None):
            raise ValueError(f"no turn of an environment: {told!r:.200}")
        if not isinstance(at, int) or not isinstance(given, int):
            raise ValueError(f"a turn that stands nowhere: {told!r:.200}")
        return cls(kind, reward, at, given, 0.0)


@dataclass(frozen=True)
class EpisodeRecord:
    """What an environment gave one completion.

    `ended`: "done", by the environment; or what cut it: "turns", "seconds", "length" (tokens);
    "failed": the environment did, and `why` says how.
    """

    turns: tuple[EnvironmentTurn, ...]
    ended: str
    why: str = ""

    @property
    def reward(self) -> float | None:
        """The sum of the turns' rewards; None where the environment failed, or gave none."""
        given = [turn.reward for turn in self.turns if turn.reward is not None]
        if self.ended == "failed" or (self.turns and not given):
            return None
        return round(math.fsum(given), _DIGITS)

    @property
    def truncated(self) -> bool:
        """Whether a limit ended it."""
        return self.ended not in ("done", "failed")

    def kept(self) -> dict[str, str]:
        """What a rollout keeps of it beside its turns: with them it is known again (`of`)."""
        return {"ended": self.ended, **({"why": self.why} if self.ended == "failed" else {})}

    @classmethod
    def of(cls, rollout: Mapping[str, Any]) -> "EpisodeRecord | None":
        """The record that a rollout keeps; None where it lacks why its environment failed.

        Raises `ValueError` for what no episode leaves.
        """
        turns, ended, why = rollout.get("turns"), rollout.get("ended"), rollout.get("why")
        if not isinstance(turns, list) or ended not in _ENDS or not isinstance(why, str | None):
            raise ValueError(f"a rollout without an episode: ended {ended!r:.40}, {why!r:.40}")
        played = tuple(EnvironmentTurn.of(mapping(turn)) for turn in turns)
        fails = [turn.kind not in USABLE for turn in played]
        if fails[:-1].count(True) or any(fails) != (ended == "failed"):
            raise ValueError(f"an episode of other turns: ended {ended!r}, {turns!r:.200}")
        if ended == "failed" and why is None:
            return None
        return cls(played, str(ended), why or "")

    def told(self) -> dict[str, Any]:
        """The column `episode` that rewards see, as JSON values."""
        reasons = {"done": "", "failed": f"the environment failed: {self.why}"}
        cut = f"cut: {self.ended}"
        return {
            "reward": self.reward,
            "turn_rewards": [turn.reward for turn in self.turns],
            "ended": self.ended,
            "reason": reasons.get(self.ended, cut),
        }


@dataclass(frozen=True)
class Episodes:
    """What answers completions outside of training: an environment's settings, the template of
    prompts, and the row of each prompt (see `opening.open_rows`)."""

    settings: EnvironmentSettings
    template: str
    rows: Sequence[Row]


def episodes_of(recipe: Recipe, rows: Sequence[Row]) -> Episodes | None:
    """The episodes of a recipe's `rows`; None where it has no environment."""
    if recipe.environment is None:
        return None
    return Episodes(recipe.environment, recipe.template, rows)


class EnvironmentUse:
    """The environment of a run, how its turns are written, and how long a completion plays."""

    schemas = None

    def __init__(
        self,
        tokenizer: Any,
        environment: str | Factory,
        *,
        options: Mapping[str, Any] | None = None,
        template: str = "auto",
        turns: int = 8,
        seconds: float | None = None,
        limits: EnvironmentLimits | None = None,
    ) -> None:
        """An environment as `load_environment` finds it, for prompts in `template`.

        `turns`: steps of an episode at most; `seconds`: of its steps together. Raises `UserError`.
        """
        self.tokenizer, self.turns, self.seconds = tokenizer, turns, seconds
        self.form = TurnForm(tokenizer, template)
        self.runner = EnvironmentRunner(environment, options, limits)
        self.close = weakref.finalize(self, self.runner.close)

    @classmethod
    def of(cls, settings: EnvironmentSettings, tokenizer: Any, template: str) -> "EnvironmentUse":
        """The environment that a recipe names. Raises `UserError`."""
        return cls(
            tokenizer,
            settings.use,
            options=settings.options,
            template=template,
            turns=settings.turns,
            seconds=settings.seconds,
            limits=limits_of(settings),
        )

    @contextmanager
    def episodes(self, rows: Sequence[Row], ends: Sequence[int]) -> Iterator["EpisodeTurns"]:
        """Inside, each of `rows` is an episode; tokens of `ends` end a turn of the policy."""
        turns = EpisodeTurns(self, rows, ends)
        try:
            yield turns
        finally:
            turns.close()

    def tried(self, row: Row) -> tuple[list[EnvironmentReply], float]:
        """What the environment answers to an empty first turn in two episodes of a row, and the
        seconds that the second took."""
        replies, began = [], monotonic()
        for _ in range(2):
            began = monotonic()
            episode = self.runner.episode(_own(row))
            replies.append(self.runner.step(episode, "").result())
            self.runner.forget(episode)
        return replies, monotonic() - began

    def identity(self) -> dict[str, Any]:
        """All that completions depend on but their rows."""
        limits, options = self.runner.limits, self.runner.options
        named = [options.get(name) for name in getattr(self.runner.factory, "code_options", ())]
        code = [text_of_code(file) for one in named if (file := source_file(str(one)))]
        return {
            "environment": _source(self.runner.factory),
            **({"code": code} if code else {}),
            "options": options,
            "form": self.form.identity(),
            "turns": self.turns,
            "limits": [self.seconds, limits.timeout_s, limits.memory_mb, limits.output_chars],
        }

    def text(self, ids: Sequence[int]) -> str:
        """A turn of the policy as its environment reads it."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def written(self, played: Sequence[Sequence[str]]) -> tuple[list[int], list[int]]:
        """A played episode as a completion: its token ids, and 1 for those of the policy.

        `played` has pairs of the policy's turn and what the environment said of it.
        """
        ids: list[int] = []
        mask: list[int] = []
        for number, (turn, said) in enumerate(played, 1):
            own = self.form.turn(turn)
            last = number == len(played)
            given = [] if last else self.form.tokens([{"role": "user", "content": said}], own[-1])
            ids += own + given
            mask += [1] * len(own) + [0] * len(given)
        return ids, mask


def limits_of(settings: EnvironmentSettings) -> EnvironmentLimits:
    """What a recipe says that one call may take."""
    chars, processes = settings.output_chars, settings.processes
    return EnvironmentLimits(settings.timeout_s, settings.memory_mb, chars, processes)


_Done = tuple[int, Future[EnvironmentReply], float]  # a row, what came of its step, seconds


@dataclass
class _Played:
    """One completion: its episode, its turns, and where the policy's own text goes on."""

    episode: Episode
    turns: list[EnvironmentTurn] = field(default_factory=list)
    begin: int = 0
    length: int = 0
    end: int | None = None  # the token that ended the last turn
    seconds: float = 0.0
    ended: str = ""
    why: str = ""


class EpisodeTurns:
    """A `TurnTaker` for the rows of one call of the engine; see `EnvironmentUse.episodes`."""

    def __init__(self, use: EnvironmentUse, rows: Sequence[Row], ends: Sequence[int]) -> None:
        self._use, self._ends = use, frozenset(ends)
        self._rows = [_Played(use.runner.episode(_own(row))) for row in rows]
        self._done: queue.SimpleQueue[tuple[int, Future[EnvironmentReply], float]] = (
            queue.SimpleQueue()
        )

    def record(self, row: int, ids: Sequence[int]) -> EpisodeRecord:
        """What the environment of a row that has ended gave its completion `ids`.

        Messages that the completion had no room for have no tokens.
        """
        at = self._rows[row]
        turns = (t if t.at + t.given <= len(ids) else replace(t, given=0) for t in at.turns)
        return EpisodeRecord(tuple(turns), at.ended or "length", at.why)

    def stops(self, row: int, ids: Sequence[int]) -> bool:
        """Whether the last token has ended the policy's turn."""
        return ids[-1] in self._ends

    def submit(self, row: int, ids: list[int]) -> None:
        """Hand the turn to the row's environment."""
        at = self._rows[row]
        at.length, at.end = len(ids), ids[-1]
        began = monotonic()
        running = self._use.runner.step(at.episode, self._use.text(ids[at.begin : -1]))
        running.add_done_callback(lambda done: self._done.put((row, done, monotonic() - began)))

    def answers(self, wait: bool) -> list[Answer]:
        """The messages that are there, as tokens."""
        found: list[Answer] = []
        while True:
            try:
                row, done, seconds = self._done.get(block=wait and not found)
            except queue.Empty:
                return found
            found.append(self._answer(row, done.result(), seconds))

    def _answer(self, row: int, reply: EnvironmentReply, seconds: float) -> Answer:
        at, use = self._rows[row], self._use
        at.seconds += seconds
        if not reply.usable:
            at.ended, at.why = "failed", reply.why
        elif reply.done:
            at.ended = "done"
        elif len(at.turns) + 1 >= use.turns:
            at.ended = "turns"
        elif use.seconds is not None and at.seconds >= use.seconds:
            at.ended = "seconds"
        ids = [] if at.ended else use.form.tokens(reply.messages, at.end)
        turn = EnvironmentTurn(reply.kind, reply.reward, at.length, len(ids), seconds)
        at.turns.append(turn)
        at.begin = at.length + len(ids)
        return Answer(row, ids, at.ended)

    def close(self) -> None:
        """Let go of the episodes."""
        for row in self._rows:
            self._use.runner.forget(row.episode)


def _own(row: Row) -> Row:
    """A row as its environment sees it: with what the data has, and its seed."""
    hidden = ("prompt", "completion", PLAYED)
    return {SEED: 0, **{name: value for name, value in row.items() if name not in hidden}}


def _source(factory: Factory) -> str:
    """The code of the file that an environment is in."""
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(factory)) or "")
    except TypeError:  # made of something that has no file
        return repr(factory)
    return text_of_code(file) if file.is_file() else repr(factory)
