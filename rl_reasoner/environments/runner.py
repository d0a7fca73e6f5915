"""Plays many episodes at once: in processes of their own, and none of them ends a run.

An `EnvironmentRunner` has one environment and a few processes for it; each `Episode` is played in
one of them. A process that is late or dies is ended, and its other episodes are played again in the
next one from their rows and turns: only the episode that did it fails. Built-in environments that
are bounded are played in place.
"""

import inspect
import itertools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from rl_reasoner.environments import load_environment
from rl_reasoner.environments.apart import (
    EnvironmentProcess,
    PackedEnvironment,
    pack_environment,
    runs_here,
)
from rl_reasoner.environments.environment import (
    EnvironmentLimits,
    EnvironmentReply,
    Factory,
    Played,
)
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.scoring.option_types import option_parameters, wrong_options
from rl_reasoner.trust import check_typed
from rl_reasoner.types import Row
from rl_reasoner.workers import WorkerDied, WorkerLate

_NOT_STARTED = EnvironmentReply("died", why="it does not start")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Episode:
    """One episode: its row, the place it is played in, and the turns so far."""

    number: int
    row: Row
    place: "_Place"
    opening: EnvironmentReply | None = None
    turns: list[tuple[str, EnvironmentReply]] = field(default_factory=list)
    process: object = None  # the one that has it


class _Place(Protocol):
    """Where episodes are played."""

    def submit(self, call: Callable[[], EnvironmentReply]) -> "Future[EnvironmentReply]": ...
    def begin(self, episode: Episode) -> EnvironmentReply: ...
    def step(self, episode: Episode, completion: str) -> EnvironmentReply: ...
    def forget(self, episode: Episode) -> None: ...
    def close(self) -> None: ...


class EnvironmentRunner:
    """One environment, for a run. `close` it, or use it in a `with`."""

    def __init__(
        self,
        given: str | Factory,
        options: Mapping[str, Any] | None = None,
        limits: EnvironmentLimits | None = None,
    ) -> None:
        """Of what `load_environment` finds, made with `options`.

        Raises `UserError`: for one that is not there or cannot run apart, and for options that it
        does not take.
        """
        self.options, self.limits = dict(options or {}), limits or EnvironmentLimits()
        self.factory = load_environment(given)
        self.name = given if isinstance(given, str) else self.factory.__name__
        for option in getattr(self.factory, "code_options", ()):
            if isinstance(code := self.options.get(option), str):
                check_typed(code, "environment")
        _check_options(self.name, self.factory, self.options)
        self._numbers = itertools.count()
        self._places: list[_Place]
        if runs_here(given):
            self._places = [_Here(self)]
        else:
            packed = pack_environment(given)
            self._places = [_Apart(self, packed) for _ in range(self.limits.processes)]

    def episode(self, row: Row) -> Episode:
        """An episode of a row; nothing is asked of the environment yet."""
        number = next(self._numbers)
        return Episode(number, row, self._places[number % len(self._places)])

    def begin(self, episode: Episode) -> "Future[EnvironmentReply]":
        """Reset the episode's environment; others go on meanwhile."""
        return episode.place.submit(lambda: episode.place.begin(episode))

    def step(self, episode: Episode, completion: str) -> "Future[EnvironmentReply]":
        """Answer the policy's turn `completion`; others go on meanwhile."""
        return episode.place.submit(lambda: episode.place.step(episode, completion))

    def forget(self, episode: Episode) -> None:
        """Let go of what an episode that is over keeps."""
        episode.place.forget(episode)

    def close(self) -> None:
        """End all processes; calls under way end as those of a process that died."""
        for place in self._places:
            place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Here:
    """Episodes in this process."""

    def __init__(self, runner: EnvironmentRunner) -> None:
        self._runner = runner
        self._played: dict[int, Played] = {}

    def submit(self, call: Callable[[], EnvironmentReply]) -> "Future[EnvironmentReply]":
        done: Future[EnvironmentReply] = Future()
        done.set_result(call())
        return done

    def begin(self, episode: Episode) -> EnvironmentReply:
        runner = self._runner
        played = Played(runner.factory, runner.options, runner.limits.output_chars)
        self._played[episode.number] = played
        episode.opening = played.reset(episode.row)
        return episode.opening

    def step(self, episode: Episode, completion: str) -> EnvironmentReply:
        opening = episode.opening or self.begin(episode)
        if not opening.usable:
            return opening
        reply = self._played[episode.number].step(completion)
        episode.turns.append((completion, reply))
        return reply

    def forget(self, episode: Episode) -> None:
        self._played.pop(episode.number, None)

    def close(self) -> None:
        self._played.clear()


