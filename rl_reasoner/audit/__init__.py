"""Is a run what it says it is? Its hashes held, its completions judged again, its steps made again.

`audit_run` goes through a run folder and gives findings (`findings`): `hashes` compares files with
what the run kept of them, `records` a stage's completions, ledger and metrics with each other and
what was asked with the data, `rejudging` stored completions with what the rewards say now and what
readers are shown with what it is made of, and `replaying` trains steps again from their checkpoint,
which `likeness` compares. `counterfactual` asks what one step would have been under another reward.
Nothing in the run folder is written. Stands above the pipeline, which makes the steps again.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from rl_reasoner.audit import hashes, records, rejudging, replaying
from rl_reasoner.audit.findings import Audit, AuditFinding, as_finding
from rl_reasoner.paths import check_run, no_links
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.prepare import Prepared, prepare
from rl_reasoner.policy.opening import quiet_libraries
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.scoring.reward import name_of

__all__ = ["Audit", "AuditFinding", "audit_run"]


def audit_run(
    run: Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    whole: bool = False,
    replays: bool = True,
    quiet: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Check the run in `run` in every way that this machine can.

    `step` of `stage` is made again (by default the last step of the last trained stage), or with
    `whole` all of the run; nothing where `replays` is False. `quiet`: replays show no progress;
    `note` hears of each check before it is made. Raises `UserError` where `run` is no run, or has
    no such stage or step.
    """
    quiet_libraries()
    check_run(run)
    no_links(run)
    recipe = load_recipe(str(run / "recipe.yaml"))
    if replays and not whole:
        wanted = replaying.step_to_replay(run, recipe, stage, step)
    audit = Audit(run)

    def check(part: str, what: str, make: Callable[[], Iterable[AuditFinding]]) -> None:
        note(what)
        with as_finding(part, audit.findings):
            for finding in make():
                audit.findings.append(finding)

    check("files", "hashes of files", partial(hashes.check_files, run))
    check("code", "code, rewards, data", partial(hashes.check_code, run, recipe))
    check("recipe", "what the stages are from", partial(hashes.check_stages, run, recipe))
    check("checkpoints", "checkpoints", partial(hashes.check_checkpoints, run, recipe))
    prepared: Prepared | None = None
    with as_finding("data", audit.findings):  # what needs rows and rewards cannot be checked
        prepared = prepare(recipe, choose_placement(recipe))
    _check_completions(run, recipe, prepared, check)
    check("results", "evaluations", partial(rejudging.check_results, run, recipe))
    problems_of = partial(records.check_problems, run, recipe)
    check("results", "problems of evaluations", problems_of)
    check("results", "control arms", partial(rejudging.check_controls, run, recipe))
    if prepared is not None:
        overlaps = partial(rejudging.check_overlaps, run, recipe, prepared)
        check("results", "overlaps", overlaps)
    check("report", "report", partial(rejudging.check_report, run, recipe))
    if whole and replays:
        replay = partial(replaying.replay_all, run, recipe, quiet=quiet)
        check("replay", "the whole run, again", replay)
    elif replays and prepared is not None:
        one, at = wanted
        replay_one = partial(replaying.replay_step, run, recipe, one, at, prepared, quiet=quiet)
        check("replay", f"stage {one.name}, step {at}, again", lambda: [replay_one()])
    return audit


def _check_completions(
    run: Path,
    recipe: Recipe,
    prepared: Prepared | None,
    check: Callable[[str, str, Callable[[], Iterable[AuditFinding]]], None],
) -> None:
    """What the grpo stages sampled: against their ledgers, and judged again."""
    folders, placement = hashes.stage_folders(run, recipe), choose_placement(recipe)
    for stage in (one for one in recipe.stages if isinstance(one, GrpoStage)):
        folder, title = folders[stage.name], f"stage {stage.name}"
        ledger = partial(records.check_ledger, folder, stage.name)
        check("ledger", f"{title}: ledger", ledger)
        if prepared is None:
            continue
        rewards = prepared.rewards.items()
        weights = {name_of(fn): recipe.rewards[name].weight for name, fn in rewards}
        figures = partial(records.check_figures, folder, stage, weights)
        check("metrics", f"{title}: figures of steps", figures)
        told = (run, folder, recipe, stage, prepared, placement)
        check("completions", f"{title}: completions", partial(rejudging.rejudge_stage, *told))
