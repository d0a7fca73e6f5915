"""Which completions a page's browser offers: a run's rollouts by stage, its evaluations by set."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rl_reasoner.report.browse import Entry, EntrySource, entry_of, evaluated, experts_of
from rl_reasoner.report.run_data import RunData, StageRecord
from rl_reasoner.report.stages import layers_of

SetRows = Mapping[str, Sequence[Mapping[str, Any]]]  # by set


def run_sources(run: RunData) -> list[EntrySource]:
    """The sources of a run, rollouts of the last stage first."""
    rollouts = [source for stage in reversed(run.stages) if (source := _rollouts(stage))]
    return rollouts + evaluations([(e.name, e.rows) for e in run.evals])


def _rollouts(stage: StageRecord) -> EntrySource | None:
    kept = stage.rollouts
    if kept is None or not kept.samples:
        return None
    entries = [entry_of(sample) for sample in kept.samples]
    steps = {sample.step for sample in kept.samples}
    note = ""
    if len(entries) < kept.completions:
        note = f"{len(entries):,} of {kept.completions:,} are in this page: "
        note += f"{len(steps):,} of {kept.steps:,} steps, evenly spread."
    return EntrySource(
        key=f"stage-{stage.index}-rollouts",
        name=f"Training · {stage.name}",
        entries=entries,
        note=note,
        place=f"stage-{stage.index}",
        experts=experts_of(stage.metrics, layers_of(stage), steps),
        end=kept.end,
    )


def evaluations(named: Iterable[tuple[str, SetRows]]) -> list[EntrySource]:
    """A source for each set, with the completions of every evaluation (name, rows) that has it."""
    entries: dict[str, list[Entry]] = {}
    for name, rows in named:
        for label, rows_of_set in rows.items():
            entries.setdefault(label, []).extend(evaluated(name, rows_of_set))
    return [
        EntrySource(f"set-{index}", f"Evaluation · {label}", by_problem(rows_of_set), place=label)
        for index, (label, rows_of_set) in enumerate(entries.items())
        if rows_of_set
    ]


def by_problem(entries: Iterable[Entry]) -> list[Entry]:
    """Entries with those of one problem together, in the problems' order."""
    places: dict[str, list[Entry]] = {}
    for entry in entries:
        places.setdefault(entry.group, []).append(entry)
    return [entry for group in places.values() for entry in group]
