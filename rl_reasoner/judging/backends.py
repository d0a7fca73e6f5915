"""Who answers a judge's questions: a server, a policy of this machine, or a function.

All have an `identity`, by which replies are kept, and `ask`, which hands on each reply, or the
exception that a question ended in, as it comes. What one question ends in concerns no other.
`Budget` says how much is asked in all. `check_options` and `check_backend` say which options make
no sense, before anybody is asked.
"""

import functools
import hashlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Protocol

from rl_reasoner.errors import UserError
from rl_reasoner.judging.prompts import Chat
from rl_reasoner.judging.wire import CountedClient, Counts
from rl_reasoner.rollout.cache import Usage
from rl_reasoner.rollout.server import ServedPolicy
from rl_reasoner.scoring.beside import hash_of_code, text_of_code
from rl_reasoner.scoring.registry import function_of, import_module_of
from rl_reasoner.types import Rollout

_DEEPEST = 8  # what a judge's function holds is looked at so far down
_MOST_BETWEEN = 32  # questions between two looks at what they cost
_NO_LIMIT = 1 << 62
_AT_ONCE = 64  # questions that a policy answers together
TakeReply = Callable[[int, Rollout | Exception], None]
_WHOLE = ("votes", "max_chars", "max_tokens", "attempts", "concurrency", "max_requests")
_NUMBERS = ("tolerance", "temperature", "timeout_s", "price_in", "price_out", "max_cost")
_TEXTS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "server": ((str,), "a URL"),
    "model": ((str,), "a model's name"),
    "policy": ((str,), "a folder, a GGUF file or a hub id"),
    "function": ((str,), "FILE.py:NAME or MODULE:NAME"),
    "cache": ((str, Path), "a folder"),
}
_POSITIVE = ("max_tokens", "timeout_s", "attempts", "concurrency")


class JudgeBackend(Protocol):
    """Who answers; `identity` names it with all that its replies depend on but the question."""

    identity: str

    def ask(
        self, chats: Sequence[Chat], schemas: Sequence[Mapping[str, Any]], take: TakeReply
    ) -> None:
        """Hand the reply to each chat to `take`, with its number; `schemas` say what JSON it is."""


class ServerBackend:
    """A model behind an OpenAI-compatible server."""

    def __init__(
        self,
        url: str,
        model: str,
        counts: Counts,
        *,
        temperature: float,
        max_tokens: int,
        timeout_s: float,
        attempts: int,
        concurrency: int,
        structured: bool,
    ) -> None:
        self.settings = {"temperature": temperature, "max_tokens": max_tokens}
        self.structured = structured
        self.policy = ServedPolicy(
            url,
            model,
            concurrency=concurrency,
            retries=attempts - 1,
            timeout_s=timeout_s,
            http=lambda: CountedClient(counts, timeout_s),
        )
        self.identity = f"{self.policy.source} {self.settings} structured={structured}"

    def ask(
        self, chats: Sequence[Chat], schemas: Sequence[Mapping[str, Any]], take: TakeReply
    ) -> None:
        """Ask the server, several questions at a time."""
        if not self.structured:
            self.policy.replies(chats, self.settings, 0, take)
            return
        by_schema: dict[str, list[int]] = {}
        for index, schema in enumerate(schemas):
            by_schema.setdefault(repr(schema), []).append(index)
        for own in by_schema.values():
            form = {"name": "verdict", "strict": True, "schema": schemas[own[0]]}
            settings = {
                **self.settings,
                "response_format": {"type": "json_schema", "json_schema": form},
            }

            def placed(at: int, reply: Rollout | Exception, own: list[int] = own) -> None:
                take(own[at], reply)

            self.policy.replies([chats[index] for index in own], settings, 0, placed)


