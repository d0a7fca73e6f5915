"""What an environment is: `reset(row)`, `step(completion)`, and what a turn of it gives.

What a user's environment returns is checked here, in the process that it runs in: whatever it
raises or returns becomes a `EnvironmentReply`. A leaf of the room.
"""

import asyncio
import inspect
import math
import random
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rl_reasoner.errors import UserError
from rl_reasoner.foreign import printable
from rl_reasoner.tools.tool import failure, shorten
from rl_reasoner.types import Message, Row

Said = str | Message | Sequence[Message] | None
"""Messages as an environment gives them: a text is one message of the user."""
ReplyKind = Literal["ok", "cut", "failed", "timeout", "died"]
"""How a turn of an environment ended: as it should; it said more than is shown; it raised, or
returned what it should not; it was late; its process ended."""
USABLE = ("ok", "cut")
"""The kinds of turns after which an episode goes on."""
ROLES = ("user", "tool", "system")
EPISODE = "episode"
"""The column in which rewards see what an environment gave a completion; see `Episode.told`."""
PLAYED = "played"
"""The column of a row to learn from with an episode that was played: pairs of a turn of the policy
and what the environment said of it."""
SEED = "seed"
"""The column of a row with its counted seed; an environment draws from it."""
OPENED = "opened_from"
"""The column of an evaluated row that tells it from others of which the environment asks the same:
a digest of the row as it was given."""


class Environment(Protocol):
    """One episode: made, reset once, and asked for a step whenever the policy ends its turn.

    Both methods may be asynchronous. What they answer must follow from the row, `row["seed"]` and
    the policy's turns alone: an episode is played again from these where its process was lost.
    `random` and numpy's global generator are seeded before each call.
    """

    def reset(self, row: Row, /) -> Said | Awaitable[Said]:
        """Begin with a row. What it gives is asked of the policy first, in place of the row's
        problem; with nothing, the problem is."""
        ...

    def step(
        self, completion: str, /
    ) -> tuple[Said, float | None, bool] | Awaitable[tuple[Said, float | None, bool]]:
        """Answer the text of a turn: messages for the policy, the turn's reward, and whether the
        episode is done. A reward of None: none in this turn."""
        ...


Factory = Callable[..., Environment]


def own_seed(row: Row) -> int:
    """The seed that a row has, 0 without one. Raises `UserError` for what is no integer."""
    seed = row.get(SEED)
    if seed is None:
        return 0
    whole = seed.is_integer() if isinstance(seed, float) else hasattr(seed, "__index__")
    if not whole:
        raise UserError(
            f"its column {SEED!r} is {seed!r:.40}, expected an integer, which environments draw "
            "from: rename the column, or leave it out"
        )
    return int(seed)


@dataclass(frozen=True, slots=True)
class EnvironmentLimits:
    """What one call may take, in seconds and in characters of a message; what each process may
    take, in MiB of memory, for all episodes that it plays at once; and how many processes
    environments have."""

    timeout_s: float = 10.0
    memory_mb: int = 1024
    output_chars: int = 4000
    processes: int = 4

    def __post_init__(self) -> None:
        for name in ("timeout_s", "memory_mb", "output_chars", "processes"):
            if not 0 < getattr(self, name) < float("inf"):
                value = getattr(self, name)
                raise UserError(f"{name} of an environment must be above 0, not {value!r}")


@dataclass(frozen=True, slots=True)
class EnvironmentReply:
    """What came of a reset or a step; `why` says in words what failed."""

    kind: ReplyKind
    messages: tuple[dict[str, str], ...] = ()
    reward: float | None = None
    done: bool = False
    why: str = ""

    @property
    def usable(self) -> bool:
        """Whether the episode goes on from it."""
        return self.kind in USABLE


