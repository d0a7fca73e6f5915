"""How calls and results are written in a completion: the text of it, and nothing else.

A format says whether a completion has just finished a call, reads the call, and gives the text that
is put behind it: Hermes' and Llama 3's JSON, fenced code blocks, tags. It is handed the text that
the policy has written since the last result (or the beginning), so that no result is ever taken for
a call. Calls are read by JSON within bounds or taken as they stand; nothing is evaluated.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.foreign import json_value, printable
from rl_reasoner.tools.tool import MalformedCall, Tool, ToolCall

MOST_CALL_CHARS = 20_000
_HERMES_MARKS = ("<tool_call>", "</tool_call>")
_PYTHON_TAG = "<|python_tag|>"
_FENCE = "```"
_TICKS = re.compile("`+")
_LABELS = {"py": "python", "python3": "python", "python": "python"}  # whatever their case
_OTHER_MARKS = ("<function=", "<arg_key>")  # what templates write in `<tool_call>` that is no JSON
_BEHIND_CALL = 4  # characters that the last token of a call may have behind its end
_CALL, _RESULT = "the call stands here", "line one\nline two"


Render = Callable[[list[dict[str, str]]], str]
"""The text of a chat's messages, by a template."""


class ToolTurn(NamedTuple):
    """What follows a call: the result, and what the format writes around it.

    `before` and `after` may name special tokens of the policy; `text` never does, whatever it says,
    so the three are to be tokenised apart.
    """

    before: str
    text: str
    after: str


