"""A user's environments in a process of their own: `python -m rl_reasoner.environments.apart MB`.

Both sides of it: `EnvironmentProcess` here, `main` there, kept as tools' processes are
(rl_reasoner.tools.apart). Requests and replies are JSON lines: where the environment is found,
once; then resets and steps of episodes by number, one call at a time.
"""

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rl_reasoner.environments import ENVIRONMENTS, load_environment
from rl_reasoner.environments.environment import (
    EnvironmentLimits,
    EnvironmentReply,
    Factory,
    Played,
)
from rl_reasoner.errors import UserError
from rl_reasoner.scoring.beside import stay_beside_code
from rl_reasoner.scoring.transport import pack_reward, unpack_reward
from rl_reasoner.tools.apart import KeptWorker, requests, run_kept
from rl_reasoner.types import Row
from rl_reasoner.workers import WorkerDied, WorkerLate

_LOAD_S = 300.0
_MOST_LOADED = 1 << 16  # bytes of the reply to a request to load
_BYTES_A_CHAR = 12  # of JSON, at most
_MESSAGES = 16  # in one reply: more is a mistake


_GUARD = re.compile(r"^if __name__ ?== ?[\"']__main__", re.MULTILINE)
PackedEnvironment = str | Mapping[str, Any]
"""What another process needs to have an environment: a reference, or a copy of its class."""


def pack_environment(given: str | Factory) -> PackedEnvironment:
    """A reference by which another process finds the environment; of a script or cell, a copy.

    Raises `UserError`.
    """
    if isinstance(given, str):
        module, _, name = given.rpartition(":")
        file = Path(module).expanduser()
        return f"{file.resolve()}:{name}" if file.suffix == ".py" else given
    name = str(getattr(given, "__qualname__", "<none>"))
    module = str(getattr(given, "__module__", None))
    space: Any = sys.modules.get(module)
    nested = "<" in name or "." in name
    file_of = getattr(space, "__file__", None)
    if module in ("__main__", "__mp_main__") and not nested:
        # to import it would run the script a second time, unless that is guarded
        packed = pack_reward(given) if module == "__main__" else ""
        if not isinstance(packed, str):
            return packed
        if not _is_guarded(file_of):
            raise _stays(name, f": {packed}" if packed else "")
    if nested or getattr(space, name, None) is not given:
        raise _stays(name)
    spec = getattr(space, "__spec__", None)
    by_name = spec is not None and spec.origin == file_of and spec.name == module
    return f"{module if by_name or not file_of else file_of}:{name}"


def _is_guarded(file: object) -> bool:
    """Whether a script does nothing when it is imported, as far as its main guard says."""
    path = Path(str(file))
    return path.is_file() and bool(_GUARD.search(path.read_text(encoding="utf-8")))


def unpack_environment(packed: PackedEnvironment) -> str | Factory:
    """What `pack_environment` was given, in another process."""
    return packed if isinstance(packed, str) else unpack_reward(packed)


def _stays(name: str, why: str = "") -> UserError:
    return UserError(
        f"environment {name!r} cannot run in a process of its own{why}: put it into a file, and "
        "give it as FILE.py:NAME"
    )


