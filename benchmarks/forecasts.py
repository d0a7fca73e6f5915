"""Forecasts of finished runs beside what then happened, as a Markdown table.

    python benchmarks/forecasts.py RUN [RUN ...] [--again]

A row is a grpo stage with a forecast. Learned: the paired test between the evaluations before and
after finds a gain (p < 0.05) on the first set, in samples where it was sampled; of a run with
several grpo stages, or without evaluations, that the stage's reward rose. Minutes are the whole
stage's with the evaluations in it; of a stage that was interrupted those of its steps alone.

With `--again` the minutes are forecast once more, by the code as it is now and from the same first
steps; the evaluations among the steps take the time that was forecast for them.
Beside the directions that were right stands what always saying "likely to learn" would have had.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rl_reasoner.foreign import mapping, number
from rl_reasoner.pipeline.forecaster import first_steps, forecast_from
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.report.paired import add_paired_tests
from rl_reasoner.report.run_data import Paired, RunData, StageRecord, read_run

HEAD = (
    "| run, seed | forecast | what happened | direction | minutes: forecast | took | ratio |\n"
    "|---|---|---|---|---|---|---|"
)
SURE = 0.05


def tested(run: RunData) -> tuple[str, Paired] | None:
    """The first set after training that has a paired test, its samples before its greedy answer."""
    after = next((e for e in run.evals if e.name == "after"), None)
    sets = {name: figures.paired for name, figures in after.sets.items()} if after else {}
    first = next(iter(sets), "")
    for name in (f"{first}@sampled", first):
        if (test := sets.get(name)) is not None:
            return name, test
    return None


def outcome(run: RunData, stage: StageRecord, alone: bool) -> tuple[str, bool | None]:
    """What happened in words, and whether the stage learned (None: not known)."""
    if alone and (found := tested(run)) is not None:
        name, test = found
        p = "p < 0.0001" if test.p < 1e-4 else f"p {test.p:.2g}"
        words = f"{100 * test.difference:+.1f} points on {name}, {p}"
        return words, test.p < SURE and test.difference > 0
    moved = mapping(stage.forecast.get("outcome")).get("reward")
    return f"the reward {moved}" if moved else "–", None if moved is None else moved == "rose"


def minutes(stage: StageRecord) -> tuple[float | None, float | None]:
    """(forecast, taken)."""
    planned, took = (mapping(stage.forecast.get(name)) for name in ("minutes", "outcome"))
    if (whole := number(took.get("minutes"))) is not None:
        return number(planned.get("stage")), whole
    return number(planned.get("steps")), number(took.get("minutes_of_steps"))


def forecast_again(folder: Path, found: StageRecord) -> StageRecord:
    """The stage with the minutes that its first steps would be forecast now."""
    recipe = load_recipe(str(folder / "recipe.yaml"))
    [stage] = [s for s in recipe.stages if isinstance(s, GrpoStage) and s.name == found.name]
    [at] = (folder / "stages").glob(f"*-{found.name}")
    first = found.metrics[: first_steps(stage)]
    made = forecast_from(recipe, stage, at, first, sum(row["step_time"] for row in first), 0.0)
    if made is None:
        return found
    among = number(mapping(found.forecast.get("minutes")).get("validation")) or 0.0
    minutes = {**made.minutes, "stage": made.minutes["stage"] + among}
    return replace(found, forecast={**found.forecast, "minutes": minutes})


def rows(folder: Path, again: bool) -> Iterator[tuple[str, tuple[bool, bool] | None, float | None]]:
    """(row, (forecast to learn, learned), minutes taken over forecast) of each forecast in a run.

    The second is None where it is not known whether the stage learned.
    """
    run = add_paired_tests(read_run(folder))
    stages = [stage for stage in run.stages if stage.forecast]
    stages = [forecast_again(folder, stage) for stage in stages] if again else stages
    for stage in stages:
        words, learned = outcome(run, stage, alone=len(stages) == 1)
        up = stage.forecast.get("direction") == "up"
        right = None if learned is None else learned == up
        planned, took = minutes(stage)
        ratio = took / planned if took and planned else None
        name = f"{run.name}, {mapping(run.recipe.get('run')).get('seed')}"
        cells = [
            name if len(stages) == 1 else f"{name}: {stage.name}",
            str(stage.forecast.get("sentence")),
            words,
            {True: "right", False: "wrong", None: "–"}[right],
            *("–" if value is None else f"{value:.1f}" for value in (planned, took)),
            "–" if ratio is None else f"{ratio:.2f}",
        ]
        yield f"| {' | '.join(cells)} |", None if learned is None else (up, learned), ratio


def conclusion(judged: Sequence[tuple[bool, bool]], ratios: Sequence[float]) -> str:
    """What it comes to: directions beside those of a forecast that is always up, then minutes."""
    right, always = sum(up == learned for up, learned in judged), sum(b for _, b in judged)
    near = sum(factor <= 1.5 for factor in ratios)
    return (
        f'direction right in {right} of {len(judged)} (always "likely": {always}); minutes within '
        f"a factor of 1.5 in {near} of {len(ratios)}"
        + (f", worst {max(ratios):.2f}" if ratios else "")
    )


def main() -> None:
    """Print the table of the runs that are given, and what it comes to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--again", action="store_true", help="forecast the minutes once more")
    given = parser.parse_args()
    print(HEAD)
    judged: list[tuple[bool, bool]] = []
    ratios: list[float] = []
    for folder in given.runs:
        for row, told, ratio in rows(folder, given.again):
            print(row)
            judged += [told] if told is not None else []
            ratios += [max(ratio, 1 / ratio)] if ratio else []
    print(f"\n{conclusion(judged, ratios)}")


if __name__ == "__main__":
    main()
