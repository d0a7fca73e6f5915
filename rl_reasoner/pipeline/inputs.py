"""What a recipe names, read before anything heavy is loaded: rows, rewards, sets, files, tools.

Knows nothing of torch, which alone takes seconds: so a misspelled set or a column that is not there
is told at once. Every mistake is collected, and they are raised together, each with its place in
the recipe. What only trl or the machine can refuse is `prepare`'s.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rl_reasoner.dataset.levels import levels_of
from rl_reasoner.dataset.rows import check_source, check_trained_on, load_rows
from rl_reasoner.dataset.templates import target_completion, with_system
from rl_reasoner.environments.environment import EPISODE, PLAYED
from rl_reasoner.environments.runner import EnvironmentRunner
from rl_reasoner.errors import UserError, did_you_mean, unknown
from rl_reasoner.evaluation.evaluate import check_judge, load_set
from rl_reasoner.hacking.judges import check_own_judge
from rl_reasoner.pipeline.control_rewards import with_forms
from rl_reasoner.pipeline.lineage import hashes_of_code, hashes_of_data, reused_path
from rl_reasoner.policy.names import check_policy
from rl_reasoner.recipe.dashboards import dashboards_of
from rl_reasoner.recipe.data import AnyData, FileData, StageData, TaskData, data_sources
from rl_reasoner.recipe.load import Locate
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import DistillStage, GrpoStage, RowStage, Stage, Vllm
from rl_reasoner.recipe.trainer_arguments import check_trainer_argument
from rl_reasoner.rollout.episodes.opening import open_rows
from rl_reasoner.scoring.batch import APPLIES, POLICY_TEXT, applies, name_rewards
from rl_reasoner.scoring.registry import check_name, load_reward
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.scoring.rule import rule_of
from rl_reasoner.scoring.trial_call import column_not_given, try_reward
from rl_reasoner.tools import load_tools
from rl_reasoner.trust import check_address, check_typed
from rl_reasoner.types import Row

_log = logging.getLogger(__name__)
_STATE = "trainer_state"
_TURNS = ("files", "scored", "others")
"""The order in which rows are read, so that mistakes show soon: those of files, those generated
ones that the rewards are tried on, and what else is generated, which takes longest."""


@dataclass(frozen=True)
class Inputs:
    """What a recipe names, read and tried."""

    rows: Mapping[str, list[Row]]
    """by stage; empty where another stage makes them, or the stage reuses a result"""
    rewards: Mapping[str, Callable[..., Any]]
    """by their names in the recipe"""
    read: Mapping[str, str] = field(default_factory=dict)
    """the hash of each file when it was read: data, and the user's code; it may be edited while
    the run trains"""


class Problems:
    """Mistakes in the fields of a recipe, collected; `locate` gives the place of a field."""

    def __init__(self, locate: Locate | None) -> None:
        self.locate = locate
        self.found: list[str] = []

    @contextmanager
    def field(self, *path: str | int) -> Iterator[None]:
        """Keep the mistakes of the field at `path` that are raised inside."""
        try:
            yield
        except UserError as error:
            at = f"{self.locate(path)}: " if self.locate else ""
            self.found.extend(f"{at}{message}" for message in error.messages)

    def tell(self) -> None:
        """Raise one `UserError` with all that was found, if anything was."""
        if self.found:
            raise UserError(*dict.fromkeys(self.found))


def read_inputs(recipe: Recipe, locate: Locate | None = None, *, starts: bool = False) -> Inputs:
    """Read the rows and rewards that `recipe` names, and call each reward once.

    Where the run `starts` now, the policies that it begins with have to be there, too. Raises one
    `UserError` with every mistake; `locate` gives the place of a field in it.
    """
    problems = Problems(locate)
    rewards = _find_named(recipe, problems, starts=starts)
    rows: dict[str, list[Row]] = {stage.name: [] for stage in recipe.stages}
    known = [i for i in range(len(recipe.stages)) if not made_in_run(recipe, i)]
    hashes: dict[str, str] = {} if problems.found else hashes_of_code(recipe)
    for turn in _TURNS:
        for index in (i for i in known if _turn_of(recipe, i) == turn):
            stage = recipe.stages[index]
            with problems.field(*data_place(recipe, index)):
                hashes = hashes_of_data(recipe, stage) | hashes
                read = read_stage_rows(recipe, stage, recipe.data_of(stage), rewards)
                rows[stage.name] = read
                # an argument of trl's may change how many prompts a step has
                if isinstance(stage, GrpoStage) and not stage.trainer:
                    check_filled(stage, len(read), stage.group.prompts)
        problems.tell()
        if turn == "scored":
            _try_rewards(recipe, rows, rewards, problems)
            problems.tell()
    _check_learned(recipe, rows, problems)
    problems.tell()
    return Inputs(rows, rewards, hashes)


def _check_learned(recipe: Recipe, rows: Mapping[str, list[Row]], problems: Problems) -> None:
    """Find supervised stages behind a filter whose rows have nothing to learn, before it samples.

    Where some rows have it, they may be those that the filter keeps.
    """
    for index, stage in enumerate(recipe.stages):
        if stage.kind != "sft" or stage.reuse is not None or not made_in_run(recipe, index):
            continue
        with problems.field("stages", index):
            first: UserError | None = None
            for row in unfiltered(recipe, stage, rows):
                try:
                    row.get(PLAYED) or target_completion(row)
                    break
                except UserError as error:
                    first = first or error
            else:
                if first is not None:
                    raise first


def _find_named(
    recipe: Recipe, problems: Problems, *, starts: bool
) -> Mapping[str, Callable[..., Any]]:
    """Find everything that the recipe names, and read no rows; its rewards, by their names."""
    field = problems.field
    for at, source in _policies(recipe) if starts else ():
        with field(*at):
            check_policy(source)
    sets = [*recipe.evals.sets, *filter(None, [recipe.evals.validation])]
    for name in recipe.evals.overrides if starts else ():
        with field("evals", "overrides", name):
            # a set that is not evaluated now may have settings, but not one that is misspelled
            if name not in sets and did_you_mean(name, sets):
                raise unknown("set", name, sets, owner="evals")
    with field("run", "report_to"):
        dashboards_of(recipe.run.report_to)
    for path, check in _CHECKS.items():
        with field(*path):
            check(recipe)
    rewards: dict[str, Callable[..., Any]] = {}
    for name, spec in recipe.rewards.items():
        with field("rewards", name):
            loaded = load_reward(name, spec.options, spec.source)
            check_name(name, loaded, rewards)
            rewards[name] = loaded
    for index, name in enumerate(recipe.evals.sets):
        with field("evals", "sets", index):
            load_set(name, 1)
    if recipe.evals.validation:
        with field("evals", "validation"):
            load_set(recipe.evals.validation, 1)
    for index, stage in enumerate(recipe.stages):
        for name, value in () if isinstance(stage, RowStage) else stage.trainer.items():
            with field("stages", index, "trainer", name):
                check_trainer_argument(stage.name, stage.kind, name, begun=not starts)
                _check_trainer_value(stage.name, name, value)
        if isinstance(stage, GrpoStage) and stage.vllm:
            with field("stages", index, "vllm"):
                _check_vllm(stage.vllm)
        with field("stages", index, "reward"):
            check_judge(getattr(stage, "reward", None), getattr(stage, "reward_options", None))
        if stage.reuse is not None:
            with field("stages", index, "reuse"):
                reused_path(stage)
            continue
        with field(*data_place(recipe, index)):
            if starts:  # a run that has begun goes on with what it began with
                check_trained_on(recipe.data_of(stage))
            if not made_in_run(recipe, index):
                check_source(recipe.data_of(stage))
    return rewards


def _policies(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The policies from outside that a run begins with, each with its place in the recipe."""
    yield ("policy",), recipe.policy.source
    own = {stage.name for stage in recipe.stages}
    for index, stage in enumerate(recipe.stages):
        if stage.reuse is not None:
            continue
        if policy := getattr(stage, "policy", None):
            yield ("stages", index, "policy"), policy
        if isinstance(stage, DistillStage) and stage.teacher not in own:
            yield ("stages", index, "teacher"), stage.teacher


