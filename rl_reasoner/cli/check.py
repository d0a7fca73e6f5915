"""The verb `check`: a recipe before its run, a reward, or a judge against labels."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json, Options, Quiet, RunsItsCode, cell, reward_options_of
from rl_reasoner.cli.progress import told_if_long
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.report.console import emit, err, excerpt, new_table, wrapped

_STYLE = {"passed": "green", "warned": "yellow", "failed": "red", "skipped": "dim"}

_WORDS = {"skipped": "not judged"}
_OF_REWARDS = ("--data", "--reward-options", "--labelled")  # flags with a value


def names_recipe(target: str) -> bool:
    """Whether what is to be checked is a recipe, not a reward."""
    from rl_reasoner.recipe.load import shipped_recipes

    return target.endswith((".yaml", ".yml", ".py")) or target in shipped_recipes()


def takes_fields(argv: Sequence[str]) -> bool:
    """Whether a recipe's fields are flags of this command: a verb, and what follows."""
    verb, *rest = argv
    if verb == "check":
        words = [word for before, word in pairwise(argv) if before not in _OF_REWARDS]
        return any(names_recipe(word) for word in words if not word.startswith("-"))
    planned = any(token.partition("=")[0] == "--plan" for token in rest)
    return verb == "train" or (verb == "env" and planned)


@dataclass
class CheckVerb:
    """Before a run: check a recipe on this machine, or test a reward.

    A recipe's fields are flags, as for train. Of a recipe: data, rewards, disk and memory, tokens,
    prompts, a few sampled groups, and a forecast: will it learn, in how many minutes? Of a reward:
    types, determinism, hostile completions, and completions that try to game it. With --labelled,
    of a judge: how far it agrees with labels, its biases, and what it costs.
    """

    target: Positional[Annotated[str, arg(metavar="RECIPE|REWARD")]]
    """a recipe (name, script, YAML) or a reward (name, MODULE:FUNCTION, FILE.py:FUNCTION)"""
    data: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """rows to test a reward on (default: rows of a task that has its columns)"""
    reward_options: Options = ""
    """the reward's options: votes=3,rubric=rubric.yaml or a JSON object"""
    labelled: Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """for judge: rows with problem, completion and label (0 to 1) to hold its verdicts against"""
    run_its_code: RunsItsCode = False
    quiet: Quiet = False
    json: Json = False
    flags: tyro.conf.Suppress[list[str]] = field(default_factory=list)

    @property
    def is_program(self) -> bool:
        """Whether the recipe is a script: whoever names it has it run, with all that it names."""
        from rl_reasoner.recipe.load import is_program

        return names_recipe(self.target) and is_program(self.target)

    def run(self) -> None:
        """Print the table; raises `UserError` where something failed."""
        from rl_reasoner.recipe.load import shipped_recipes
        from rl_reasoner.scoring.registry import is_url, load_reward, shipped_rewards

        if names_recipe(self.target):
            self._recipe()
            return
        if self.labelled is not None:
            self._calibrate(self.labelled)
            return
        options = reward_options_of(self.reward_options, self.target)
        try:
            fn = load_reward(self.target, options)
        except UserError as error:
            if ":" in self.target or self.target in shipped_rewards():
                raise
            names = [*shipped_recipes(), *shipped_rewards()]
            near = did_you_mean(self.target, names)
            raise UserError(f"{self.target!r} is neither a recipe nor a reward.{near}") from error
        if is_url(self.target):
            from rl_reasoner.scoring.http_reward import check_reachable

            check_reachable(self.target)
        self._reward(fn)

    def _reward(self, fn: Any) -> None:
        from rl_reasoner.testing.kit import examine

        err.print("testing the reward: about 20 checks, in processes of its own", style="dim")
        report = examine(fn, self.data)
        table = new_table("", "check", "result", "completion")
        for finding in report.findings:
            status = Text(_WORDS.get(finding.status, finding.status), _STYLE[finding.status])
            shown = Text(f"{finding.completion!r:.100}" if finding.completion else "")
            table.add_row(status, finding.check, Text(excerpt(finding.message)), shown)
        findings = [asdict(finding) for finding in report.findings]
        emit(self.json, {"reward": report.reward, "findings": findings}, table)
        if not (self.json or report.failed):
            emit(False, {}, f"\n{_verdict(report.reward, report.findings)}")
        if report.failed:
            failed = ", ".join(finding.check for finding in report.failed)
            raise UserError(f"reward {report.reward} fails: {failed}")

    def _calibrate(self, file: str) -> None:
        from rl_reasoner.dataset.sets import read_rows
        from rl_reasoner.evaluation.calibration import calibrate, read_labels
        from rl_reasoner.judging.judge import ModelJudge
        from rl_reasoner.scoring.registry import load_reward

        if self.target != "judge":
            near = did_you_mean(self.target, ["judge"])
            raise UserError(f"--labelled is for the reward judge, not {self.target!r}.{near}")
        if self.data is not None:
            raise UserError("--data is for the test kit: --labelled has its own rows")
        options = reward_options_of(self.reward_options, "judge")
        fn = load_reward("judge", options)  # tells what is no option of it
        reference = bool(options.pop("reference", False))
        rows = read_labels(read_rows(file), file)
        judge = ModelJudge.of(**options)
        err.print(f"judging {len(rows):,} rows; what has come is kept", style="dim")
        found = calibrate(judge, rows, reference=reference)
        table = new_table("figure", "value", "95% interval", "of", "")
        for figure in found.figures:
            ends = "" if figure.interval is None else " to ".join(map(cell, figure.interval))
            value = "" if figure.value is None else cell(figure.value)
            table.add_row(figure.name, value, ends, str(figure.count), Text(figure.meaning))
        table.caption = f"what happened: {cell(found.counts)}"
        table.caption_justify = "left"
        emit(self.json, {"reward": fn.__name__, **found.to_json()}, table)

    def _recipe(self) -> None:
        from rl_reasoner.pipeline.inputs import read_inputs
        from rl_reasoner.recipe.load import read_recipe

        recipe, locate = read_recipe(self.target, self.flags)
        with told_if_long("reading the data, and calling each reward once"):
            inputs = read_inputs(recipe, locate, starts=True)
        err.print("loading torch and transformers", style="dim")
        load_for_good("rl_reasoner.pipeline.trial")
        forecasts: list[dict[str, Any]] = []
        notices = list(_check(recipe, locate, inputs, forecasts))
        fixes = ["fix"] if any(notice.fix for notice in notices) else []
        table = new_table("", "check", "result", *fixes)
        for notice in notices:
            status = Text(_WORDS.get(notice.status, notice.status), _STYLE[notice.status])
            told = (Text(notice.message), Text(notice.fix))[: 1 + len(fixes)]
            table.add_row(status, notice.check, *told)
        values = [asdict(notice) for notice in notices]
        found = {"recipe": recipe.name, "notices": values, "forecasts": forecasts}
        emit(self.json, found, table)
        if not self.json:
            emit(False, {}, f"\n{_verdict(recipe.name, notices)}")
        failed = [str(notice) for notice in notices if notice.status == "failed"]
        if failed:
            raise UserError(*failed)


