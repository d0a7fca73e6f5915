"""A grpo stage's forecast beside what happened, as a part of its section of the report.

What a run wrote in its first steps (`forecast.json`) stands in one column, what its metrics came to
in the other. Taken as found: what is missing or of the wrong kind is left out.
"""

from collections.abc import Iterator
from statistics import fmean

from rl_reasoner.evaluation.forecast import reward_moved
from rl_reasoner.evaluation.formatting import duration, short_number
from rl_reasoner.foreign import mapping, number
from rl_reasoner.report.html import Child, Element, h, note, table
from rl_reasoner.report.run_data import StageRecord


def forecast_table(stage: StageRecord) -> Element | None:
    """The forecast of `stage` beside its outcome; None where nothing was forecast."""
    rows = [row for row in _rows(stage) if row[1]]
    sentence = stage.forecast.get("sentence")
    if not rows or not isinstance(sentence, str):
        return None
    return h(
        "div",
        h("h3", "Forecast and outcome"),
        h("p", f"{sentence[:1].upper()}{sentence[1:]}."),
        table(["", "forecast", "outcome"], rows),
        note(_remark(stage)),
        class_="forecast",
    )


def _rows(stage: StageRecord) -> Iterator[list[Child]]:
    made, outcome = stage.forecast, mapping(stage.forecast.get("outcome"))
    moved = reward_moved(stage.series("reward")[1]) if outcome else None
    expected = {"up": "learns", "none": "does not learn"}.get(str(made.get("direction")))
    yield ["Direction", expected, f"the reward {moved}" if moved else "–"]
    yield ["Time", *_times(stage)]
    completions = number(made.get("completions"))
    useful = number(made.get("useful_completions"))
    flat = stage.series("frac_reward_zero_std")[1]
    if useful is not None and completions:
        seen = short_number((1 - fmean(flat)) * completions) if flat and outcome else "–"
        yield ["Useful completions per step", short_number(useful), seen]
    if (tokens := number(made.get("last_length"))) is not None:
        became = stage.series("completions/mean_length")[1] if outcome else []
        last = became[-max(1, len(became) // 10) :]  # of the last tenth of the batches
        said = short_number(fmean(last)) if last else "–"
        yield ["Tokens of a completion at the end", short_number(tokens), said]


def _remark(stage: StageRecord) -> str:
    """Where the forecast is from, and what the evaluation of the run can show."""
    made_of, least = stage.forecast.get("of"), mapping(stage.forecast.get("detectable"))
    said = f"Forecast from {made_of} of the stage." if isinstance(made_of, str) else ""
    shares = {name: number(share) for name, share in least.items()}
    points = [f"{100 * share:.1f} points on {name}" for name, share in shares.items() if share]
    return (
        f"{said} Least gain that the evaluations can show: {', '.join(points)}." if points else said
    )


def _times(stage: StageRecord) -> tuple[str | None, str]:
    """The minutes of the stage; of one that was interrupted those of its steps alone."""
    planned, outcome = (mapping(stage.forecast.get(name)) for name in ("minutes", "outcome"))
    whole, took = number(planned.get("stage")), number(outcome.get("minutes"))
    if outcome and took is None:
        whole, took = number(planned.get("steps")), number(outcome.get("minutes_of_steps"))
    said = duration(60 * whole) if whole is not None else None
    if took is None:
        return said, "–"
    ratio = f", {took / whole:.2f} of the forecast" if whole else ""
    return said, f"{duration(60 * took)}{ratio}"