def check_starts(recipe: Recipe, stages: Sequence[Stage]) -> None:
    """Raise `UserError` where a policy from outside that one of `stages` names is not there."""
    for at, source in _policies(recipe):
        if at[0] == "stages" and recipe.stages[int(at[1])] in stages:
            check_policy(source)


def made_in_run(recipe: Recipe, index: int) -> bool:
    """Whether the rows of a recipe's stage are known only in its run."""
    stage = recipe.stages[index]
    sources = data_sources(recipe.data_of(stage))
    return stage.reuse is not None or any(isinstance(s, StageData) for s in sources)


def _turn_of(recipe: Recipe, index: int) -> str:
    """When the rows of a stage are read, of `_TURNS`."""
    stage = recipe.stages[index]
    if not any(isinstance(source, TaskData) for source in data_sources(recipe.data_of(stage))):
        return "files"
    return "scored" if stage.kind in ("grpo", "filter") else "others"


def data_place(recipe: Recipe, index: int) -> tuple[str | int, ...]:
    """Where the data of a recipe's stage is named: with the stage, or for all."""
    stage = recipe.stages[index]
    data = recipe.data_of(stage)
    where = ("stages", index, "data") if stage.data else ("data",)
    if isinstance(data, FileData | TaskData):
        return (*where, "path" if isinstance(data, FileData) else "task")
    return where


