"""What a person sees of a run while it trains.

On a terminal: a bar, the time left, the newest figures and a small curve, redrawn at each step.
Elsewhere (a log file, CI): plain lines, one at a stage's start and end and one every few seconds.
Everything goes to standard error; `NO_COLOR` is respected, by rich. Nothing is drawn from a thread
of its own, so that worker processes can be started at any time. Knows nothing of torch.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rl_reasoner.report.text import duration, percent, plain, short

SECONDS_BETWEEN_LINES = 5.0  # where there is no terminal
_CURVE = 32  # columns
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass
class _Stage:
    """One stage as it runs. `anchor` is the (time, step) of its first update, for the time left."""

    name: str
    index: int
    of: int
    total: int
    started: float
    step: int = 0
    anchor: tuple[float, int] | None = None
    latest: dict[str, float] = field(default_factory=dict)
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=_CURVE))

    @property
    def title(self) -> str:
        """ "2/3 grpo"."""
        return f"{self.index}/{self.of} {plain(self.name)}"

    def left(self, now: float) -> str:
        """The time left as text, from the steps since the first update; "–" while unknown."""
        if self.anchor is None or self.step <= self.anchor[1]:
            return "–"
        each = (now - self.anchor[0]) / (self.step - self.anchor[1])
        return duration(each * max(0, self.total - self.step))

    def figures(self) -> Iterator[tuple[str, str]]:
        """The newest figures as (name, value), those that were logged."""
        for name, key, write in (
            ("reward", "reward", short),
            ("loss", "loss", short),
            ("length", "completions/mean_length", short),
            ("tokens/s", "tokens_per_second", short),
        ):
            if key in self.latest and not (key == "loss" and "reward" in self.latest):
                yield name, write(self.latest[key])
        for key, value in self.latest.items():
            if key.startswith("eval/") and key.endswith("/accuracy"):
                yield f"accuracy on {plain(key[5:-9])}", percent(value)


class LiveView:
    """The view of one run, as a context manager around its training.

    `quiet` shows nothing at all. `console` and `clock` (seconds, rising) are for tests.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._clock = clock
        self._stage: _Stage | None = None
        self._line_at = clock()
        drawn = self._console.is_terminal and not self._console.is_dumb_terminal and not quiet
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if drawn else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stage is not None:
            self._end("stopped")
        if self._live is not None:
            self._live.stop()

    def start_stage(self, name: str, index: int, of: int, total_steps: int) -> None:
        """Begin the stage `name`, the `index`-th (from 1) `of` so many, of `total_steps` steps."""
        self._stage = _Stage(name, index, of, total_steps, started=self._clock())
        self._line_at = self._clock()
        if self._live is None:
            self._say(f"[{self._stage.title}] {total_steps:,} steps")
        self._draw()

    def update(self, metrics: Mapping[str, float], step: int) -> None:
        """Show the newest `metrics` (trl's names; what is not a number is passed over)."""
        stage = self._stage
        if stage is None:
            return
        now = self._clock()
        stage.step = step
        stage.anchor = stage.anchor or (now, step)
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
        stage.latest.update(numbers)
        if "reward" in numbers:
            stage.rewards.append(numbers["reward"])
        if self._live is None and now - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = now
            self._say(
                f"[{stage.title}] step {step:,}/{stage.total:,}{_line(stage)}  "
                f"left {stage.left(now)}"
            )
        self._draw()

    def progress(self, label: str, done: int, of: int) -> None:
        """Show how far work beside the stages is (an evaluation): `done` items `of` so many."""
        now = self._clock()
        if self._live is not None:
            row = Table.grid(padding=(0, 2))
            bar = ProgressBar(total=of, completed=done, width=30)
            row.add_row(Text(plain(label), style="bold"), bar, f"{done:,}/{of:,}")
            self._live.update(row if done < of else Text(""), refresh=True)
        elif now - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = now
            self._say(f"{plain(label)}: {done:,}/{of:,}")

    def note(self, text: str) -> None:
        """Say `text` once, above the view."""
        self._say(plain(text))

    def finish_stage(self) -> None:
        """End the stage that was started last: one line of it stays."""
        if self._stage is not None:
            self._end("done")

    def _end(self, how: str) -> None:
        stage = self._stage
        if stage is None:
            return
        took = duration(self._clock() - stage.started)
        self._stage = None
        self._draw()
        self._say(f"[{stage.title}] {how}: step {stage.step:,} after {took}{_line(stage)}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(text), soft_wrap=True)

    def _draw(self) -> None:
        if self._live is not None:
            view = Text("") if self._stage is None else self._view(self._stage)
            self._live.update(view, refresh=True)

    def _view(self, stage: _Stage) -> RenderableType:
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(stage.title, style="bold"),
            ProgressBar(total=stage.total, completed=stage.step, width=30),
            f"{stage.step:,}/{stage.total:,}",
            Text(f"{stage.left(self._clock())} left", style="dim"),
        )
        figures = Table.grid(padding=(0, 2))
        curve = "" if self._console.options.ascii_only else sparkline(stage.rewards)
        cells = [Text.assemble((f"{n} ", "dim"), v) for n, v in stage.figures()]
        figures.add_row(*cells, Text(curve, style="cyan"))
        return Group(head, figures)


def _line(stage: _Stage) -> str:
    return "".join(f"  {name} {value}" for name, value in stage.figures())


def sparkline(values: Sequence[float]) -> str:
    """`values` as one line of blocks, low to high; a value that is not finite leaves a gap."""
    finite = [v for v in values if abs(v) < float("inf")]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)

    def block(value: float) -> str:
        if not abs(value) < float("inf"):
            return " "
        return _BLOCKS[round((value - low) / span * 7)] if span > 0 else _BLOCKS[0]

    return "".join(block(v) for v in values)
