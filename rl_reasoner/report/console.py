"""What the verbs print with: results on standard output, all else on standard error.

Whatever is printed may hold text that a model or a stranger wrote. No control character of it
reaches a terminal (it could move the cursor, change the title, forge lines), and none of it is
taken for rich's markup.
"""

import errno
import json
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table

from rl_reasoner.distributed.processes import leave_errors, leave_terminal
from rl_reasoner.foreign import printable, printable_json

COLUMNS = 80  # what we write fits a terminal of so many


class _Plain:
    """Something printed, without the control characters in its texts; rich's own ones stay."""

    def __init__(self, shown: ConsoleRenderable) -> None:
        self.shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.shown, options):
            yield Segment(text if control else printable(text), style, control)


class _Hook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is about to be printed, without control characters."""
        return [_Plain(shown) for shown in renderables]


class _Stream:
    """Standard output or error, as it is now; a terminal that is gone (EIO) is written to no more.

    Nor is a pipe of standard error whose reader is gone (EPIPE), as `2>&1 | tee` at Ctrl-C: what is
    told there on the way ends no work. A reader of results who is gone ends the verb.

    For rich it is its own proxied file: while a view is live, what it writes is not drawn again.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def rich_proxied_file(self) -> "_Stream":
        """Itself: rich writes here, and not to what it puts in the stream's place."""
        return self

    def write(self, text: str) -> int:
        """Write `text`, or nowhere."""
        return int(self._tried("write", text) or len(text))

    def flush(self) -> None:
        """Flush what was written."""
        self._tried("flush")

    def _tried(self, method: str, *given: str) -> Any:
        try:
            return getattr(self._stream, method)(*given)
        except OSError as error:
            if error.errno == errno.EIO:
                leave_terminal()
            elif error.errno == errno.EPIPE and self._name == "stderr":
                with suppress(OSError):  # not what a caller has put in its place
                    if self._stream.fileno() == 2:
                        leave_errors()
            else:
                raise
            return None

    @property
    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that shows foreign text as text."""
    stream: Any = _Stream("stderr" if stderr else "stdout")
    terminal = Console(file=stream, stderr=stderr, width=width, markup=False, emoji=False)
    terminal.push_render_hook(_Hook())
    return terminal


err = console(stderr=True)
# a file or a pipe has no edge: tables that go there are not squeezed
out = console(width=None if sys.stdout.isatty() else 200)


_apart: list[Any] = []  # where `emit` writes JSON


@contextmanager
def results_apart() -> Iterator[None]:
    """Inside, standard output has the JSON of `emit` and no more.

    What a user's reward, tool or recipe prints in this process goes to standard error.
    """
    _apart.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _apart.pop()


def emit(as_json: bool, value: Mapping[str, Any], shown: Any) -> None:
    """Print a verb's result: `value` as JSON, or what a reader sees (`shown`)."""
    if as_json:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
        print(printable_json(text), file=_apart[-1] if _apart else None, flush=True)
    else:  # a text goes out as it is: no line broken
        whole = not isinstance(shown, Table)
        out.print(shown, highlight=False, soft_wrap=whole)


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for, as of a gradient that is NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [*map(_finite, value)] if isinstance(value, list | tuple) else value


def wrapped(text: str, indent: str = "", start: str = "", columns: int = COLUMNS) -> str:
    """A sentence in lines of at most `columns`, broken between words; `start` begins the first."""
    return textwrap.fill(
        text,
        max(columns, COLUMNS),
        initial_indent=start or indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def excerpt(text: str, most: int = 300) -> str:
    """`text`, or its first `most` characters and how many were left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text) - most:,} more characters)"


def new_table(*columns: str) -> Table:
    """An empty table of our look, with these columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
