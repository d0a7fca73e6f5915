"""Why a test did not pass, in one line for people: no verdict is made of it.

Much of it is what a hostile program said. So it is cut and escaped, and of a value only its plain
parts are shown: nothing of the program is asked for them. Runs in a judge, too (`judging`), so it
knows `data` alone.
"""

from contextlib import suppress
from itertools import zip_longest
from types import TracebackType
from typing import Any

from rl_reasoner.sandbox import data

_MOST = 400
_VALUE = 80  # characters of one value
_BEFORE = 20  # characters of a long value that are shown before the first difference
_LINE = 120
_ITEMS = 8
_DEPTH = 3
_SHORT = 400  # bytes of a value that is read to be shown as Python writes it
_BITS = 1000
_READ = 100_000  # characters of a value that are compared


def one_line(text: str) -> str:
    """`text` on one line, cut, with escapes for what is no printable character."""
    cut = text[:_MOST]
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)[:_MOST]
    return shown + "…" if len(text) > _MOST else shown


def of_error(error: BaseException, test: str, file: str, given: list[object]) -> str:
    """What ended the code `test`, and at which of its lines; its frames are those of `file`.

    Of an assertion that failed, also what the program's last call gave, where `given` has it.
    """
    told = ", ".join(arg if type(arg) is str else _shown(arg) for arg in error.args[:3])
    failed = type(error) is AssertionError
    kind = "" if failed else type(error).__name__
    line = _line(error.__traceback__, test, file)
    parts = [": ".join(part for part in (kind, told[: 2 * _VALUE]) if part)]
    parts += [f"at `{line}`"] if line else []
    parts += [f"where the last call gave {_shown(value)}" for value in given[-1:] if failed]
    return " ".join(filter(None, parts))


def of_values(name: str, answer: bytes, expected: data.Tree) -> str:
    """What a call gave beside what was expected."""
    texts = [answer, data.dump(expected)]
    got, wanted = (text.decode(errors="replace") for text in texts)
    if max(map(len, texts)) <= _SHORT:
        with suppress(data.Malformed, ValueError, RecursionError):
            got, wanted = (repr(data.decode(data.load(text))) for text in texts)
    return "{} gave {}, expected {}".format(name, *_around_difference(got, wanted))


def of_output(said: list[str], expected: list[str]) -> str:
    """The first line of an output that is not as expected."""
    for number, (got, wanted) in enumerate(zip_longest(said, expected), 1):
        if got != wanted:
            texts = _around_difference(got or "", wanted or "")
            shown = [
                "nothing" if line is None else repr(text)
                for line, text in zip((got, wanted), texts, strict=True)
            ]
            return f"line {number}: printed {shown[0]}, expected {shown[1]}"
    return ""


def _line(trace: TracebackType | None, test: str, file: str) -> str:
    """The line of a test in the innermost of its frames."""
    number = 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            number = trace.tb_lineno or 0
        trace = trace.tb_next
    lines = test.split("\n")
    return lines[number - 1].strip()[:_LINE] if 0 < number <= len(lines) else ""


def _around_difference(got: str, wanted: str) -> list[str]:
    """Two texts, each cut to the part where they begin to differ."""
    pairs = enumerate(zip(got[:_READ], wanted[:_READ], strict=False))
    alike = next((at for at, (a, b) in pairs if a != b), min(len(got), len(wanted), _READ))
    start = max(0, alike - _BEFORE)
    if max(len(got), len(wanted)) <= _VALUE:
        start = 0
    before = "…" if start else ""
    parts = [(text, text[start : start + _VALUE]) for text in (got, wanted)]
    return [before + part + ("…" if start + _VALUE < len(text) else "") for text, part in parts]


def _shown(value: object, depth: int = 0) -> str:
    """A plain value, in part; of any other only its type, for its methods may be the program's."""
    plain: Any = value
    kind = type(value)
    if kind is str:
        return repr(plain[:_VALUE])
    if value is None or kind in (bool, float) or (kind is int and plain.bit_length() < _BITS):
        return repr(value)
    if kind in (list, tuple) and depth < _DEPTH:
        items = [_shown(item, depth + 1) for item in plain[:_ITEMS]]
        inside = ", ".join(items + ["…"] * (len(plain) > _ITEMS))
        return f"[{inside}]" if kind is list else f"({inside})"
    return f"<{kind.__name__}>"
