"""Stored completions judged again, and what readers are shown made anew of what there is.

Judged are the completions that were trained on and those of evaluations, with the run's own rewards
and options, on the rows that they were sampled for and the episodes that the run kept of them; a
score that is another now is named. Made anew are the figures of evaluations, overlaps, the
comparison with control arms, and the report. Where a judgement cannot be repeated, as by a reward
that reads token ids or whose server is gone, that is said, and nothing is held against the run.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rl_reasoner.audit.findings import (
    AuditFinding,
    as_finding,
    counted,
    differs,
    held,
    listed,
    unchecked,
)
from rl_reasoner.audit.known import Known
from rl_reasoner.audit.records import (
    NOT_OF_RUN,
    is_of_run,
    result_files,
    sampled_steps,
    saved_result,
)
from rl_reasoner.audit.versions import maker_of, moved_sets, same_code
from rl_reasoner.dataset.code_rows import continuing
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.evaluation.monitor import measure_overlaps
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import sha256_of
from rl_reasoner.foreign import json_object, mapping, number
from rl_reasoner.judging.trial import OPINIONS
from rl_reasoner.pipeline.controls import evaluated_around, facts_of_arm
from rl_reasoner.pipeline.inputs import read_stage_rows, trl_columns
from rl_reasoner.pipeline.lineage import data_in
from rl_reasoner.pipeline.lock import evaluated_sets
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.rescore import row_of
from rl_reasoner.pipeline.run_folder import HASHES
from rl_reasoner.pipeline.trl_configs import config
from rl_reasoner.recipe.data import StageData, TaskData, data_sources
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.report.controls import CONTROLS_FILE, against_controls
from rl_reasoner.report.page import build_page
from rl_reasoner.report.run_data import RunData, read_run
from rl_reasoner.rollout.episodes.kept import NOT_KEPT, episodes_column, known_rows
from rl_reasoner.scoring.batch import APPLIES, POLICY_TEXT, columns_of_rows, score_own_rows
from rl_reasoner.scoring.outcome import outcome_json
from rl_reasoner.scoring.registry import is_url
from rl_reasoner.scoring.reward import GROUPS, Reward, name_of
from rl_reasoner.scoring.runner import SEEDS
from rl_reasoner.scoring.trl_form import OF_TRAINER
from rl_reasoner.training.reward_pass import seeds_of_rows
from rl_reasoner.trust import runs_code
from rl_reasoner.types import Row

_FROM_ROWS = {
    "lenient", "thinking", "by", "mean_length", "length", "by_length", "standard_error",
    "pass_at", "pass_at_interval", "maj_at", "maj_at_interval",
}  # fmt: skip
"""Figures that rows give, or not: what else stands beside them is a setting, or told by a mark."""
_TOKENS = ("completion_ids", *OF_TRAINER)
_OPINION = "is the opinion of a model or a server, which is not asked again"
_CLOSE = 1e-6


@dataclass
class _Again:
    """The judgements of one reward: how many are the same, the first that is not."""

    same: int = 0
    other: int = 0
    first: str = ""
    failed: Counter[str] = field(default_factory=Counter)  # why some are not judged now

    def add(self, before: Mapping[str, Any], now: Mapping[str, Any], at: str) -> None:
        if now["outcome"] == "fault" and before.get("outcome") != "fault":
            self.failed[str(now["reason"])] += 1
        elif _alike(before, now):
            self.same += 1
        else:
            self.other += 1
            self.first = self.first or f"{at}: {_worth(before)} in the run, {_worth(now)} now"

    def findings(self, part: str, name: str, where: str, here: bool) -> Iterator[AuditFinding]:
        """How it ended; `here`: this is the code that the run was made with."""
        if self.other:
            all_, may = self.same + self.other, "" if here else ", by other code than the run's"
            yield differs(part, f"{where}: {name}, {self.first} ({self.other:,} of {all_:,}){may}")
        elif self.same:
            judged = counted(self.same, "completion")
            yield held(part, f"{where}: {name} scores {judged} as in the run")
        for why, count in self.failed.most_common(1):
            rest = f"{counted(self.failed.total(), 'completion')} could not be judged here"
            yield unchecked(part, f"{where}: {name}, {rest}: {why:.200}" if count else rest)


def _alike(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    a, b = number(before.get("value")), number(now.get("value"))
    if before.get("outcome") != now["outcome"]:
        return False
    return a == b if a is None or b is None else abs(a - b) <= _CLOSE * max(1.0, abs(a))


def _worth(score: Mapping[str, Any]) -> str:
    value = score.get("value")
    return str(score.get("outcome")) if value is None else f"{value:g}"


def rejudge_stage(
    run: Path,
    folder: Path,
    recipe: Recipe,
    stage: GrpoStage,
    known: Known,
    placement: Placement,
) -> Iterator[AuditFinding]:
    """Every completion that `stage` was trained on, by every reward of the recipe."""
    if not (folder / "rollouts.jsonl").is_file():
        return
    for name, error in known.refused.items():
        why = f"{name} {_OPINION}" if _is_opinion(name) else "; ".join(error.messages)
        yield unchecked("completions", f"stage {stage.name}: {why}")
    rows = stage_rows(run, recipe, stage, known)
    again = {name: _Again() for name in known.rewards}
    rewards = dict(known.rewards)
    for name, fn in known.rewards.items():
        why = _unrepeatable(name, fn)
        if why:
            del rewards[name], again[name]
            yield unchecked("rewards", f"stage {stage.name}: {name} {why}")
    rewards = {name: continuing(fn, rows) for name, fn in rewards.items()}
    passes = config(recipe, stage, folder, placement).gradient_accumulation_steps
    lost = 0
    for step, rollouts in sampled_steps(folder):
        own = [row_of(rollout, rows) for rollout in rollouts]
        lost += sum(row is None for row in own)
        pairs = [(r, row) for r, row in zip(rollouts, own, strict=True) if row is not None]
        place = recipe.run.seed, True, step - 1, (step - 1) * passes, 0, 0
        seeds = seeds_of_rows(place, len(rollouts))
        kept = [seed for seed, row in zip(seeds, own, strict=True) if row is not None]
        played = episodes_column(recipe, [rollout for rollout, _ in pairs])
        columns = {**_columns(pairs, kept), **played}
        for name, fn in rewards.items():
            _judge_step(fn, pairs, columns, again[name], f"step {step}")
    where, here = f"stage {stage.name}", same_code(run)
    for name, judged in again.items():
        yield from judged.findings("completions", name, where, here)
    if lost:
        yield _lost(run, recipe, stage, lost)


def _judge_step(
    fn: Callable[..., Any],
    pairs: Sequence[tuple[Row, Row]],
    columns: Mapping[str, Any],
    again: _Again,
    at: str,
) -> None:
    """The completions of a step, each with its row, by one reward."""
    known = known_rows(fn, columns, columns[GROUPS])
    again.failed.update([NOT_KEPT] * (len(pairs) - len(known)))
    if not known:
        return
    texts = [pairs[i][0]["completion"] for i in known]
    outcomes = score_own_rows(fn, texts, columns_of_rows(columns, known, len(pairs)))
    for i, outcome in zip(known, outcomes, strict=True):
        before = mapping(pairs[i][0]["scores"].get(name_of(fn)))
        again.add(before, outcome_json(outcome), f"{at}, row {i + 1}")


def _lost(run: Path, recipe: Recipe, stage: GrpoStage, count: int) -> AuditFinding:
    """Completions whose rows are not in the data, which another version may have made."""
    said = f"stage {stage.name}: {counted(count, 'completion')} of rows that the data do not have"
    sources, moved = data_sources(recipe.data_of(stage)), moved_sets(run)
    if not same_code(run) and all(_may_be_others(one, moved) for one in sources):
        return unchecked("data", f"{said}: this version makes others than {maker_of(run)}")
    return differs("data", said)


def _may_be_others(source: Any, moved: frozenset[str]) -> bool:
    """Whether another version may make other rows of a source: tasks, and sets that have moved."""
    return isinstance(source, TaskData) or getattr(source, "path", "") in moved


def stage_rows(run: Path, recipe: Recipe, stage: GrpoStage, known: Known) -> list[Row]:
    """The rows that `stage` was trained on; raises `UserError` where they are not here."""
    if not any(isinstance(source, StageData) for source in data_sources(recipe.data_of(stage))):
        return known.rows_of(stage.name)
    return read_stage_rows(recipe, stage, data_in(run, recipe, stage), known.named)


def _columns(pairs: Sequence[tuple[Row, Row]], seeds: list[int]) -> dict[str, Any]:
    names = {name: None for _, row in pairs for name in row if name not in ("prompt", "completion")}
    columns: dict[str, Any] = {name: [row.get(name) for _, row in pairs] for name in names}
    if not any(columns.get(APPLIES, ())):
        columns.pop(APPLIES, None)
    own = [rollout.get(POLICY_TEXT) for rollout, _ in pairs]
    given = {"prompts": [r["prompt"] for r, _ in pairs], SEEDS: seeds, POLICY_TEXT: own}
    given[GROUPS] = [str(rollout.get("group")) for rollout, _ in pairs]
    return {**columns, **given, **trl_columns(len(pairs))}


def _unrepeatable(name: str, fn: Callable[..., Any]) -> str:
    """Why a reward cannot be asked again, in words; empty where it can."""
    if _is_opinion(name):
        return _OPINION
    taken: Iterable[str] = ()
    if isinstance(fn, Reward):
        taken = (*fn.columns, *fn.missing)
    else:
        with suppress(TypeError, ValueError):
            taken = inspect.signature(fn).parameters
    return "reads what only a trainer has" if any(n in _TOKENS for n in taken) else ""


def _is_opinion(name: str) -> bool:
    return name in OPINIONS or is_url(name)


def check_results(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """Every evaluation: its rows judged again, its figures computed again from its rows."""
    for name in ("before", "after") if recipe.evals.sets else ():
        if not (run / "evals" / f"{name}.json").is_file():
            yield unchecked("results", f"evals/{name}.json is not there")
    for file in result_files(run):
        name, found = file.relative_to(run).as_posix(), list[AuditFinding]()
        with as_finding("results", found):
            found += _result(file, name, same_code(run))
        own = is_of_run(name, recipe)
        yield from found if own else map(_excused, found)


def _excused(finding: AuditFinding) -> AuditFinding:
    """What was found of a file that is not of the run: it is told, and the run is none the less."""
    if finding.status != "differs":
        return finding
    return unchecked(finding.part, f"{finding.said} ({NOT_OF_RUN})")


def _result(file: Path, name: str, here: bool) -> Iterator[AuditFinding]:
    """One evaluation; `here`: its version is this one, else it may lack figures that are new."""
    saved = saved_result(file)
    if not saved.rows:
        yield unchecked("results", f"{name} has no rows: {file.stem}.rows.jsonl is not there")
        return
    rows_of = {label: _rows_of(saved, label) for label in saved.sets}
    wrong = [f"{label} has figures, and no rows" for label, rows in rows_of.items() if not rows]
    given = {label: compute_figures(rows) for label, rows in rows_of.items() if rows}
    wrong += [
        f"{label}: {key} is {saved.sets[label][key]!r:.40}, which its rows do not give"
        for label, figures in given.items()
        for key in sorted(saved.sets[label].keys() & _FROM_ROWS - figures.keys())
        if here
    ]
    wrong += [
        f"{label}: {key} is {saved.sets[label].get(key)}, its rows give {value}"
        for label, figures in given.items()
        for key, value in figures.items()
        if (here or key in saved.sets[label]) and not same_values(value, saved.sets[label].get(key))
    ]
    if wrong:
        yield differs("results", f"{name}, {wrong[0]:.300} ({counted(len(wrong), 'figure')})")
    else:
        yield held("results", f"{name}: its figures are those of its rows")
    if why := _unrepeatable(str(saved.settings.get("reward")), replay):
        yield unchecked("results", f"{name}: its judge {why}")
        return
    judged = _Again()
    again = replay(saved, run_its_code=runs_code())
    for label, rows in saved.rows.items():
        for i, (row, now) in enumerate(zip(rows, again.rows[label], strict=True), 1):
            both = zip(_verdicts(row), _verdicts(now), strict=True)
            for before, after in both:
                judged.add(before, after, f"{label}, row {i}")
    yield from judged.findings("results", "the judge", name, here)


def _rows_of(saved: EvalResult, label: str) -> list[Row]:
    """The rows that the figures of `label` are of: of `SET@clean`, those that share nothing."""
    base, clean, rest = label.rpartition("@clean")
    if label in saved.rows or not clean or rest:
        return saved.rows.get(label, [])
    rows = saved.rows.get(base, [])
    return [row for row in rows if not mapping(row.get("overlap") or {}).get("contaminated")]


def _verdicts(row: Row) -> list[dict[str, Any]]:
    keys = ("scores", "outcomes", "reasons")
    lists = zip(*(row[key] for key in keys), strict=True)
    return [{"value": v, "outcome": o, "reason": r} for v, o, r in lists]


def same_values(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, numbers up to the last digits."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_values(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = zip(one, other, strict=False)
        return len(one) == len(other) and all(same_values(a, b) for a, b in pairs)
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and abs(one - other) <= 1e-9 * max(1.0, abs(one))
    return bool(one == other)


# ------------------------------------------------------------------ what readers are shown


def check_overlaps(run: Path, recipe: Recipe, known: Known) -> Iterator[AuditFinding]:
    """What training rows and evaluated sets have in common, counted again."""
    file = run / "contamination.json"
    if not file.is_file():
        return
    rows = [row for stage in recipe.stages for row in known.rows_of(stage.name)]
    names = evaluated_sets(recipe)
    moved = moved_sets(run)
    if tested := moved & {*names}:
        said = f"{file.name}: {', '.join(sorted(tested))}, which is other in this version"
        yield unchecked("results", said)
        return
    what = f"{file.name}: rows that are trained and tested on"
    found = _compared(what, json_object(file), measure_overlaps(rows, names))
    trained = [one for stage in recipe.stages for one in data_sources(recipe.data_of(stage))]
    others = not same_code(run) and any(_may_be_others(one, moved) for one in trained)
    if found.status == "differs" and others:
        found = unchecked("results", f"{what}: this version trains on others than {maker_of(run)}")
    yield found


def check_controls(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """The comparison with the control arms, from the evaluations' rows."""
    file = run / CONTROLS_FILE
    if not recipe.controls or recipe.controlled is None:
        return
    if not file.is_file():
        yield unchecked("results", f"{file.name} is not there: the arms are not compared yet")
        return
    stage, names = recipe.controlled, evaluated_around(recipe)
    before, after = (EvalResult.load(run / "evals" / f"{name}.json") for name in names)
    folders = {str(name): run / "controls" / name for name in recipe.controls}
    arms = {name: EvalResult.load(at / "evals" / "after.json") for name, at in folders.items()}
    facts = {name: facts_of_arm(at) for name, at in folders.items()}
    now = against_controls(stage.name, before, after, arms, facts)
    what, kept = f"{file.name}: treatment minus control", json_object(file)
    if not same_code(run) and not same_values(kept, now):
        yield unchecked("results", f"{what}, which another version counted")
        return
    yield _compared(what, kept, now)


