"""Records a command in a terminal as a moving SVG: `python docs/terminal.py OUT.svg -- COMMAND …`.

The command runs for real, in a pseudo-terminal; a terminal emulator (pyte) gives what was on the
screen, about twice a second. Screens that differ become frames, each shown for a moment however
long it lasted: a recording tells what one sees, not how long it takes. The picture has no script
and asks for nothing; where it cannot move it shows the last frame.
"""

import fcntl
import html
import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte

COLUMNS, ROWS = 108, 30
MOST = 60  # frames
EACH, LAST = 0.35, 6.0  # seconds that a frame, and the last one, is shown
WIDTH, HEIGHT, EDGE = 8.4, 18, 16  # of a character; of the margin
COLOURS = {
    "black": "#3b4048", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b",
    "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": "#d7dae0",
    "brightblack": "#7f848e", "default": "#d7dae0",
}  # fmt: skip
Run = tuple[str, str, bool]  # text, colour, bold
Frame = list[list[Run]]


def screens(
    command: list[str], columns: int = COLUMNS, rows: int = ROWS, typed: str = ""
) -> Iterator[Frame]:
    """What was on the screen while `command` ran, from its prompt to its end.

    `typed` is what the prompt shows of it, where that is not the command itself.
    """
    screen = pyte.Screen(columns, rows)
    stream = pyte.ByteStream(screen)
    stream.feed(f"\x1b[32m$\x1b[0m {typed or ' '.join(command)}\r\n".encode())
    yield _frame(screen)
    child, master = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES=str(rows))
        os.execvp(command[0], command)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    shown = time.monotonic()
    while True:
        if select.select([master], [], [], 0.1)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            stream.feed(data)
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            yield _frame(screen)
    yield _frame(screen)
    os.waitpid(child, 0)


def _frame(screen: pyte.Screen) -> Frame:
    return [_runs(screen.buffer[row], screen.columns) for row in range(screen.lines)]


def _runs(line: "dict[int, pyte.screens.Char]", columns: int) -> list[Run]:
    """The characters of a line, joined where they look alike."""
    found: list[Run] = []
    for column in range(columns):
        char = line[column]
        colour = COLOURS.get(char.fg, f"#{char.fg}" if len(char.fg) == 6 else COLOURS["default"])
        if found and found[-1][1:] == (colour, char.bold):
            found[-1] = (found[-1][0] + char.data, colour, char.bold)
        else:
            found.append((char.data, colour, char.bold))
    return found


def thinned(frames: list[Frame]) -> list[Frame]:
    """Frames that differ from the one before, at most `MOST`, the first and the last among them."""
    differ = [f for i, f in enumerate(frames) if i == 0 or f != frames[i - 1]]
    if len(differ) <= MOST:
        return differ
    return [differ[round(i * (len(differ) - 1) / (MOST - 1))] for i in range(MOST)]


def svg(frames: list[Frame]) -> str:
    """The frames as a film strip that a window moves along; equal lines are written once."""
    columns = sum(len(text) for text, _, _ in frames[0][0])
    wide, high = columns * WIDTH + 2 * EDGE, len(frames[0]) * HEIGHT + 2 * EDGE
    lines: dict[str, int] = {}
    strip = []
    for number, frame in enumerate(frames):
        for row, runs in enumerate(frame):
            drawn = _line(runs)
            if drawn:
                name = lines.setdefault(drawn, len(lines))
                x, y = number * wide + EDGE, EDGE + (row + 0.75) * HEIGHT
                strip.append(f'<use href="#l{name}" x="{x:g}" y="{y:g}"/>')
    total = EACH * (len(frames) - 1) + LAST
    steps = "".join(
        f"{100 * EACH * i / total:.3f}%{{transform:translateX({-i * wide:g}px)}}"
        for i in range(len(frames))
    )
    defs = "".join(f'<text id="l{i}">{drawn}</text>' for drawn, i in lines.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" '
        f'width="{wide:g}" height="{high:g}"><style>text{{font:14px ui-monospace,Menlo,Consolas,'
        f'"DejaVu Sans Mono",monospace;white-space:pre}}#strip{{animation:film {total:g}s '
        f"step-end infinite}}@keyframes film{{{steps}}}@media(prefers-reduced-motion){{#strip"
        f"{{animation:none}}}}</style><defs>{defs}</defs>"
        f'<rect width="100%" height="100%" rx="8" fill="#1e2127"/>'
        f'<g id="strip" transform="translate({-(len(frames) - 1) * wide:g} 0)">{"".join(strip)}</g>'
        "</svg>\n"
    )


def _line(runs: list[Run]) -> str:
    """A line as spans, each at the column where it begins; "" for an empty one."""
    column, spans = 0, []
    for text, colour, bold in runs:
        if text.strip():
            weight = ' font-weight="bold"' if bold else ""
            width = f' textLength="{len(text) * WIDTH:g}" lengthAdjust="spacingAndGlyphs"'
            place = f'x="{column * WIDTH:g}" fill="{colour}"{weight}{width}'
            spans.append(f"<tspan {place}>{html.escape(text)}</tspan>")
        column += len(text)
    return "".join(spans)


if __name__ == "__main__":
    out, _, *argv = sys.argv[1:]
    Path(out).write_text(svg(thinned(list(screens(argv)))), encoding="utf-8")
