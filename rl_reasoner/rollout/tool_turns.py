"""Tools as turns of a completion: calls are read off sampled tokens, results go back as tokens.

`ToolUse` is what a run's policy may call, and how; `ToolTurns` answers the rows of one call of the
engine (rl_reasoner.rollout.turns). Calls run in threads and processes of rl_reasoner.tools while
other rows are sampled. What a tool returns is tokenised as plain text, so that it cannot write a
special token, say an end of turn, into a completion. `TrlTools` is for trl's own `tools=`, whose
loop reads the calls.
"""

import inspect
import logging
import queue
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rollout.turns import Answer
from rl_reasoner.scoring.beside import text_of_code
from rl_reasoner.tools import load_tools
from rl_reasoner.tools.formats import CallFormat, call_format, format_of_template
from rl_reasoner.tools.runner import ToolRunner, ToolSession
from rl_reasoner.tools.tool import (
    MalformedCall,
    Tool,
    ToolCall,
    ToolLimits,
    ToolOutcome,
    ToolResult,
)

_log = logging.getLogger(__name__)
_FIRST = {"calculator": {"expression": "6*7"}, "python": {"code": "print(6*7)"}}


@dataclass(frozen=True, slots=True)
class ToolEvent:
    """One call in a completion: whose, how it ended, its seconds, and where its result stands.

    The result is the tokens `at` to `at + given` of the completion. `tool` is empty for a call that
    could not be read.
    """

    tool: str
    kind: ToolOutcome
    seconds: float
    at: int
    given: int

    def told(self) -> dict[str, Any]:
        """The event as rollouts keep it: without seconds, which differ in a resumed run."""
        return {key: value for key, value in asdict(self).items() if key != "seconds"}