def _verdict(name: str, found: Sequence[Any]) -> str:
    """The last line: what all checks come to, and what none of them could judge."""
    by_status = {
        status: ", ".join(dict.fromkeys(each.check for each in found if each.status == status))
        for status in ("failed", "warned", "skipped")
    }
    passed = sum(each.status == "passed" for each in found)
    words = f"nothing speaks against it, {passed} checks passed"
    if by_status["warned"]:
        words = f"it can be used; look first at: {by_status['warned']}"
    if by_status["failed"]:
        words = f"it cannot be used as it is: {by_status['failed']}"
    skipped = f". Not judged: {by_status['skipped']}" if by_status["skipped"] else ""
    return wrapped(f"{name}: {words}{skipped}.")


def _check(recipe: Any, locate: Any, inputs: Any, forecasts: list[dict[str, Any]]) -> Iterator[Any]:
    """Check everything about a recipe that needs no run; what is forecast is put in `forecasts`."""
    from rl_reasoner.distributed.threads import Threads
    from rl_reasoner.pipeline.lock import overlap_notices
    from rl_reasoner.pipeline.placement import choose_placement
    from rl_reasoner.pipeline.preflight import Notice, control_cost, inspect
    from rl_reasoner.pipeline.prepare import prepare
    from rl_reasoner.pipeline.rehearsal import rehearse, try_judges
    from rl_reasoner.pipeline.trial import forecast_by_trial
    from rl_reasoner.policy.lora import merge_adapter
    from rl_reasoner.policy.opening import open_policy, quiet_libraries
    from rl_reasoner.provenance import versions

    quiet_libraries()
    placement = choose_placement(recipe, locate)
    prepared = prepare(recipe, placement, locate, inputs)
    rows = ", ".join(f"{len(own):,}" for own in prepared.rows.values())
    yield Notice("data", "passed", f"rows by stage: {rows}")
    yield from overlap_notices(recipe, prepared.rows)
    if recipe.run.folder is not None:
        yield _new_folder(recipe)
    yield Notice("versions", "passed", ", ".join(f"{k} {v}" for k, v in versions().items()))
    policy = open_policy(recipe.policy.source, seed=recipe.run.seed, device=placement.device)
    merge_adapter(policy)
    with Threads() as threads:
        yield Notice("threads", "passed", threads.suit(policy.model))
        folder = Path(recipe.run.folder or "runs")
        inspected = inspect(recipe, placement, prepared, policy, folder)
        yield from inspected
        yield from try_judges(recipe, prepared)
        sound = all(notice.status != "failed" for notice in inspected)
        err.print("sampling a few groups", style="dim")
        for seen in rehearse(recipe, placement, prepared, policy):
            yield from seen.notices
            if not sound:
                continue
            err.print(f"stage {seen.stage.name}: trying a few of its steps", style="dim")
            notice, made = forecast_by_trial(recipe, placement, prepared, policy, seen)
            yield notice
            forecasts += [made.to_json()] if made else []
    if recipe.controls:
        again = recipe.controlled
        known = (made["minutes"] for made in forecasts if made["stage"] == again.name)
        yield control_cost(recipe, again, next(known, None))


def _new_folder(recipe: Any) -> Any:
    """Whether the run can have the folder that the recipe names."""
    from rl_reasoner.pipeline.preflight import Notice
    from rl_reasoner.pipeline.run_folder import RunFolder

    try:
        return Notice("folder", "passed", f"{RunFolder.new_path(recipe)} is free")
    except UserError as error:
        return Notice("folder", "warned", "; ".join(error.messages))
