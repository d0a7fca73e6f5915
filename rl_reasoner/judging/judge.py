"""A judge: asks about completions, keeps every reply, and says what the votes come to.

    judge = ModelJudge.of(server="http://localhost:8000/v1", model="Qwen2.5-7B-Instruct", votes=3)
    [outcome] = judge.points([("What is 2 + 2?", "It is 4.", None)])

A score is the rubric's, 0 to 1. The judge abstains where votes disagree, and where half of them or
more are none: a refusal, no JSON, other items than the rubric's. What the backend itself ends in (a
server that is gone, an exception of the function) is a fault of its row. Replies are kept on disk
by content, so that judging again costs nothing and a resumed run takes the verdicts it had.
"""

import hashlib
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from rl_reasoner.judging.backends import (
    Budget,
    FunctionBackend,
    JudgeBackend,
    PolicyBackend,
    ServerBackend,
    check_backend,
    check_bounds,
    check_options,
)
from rl_reasoner.judging.prompts import LABELS, Chat, ranking_chat, rubric_chat, turned
from rl_reasoner.judging.rubric import Rubric, read_rubric
from rl_reasoner.judging.verdicts import (
    Points,
    Void,
    discord,
    read_points,
    read_ranking,
    vote_spread,
)
from rl_reasoner.judging.wire import Counts
from rl_reasoner.paths import cache_folder
from rl_reasoner.rollout.cache import SampleCache, Usage
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.types import Fault, Outcome, Rollout, Score

_ROUNDING = 1e-9  # of sums of shares: what is exactly the tolerance apart is within it
_KEEP_S = 0.2  # between writes to the cache: each waits for the disk
_Vote = Points | Void | Fault
_Function = TypeVar("_Function", bound=Callable[..., Any])


Case = tuple[str, str, str | None]
"""A prompt, its completion, and the answer that the judge is shown, if any."""
CaseGroup = tuple[str, Sequence[str], str | None]
"""A prompt, its completions, and the answer that the judge is shown, if any."""