def _try_rewards(
    recipe: Recipe,
    rows: Mapping[str, list[Row]],
    rewards: Mapping[str, Callable[..., Any]],
    problems: Problems,
) -> None:
    """Call each reward once on a real row of each task; and ask for the forms of a control arm."""
    failed: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    for stage in (one for one in recipe.stages if one.kind == "grpo"):
        named: list[Row] = []
        with problems.field("rewards"):
            named = [name_rewards(row, rewards) for row in unfiltered(recipe, stage, rows)]
        for name, function in rewards.items():
            optional = rule_of(function, recipe.rewards[name].optional).optional
            for row in _first_of_each_task(named, name_of(function)):
                if said := column_not_given(function, (*row, EPISODE)):
                    doubtful[name] = said
                with problems.field("rewards", name):
                    if said := _try_reward(function, name, row, optional=optional):
                        failed.setdefault(name, said)
    for said in doubtful.values():
        _log.warning(said)
    for name, said in failed.items():
        _log.warning("reward %s failed on its trial call: %s", name, said)
    if "form_only" in recipe.controls and recipe.controlled and not problems.found:
        with problems.field("controls"):
            with_forms(unfiltered(recipe, recipe.controlled, rows), recipe, rewards)


def unfiltered(recipe: Recipe, stage: Stage, rows: Mapping[str, list[Row]]) -> list[Row]:
    """The rows of `stage`; where filters choose them in the run, those that they choose from.

    `rows` are those that are known before the run, by stage. Rows that a stage samples are not.
    """
    while not rows[stage.name] and isinstance(data := recipe.data_of(stage), StageData):
        source = next(other for other in recipe.stages if other.name == data.stage)
        if source.kind != "filter":
            break
        stage = source
    return rows[stage.name]


def read_stage_rows(
    recipe: Recipe, stage: Stage, data: AnyData, rewards: Mapping[str, Callable[..., Any]]
) -> list[Row]:
    """The rows of `data`, as the trainer of `stage` wants them, with the recipe's system prompt.

    `rewards` are the recipe's, by name. Raises `UserError` for bad rows.
    """
    rows = open_rows(recipe.environment, load_rows(data), recipe.run.seed)
    rows = with_system(rows, recipe.system)
    if stage.kind == "sft":
        for row in (row for row in rows if not row.get(PLAYED)):
            target_completion(row)
    if stage.kind == "grpo":
        rows = [name_rewards(row, rewards) for row in rows]
    if isinstance(stage, GrpoStage) and stage.group.curriculum == "levels":
        levels_of(rows)
    return rows