class PolicyBackend:
    """A policy of this machine: a folder, a GGUF file or a hub id, sampled by our own engine."""

    def __init__(self, source: str, *, temperature: float, max_tokens: int) -> None:
        from rl_reasoner.policy.opening import open_policy
        from rl_reasoner.rollout.sampler import weights_hash
        from rl_reasoner.rollout.sampling_weights import sampled_weights

        self.settings = {"temperature": temperature, "max_tokens": max_tokens}
        self.policy = open_policy(source)
        # "auto": a large policy in fp32 answers with copies in bf16 where the processor has it
        weights = sampled_weights(self.policy.model, "auto", "weights")
        self.identity = f"{weights_hash(self.policy)} {self.settings} {weights}"

    def ask(
        self, chats: Sequence[Chat], schemas: Sequence[Mapping[str, Any]], take: TakeReply
    ) -> None:
        """Sample a reply to each chat; one that does not fit fails alone."""
        from rl_reasoner.rollout.sampler import sample

        plain = not self.policy.tokenizer.chat_template
        prompts: list[Any] = [
            "\n\n".join(m["content"] for m in chat) if plain else chat for chat in chats
        ]
        try:
            for first in range(0, len(prompts), _AT_ONCE):  # what is done is kept
                some = prompts[first : first + _AT_ONCE]
                drawn = sample(self.policy, some, weights="auto", **self.settings)  # type: ignore[arg-type]
                for index, [reply] in enumerate(drawn, first):
                    take(index, reply)
        except UserError as error:
            if len(chats) == 1:
                take(0, error)
                return
            for index, chat in enumerate(chats):
                self.ask([chat], schemas, lambda _, reply, index=index: take(index, reply))  # type: ignore[misc]


class FunctionBackend:
    """A function `ask(messages, seed) -> str`: any model behind any client.

    It runs in whichever process the judge runs in; the rewards put it into one of its own.
    """

    def __init__(self, ask: Callable[..., Any] | str, concurrency: int) -> None:
        self.concurrency = concurrency
        self.function, self.identity = _function(ask)

    def ask(
        self, chats: Sequence[Chat], schemas: Sequence[Mapping[str, Any]], take: TakeReply
    ) -> None:
        """Call the function, several times at once."""
        with ThreadPoolExecutor(self.concurrency) as threads:
            asked = {threads.submit(self._one, chat): i for i, chat in enumerate(chats)}
            for done in as_completed(asked):
                error = done.exception()
                take(asked[done], error if isinstance(error, Exception) else done.result())

    def _one(self, chat: Chat) -> Rollout:
        seed = int.from_bytes(hashlib.sha256(repr(chat).encode("utf-8", "replace")).digest()[:4])
        text = self.function([dict(message) for message in chat], seed >> 1)
        if not isinstance(text, str):
            raise TypeError(f"the judge's function returned {type(text).__name__}, not a text")
        return Rollout(text, None, False)


