"""Tools as turns of a completion: calls are read off sampled tokens, results go back as tokens.

`ToolUse` is what a run's policy may call, and how; `ToolTurns` answers the rows of one call of the
engine (rl_reasoner.rollout.turns). Calls run in threads and processes of rl_reasoner.tools while
other rows are sampled. What a tool returns is tokenised as plain text, so that it cannot write a
special token, say an end of turn, into a completion.
"""

import inspect
import queue
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rollout.turns import Answer
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

_FIRST = {"calculator": {"expression": "6*7"}, "python": {"code": "print(6*7)"}}
_ENDS = frozenset("`>}")  # what the end of a call, in any format, is made of


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
            known = self._may_end[token] = not _ENDS.isdisjoint(self.text([token]))
        return known

    def identity(self) -> dict[str, Any]:
        """All that completions depend on: the tools' text, the format, the limits."""
        texts = {one.name: _source(one.fn) for one in self.tools}
        told = {"format": self.format.name, "turn": self.format.turn(""), "schemas": self.schemas}
        return {"tools": texts, **told, "calls": self.calls, **asdict(self.limits)}

    def text(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens with it."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def tokens(self, result: str) -> list[int]:
        """The tokens that are put behind a call with this result."""
        before, text, after = self.format.turn(result)
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
    length: int = 0


class ToolTurns:
    """A `TurnTaker` for the rows of one call of the engine; see `ToolUse.turns`."""

    def __init__(self, use: ToolUse, runner: ToolRunner, count: int) -> None:
        self._use, self._runner = use, runner
        self._rows = [_Row(runner.session()) for _ in range(count)]
        self._done: queue.SimpleQueue[tuple[int, Future[ToolResult] | None]] = queue.SimpleQueue()
        self.waiting: set[int] = set()  # rows whose call has no answer yet

    def events_in(self, completions: Sequence[Sequence[int]]) -> list[list[ToolEvent]]:
        """What each row has called; a result that its completion had no room for has no tokens."""
        return [
            [e if e.at + e.given <= len(ids) else replace(e, given=0) for e in row.events]
            for row, ids in zip(self._rows, completions, strict=True)
        ]

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
        call = self._use.format.read(self._use.text(ids[at.begin :]))
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
        ids = self._use.tokens(result.text)
        at.events.append(ToolEvent(at.tool, result.kind, result.seconds, at.length, len(ids)))
        at.begin = at.length + len(ids)
        return Answer(row, ids)

    def close(self) -> None:
        """Forget what the rows' tools keep."""
        for row in self._rows:
            row.session.close()


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
    """The text of the file that a function is in; its module may have gone for one of its name."""
    file = Path(inspect.getsourcefile(inspect.unwrap(fn)) or "")
    return file.read_text(encoding="utf-8") if file.is_file() else inspect.getsource(fn)


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