class CallFormat(ABC):
    """A way to write calls, for the tools that it knows."""

    name: ClassVar[str]
    last: ClassVar[str]
    """The character that a call ends with: a token without it ends none."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}

    @property
    def schemas(self) -> list[dict[str, Any]] | None:
        """What a chat template tells the policy of the tools; None where the prompt says it."""
        return None

    def marks(self) -> tuple[str, ...]:
        """Texts that end calls, and may stand elsewhere: a server stops there, and is asked on."""
        return ()

    def in_template(self, render: Render) -> "CallFormat":
        """This format in a chat template, which `render` gives the text of messages by."""
        return self

    @abstractmethod
    def ended(self, text: str, new: int) -> bool:
        """Whether the last `new` characters of `text` finish a call.

        `text` is what the policy wrote since the last result. Made to be asked after every token:
        all but the tail is only looked at where the tail holds the end of a call.
        """

    @abstractmethod
    def read(self, text: str) -> ToolCall | MalformedCall:
        """The call that `text` ends with, once `ended` has said so."""

    @abstractmethod
    def write(self, call: ToolCall) -> str:
        """A call as a policy of this format writes it. Raises ValueError where it cannot."""

    @abstractmethod
    def turn(self, result: str) -> ToolTurn:
        """What is put behind a call that had this result."""

    def given(self, text: str) -> list[tuple[int, int]]:
        """Where in a completion results stand, with what is around them: (start, end) of each.

        A result stands behind a call, as `turn` puts it there; one that is cut off goes to the end.
        """
        ticks = {0, *(len(run[0]) - 1 for run in _TICKS.finditer(text))}  # fences may be long
        around = {self.turn("`" * count)[::2] for count in ticks}
        spans: list[tuple[int, int]] = []
        at = 0
        while True:
            starts = ((text.find(before, at), before, after) for before, after in around)
            start, before, after = min((one for one in starts if one[0] >= 0), default=(-1, "", ""))
            if start < 0:
                return spans
            if not self.ended(text[spans[-1][1] if spans else 0 : start], _BEHIND_CALL):
                at = start + 1
                continue
            end = text.find(after, start + len(before))
            at = len(text) if end < 0 else end + len(after)
            spans.append((start, at))

    def _named(self, name: object, arguments: Mapping[str, Any]) -> ToolCall | MalformedCall:
        if isinstance(name, str) and name in self.tools:
            return ToolCall(name, arguments)
        return malformed_call(str(unknown("tool", str(name)[:100], self.tools)))


def malformed_call(why: str) -> MalformedCall:
    """A call that cannot be read, and why; it may quote what the policy wrote."""
    return MalformedCall(f"malformed call: {printable(why)}")


# ------------------------------------------------------------------------------ calls in JSON


@dataclass(frozen=True)
class _Around:
    """What stands around a result; `quoted` where a template writes results as JSON."""

    before: str
    after: str
    quoted: bool = False


class _JsonFormat(CallFormat):
    """Calls as an object with the tool's name and its arguments."""

    around: _Around
    closes: ClassVar[str] = ""  # what a result's text may not hold

    @property
    def schemas(self) -> list[dict[str, Any]]:
        return [tool.schema for tool in self.tools.values()]

    def in_template(self, render: Render) -> "_JsonFormat":
        """This format with the turns of a chat template.

        `render` gives the text of messages, the prompt for the next answer included. Raises
        `UserError` where the template does not show the results of tools.
        """
        messages = [
            {"role": "user", "content": "a question"},
            {"role": "assistant", "content": _CALL},
            {"role": "tool", "name": "python", "content": _RESULT},
        ]
        try:
            text = render(messages)
        except Exception as error:  # a template may raise anything
            raise UserError(f"the chat template takes no messages of tools: {error}") from error
        behind = text.partition(_CALL)[2]
        quoted = json.dumps(_RESULT)
        for result in (quoted, _RESULT):
            before, found, after = behind.partition(result)
            if found:
                placed = type(self)(self.tools.values())
                placed.around = _Around(before, after, result is quoted)
                return placed
        raise UserError(
            "the chat template does not show the results of tools: use the format 'fences' or "
            "'tags', or the template that the model came with"
        )

    def turn(self, result: str) -> ToolTurn:
        if self.around.quoted:
            result = json.dumps(result, ensure_ascii=False)
        if self.closes:
            result = result.replace(self.closes, self.closes.replace("<", "&lt;"))
        return ToolTurn(self.around.before, result, self.around.after)

    def _object(self, text: str) -> ToolCall | MalformedCall:
        """The call that a JSON text says."""
        shape = '{"name": ..., "arguments": {...}}'
        if len(text) > MOST_CALL_CHARS:
            return malformed_call(f"it has {len(text):,} characters, more than {MOST_CALL_CHARS:,}")
        try:
            value = json_value(text)
        except ValueError as error:
            return malformed_call(f"not JSON: {error}; expected {shape}")
        if not isinstance(value, dict) or "name" not in value:
            return malformed_call(f"expected {shape}")
        arguments = value.get("arguments", value.get("parameters", {}))
        if not isinstance(arguments, dict):
            return malformed_call(f"the arguments are not a JSON object; expected {shape}")
        return self._named(value["name"], arguments)


