"""How figures are written: on pages, in the terminal, in sentences and in the page's charts.

One rule of rounding for all of them: the nearest, and of two equally near ones the even. JavaScript
takes the larger of those, so `charts.js` has its own `percent` and `short`, and a test holds them
to these: a share that stands in a table, under a curve and in a sentence reads the same.
"""

import math
from collections.abc import Sequence

_UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


NAME_WIDTH = 26  # columns of the first column of a text table, which has 80 in all


def with_name(name: str, line: str) -> list[str]:
    """`line` of a text table with `name` in its first column, or under it where it is too long."""
    if len(name) <= NAME_WIDTH:
        return [name + line[len(name) :]]
    return [name, line]


def fixed(value: float, digits: int = 1) -> str:
    """`value` with so many decimals: "1,234.5", "−0.5"."""
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1 as "71.3%"; "–" for None."""
    return "–" if share is None else f"{fixed(100 * share, digits)}%"


def span(interval: tuple[float, float] | None) -> str:
    """An interval of shares as "66.6–75.4%"; empty for None."""
    return "" if interval is None else f"{fixed(100 * interval[0])}–{fixed(100 * interval[1])}%"


def bracketed(interval: Sequence[float] | None) -> str:
    """An interval of shares in percent, as tables have it: "[66.6, 75.4]"; empty for None."""
    return f"[{fixed(100 * interval[0])}, {fixed(100 * interval[1])}]" if interval else ""


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: "+1.0", "−0.5", "0.0"."""
    text = fixed(value, digits)
    return text if text.startswith("−") or not text.strip("0.,") else f"+{text}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign: "+13.6"."""
    return signed(100 * difference)


def points_span(interval: tuple[float, float]) -> str:
    """An interval of differences of shares, in points: "[+9.4, +17.8]"."""
    return f"[{points(interval[0])}, {points(interval[1])}]"


def p_value(p: float) -> str:
    """A p-value with two digits that count: "0.0097", "< 0.0001"."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def short_number(value: float | None) -> str:
    """A figure with some three digits that count, large ones as "12.3k", "4.1M".

    "–" for None; "nan", "inf" and "-inf" as they are.
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    size, unit = next(((s, u) for least, s, u in _UNITS if abs(value) >= least), (1.0, ""))
    scaled = value / size
    if 99.95 <= abs(scaled) < 1e5:
        return fixed(scaled, 0) + unit
    return _three(scaled) + unit


def _three(value: float) -> str:
    """`value` with three digits that count and no zeros behind them: "0.0123", "6.1e-5"."""
    mantissa, e, power = f"{value:.3g}".partition("e")
    return (f"{mantissa}e{int(power)}" if e else mantissa).replace(
        "-", "−" if value < 0 else "-", 1
    )


def duration(seconds: float) -> str:
    """Seconds as "2 h 05 min", "3 min 07 s" or "12.3 s"."""
    if seconds < 59.95:
        return f"{fixed(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
