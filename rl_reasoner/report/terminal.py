"""What a person sees of a run while it trains.

On a terminal: a bar, the time left, and the newest figures, each with its curve over the stage,
redrawn at each step.
Elsewhere (a log file, CI): plain lines, one at a stage's start and end and one every few seconds.
Everything goes to standard error; `NO_COLOR` is respected, by rich. Nothing is drawn from a thread
of its own, so that worker processes can be started at any time. Knows nothing of torch.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rl_reasoner.evaluation.formatting import duration, percent, short_number
from rl_reasoner.foreign import printable
from rl_reasoner.report.console import console as standard

SECONDS_BETWEEN_LINES = 5.0  # where there is no terminal
_CURVE = 40  # columns
_BLOCKS = "▁▂▃▄▅▆▇█"


class Curve:
    """A figure over a whole stage in a bounded number of points: full, pairs become their mean."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._each = 1  # values of a point
        self._newest: list[float] = []  # values that are no point yet

    def add(self, value: float) -> None:
        """The next value; one that is not finite counts alone."""
        self._newest.append(value)
        if len(self._newest) >= self._each:
            self.points.append(_mean(self._newest))
            self._newest = []
        if len(self.points) > _CURVE:
            last = self.points.pop() if len(self.points) % 2 else None
            self.points = [
                _mean([a, b]) for a, b in zip(self.points[::2], self.points[1::2], strict=True)
            ]
            self._newest = [last] * self._each if last is not None else []
            self._each *= 2


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if abs(value) < float("inf")]
    return sum(finite) / len(finite) if finite else float("nan")


@dataclass
class _Stage:
    """One stage as it runs.

    For the time left: `anchor` is the (time, step) of its first update, `paces` what the steps
    behind it took by themselves, without evaluations.
    """

    name: str
    index: int
    of: int
    total: int
    started: float
    step: int = 0
    anchor: tuple[float, int] | None = None
    paces: list[float] = field(default_factory=list)
    latest: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)  # by name of the metric
    faults: float = 0

    @property
    def title(self) -> str:
        """ "2/3 grpo"."""
        return f"{self.index}/{self.of} {printable(self.name)}"

    def left(self, now: float) -> str:
        """The time left as text, from the steps since the first update; "–" while unknown.

        Evaluations count by their mean over all of them, steps by the later half: completions
        become shorter, or longer, as a policy learns.
        """
        if self.anchor is None or self.step <= self.anchor[1]:
            return "–"
        each = (now - self.anchor[0]) / (self.step - self.anchor[1])
        if self.paces:
            each += _mean(self.paces[len(self.paces) // 2 :]) - _mean(self.paces)
        return duration(max(0.0, each) * max(0, self.total - self.step))

    def take(self, numbers: Mapping[str, float]) -> None:
        """The metrics of a step."""
        self.latest.update(numbers)
        for key, value in numbers.items():
            if key in _SHOWN or _evaluated(key):
                self.curves.setdefault(key, Curve()).add(value)
            if key.startswith("rewards/") and key.endswith("/faults") and value > 0:
                self.faults += value

    def figures(self) -> Iterator[tuple[str, str, str]]:
        """The newest figures as (name, value, name of the metric), those that were logged."""
        for key, (name, write) in _SHOWN.items():
            if key in self.latest and not (key == "loss" and "reward" in self.latest):
                yield name, write(self.latest[key]), key
        for key, value in self.latest.items():
            if _evaluated(key):
                yield f"accuracy on {printable(key[5:-9])}", percent(value), key
        if self.faults:
            yield "faults", short_number(self.faults), ""


_SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "reward": ("reward", short_number),
    "loss": ("loss", short_number),
    "completions/mean_length": ("length", short_number),
    "curriculum/level_mean": ("level", short_number),
    "tokens_per_second": ("tokens/s", short_number),
}


def _evaluated(key: str) -> bool:
    return key.startswith("eval/") and key.endswith("/accuracy")


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
        self._console = console or standard(stderr=True)
        self._quiet = quiet
        self._clock = clock
        self._stage: _Stage | None = None
        self._line_at = clock()
        drawn = self._console.is_terminal and not self._console.is_dumb_terminal and not quiet
        live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live = live if drawn else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *failure: object) -> None:
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
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
        if stage.anchor is None:
            stage.anchor = now, step
        elif step > stage.step and "step_time" in numbers:
            stage.paces.append(numbers["step_time"])
        stage.step = step
        stage.take(numbers)
        if self._live is None and now - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = now
            where = f"[{stage.title}] step {step:,}/{stage.total:,}"
            self._say(f"{where}{_line(stage)}  left {stage.left(now)}")
        self._draw()

    def progress(self, label: str, done: int, of: int) -> None:
        """Show how far work beside the stages is (an evaluation): `done` items `of` so many."""
        now = self._clock()
        if self._live is not None:
            row = Table.grid(padding=(0, 2))
            bar = ProgressBar(total=of, completed=done, width=30)
            row.add_row(Text(printable(label), style="bold"), bar, f"{done:,}/{of:,}")
            self._live.update(row if done < of else Text(""), refresh=True)
        elif now - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = now
            self._say(f"{printable(label)}: {done:,}/{of:,}")

    def note(self, text: str) -> None:
        """Say `text` once, above the view."""
        self._say(printable(text))

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
            # a terminal would break a line in the middle of a word; a file keeps it whole
            self._console.print(Text(text), soft_wrap=not self._console.is_terminal)

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
            Text(f"{duration(self._clock() - stage.started)} so far", style="dim"),
        )
        figures = Table.grid(padding=(0, 2))
        for name, value, key in stage.figures():
            points = stage.curves[key].points if key in stage.curves else []
            curve = "" if self._console.options.ascii_only else sparkline(points)
            bad = "bold red" if name == "faults" else ""
            figures.add_row(Text(name, style="dim"), Text(value, style=bad), Text(curve, "cyan"))
        return Group(head, figures)


def _line(stage: _Stage) -> str:
    return "".join(f"  {name} {value}" for name, value, _ in stage.figures())


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