class EnvironmentProcess:
    """A process that plays episodes of one environment; used by one thread at a time."""

    def __init__(
        self, packed: PackedEnvironment, options: Mapping[str, Any], limits: EnvironmentLimits
    ) -> None:
        """Start it. It plays nothing before it is asked to `load`, and may be killed meanwhile."""
        self._limits = limits
        self._asked_for = {
            "environment": packed,
            "options": dict(options),
            "most": limits.output_chars,
        }
        self._worker = KeptWorker(
            "rl_reasoner.environments.apart", str(limits.memory_mb), shown=True
        )
        self._over: list[int] = []
        self._whole = True

    def load(self) -> None:
        """Have the environment.

        Raises `WorkerDied`, `WorkerLate`, and ImportError where that fails.
        """
        deadline = time.monotonic() + _LOAD_S
        self._worker.send(self._asked_for, deadline)
        reply = self._worker.receive(deadline, _MOST_LOADED)
        if reply != "loaded":
            self._worker.stop()
            raise ImportError(str(reply))

    def reset(self, episode: int, row: Row) -> EnvironmentReply:
        """Begin an episode. A process that is late or dies is a reply, too; it has ended then."""
        if why := _not_sent(row):
            return EnvironmentReply("failed", why=why)
        return self._asked({"reset": row}, episode)

    def step(self, episode: int, completion: str) -> EnvironmentReply:
        """The answer to a turn of an episode."""
        return self._asked({"step": completion}, episode)

    def forget(self, episodes: Sequence[int]) -> None:
        """Let go of episodes, before the next request."""
        self._over += episodes

    def _asked(self, request: dict[str, Any], episode: int) -> EnvironmentReply:
        limit = self._limits.timeout_s
        deadline = time.monotonic() + limit
        over, self._over = self._over, []
        most = _BYTES_A_CHAR * self._limits.output_chars * _MESSAGES + _MOST_LOADED
        try:
            self._worker.send({**request, "episode": episode, "over": over}, deadline)
            value, self._whole = self._worker.receive(deadline, most)
            return self._explained(_reply(value))
        except WorkerLate:
            return EnvironmentReply("timeout", why=f"no answer within {limit:g} s")
        except WorkerDied as error:
            return EnvironmentReply("died", why=f"its process ended ({error})")
        except (ValueError, TypeError, KeyError):  # it has written on the pipe itself
            self._worker.stop()
            return EnvironmentReply("died", why="its reply cannot be read")

    def _explained(self, reply: EnvironmentReply) -> EnvironmentReply:
        """With whose memory it was that has come to its end: other episodes have a part in that."""
        if self._whole:
            return reply
        of = f"memory_mb {self._limits.memory_mb} is for all episodes that a process plays at once"
        return replace(reply, why=f"{reply.why} ({of}: raise it, or processes)")

    @property
    def usable(self) -> bool:
        """Whether it takes another request: not where it has no memory left."""
        return self._whole and self._worker.usable and not self._worker.stopped

    def kill(self) -> None:
        """End it with all that it has started, also while a thread waits for it."""
        self._worker.kill()

    def stop(self) -> None:
        """End it, and close this side of its pipes, once no thread waits."""
        self._worker.stop()


def _not_sent(row: Row) -> str:
    """Why a row cannot be sent to another process, with its column; empty where it can."""
    for name, value in row.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError, RecursionError) as error:
            return f"its column {name!r} cannot be sent to the environment's process: {error}"
    return ""


def _reply(value: Any) -> EnvironmentReply:
    messages = tuple({"role": m["role"], "content": m["content"]} for m in value.pop("messages"))
    return EnvironmentReply(messages=messages, **value)


# ------------------------------------------------------------------------------- the other side


def main() -> None:
    """Play episodes."""
    run_kept(_serve)


def _serve() -> None:
    """Have an environment, and answer until the input ends."""
    episodes: dict[int, Played] = {}
    factory: Any = None
    options: dict[str, Any] = {}
    most = 0

    def answer(request: dict[str, Any]) -> Any:
        nonlocal factory, options, most
        if "environment" in request:
            try:
                factory = _loaded(request)
            except BaseException as error:  # a module may raise anything, SystemExit too
                return f"{error}"[:500]
            options, most = request["options"], request["most"]
            return "loaded"
        for number in request["over"]:
            with suppress(Exception):
                episodes.pop(number).close()
        number = request["episode"]
        if "reset" in request:
            episodes[number] = Played(factory, options, most)
            reply = episodes[number].reset(request["reset"])
        else:
            reply = episodes[number].step(request["step"])
        if len(reply.messages) > _MESSAGES:
            reply = EnvironmentReply(
                "failed", why=f"{len(reply.messages)} messages, more than {_MESSAGES}"
            )
        return asdict(reply), episodes[number].whole

    requests(answer)


def _loaded(request: Mapping[str, Any]) -> Factory:
    """The environment of a request; what lies beside its code is found from now on."""
    given = unpack_environment(request["environment"])
    stay_beside_code(given)
    factory = load_environment(given)
    for name in getattr(factory, "code_options", ()):
        stay_beside_code(request["options"].get(name))
    return factory


def runs_here(given: str | Factory) -> bool:
    """Whether an environment needs no process: a built-in one that takes little of anything."""
    return (
        isinstance(given, str)
        and given in ENVIRONMENTS
        and getattr(load_environment(given), "bounded", False)
    )


if __name__ == "__main__":
    main()