class _Apart:
    """Episodes in a process, one call of them at a time; another process takes its place."""

    def __init__(self, runner: EnvironmentRunner, packed: PackedEnvironment) -> None:
        self._runner, self._packed = runner, packed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="environment")
        self._process: EnvironmentProcess | None = None
        self._closed = False

    def submit(self, call: Callable[[], EnvironmentReply]) -> "Future[EnvironmentReply]":
        return self._thread.submit(call)

    def begin(self, episode: Episode) -> EnvironmentReply:
        return (
            self._begun(episode)
            or episode.opening
            or EnvironmentReply("died", why="it does not start")
        )

    def step(self, episode: Episode, completion: str) -> EnvironmentReply:
        reply = self._begun(episode)
        if reply is None and self._process is not None:
            reply = self._process.step(episode.number, completion)
        reply = reply or _NOT_STARTED
        episode.turns.append((completion, reply))
        self._let_go()
        return reply

    def _begun(self, episode: Episode) -> EnvironmentReply | None:
        """Have the process have the episode as far as it was played; what failed of that."""
        try:
            process = self._started()
        except (WorkerDied, WorkerLate, ImportError, OSError) as error:
            if not self._closed:
                _log.warning("environment %r does not start: %s", self._runner.name, error)
            return EnvironmentReply("died", why=f"it does not start: {error}")
        if episode.process is process:
            return None
        again, before = process.reset(episode.number, episode.row), episode.opening
        episode.opening = wanted = opening = before or again
        for text, told in episode.turns:
            if again != wanted or not opening.usable:
                break
            again, wanted = process.step(episode.number, text), told
        if again == wanted and opening.usable:
            episode.process = process
            return None
        self._let_go()
        return again if before is None else _played_otherwise(again)

    def _started(self) -> EnvironmentProcess:
        if self._process is not None:
            return self._process
        if self._closed:
            raise WorkerDied("the environments are closed")
        process = EnvironmentProcess(self._packed, self._runner.options, self._runner.limits)
        self._process = process  # from now on, closing kills it, and does not wait until it loads
        try:
            if self._closed:
                raise WorkerDied("the environments are closed")
            process.load()
        except BaseException:
            self._process = None
            process.stop()
            raise
        return process

    def _let_go(self) -> None:
        """Part with a process that takes no more requests."""
        if self._process is not None and not self._process.usable:
            self._process.stop()
            self._process = None

    def forget(self, episode: Episode) -> None:
        if not self._closed:
            self._thread.submit(self._forget, episode)

    def _forget(self, episode: Episode) -> None:
        if self._process is not None and episode.process is self._process:
            self._process.forget([episode.number])

    def close(self) -> None:
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._process is not None:
            self._process.stop()


def _played_otherwise(again: EnvironmentReply) -> EnvironmentReply:
    """What to tell of an episode that was not to be had again in another process."""
    if not again.usable:
        why = f"its process ended, and it could not be played again in another one: {again.why}"
        return EnvironmentReply(again.kind, why=why)
    return EnvironmentReply(
        "failed",
        why="played again in another process, it answered otherwise: what it answers must "
        "follow from the row, its seed and the turns",
    )


def _check_options(name: str, factory: Factory, options: Mapping[str, Any]) -> None:
    """Raise `UserError` for options that a factory does not take, or lacks, or not so."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables do not say
        return
    taken = signature.parameters
    if all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
        for option in options:
            if option not in taken:
                raise unknown("option", option, taken, owner=f"environment {name}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise UserError(f"environment {name}: options: {error}") from error
    if wrong := wrong_options(f"environment {name}", option_parameters(factory), options):
        raise UserError(*wrong)
