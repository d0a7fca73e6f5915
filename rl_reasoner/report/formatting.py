"""How figures are written, on the report page and in the terminal."""

_UNITS = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


def percent(share: float | None) -> str:
    """A share of 1 as "71.3%"; "–" for None."""
    return "–" if share is None else f"{100 * share:.1f}%"


def span(interval: tuple[float, float] | None) -> str:
    """An interval of shares as "66.6–75.4%"; empty for None."""
    return "" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}%"


def short_number(value: float | None) -> str:
    """A figure with some three digits that count, large ones as "12.3k", "4.1M"; "–" for None."""
    if value is None:
        return "–"
    size, unit = next(((s, u) for least, s, u in _UNITS if abs(value) >= least), (1.0, ""))
    scaled = value / size
    text = f"{scaled:,.0f}" if 99.95 <= abs(scaled) < 1e5 else f"{scaled:.3g}"
    return (text + unit).replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign: "+1.0", "−0.5"."""
    return f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as "2 h 05 min", "3 min 07 s" or "12.3 s"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