def _compared(what: str, kept: Mapping[str, Any], now: Mapping[str, Any]) -> AuditFinding:
    if same_values(kept, now):
        return held("results", f"{what}, as counted again")
    return differs("results", f"{what}, is different when it is counted again")


def _without_others(data: RunData, recipe: Recipe) -> RunData:
    """What a report shows of a run, without evaluations that are not of the run."""

    def own(name: str) -> bool:
        return not name.startswith("evals/") or is_of_run(name, recipe)

    evals = [one for one in data.evals if own(f"evals/{one.name}.json")]
    return replace(data, evals=evals, unreadable=[*filter(own, data.unreadable)])


def check_report(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """report.html against the page that the run's files make: the same files, the same bytes.

    Evaluations that are not of the run are in it or not: a user may write the page again.
    """
    file = run / "report.html"
    if not file.is_file():
        yield unchecked("report", "there is no report.html")
        return
    kept = json_object(run / HASHES).get(file.name) if (run / HASHES).is_file() else None
    other_code = not same_code(run)
    shown = run.parent / file.name  # of a published folder: the page that is opened
    published = run.name == "run" and (run.parent / "audit.json").is_file() and shown.is_file()
    if published and shown.read_bytes() != file.read_bytes():
        yield differs("report", f"{shown} is not the run's own report.html")
    data, shown_page = read_run(run), file.read_text(encoding="utf-8", errors="replace")
    own = _without_others(data, recipe)
    others = [one.name for one in data.evals if one not in own.evals]
    if shown_page == build_page(own):
        yield held("report", "report.html is the page that the run's files make, byte by byte")
    elif others and shown_page == build_page(data):
        yield held("report", "report.html is the page that all files here make, byte by byte")
        yield unchecked("report", f"it shows what is {NOT_OF_RUN}: {listed(others)}")
    elif other_code and kept == sha256_of(file):
        yield held("report", "report.html is as the run left it; other code than this made it")
    elif other_code and kept is None:
        yield unchecked("report", "report.html was made by other code than this: write it again")
    elif kept is None and not (run / "policy" / "config.json").is_file():
        yield unchecked("report", "report.html is of an earlier moment of a run that goes on")
    else:
        yield differs("report", "report.html is not the page that the run's files make")