class HermesFormat(_JsonFormat):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Qwen 2.5 and 3, Hermes."""

    name, last = "hermes", ">"
    around = _Around("\n<tool_response>\n", "\n</tool_response>\n")
    closes = "</tool_response>"

    def marks(self) -> tuple[str, ...]:
        return (_HERMES_MARKS[1],)

    def ended(self, text: str, new: int) -> bool:
        end = _end_of(_HERMES_MARKS[1], text, new)
        return end >= 0 and _HERMES_MARKS[0] in text[:end]

    def read(self, text: str) -> ToolCall | MalformedCall:
        before = text[: text.rfind(_HERMES_MARKS[1])]
        found = self._object(before.rpartition(_HERMES_MARKS[0])[2].strip())
        if isinstance(found, MalformedCall):  # the last mark may stand within the call's own texts
            whole = self._object(before.partition(_HERMES_MARKS[0])[2].strip())
            return found if isinstance(whole, MalformedCall) else whole
        return found

    def write(self, call: ToolCall) -> str:
        shown = _json({"name": call.tool, "arguments": dict(call.arguments)})
        return "\n".join((_HERMES_MARKS[0], shown, _HERMES_MARKS[1]))


class LlamaFormat(_JsonFormat):
    """`{"name": …, "parameters": {…}}` as the whole message: Llama 3.1 and later."""

    name, last = "llama3", "}"
    around = _Around("\n", "\n")

    def ended(self, text: str, new: int) -> bool:
        start = text[:200].lstrip().removeprefix(_PYTHON_TAG).lstrip()
        if not start.startswith("{") or "}" not in text[len(text) - new :]:
            return False
        return len(text) > MOST_CALL_CHARS or _closing(text) >= 0

    def read(self, text: str) -> ToolCall | MalformedCall:
        end = _closing(text)
        whole = text if end < 0 else text[: end + 1]
        return self._object(whole.strip().removeprefix(_PYTHON_TAG).strip())

    def write(self, call: ToolCall) -> str:
        return _json({"name": call.tool, "parameters": dict(call.arguments)})


def _json(value: dict[str, Any]) -> str:
    """JSON that holds no mark of a format, however its texts read."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("</", "<\\/").replace(_HERMES_MARKS[0], f"\\u003c{_HERMES_MARKS[0][1:]}")


def _closing(text: str) -> int:
    """Where the first brace of a JSON text is closed, not counting those in strings; else -1."""
    depth, quoted, escaped = 0, False, False
    for at, one in enumerate(text):
        if quoted:
            quoted = escaped or one != '"'
            escaped = one == "\\" and not escaped
        elif one == '"':
            quoted = True
        elif one == "{":
            depth += 1
        elif one == "}":
            depth -= 1
            if depth <= 0:
                return at
    return -1


def _end_of(mark: str, text: str, new: int) -> int:
    """Where `mark` begins if it ends in the last `new` characters of `text`; else -1."""
    return text.find(mark, max(0, len(text) - new - len(mark) + 1))


# ---------------------------------------------------------------------- calls as they stand


class _PlainFormat(CallFormat):
    """Calls whose text is the one argument of their tool, or a JSON object of several."""

    def _call(self, name: str, text: str) -> ToolCall | MalformedCall:
        if len(text) > MOST_CALL_CHARS:
            return malformed_call(f"it has {len(text):,} characters, more than {MOST_CALL_CHARS:,}")
        tool = self.tools[name]
        body = tool.body
        if body is not None and len(tool.parameters["properties"]) == 1:
            return ToolCall(name, {body: text})
        try:
            value = json_value(text)
        except ValueError as error:
            if body is None:
                return malformed_call(f"{name} takes its arguments as a JSON object: {error}")
            value = None
        if isinstance(value, dict):
            return ToolCall(name, value)
        if body is None:
            return malformed_call(f"{name} takes its arguments as a JSON object")
        return ToolCall(name, {body: text})

    def _written(self, call: ToolCall) -> str:
        """The text of a call, which `_call` reads."""
        body = self.tools[call.tool].body
        text = call.arguments.get(body) if body is not None else None
        if len(call.arguments) > 1 or not isinstance(text, str):
            return _json(dict(call.arguments))
        return text if self._call(call.tool, text) == call else _json(dict(call.arguments))


