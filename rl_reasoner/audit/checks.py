"""The checks of a run, one after the other, and what each of them found."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rl_reasoner.audit import hashes, records, rejudging, replaying
from rl_reasoner.audit.findings import AuditFinding, as_finding, unchecked
from rl_reasoner.audit.known import Known, read_known
from rl_reasoner.audit.resampling import check_sampled, not_made_again
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage, TrainedStage
from rl_reasoner.scoring.registry import function_name
from rl_reasoner.scoring.reward import name_of
from rl_reasoner.trust import FLAG

BY_CODE = " (by the run's own code)"
"""What is said of a finding that code of the run has had a hand in."""


@dataclass(frozen=True)
class Replay:
    """What of a run is made again: a step of a stage (None: the last), all of it, or nothing."""

    stage: str | None = None
    step: int | None = None
    whole: bool = False
    wanted: bool = True
    quiet: bool = False


@dataclass
class Checks:
    """What each check found, by its name; `only` those are made, where any are named."""

    note: Callable[[str], None]
    only: Collection[str] = ()
    found: dict[str, list[AuditFinding]] = field(default_factory=dict)

    def make(self, part: str, what: str, check: Callable[[], Iterable[AuditFinding]]) -> None:
        """Make the check `what`; what it raises is a finding of the `part` of the run."""
        if self.only and what not in self.only:
            return
        self.note(what)
        told = {one.said for one in self.findings if not _needs_code(one)}
        found = self.found[what] = []
        with as_finding(part, found):
            for finding in check():
                found.append(finding)
        # one file that is not here stops several checks
        found[:] = [one for one in found if one.status != "unchecked" or one.said not in told]

    @property
    def findings(self) -> list[AuditFinding]:
        """All findings, in the order of the checks."""
        return [finding for found in self.found.values() for finding in found]

    def behind_code(self) -> list[str]:
        """The checks that were not made, or not all of them, for want of code of the run."""
        return [what for what, found in self.found.items() if any(map(_needs_code, found))]

    def add(self, others: Mapping[str, list[AuditFinding]]) -> None:
        """Put what code of the run came to in the place of what was not checked without it.

        That code may have made it up: nothing else that was found goes away by it.
        """
        for what, found in others.items():
            own = [one for one in self.found[what] if not _needs_code(one)]
            new = [one for one in found if one not in own]
            self.found[what] = own + [replace(one, said=one.said + BY_CODE) for one in new]


def _needs_code(finding: AuditFinding) -> bool:
    return finding.status == "unchecked" and FLAG in finding.said


def make_checks(
    run: Path, replay: Replay, note: Callable[[str], None], only: Collection[str] = ()
) -> Checks:
    """Make the checks of a run; raises `UserError` where it has no such stage or step."""
    recipe = load_recipe(str(run / "recipe.yaml"))
    wanted = replay.wanted and not replay.whole
    one, at = (
        replaying.step_to_replay(run, recipe, replay.stage, replay.step) if wanted else (None, 0)
    )
    checks = Checks(note, only)
    check = checks.make
    check("files", "hashes of files", partial(hashes.check_files, run))
    check("code", "code, rewards, data", partial(hashes.check_code, run, recipe))
    check("recipe", "what the stages are from", partial(hashes.check_stages, run, recipe))
    check("checkpoints", "checkpoints", partial(hashes.check_checkpoints, run, recipe))
    known = read_known(recipe)
    check("data", "rows and rewards", lambda: [unchecked("data", said) for said in known.errors])
    for stage in (one for one in recipe.stages if isinstance(one, GrpoStage)):
        _check_completions(checks, run, recipe, stage, known)
    check("results", "evaluations", partial(rejudging.check_results, run, recipe))
    problems_of = partial(records.check_problems, run, recipe)
    check("results", "problems of evaluations", problems_of)
    check("results", "control arms", partial(rejudging.check_controls, run, recipe))
    check("results", "overlaps", partial(rejudging.check_overlaps, run, recipe, known))
    check("report", "report", partial(rejudging.check_report, run, recipe))
    check("again", "what is not made again", partial(not_made_again, run, recipe))
    if replay.wanted:
        check("results", "evaluations, again", partial(check_sampled, run, recipe))
    if replay.whole and replay.wanted:
        replayed = partial(replaying.replay_all, run, recipe, quiet=replay.quiet)
        check("replay", "the whole run, again", replayed)
    elif isinstance(one, TrainedStage):
        title = f"stage {one.name}, step {at}, again"

        def again() -> Iterable[AuditFinding]:
            prepared = prepare(recipe, choose_placement(recipe))
            yield replaying.replay_step(run, recipe, one, at, prepared, quiet=replay.quiet)

        check("replay", title, again)
    return checks


def _check_completions(
    checks: Checks, run: Path, recipe: Recipe, stage: GrpoStage, known: Known
) -> None:
    """What a grpo stage sampled: against its ledger, and judged again."""
    folder, title = hashes.stage_folders(run, recipe)[stage.name], f"stage {stage.name}"
    ledger = partial(records.check_ledger, folder, stage.name)
    checks.make("ledger", f"{title}: ledger", ledger)
    figures = partial(_figures, folder, recipe, stage, known)
    checks.make("metrics", f"{title}: figures of steps", figures)
    told = (run, folder, recipe, stage, known, choose_placement(recipe))
    checks.make("completions", f"{title}: completions", partial(rejudging.rejudge_stage, *told))


def _figures(
    folder: Path, recipe: Recipe, stage: GrpoStage, known: Known
) -> Iterator[AuditFinding]:
    """The figures of steps; not where scores stand under a name that only a reward's code says."""
    weights = {name_of(fn): recipe.rewards[name].weight for name, fn in known.named.items()}
    guessed = {function_name(name): error for name, error in known.refused.items()}
    if guessed and (folder / "rollouts.jsonl").is_file():
        rows = (row for _, sampled in records.sampled_steps(folder) for row in sampled)
        kept = {name for row in rows for name in row["scores"]}
        for name in guessed.keys() - kept:
            said = "; ".join(guessed[name].messages)
            yield unchecked("metrics", f"stage {stage.name}: no scores of {name}: {said}")
            return
    yield from records.check_figures(folder, stage, weights)
