"""A run as a notebook shows it: what the gain is, before against after, curves, two groups.

The same figures and words as the report page, in a few screens without scripts: text is escaped,
curves are small drawings in the notebook's own colour. Knows the run's folder, nothing of torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rl_reasoner.evaluation.formatting import p_value, points, points_span, short_number
from rl_reasoner.evaluation.notebook import estimated, html_table, text
from rl_reasoner.report.charts import ends
from rl_reasoner.report.first_screen import ends_of, gains
from rl_reasoner.report.paired import add_paired_tests
from rl_reasoner.report.rollouts import Sample
from rl_reasoner.report.run_data import RunData, SetResult, StageRecord, read_run

_WIDE, _HIGH, _EDGE = 260, 90, 6
_POINTS = 200  # of a curve
_COMPLETIONS = 8  # of a group
_TEXT_SHOWN = 240
_CURVES = {
    "reward": "mean reward",
    "completions/mean_length": "length, tokens",
    "frac_reward_zero_std": "share of flat groups",
}


def run_html(folder: Path) -> str:
    """The run in `folder`; raises `UserError` where nothing of a run is in it."""
    run = add_paired_tests(read_run(folder))
    page = text(folder / "report.html")
    parts = [f"<p><b>{text(run.name)}</b>: {text(folder)}, report {page}</p>", *_results(run)]
    for stage in run.stages:
        if stage.rollouts is not None:
            parts.append(_curves(stage))
            parts += [*_groups(stage)]
    return "".join(parts)


def _results(run: RunData) -> Iterator[str]:
    """What the gain is, in words, and the table of before and after."""
    before, after = ends_of(run)
    if not before or not after:
        return
    for base, words in gains(run):
        yield f"<p><b>{text(base)}.</b> {text(words)}</p>"
    rows = [
        [text(name), _estimate(before.get(name)), _estimate(figures), _paired(figures)]
        for name, figures in after.items()
    ]
    yield html_table(["set", "before", "after", "paired difference, points"], rows)


def _estimate(figures: SetResult | None) -> str:
    if figures is None:
        return estimated(None)
    return estimated({"accuracy": figures.accuracy, "interval": figures.interval})


def _paired(figures: SetResult) -> str:
    test = figures.paired
    if test is None:
        return "–"
    moved = f"{points(test.difference)} {points_span(test.interval)}"
    return text(f"{moved}, p {p_value(test.adjusted)}")


def _curves(stage: StageRecord) -> str:
    drawn = [
        _curve(title, *stage.series(key)) for key, title in _CURVES.items() if stage.series(key)[0]
    ]
    return f"<p><b>stage {text(stage.name)}</b></p><div>{''.join(drawn)}</div>"


def _curve(title: str, steps: Sequence[int], values: Sequence[float]) -> str:
    """A line with the means of its ends in words."""
    every = max(1, len(steps) // _POINTS)
    places = [*zip(steps, values, strict=True)]
    places = [*places[:-1][::every], places[-1]]
    low, high = min(v for _, v in places), max(v for _, v in places)
    start, end = places[0][0], places[-1][0]
    first, last = ends(values)
    path = " ".join(
        f"{_EDGE + (_WIDE - 2 * _EDGE) * (step - start) / ((end - start) or 1):.1f},"
        f"{_HIGH - _EDGE - (_HIGH - 2 * _EDGE) * (value - low) / ((high - low) or 1):.1f}"
        for step, value in places
    )
    words = f"{title}: {short_number(first)} → {short_number(last)}, {end} steps"
    return (
        f'<div style="display:inline-block;margin:0 1em 1em 0"><div>{text(words)}</div>'
        f'<svg width="{_WIDE}" height="{_HIGH}" role="img" aria-label="{text(words)}">'
        f'<polyline points="{path}" fill="none" stroke="currentColor"/></svg></div>'
    )


def _groups(stage: StageRecord) -> Iterator[str]:
    """The group of the first step and of the last whose rewards differ most."""
    samples = stage.rollouts.samples if stage.rollouts else []
    steps = sorted({sample.step for sample in samples})
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.step == step:
                groups.setdefault(sample.group, []).append(sample)
        group = max(groups.values(), key=_spread)
        asked = f"step {step}: {text(group[0].prompt, _TEXT_SHOWN)} answer {text(group[0].answer)}"
        yield f"<p>{asked}</p>" + html_table(
            ["completion", "why", "reward", "advantage"], map(_row, group[:_COMPLETIONS]), left=2
        )


def _spread(group: Sequence[Sample]) -> float:
    rewards = [sample.reward for sample in group if sample.reward is not None]
    return max(rewards) - min(rewards) if rewards else -1.0


def _row(sample: Sample) -> list[str]:
    reasons: Mapping[str, str] = {name: each.reason for name, each in sample.verdicts.items()}
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    figures = [short_number(sample.reward), short_number(sample.advantage)]
    return [text(sample.completion, _TEXT_SHOWN), text(why, _TEXT_SHOWN), *figures]