class FencesFormat(_PlainFormat):
    """A fenced block that is labelled with a tool's name: ```` ```python ````."""

    name, last = "fences", "`"

    def marks(self) -> tuple[str, ...]:
        return (f"\n{_FENCE}",)

    def ended(self, text: str, new: int) -> bool:
        if _end_of(_FENCE, text, new) < 0:
            return False
        block = _last_block(text)
        # One that was closed before these characters has been answered, or is none of ours.
        return block is not None and block.end > len(text) - new and self._label(block) != ""

    def read(self, text: str) -> ToolCall | MalformedCall:
        block = _last_block(text)
        assert block is not None  # `ended` has found it
        return self._call(self._label(block), block.body)

    def write(self, call: ToolCall) -> str:
        written = f"{_FENCE}{call.tool}\n{self._written(call)}\n{_FENCE}"
        block = _last_block(written)
        if block is None or self._label(block) != call.tool or self.read(written) != call:
            raise ValueError(f"a line that begins with {_FENCE} would end the call")
        return written

    def turn(self, result: str) -> ToolTurn:
        fence = _FENCE
        while fence in result:
            fence += "`"
        return ToolTurn(f"\n{fence}output\n", result, f"\n{fence}\n")

    def _label(self, block: "_Block") -> str:
        """The tool that a block is for; empty for a block of anything else."""
        label = block.label
        if label not in self.tools:
            label = _LABELS.get(label.lower(), "")
        return label if label in self.tools else ""


class _Block(NamedTuple):
    label: str
    body: str
    end: int  # where its closing fence ends


def _last_block(text: str) -> _Block | None:
    """The last closed fenced block of a text.

    As in Markdown, a block ends with as many backticks as it begins with, and a line that has some
    behind its label begins none.
    """
    found: _Block | None = None
    fence, label, start, at = "", "", 0, 0
    for line in text.split("\n"):
        behind = line.lstrip("`")
        if not fence and line.startswith(_FENCE) and "`" not in behind:
            fence, label, start = (
                line[: len(line) - len(behind)],
                behind.strip(),
                at + len(line) + 1,
            )
        elif fence and line.startswith(fence):
            found = _Block(label, text[start : max(start, at - 1)], at + len(fence))
            fence = ""
        at += len(line) + 1
    return found


class TagsFormat(_PlainFormat):
    """A pair of tags with a tool's name: `<python>…</python>`."""

    name, last = "tags", ">"

    def marks(self) -> tuple[str, ...]:
        return tuple(f"</{name}>" for name in self.tools)

    def ended(self, text: str, new: int) -> bool:
        tail = text[max(0, len(text) - new - max(map(len, self.tools), default=0) - 2) :]
        if "</" not in tail:
            return False
        return any(
            (end := _end_of(f"</{name}>", text, new)) >= 0 and f"<{name}>" in text[:end]
            for name in self.tools
        )

    def read(self, text: str) -> ToolCall | MalformedCall:
        end, name = max((text.rfind(f"</{name}>"), name) for name in self.tools)
        inside = text[:end].rpartition(f"<{name}>")[2]
        return self._call(name, inside.removeprefix("\n").removesuffix("\n"))

    def write(self, call: ToolCall) -> str:
        text = f"\n{self._written(call)}\n"
        if f"<{call.tool}>" in text or f"</{call.tool}>" in text:
            raise ValueError(f"the call holds a tag of {call.tool} itself")
        return f"<{call.tool}>{text}</{call.tool}>"

    def turn(self, result: str) -> ToolTurn:
        return ToolTurn(
            "\n<output>\n", result.replace("</output>", "&lt;/output>"), "\n</output>\n"
        )


FORMATS: dict[str, type[CallFormat]] = {
    kind.name: kind for kind in (HermesFormat, LlamaFormat, FencesFormat, TagsFormat)
}


def call_format(name: str, tools: Sequence[Tool]) -> CallFormat:
    """The format called `name`, for `tools`. Raises `UserError`."""
    if name not in FORMATS:
        raise unknown("call format", name, FORMATS)
    return FORMATS[name](tools)


def format_of_template(chat_template: str) -> str | None:
    """The name of the format that a chat template is written for; None where it has none of ours.

    Some templates write calls that are no JSON between Hermes' marks: those of Qwen3-Coder, GLM.
    """
    if _HERMES_MARKS[0] in chat_template:
        other = any(mark in chat_template for mark in _OTHER_MARKS)
        return None if other else HermesFormat.name
    if "ipython" in chat_template or _PYTHON_TAG in chat_template:
        return LlamaFormat.name
    return None