@dataclass
class ModelJudge:
    """A judge with its rubric; `cache` is the folder of the replies.

    `tolerance`: how far the votes on a completion may be apart (their scores, 0 to 1; of rankings
    the share of pairs in another order) before the judge abstains. `counts` says what happened.
    """

    backend: JudgeBackend
    rubric: Rubric = field(default_factory=lambda: read_rubric(None))
    votes: int = 1
    tolerance: float = 0.25
    most_chars: int = 8000
    cache: Path | None = None
    budget: Budget = field(default_factory=Budget)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        check_bounds(self.votes, self.tolerance, self.most_chars)
        self._store = SampleCache(self.cache or cache_folder() / "judge", self.backend.identity)
        self._failed = 0

    @classmethod
    def of(
        cls,
        *,
        rubric: Mapping[str, Any] | Rubric | str | None = None,
        server: str | None = None,
        model: str | None = None,
        policy: str | None = None,
        function: Callable[..., Any] | str | None = None,
        votes: int = 1,
        tolerance: float = 0.25,
        max_chars: int = 8000,
        temperature: float = 0.0,
        max_tokens: int = 300,
        timeout_s: float = 60.0,
        attempts: int = 4,
        concurrency: int = 8,
        structured: bool = True,
        cache: str | None = None,
        max_requests: int | None = None,
        max_cost: float | None = None,
        price_in: float = 0.0,
        price_out: float = 0.0,
    ) -> Self:
        """The judge with these options: those of the rewards `judge` and `judge_ranking`.

        One of `server` (a URL, with `model`), `policy` (a folder, GGUF file or hub id) and
        `function` ("FILE.py:NAME") answers. Raises `UserError` for options that make no sense.
        """
        check_options(dict(locals()))
        budget = Budget(max_requests, max_cost, price_in, price_out)
        counts = Counts()
        backend: JudgeBackend
        if server and model:
            backend = ServerBackend(
                server,
                model,
                counts,
                temperature=temperature,
                max_tokens=max_tokens,
                timeout_s=timeout_s,
                attempts=attempts,
                concurrency=concurrency,
                structured=structured,
            )
        elif policy:
            backend = PolicyBackend(policy, temperature=temperature, max_tokens=max_tokens)
        else:
            assert function is not None
            backend = FunctionBackend(function, concurrency)
        folder = Path(cache).expanduser() if cache else None
        own = read_rubric(rubric)
        return cls(backend, own, votes, tolerance, max_chars, folder, budget, counts)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Raise `UserError` as `of` does; no server is asked and no policy is opened."""
        whole = {**{p.name: p.default for p in _options()}, **options}
        check_options(whole)
        check_bounds(whole["votes"], whole["tolerance"], whole["max_chars"])
        Budget(*(whole[name] for name in ("max_requests", "max_cost", "price_in", "price_out")))
        rubric = read_rubric(whole["rubric"])
        loaded = cls._SHARED.get(key := _key_of(whole))
        if loaded is not None and loaded.rubric != rubric:
            del cls._SHARED[key]  # its file has changed since it was loaded
        check_backend(whole["server"], whole["function"])

    _SHARED: ClassVar[dict[str, "ModelJudge"]] = {}

    @classmethod
    def shared(cls, options: Mapping[str, Any]) -> "ModelJudge":
        """The judge with these options (see `of`), made once: it may hold a policy, and counts."""
        whole = {**{p.name: p.default for p in _options()}, **options}
        if (key := _key_of(whole)) not in cls._SHARED:
            cls._SHARED[key] = cls.of(**whole)
        return cls._SHARED[key]

    @staticmethod
    def takes_options(fn: _Function) -> _Function:
        """A reward's function whose `**options` are those of `of`, by name and default."""
        own = inspect.signature(fn)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        fn.__dict__["__signature__"] = own.replace(parameters=[*named, *_options()])
        return fn

    @staticmethod
    def answer_shown(row: Mapping[str, Any], reference: bool) -> str | None:
        """The right answer of a row as a judge is shown it with `reference`; 0 is an answer."""
        answer = row.get("answer") if reference else None
        return None if answer is None or answer == "" else str(answer)

    # --------------------------------------------------------------------------- by points

    def points(self, cases: Sequence[Case]) -> list[Outcome]:
        """The score of each completion, 0 to 1, an abstention, or the fault of its questions."""
        chats, masked = self._questions(cases)
        replies = self.replies(chats, [_points_schema(self.rubric)] * len(chats))
        found: list[Outcome] = []
        for index, hidden in enumerate(masked):
            own = replies[index * self.votes : (index + 1) * self.votes]
            votes: list[_Vote] = [
                vote if isinstance(vote, Fault) else read_points(vote, self.rubric) for vote in own
            ]
            found.append(self._counted(self._sum(votes, hidden)))
        return found

    def _questions(self, cases: Sequence[Case]) -> tuple[list[Chat], list[int]]:
        """The chats of all votes on each case, and how many phrases of each case are masked."""
        chats: list[Chat] = []
        masked: list[int] = []
        for prompt, completion, answer in cases:
            for vote in range(self.votes):
                chat, hidden = rubric_chat(
                    self.rubric, prompt, completion, answer, vote, self.most_chars
                )
                chats.append(chat)
            masked.append(hidden)
        return chats, masked

    def tokens_of(self, cases: Sequence[Case]) -> list[tuple[int, int] | None]:
        """Tokens of the prompts and of the kept replies on each case, judged before by `points`.

        None where not all votes on it were told with their tokens.
        """
        keys = [self._store.key(chat, {}, None, 0) for chat in self._questions(cases)[0]]
        kept = self._store.kept([*dict.fromkeys(keys)])
        told = [(one.prompt_tokens, one.tokens) if (one := kept.get(k)) else (None,) for k in keys]
        found: list[tuple[int, int] | None] = []
        for at in range(0, len(keys), self.votes):
            own = told[at : at + self.votes]
            whole = not any(None in pair for pair in own)
            found.append(
                (sum(p[0] or 0 for p in own), sum(p[-1] or 0 for p in own)) if whole else None
            )
        return found

    def _sum(self, votes: Sequence[_Vote], masked: int) -> Outcome:
        """What the votes on one completion come to."""
        if stopped := self._stopped(votes):
            return stopped
        counted = [vote for vote in votes if isinstance(vote, Points)]
        values = [self.rubric.value(vote.points) for vote in counted]
        apart = vote_spread(values)
        if apart > self.tolerance + _ROUNDING:
            return self._void(Void("disagreement", f"votes are {apart:.2f} apart"))
        means = {
            item.name: math.fsum(vote.points[item.name] for vote in counted) / len(counted)
            for item in self.rubric.items
        }
        parts = {name: mean / self.rubric.points for name, mean in means.items()}
        if masked:
            self.counts.add("masked", masked)
            parts |= {"masked": masked}
        words = ", ".join(f"{name} {mean:.3g}/{self.rubric.points}" for name, mean in means.items())
        return Score(self.rubric.value(means), f"{words}; {counted[0].reason}"[:300], parts)

    # -------------------------------------------------------------------------- by ranking

    def rank(self, groups: Sequence[CaseGroup]) -> list[list[Outcome]]:
        """The place of each completion among those of its prompt: 1 the best, 0 the worst.

        Equal texts share a place. Each vote sees them in another order. A judge that abstains, or
        fails, does so on the whole group.
        """
        plans = [self._orders(texts) for _, texts, _ in groups]
        chats: list[Chat] = []
        schemas: list[Mapping[str, Any]] = []
        for (prompt, _, answer), orders in zip(groups, plans, strict=True):
            for vote, order in enumerate(orders):
                chat, _ = ranking_chat(self.rubric, prompt, order, answer, vote, self.most_chars)
                chats.append(chat)
                schemas.append(_ranking_schema(len(order)))
        replies = iter(self.replies(chats, schemas))
        found = []
        for (_, texts, _), orders in zip(groups, plans, strict=True):
            by_text = self._places(orders, [next(replies) for _ in orders], texts)
            outcomes = [by_text[text] for text in texts]
            found.append([self._counted(outcome) for outcome in outcomes])
        return found

    def _orders(self, completions: Sequence[str]) -> list[list[str]]:
        """The distinct completions in the order of each vote; none where nothing is to be asked."""
        texts = sorted({*completions}, key=_shuffled)
        if not 2 <= len(texts) <= len(LABELS):
            return []
        step = max(1, 2 * len(texts) // (self.votes + 1))
        orders = [turned(texts, vote // 2 * step) for vote in range(self.votes)]
        return [order[::-1] if vote % 2 else order for vote, order in enumerate(orders)]

    def _places(
        self, orders: Sequence[list[str]], replies: Sequence[Rollout | Fault], given: Sequence[str]
    ) -> dict[str, Outcome]:
        texts = [*dict.fromkeys(given)]
        if len(texts) == 1:
            return {texts[0]: Score(0.5, "all completions are the same")}
        if not orders:
            return dict.fromkeys(texts, Score(None, f"more than {len(LABELS)} completions"))
        votes: list[Any] = []
        for order, reply in zip(orders, replies, strict=True):
            labels = LABELS[: len(order)]
            ranking = reply if isinstance(reply, Fault) else read_ranking(reply, labels)
            if isinstance(ranking, list):
                place = {order[labels.index(label)]: n for n, label in enumerate(ranking)}
                votes.append([place[one] for one in texts])
            else:
                votes.append(ranking)
        if stopped := self._stopped(votes):
            return dict.fromkeys(texts, stopped)
        ranked = [vote for vote in votes if isinstance(vote, list)]
        apart = discord(ranked)
        if apart > self.tolerance + _ROUNDING:
            away = Void("disagreement", f"{apart:.0%} of pairs are in another order")
            return dict.fromkeys(texts, self._void(away))
        last = len(texts) - 1
        means = [math.fsum(vote[i] for vote in ranked) / len(ranked) for i in range(len(texts))]
        return {
            one: Score((last - mean) / last, f"place {mean + 1:.3g} of {len(texts)}")
            for one, mean in zip(texts, means, strict=True)
        }

    def prefers_first(self, pairs: Sequence[CaseGroup]) -> list[bool | None]:
        """Of pairs shown in this order, whether the judge ranks the first one higher; else None."""
        chats, schemas = [], [_ranking_schema(2)] * len(pairs)
        for prompt, texts, answer in pairs:
            chats.append(ranking_chat(self.rubric, prompt, texts, answer, 0, self.most_chars)[0])
        found = []
        for reply in self.replies(chats, schemas):
            ranking = Void("") if isinstance(reply, Fault) else read_ranking(reply, LABELS[:2])
            found.append(None if isinstance(ranking, Void) else ranking[0] == LABELS[0])
        return found

    # ------------------------------------------------------------------- votes that are none

    def _stopped(self, votes: Sequence[Any]) -> Outcome | None:
        """The fault of a vote; an abstention where half of them or more do not count."""
        if faults := [vote for vote in votes if isinstance(vote, Fault)]:
            return faults[0]
        voids = [vote for vote in votes if isinstance(vote, Void)]
        for void in voids:
            self.counts.add(f"vote: {void.kind}")
        if 2 * len(voids) < len(votes):
            return None
        [(kind, _)] = Counter(void.kind for void in voids).most_common(1)
        return self._void(next(void for void in voids if void.kind == kind))

    def _void(self, void: Void) -> Score:
        self.counts.add(f"abstained: {void.kind}")
        return Score(None, str(void))

    def _counted(self, outcome: Outcome) -> Outcome:
        self.counts.add("faults" if isinstance(outcome, Fault) else "verdicts")
        return outcome

    # ------------------------------------------------------------------------------ asking

    def replies(
        self, chats: Sequence[Chat], schemas: Sequence[Mapping[str, Any]]
    ) -> list[Rollout | Fault]:
        """The reply to each chat, or the fault that its question ended in; kept ones cost nothing.

        Equal questions are asked once.
        """
        keys = [self._store.key(chat, {}, None, 0) for chat in chats]
        known: dict[str, Rollout | Fault] = {**self._store.kept([*dict.fromkeys(keys)])}
        self.counts.add("cached", sum(key in known for key in keys))
        missing = {key: i for i, key in reversed([*enumerate(keys)]) if key not in known}
        left = sorted(missing.values())
        while left:
            with self._allowed([keys[index] for index in left]) as (allowed, why):
                if not allowed:
                    known |= {keys[index]: Fault(f"judge: {why}", "value") for index in left}
                    break
                some, left = left[:allowed], left[allowed:]
                self.counts.add("asked", len(some))
                known |= self._ask([(keys[i], chats[i], schemas[i]) for i in some])
        lost = Fault("judge: the backend did not reply")
        return [known.get(key, lost) for key in keys]

    def _ask(
        self, questions: Sequence[tuple[str, Chat, Mapping[str, Any]]]
    ) -> dict[str, Rollout | Fault]:
        """The replies to questions (key, chat, schema), by key; stored soon after they come."""
        found: dict[str, Rollout | Fault] = {}
        waiting: dict[str, Rollout] = {}
        stored = time.monotonic()

        def store() -> None:
            nonlocal stored
            self._store.keep(waiting.items())
            waiting.clear()
            stored = time.monotonic()

        def take(at: int, reply: Rollout | Exception) -> None:
            key = questions[at][0]
            if isinstance(reply, Rollout):
                found[key] = waiting[key] = reply
            else:
                found[key] = self._fault(reply)
            if time.monotonic() > stored + _KEEP_S:
                store()

        _, chats, schemas = zip(*questions, strict=True)
        try:
            self.backend.ask(chats, schemas, take)
        finally:  # Ctrl-C too: what has come is paid
            store()
        return found

    def _fault(self, reply: Exception) -> Fault:
        """The fault of a question that ended in an exception: it is asked again another time."""
        self._failed += 1
        kind, message = _failure(reply)
        self.counts.add(f"fault: {kind}")
        return Fault(f"judge: {message}", "timeout" if kind == "timeout" else "exception")

    @contextmanager
    def _allowed(self, keys: Sequence[str]) -> Iterator[tuple[int, str]]:
        """How many of the questions may be asked now, and why none; they are reserved meanwhile."""
        if self.budget.unlimited:
            yield len(keys), ""
            return
        why = ""

        def allow(usage: Usage, under_way: int) -> int:
            nonlocal why
            allowed, why = self.budget.allowed(usage, under_way, self._failed)
            return allowed

        with self._store.reserved(keys, allow) as count:
            yield count, why


def _options() -> list[inspect.Parameter]:
    """The options of a judge: the parameters of `ModelJudge.of`."""
    return [*inspect.signature(ModelJudge.of).parameters.values()]


def _key_of(whole: Mapping[str, Any]) -> str:
    """What judges with the same options have in common; `whole` has all of them."""
    return repr(sorted(whole.items()))


def _shuffled(text: str) -> str:
    """A key that puts texts in an order which says nothing of them."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _failure(error: Exception) -> tuple[str, str]:
    """The kind of what a question ended in, and a message."""
    name, status = type(error).__name__, getattr(error, "status_code", None)
    cause = error.__cause__
    if status is not None:
        refused = status in (400, 422)
        hint = " (structured: false, for a server without JSON schemas)" if refused else ""
        return f"HTTP {status}", f"the server answered {status}: {str(error)[:160]}{hint}"
    if name == "APITimeoutError":
        return "timeout", "no reply in time"
    if name == "APIConnectionError":
        what = "huge" if cause is not None and "more than" in str(cause) else "disconnected"
        said = f"{type(cause or error).__name__}: {cause or error}"[:160].rstrip(": ")
        return what, f"no whole reply: {said}"  # a reset connection has no message but its name
    if isinstance(error, ValueError):
        return "not JSON", f"the server's reply cannot be read: {str(error)[:160]}"
    if isinstance(error, ServerFailed):
        return "no completion", str(error)[:160]
    return name, f"{name}: {str(error)[:160]}"


_UNSURE: dict[str, Any] = {"unsure": {"type": "boolean"}}


def _points_schema(rubric: Rubric) -> dict[str, Any]:
    """The JSON schema of a verdict; a judge that may not say that it is unsure guesses."""
    one = {"type": "integer", "minimum": 0, "maximum": rubric.points}
    names = [item.name for item in rubric.items]
    points = _object(dict.fromkeys(names, one), names)
    fields = {"points": points, "reason": {"type": "string"}, **_UNSURE}
    return _object(fields, [*fields])


def _ranking_schema(count: int) -> dict[str, Any]:
    label = {"type": "string", "enum": [*LABELS[:count]]}
    ranking = {"type": "array", "items": label, "minItems": count, "maxItems": count}
    fields = {"ranking": ranking, **_UNSURE}
    return _object(fields, [*fields])


def _object(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": [*required],
        "additionalProperties": False,
    }