class Played:
    """An environment in this process, whose every call ends as a `EnvironmentReply`."""

    def __init__(self, factory: Factory, options: Mapping[str, Any], most: int) -> None:
        self.name = getattr(factory, "__name__", type(factory).__name__)
        self._make, self._options, self._most = factory, options, most
        self._environment: Any = None
        self.whole = True  # whether this process has the memory for another call
        self._turn, self._seed = 0, 0
        self._loop: asyncio.Runner | None = None

    def reset(self, row: Row) -> EnvironmentReply:
        """Make the environment, and begin with a row."""
        self._turn = 0
        try:
            self._seed = own_seed(row)
            self._draws()
            self._environment = self._make(**self._options)
            said = self._result(self._environment.reset(row))
            messages, cut = messages_of(said, self._most)
        except BaseException as error:  # it may raise anything, SystemExit too
            return self._failed("reset", error)
        return EnvironmentReply("cut" if cut else "ok", messages)

    def step(self, completion: str) -> EnvironmentReply:
        """The environment's answer to a turn."""
        self._turn += 1
        try:
            self._draws()
            answer = self._result(self._environment.step(completion))
            if not isinstance(answer, tuple) or len(answer) != 3:
                raise TypeError(
                    f"it returned {type(answer).__name__}, not (messages, reward, done)"
                )
            said, reward, done = answer
            messages, cut = messages_of(said, self._most)
            return EnvironmentReply("cut" if cut else "ok", messages, _reward(reward), _done(done))
        except BaseException as error:  # it may raise anything, SystemExit too
            return self._failed("step", error)

    def close(self) -> None:
        """Let go of the environment."""
        self._environment = None
        if self._loop is not None:
            self._loop.close()

    def _draws(self) -> None:
        """What the environment draws at random follows from the row's seed and the turn."""
        seed = (self._seed * 1_000_003 + self._turn) % (1 << 32)
        random.seed(seed)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(seed)

    def _result(self, value: Any) -> Any:
        if not inspect.isawaitable(value):
            return value
        self._loop = self._loop or asyncio.Runner()
        return self._loop.run(_awaited(value))

    def _failed(self, method: str, error: BaseException) -> EnvironmentReply:
        self.whole = not isinstance(error, MemoryError)
        return EnvironmentReply("failed", why=printable(failure(f"{self.name}.{method}", error)))


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def messages_of(said: Any, most: int) -> tuple[tuple[dict[str, str], ...], bool]:
    """Messages with role and content, each at most `most` characters, and whether any was cut.

    Raises TypeError for what is no message, ValueError for a role that only the policy has.
    """
    if said is None:
        return (), False
    if isinstance(said, str):
        said = [{"role": "user", "content": said}]
    elif isinstance(said, Mapping):
        said = [said]
    if not isinstance(said, (list, tuple)):
        raise TypeError(f"messages are {type(said).__name__}, not a text or a list of messages")
    found, cut = [], False
    for message in said:
        if not isinstance(message, Mapping):
            raise TypeError(f"a message is {type(message).__name__}, not a dict")
        role, content = message.get("role", "user"), message.get("content")
        if not isinstance(content, str):
            raise TypeError(f"the content of a message is {type(content).__name__}, not text")
        if role not in ROLES:
            raise ValueError(f"the role of a message is {role!r:.40}, not {', '.join(ROLES)}")
        text, shorter = shorten(content, most)
        found.append({"role": str(role), "content": printable(text)})
        cut |= shorter
    return tuple(found), cut


def _done(value: Any) -> bool:
    """Whether an episode is done, as Python or numpy (a comparison of arrays) says it.

    Raises TypeError.
    """
    numpy = sys.modules.get("numpy")
    if not isinstance(value, bool if numpy is None else (bool, numpy.bool_)):
        raise TypeError(f"done is {type(value).__name__}, not True or False")
    return bool(value)


def _reward(value: Any) -> float | None:
    """A reward as a finite number, or none. Raises TypeError, ValueError."""
    if value is None:
        return None
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"the reward is {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"the reward is {number}")
    return number