@dataclass(frozen=True)
class Budget:
    """The most questions and money of all that a judge's cache holds; prices per million tokens.

    Raises `UserError` for a number below 0 or without end, and for `max_cost` without a price.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_cost", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"judge: {name} is {value!r}: expected 0 or more")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise UserError(
                "judge: max_cost needs a price: give price_in or price_out (money for a million "
                "tokens), or limit max_requests"
            )

    @property
    def unlimited(self) -> bool:
        """Whether anything may be asked."""
        return self.max_cost is None and self.max_requests is None

    def cost(self, of_prompts: float, own: float) -> float:
        """What so many tokens of prompts and of replies cost."""
        return (self.price_in * of_prompts + self.price_out * own) / 1e6

    def allowed(self, usage: Usage, under_way: int, failed: int) -> tuple[int, str]:
        """How many questions may be asked before the next look, and why none."""
        most = _NO_LIMIT
        if self.max_cost is not None:
            most, why = self._within_cost(self.max_cost, usage, under_way, failed)
            if not most:
                return 0, why
        if self.max_requests is not None:
            most = min(most, self.max_requests - usage.count - under_way - failed)
        return max(0, most), f"max_requests of {self.max_requests or 0:,} are spent"

    def _within_cost(
        self, most: float, usage: Usage, under_way: int, failed: int
    ) -> tuple[int, str]:
        """As many as are paid at the mean cost so far; at first few, for a mean of few is none."""
        if usage.untold:
            return 0, "max_cost cannot be kept: replies come without their tokens; set max_requests"
        spent = self.cost(usage.prompt_tokens, usage.tokens)
        mean = spent / usage.count if usage.count else 0.0
        left = most - spent - mean * under_way
        if left <= 0:
            return 0, f"max_cost of {most:g} is spent ({spent:.4g})"
        paid = left / mean if mean else math.inf
        return int(max(1, min(_MOST_BETWEEN, usage.count + failed, paid))), ""


def check_options(given: Mapping[str, Any]) -> None:
    """Raise `UserError` for options of `ModelJudge.of` that make no sense."""
    named = [name for name in ("server", "policy", "function") if given[name]]
    if len(named) != 1:
        has = " and ".join(named) or "none"
        raise UserError(f"judge: give one of server, policy and function (it has {has})")
    for name, (kinds, what) in _TEXTS.items():
        value = given[name]
        if not (
            value is None or isinstance(value, kinds) or (name == "function" and callable(value))
        ):
            raise UserError(f"judge: {name} is {value!r:.40}: expected {what}")
    if given["server"] and not given["model"]:
        raise UserError("judge: server needs model, the model's name there")
    for name in (*_WHOLE, *_NUMBERS):
        value, kind = given[name], int if name in _WHOLE else (int, float)
        if value is None and name in ("max_requests", "max_cost"):
            continue
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"judge: {name} is {value!r:.40}: expected {what}")
        if name in _POSITIVE and not 0 < value < math.inf:
            raise UserError(f"judge: {name} is {value!r}: expected more than 0")
    if not 0 <= given["temperature"] < math.inf:
        raise UserError(f"judge: temperature is {given['temperature']!r}: expected 0 or more")
    if not isinstance(given["structured"], bool):
        raise UserError(f"judge: structured is {given['structured']!r:.40}: expected true or false")


def check_bounds(votes: int, tolerance: float, most_chars: int) -> None:
    """Raise `UserError` for numbers that no judge can work with."""
    if not 1 <= votes <= 25:
        raise UserError(f"judge: votes is {votes!r}: expected 1 to 25")
    if not 0 <= tolerance <= 1:
        raise UserError(f"judge: tolerance is {tolerance!r}: expected 0 to 1")
    if most_chars < 100:
        raise UserError(f"judge: max_chars is {most_chars!r}: expected 100 or more")


def check_backend(server: str | None, function: Callable[..., Any] | str | None) -> None:
    """Raise `UserError` for a server that is no URL, or a function that is not there."""
    if server:
        _ = ServedPolicy(server, "").base  # raises where it is no URL
    if function:
        _function(function)


def _function(given: Callable[..., Any] | str) -> tuple[Callable[..., Any], str]:
    """The function, and a name by which its replies are kept: of a file with its code."""
    if not isinstance(given, str):
        named = getattr(given, "__qualname__", type(given).__qualname__)
        return given, f"{given.__module__}.{named} {_digest_of(given)}"
    name, colon, attribute = given.rpartition(":")
    if not colon:
        raise UserError(f"judge: function {given!r}: write FILE.py:NAME or MODULE:NAME")
    function = function_of(import_module_of(name, given, "judge"), attribute, given)
    file = Path(name).expanduser()
    if not file.is_file():
        file = Path(getattr(sys.modules.get(name), "__file__", None) or name)
    code = hash_of_code(file) if file.is_file() else hashlib.sha256(b"").hexdigest()
    return function, f"{given} {code}"


def _digest_of(function: Callable[..., Any]) -> str:
    """What stands for what a function does, the same in every run of the same script.

    That is its file with helpers, its code, and what it closes over or holds, as far as that is
    plain.
    """
    source = ""
    with suppress(TypeError, OSError):  # of no file
        file = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
        source = text_of_code(Path(file)) if file and Path(file).is_file() else ""
    return hashlib.sha256((source + _told(function, 0)).encode("utf-8", "replace")).hexdigest()


def _told(value: Any, depth: int) -> str:
    """A value in words that do not hang on addresses, or on the order of a set."""
    deeper = depth + 1
    if depth > _DEEPEST or isinstance(value, type | ModuleType):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return repr(value)
    if isinstance(value, Mapping):
        return str(sorted(f"{key!r}: {_told(inner, deeper)}" for key, inner in value.items()))
    if isinstance(value, list | tuple):
        return str([_told(inner, deeper) for inner in value])
    if isinstance(value, set | frozenset):
        return str(sorted(_told(inner, deeper) for inner in value))
    if isinstance(value, CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_told(value.co_consts, deeper)}"
    if isinstance(value, functools.partial):
        return _told((value.func, value.args, value.keywords), deeper)
    if inspect.ismethod(value):
        return _told((value.__func__, value.__self__), deeper)
    if inspect.isfunction(value):
        cells = [*map(_held, value.__closure__ or ())]
        held = value.__code__, value.__defaults__, value.__kwdefaults__, cells
        return f"{value.__qualname__} {_told(held, deeper)}"
    return f"{type(value).__qualname__} {_told(getattr(value, '__dict__', {}), deeper)}"


def _held(cell: Any) -> Any:
    """What a variable of a closure holds; None before it has a value."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