class ToolUse:
    """The tools of a run, the format of calls, and how many a completion may make."""

    def __init__(
        self,
        tokenizer: Any,
        tools: Iterable[str | Tool],
        *,
        call_format: str = "auto",
        calls: int = 4,
        limits: ToolLimits | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Tools as `load_tool` finds them; "auto" is the format of the tokenizer's chat template.

        `chat_template_kwargs`: what the template is given for prompts, and here for turns. Raises
        `UserError`: for tools that are not there or cannot run, a format that the template does not
        have.
        """
        self.tokenizer, self.calls, self.limits = tokenizer, calls, limits or ToolLimits()
        self.tools = load_tools(tools)
        self.format = _format(call_format, self.tools, tokenizer, chat_template_kwargs)
        with self._new_runner():
            pass  # what cannot run is told now
        self._may_end: dict[int, bool] = {}
        self._running: ToolRunner | None = None  # inside `running`

    @classmethod
    def of(
        cls,
        settings: ToolSettings,
        tokenizer: Any,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "ToolUse":
        """The tools that a recipe names, for a policy with this tokenizer. Raises `UserError`."""
        return cls(
            tokenizer,
            settings.use,
            call_format=settings.format,
            calls=settings.calls,
            limits=ToolLimits(settings.timeout_s, settings.memory_mb, settings.output_chars),
            chat_template_kwargs=chat_template_kwargs,
        )

    @classmethod
    def format_of(cls, settings: ToolSettings | None, tokenizer: Any) -> CallFormat | None:
        """The form of a recipe's calls; None without tools. Raises `UserError`."""
        if settings is None:
            return None
        return _format(settings.format, load_tools(settings.use), tokenizer)

    @classmethod
    def told(cls, settings: ToolSettings | None, tokenizer: Any) -> list[dict[str, Any]] | None:
        """The `schemas` of a recipe's tools; None without tools. Raises `UserError`."""
        form = cls.format_of(settings, tokenizer)
        return None if form is None else form.schemas

    @property
    def schemas(self) -> list[dict[str, Any]] | None:
        """What a chat template tells the policy of the tools; None where the prompt says it."""
        return self.format.schemas

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, the processes of a user's tools go on from one `turns` to the next.

        They end with the block. Within another such block, they are that one's.
        """
        if self._running is not None:
            yield
            return
        self._running = self._new_runner()
        try:
            yield
        finally:
            ended, self._running = self._running, None
            ended.close()

    @contextmanager
    def turns(self, count: int) -> Iterator["ToolTurns"]:
        """Inside, `count` rows may call; what sessions of the rows hold is not left behind."""
        with self.running():
            assert self._running is not None
            turns = ToolTurns(self, self._running, count)
            try:
                yield turns
            finally:
                if turns.waiting:  # broken off: nobody wants to hear of the calls under way
                    self._running.close()
                    self._running = self._new_runner()
                turns.close()

    def tried(self) -> dict[str, ToolResult]:
        """What each tool answers to a first call: of yours one without arguments."""
        with self._new_runner() as runner:
            session = runner.session()
            calls = {one.name: ToolCall(one.name, _FIRST.get(one.name, {})) for one in self.tools}
            return {name: session.call(call) for name, call in calls.items()}

    def _new_runner(self) -> ToolRunner:
        return ToolRunner(self.tools, self.limits)

    def may_end_call(self, token: int) -> bool:
        """Whether a call can end with this token: all others need no closer look."""
        if (known := self._may_end.get(token)) is None:
            known = self._may_end[token] = self.format.last in self.text([token])
        return known

    def identity(self) -> dict[str, Any]:
        """All that completions depend on: the tools' text, the format, the limits."""
        texts = {one.name: _source(one.fn) for one in self.tools}
        told = {"format": self.format.name, "turn": self.format.turn(""), "schemas": self.schemas}
        told["newlines"] = "one"  # behind a call whose last token has one; there were two
        return {"tools": texts, **told, "calls": self.calls, **asdict(self.limits)}

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens with it."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def tokens(self, result: str, call: str = "") -> list[int]:
        """The tokens that are put behind a call with this result.

        The last token of a call may have a newline in it, as most vocabularies have one of a fence
        and a newline. Then there is no second: the text is as the format writes it.
        """
        before, text, after = self.format.turn(result)
        if call.endswith("\n"):
            before = before.removeprefix("\n")
        ids: list[int] = []
        for part, plain in ((before, False), (text, True), (after, False)):
            if part:
                one = self.tokenizer(part, add_special_tokens=False, split_special_tokens=plain)
                ids += one["input_ids"]
        return ids


@dataclass
class _Row:
    """One completion: its session, the calls that it made, and where its own text goes on."""

    session: ToolSession
    events: list[ToolEvent] = field(default_factory=list)
    begin: int = 0
    tool: str = ""
    text: str = ""  # that ends with the call
    length: int = 0


class ToolTurns:
    """A `TurnTaker` for the rows of one call of the engine; see `ToolUse.turns`."""

    def __init__(self, use: ToolUse, runner: ToolRunner, count: int) -> None:
        self._use, self._runner = use, runner
        self._rows = [_Row(runner.session()) for _ in range(count)]
        self._done: queue.SimpleQueue[tuple[int, Future[ToolResult] | None]] = queue.SimpleQueue()
        self.waiting: set[int] = set()  # rows whose call has no answer yet

    def events(self, row: int, ids: Sequence[int]) -> list[ToolEvent]:
        """What a row that has ended with `ids` has called.

        A result that the completion had no room for has no tokens.
        """
        events = self._rows[row].events
        return [e if e.at + e.given <= len(ids) else replace(e, given=0) for e in events]

    def stops(self, row: int, ids: Sequence[int]) -> bool:
        """Whether the last token has finished a call."""
        if not self._use.may_end_call(ids[-1]):
            return False
        begin = self._rows[row].begin
        text = self._use.text(ids[begin:])
        new = len(text) - len(self._use.text(ids[begin:-1]))
        return self._use.format.ended(text, max(new, 1))

    def submit(self, row: int, ids: list[int]) -> None:
        """Begin with the row's call; one too many ends the completion."""
        at = self._rows[row]
        if len(at.events) >= self._use.calls:
            self._done.put((row, None))
            return
        at.text = self._use.text(ids[at.begin :])
        call = self._use.format.read(at.text)
        at.tool, at.length = "" if isinstance(call, MalformedCall) else call.tool, len(ids)
        self.waiting.add(row)
        running = self._runner.submit(at.session, call)
        running.add_done_callback(lambda done: self._done.put((row, done)))

    def answers(self, wait: bool) -> list[Answer]:
        """The results that are there, as tokens."""
        found: list[Answer] = []
        while True:
            try:
                row, done = self._done.get(block=wait and not found)
            except queue.Empty:
                return found
            found.append(self._answer(row, done))

    def _answer(self, row: int, done: "Future[ToolResult] | None") -> Answer:
        if done is None:
            return Answer(row, ended="calls")
        self.waiting.discard(row)
        result, at = done.result(), self._rows[row]
        ids = self._use.tokens(result.text, at.text)
        at.events.append(ToolEvent(at.tool, result.kind, result.seconds, at.length, len(ids)))
        at.begin = at.length + len(ids)
        return Answer(row, ids)

    def close(self) -> None:
        """Forget what the rows' tools keep."""
        for row in self._rows:
            row.session.close()


class TrlTools:
    """The functions of trl's `tools=` while trl's own loop calls them: timed, counted, isolated.

    A tool of ours (`@tool`) runs as in recipes, under limits, in the sandbox or a process of its
    own. Any other function runs in place, as in trl: it may hold state that a process would not
    see.
    """

    def __init__(self, tools: Sequence[Any]) -> None:
        self._own = [one for one in tools if isinstance(one, Tool)]
        self._runner: ToolRunner | None = None
        if plain := [one.__name__ for one in tools if not isinstance(one, Tool)]:
            _log.warning(
                "tools: %s run in this process, as in trl; decorated with rl_reasoner.tool they "
                "are isolated and have limits",
                ", ".join(plain),
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, processes of our tools go on from call to call; they end with the block."""
        if not self._own or self._runner is not None:
            yield
            return
        with ToolRunner(self._own) as self._runner:
            try:
                yield
            finally:
                self._runner = None

    @contextmanager
    def recorded(self, rows: int) -> Iterator["LoopCalls"]:
        """Inside, the calls of so many completions are put down."""
        with self.running():
            runner = self._runner
            calls = LoopCalls([None if runner is None else runner.session() for _ in range(rows)])
            try:
                yield calls
            finally:
                calls.close()


class _ToolFailed(Exception):
    """What trl's loop tells the policy of a call that did not end well."""


class LoopCalls:
    """The calls of completions in trl's loop, in the order in which they ended."""

    def __init__(self, sessions: Sequence[ToolSession | None]) -> None:
        self._sessions = sessions
        self._made: list[list[ToolEvent]] = [[] for _ in sessions]

    def through(self, row: int, fn: Any) -> Callable[..., Any]:
        """A tool as the loop is to call it for `row`."""
        name, session, made = fn.__name__, self._sessions[row], self._made[row]

        @contextmanager
        def timed() -> Iterator[None]:
            kind: ToolOutcome = "failed"
            began = time.monotonic()
            try:
                yield
                kind = "ok"
            finally:
                made.append(ToolEvent(name, kind, time.monotonic() - began, 0, 0))

        def apart(**arguments: Any) -> str:
            assert session is not None
            result = session.call(ToolCall(name, arguments))
            made.append(ToolEvent(name, result.kind, result.seconds, 0, 0))
            if result.kind not in ("ok", "cut"):
                raise _ToolFailed(result.text)
            return result.text

        def here(**arguments: Any) -> Any:
            with timed():
                return fn(**arguments)

        async def later(**arguments: Any) -> Any:
            with timed():
                return await fn(**arguments)

        if isinstance(fn, Tool) and session is not None:
            return apart
        return later if inspect.iscoroutinefunction(fn) else here

    def events(
        self, completions: Sequence[Sequence[Any]], masks: Sequence[Sequence[int]]
    ) -> list[list[ToolEvent]]:
        """The calls of the loop's messages, with where its masks have the results.

        The results of one turn stand together: the first of its events has all of their tokens. A
        call that reached no tool is malformed.
        """
        return [
            _placed(made, messages, mask)
            for made, messages, mask in zip(self._made, completions, masks, strict=True)
        ]

    def close(self) -> None:
        """Forget what the completions' tools keep."""
        for session in self._sessions:
            if session is not None:
                session.close()


def _placed(made: list[ToolEvent], messages: Sequence[Any], mask: Sequence[int]) -> list[ToolEvent]:
    """The events of one completion, by its messages and the places that were not sampled."""
    given = [at for at, sampled in enumerate(mask) if not sampled]
    # places of one run are as far from their numbers
    runs = [[at for _, at in run] for _, run in groupby(enumerate(given), lambda p: p[1] - p[0])]
    turns = [[*turn] for told, turn in groupby(messages, _is_result) if told]
    events: list[ToolEvent] = []
    for turn, run in zip(turns, runs, strict=False):
        for number, message in enumerate(turn):
            known = next((one for one in made if one.tool == message["name"]), None)
            if known is not None:
                made.remove(known)
            event = known or ToolEvent(str(message["name"]), "malformed", 0.0, 0, 0)
            at, size = (run[0], len(run)) if number == 0 else (run[-1] + 1, 0)
            events.append(replace(event, at=at, given=size))
    # those whose results had no room
    return events + [replace(event, at=len(mask), given=0) for event in made]


def _is_result(message: Any) -> bool:
    return bool(message["role"] == "tool")


def given_tokens(ids: Sequence[int], form: CallFormat, tokenizer: Any) -> list[range]:
    """Which tokens of a written completion are of results that its calls were given.

    A token that begins before a result is the policy's, whatever else is in it.
    """

    def text(count: int) -> str:
        found: str = tokenizer.decode(ids[:count], skip_special_tokens=False)
        return found

    def first_from(place: int) -> int:
        return bisect_left(range(len(ids)), place, key=lambda count: len(text(count)))

    spans = form.given(text(len(ids)))
    return [range(first_from(start), first_from(end)) for start, end in spans]


def _source(fn: Callable[..., Any]) -> str:
    """The code of the file that a function is in; its module may have gone for one of its name."""
    file = Path(inspect.getsourcefile(inspect.unwrap(fn)) or "")
    return text_of_code(file) if file.is_file() else inspect.getsource(fn)


def _format(
    name: str,
    tools: Sequence[Tool],
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> CallFormat:
    """The format called `name`, with the turns of the tokenizer's template where it has them."""
    template = getattr(tokenizer, "chat_template", None) or ""
    if name == "auto" and (name := format_of_template(template) or "") == "":
        raise UserError(
            "tools.format: the policy's chat template has no form for calls: choose 'fences' "
            "(```python blocks) or 'tags' (<python>…</python>), and say so in the prompt template"
        )
    found = call_format(name, tools)

    def render(messages: list[dict[str, str]]) -> str:
        text: str = tokenizer.apply_chat_template(
            messages,
            tools=found.schemas,
            tokenize=False,
            add_generation_prompt=True,
            **(chat_template_kwargs or {}),
        )
        return text

    return found.in_template(render) if template else found