def check_filled(stage: Stage, rows: int, needed: int) -> None:
    """Raise `UserError` where the rows cannot fill a step of `needed` prompts: none is trained.

    trl draws whole steps, and leaves out of each pass over the rows what does not fill one.
    """
    if rows < needed:
        few = f"{rows} row{'s' * (rows != 1)}"
        size = "batch" if isinstance(stage, DistillStage) else "group.prompts"
        raise UserError(
            f"stage {stage.name}: {few} cannot fill a step of {needed} prompts, so nothing would "
            f"be trained: give at least {needed} rows, or a smaller {size}"
        )


def _check_trainer_value(stage: str, name: str, value: Any) -> None:
    """Raise `UserError` where a file that nobody typed may have trl load or send something.

    A text may name a file, a module or an address; numbers name nothing.
    """
    if not isinstance(value, int | float | None) or name.startswith(("push_", "hub_")):
        check_typed(f"{value}", f"stage {stage}: trainer.{name}")


def _check_vllm(vllm: Vllm) -> None:
    """Raise `UserError` where vLLM is to run here and is not installed; a server has its own."""
    if vllm.url:
        check_address(vllm.url, kind="vllm")
    if vllm.mode == "colocate" and importlib.util.find_spec("vllm") is None:
        raise UserError("vllm needs vLLM: pip install 'trl[vllm]'")


def _check_judge(recipe: Recipe) -> None:
    check_judge(recipe.evals.reward, recipe.evals.reward_options)


def _check_tools(recipe: Recipe) -> None:
    load_tools(recipe.tools.use if recipe.tools else ())


def _check_environment(recipe: Recipe) -> None:
    """Raise `UserError` for an environment that is not there, or cannot be made so."""
    if recipe.environment is not None:
        EnvironmentRunner(recipe.environment.use, recipe.environment.options).close()


def _check_hacking_meter(recipe: Recipe) -> None:
    check_own_judge(recipe.hacking_meter)


_CHECKS: Mapping[tuple[str, ...], Callable[[Recipe], None]] = {
    ("evals", "reward"): _check_judge,
    ("hacking_meter", "judge"): _check_hacking_meter,
    ("tools",): _check_tools,
    ("environment",): _check_environment,
}


def _first_of_each_task(rows: Sequence[Row], reward: str) -> list[Row]:
    """The first row of each task that the reward applies to."""
    mine = [row for row in rows if applies(reward, row.get(APPLIES))]
    return list({row.get("task"): row for row in reversed(mine)}.values())


def _try_reward(function: Callable[..., Any], name: str, row: Row, *, optional: bool) -> str:
    """Try a reward on a real row: see `trial_call.try_reward`."""
    hidden = ("completion", POLICY_TEXT)
    columns = {key: [value] for key, value in row.items() if key not in hidden}
    reads = {*function.columns, *function.missing} if isinstance(function, Reward) else {_STATE}
    columns |= trl_columns(1, state=_STATE in reads)
    columns[EPISODE] = [{"reward": 0.0, "turn_rewards": [0.0], "ended": "done", "reason": ""}]
    answer = str(row.get("answer", ""))
    return try_reward(function, name, row["problem"], answer, columns, optional=optional)


def trl_columns(completions: int, *, state: bool = True) -> dict[str, Any]:
    """What trl gives a reward function beside the columns of the data, outside of training.

    Without `state` its trainer state is left out, and transformers is not loaded for it.
    """
    columns: dict[str, Any] = {"completion_ids": [[0]] * completions}
    if state:
        from transformers import TrainerState

        columns[_STATE] = TrainerState()
    return columns | dict.fromkeys(("log_extra", "log_metric"), lambda *logged: None)
