"""Everything a run needs before a model is loaded: its rows and its rewards, read and tried.

`prepare` collects every mistake in data, rewards, evaluations and trainer arguments, and raises
them together, each with its place in the recipe.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import TrainerState

from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.dataset.templates import target_completion, with_system
from rl_reasoner.environments.environment import EPISODE, PLAYED
from rl_reasoner.environments.runner import EnvironmentRunner
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.evaluation.evaluate import check_judge, load_set
from rl_reasoner.pipeline.control_rewards import with_forms
from rl_reasoner.pipeline.lineage import reused_path
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.trl_configs import check_configs
from rl_reasoner.policy.fp8.layers import fp8_backend
from rl_reasoner.recipe.data import AnyData, StageData, data_sources
from rl_reasoner.recipe.load import Locate
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import Stage
from rl_reasoner.report.dashboards import dashboards_of
from rl_reasoner.rollout.episodes.opening import open_rows
from rl_reasoner.scoring.batch import APPLIES, applies, score_batch
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.tools import load_tools
from rl_reasoner.types import Fault, Row


@dataclass(frozen=True)
class Prepared:
    """What is read before any model is loaded."""

    rows: Mapping[str, list[Row]]
    """by stage; empty where another stage makes them, or the stage reuses a result"""
    rewards: Mapping[str, Callable[..., Any]]
    """by their names in the recipe"""
    step_prompts: Mapping[str, int]
    """how many prompts a step of a grpo stage takes, by stage"""


def prepare(recipe: Recipe, placement: Placement, locate: Locate | None = None) -> Prepared:
    """Read all data and rewards of the recipe; every mistake in them is one `UserError`.

    `locate` gives the place of a field, for the messages.
    """
    problems: list[str] = []

    @contextmanager
    def field(*path: str | int) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            at = f"{locate(path)}: " if locate else ""
            problems.extend(f"{at}{message}" for message in error.messages)

    step_prompts: Mapping[str, int] = {}
    rewards: dict[str, Callable[..., Any]] = {}
    with field("run", "report_to"):
        dashboards_of(recipe.run.report_to)
    if placement.precision == "fp8":
        with field("run", "precision"):
            fp8_backend(placement.device, recipe.run.fp8)
    if not problems:
        with field("stages"):  # what the trainers' configs refuse
            step_prompts = check_configs(recipe, placement)
    for path, check in _CHECKS.items():
        with field(*path):
            check(recipe)
    for name, spec in recipe.rewards.items():
        with field("rewards", name):
            rewards[name] = load_reward(name, spec.options, spec.source)
    for index, name in enumerate(recipe.evals.sets):
        with field("evals", "sets", index):
            load_set(name, 1)
    if recipe.evals.validation:
        with field("evals", "validation"):
            load_set(recipe.evals.validation, 1)
    rows: dict[str, list[Row]] = {stage.name: [] for stage in recipe.stages}
    for index, stage in enumerate(recipe.stages):
        with field("stages", index, "reward"):
            check_judge(getattr(stage, "reward", None), getattr(stage, "reward_options", None))
        if stage.reuse is not None:
            with field("stages", index, "reuse"):
                reused_path(stage)
        elif not any(isinstance(s, StageData) for s in data_sources(recipe.data_of(stage))):
            with field(*(("stages", index, "data") if stage.data else ("data",))):
                rows[stage.name] = read_stage_rows(recipe, stage, recipe.data_of(stage), rewards)
                check_filled(stage, len(rows[stage.name]), step_prompts)
    for stage in (one for one in recipe.stages if one.kind == "grpo" and not problems):
        for name, function in rewards.items():
            for row in _first_of_each_task(unfiltered(recipe, stage, rows), name_of(function)):
                with field("rewards", name):
                    _try_reward(function, _with_rewards(row, rewards))
    if "form_only" in recipe.controls and recipe.controlled and not problems:
        with field("controls"):
            with_forms(unfiltered(recipe, recipe.controlled, rows), recipe, rewards)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return Prepared(rows, rewards, step_prompts)


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
        rows = [_with_rewards(row, rewards) for row in rows]
    return rows


def check_filled(stage: Stage, rows: int, step_prompts: Mapping[str, int]) -> None:
    """Raise `UserError` where the rows cannot fill one step: the stage would train nothing.

    trl draws whole steps, and leaves out of each pass over the rows what does not fill one.
    """
    needed = step_prompts.get(stage.name, 0)
    if rows < needed:
        few = f"{rows} row{'s' * (rows != 1)}"
        raise UserError(
            f"stage {stage.name}: {few} cannot fill a step of {needed} prompts, so nothing would "
            f"be trained: give at least {needed} rows, or a smaller group.prompts"
        )


def _check_judge(recipe: Recipe) -> None:
    check_judge(recipe.evals.reward, recipe.evals.reward_options)


def _check_tools(recipe: Recipe) -> None:
    load_tools(recipe.tools.use if recipe.tools else ())


def _check_environment(recipe: Recipe) -> None:
    """Raise `UserError` for an environment that is not there, or cannot be made so."""
    if recipe.environment is not None:
        EnvironmentRunner(recipe.environment.use, recipe.environment.options).close()


_CHECKS: Mapping[tuple[str, ...], Callable[[Recipe], None]] = {
    ("evals", "reward"): _check_judge,
    ("tools",): _check_tools,
    ("environment",): _check_environment,
}


def _with_rewards(row: Row, rewards: Mapping[str, Callable[..., Any]]) -> Row:
    """The row, its rewards by the functions' names: it may have them as the recipe does."""
    of_row, longest = f"row {row.get('id', row['problem'])!r:.60}", row.get("max_tokens")
    if longest is not None and (type(longest) is not int or longest < 1):
        raise UserError(f"{of_row}: max_tokens is {longest!r:.40}, not a whole number above 0")
    if row.get(APPLIES) is None:
        return row
    titles = [name_of(function) for function in rewards.values()]
    listed = row[APPLIES].split(",") if isinstance(row[APPLIES], str) else row[APPLIES]
    if not isinstance(listed, (list, tuple)) or not all(isinstance(key, str) for key in listed):
        raise UserError(f"{of_row}: its rewards are {listed!r:.40}, not a list of names")
    names = [name_of(rewards[key]) if key in rewards else key for key in map(str.strip, listed)]
    for name in names:
        if name not in titles:
            raise unknown("reward", name, rewards, owner=f"{of_row}: the recipe")
        if titles.count(name) > 1:
            raise UserError(f"two rewards are functions called {name}: rows cannot name one")
    if not names:
        raise UserError(f"{of_row}: its list of rewards is empty")
    return {**row, APPLIES: names}


def _first_of_each_task(rows: Sequence[Row], reward: str) -> list[Row]:
    """The first row of each task that the reward applies to."""
    mine = [row for row in rows if applies(reward, row.get(APPLIES))]
    return list({row.get("task"): row for row in reversed(mine)}.values())


def _try_reward(function: Callable[..., Any], row: Row) -> None:
    """Call a reward once on a real row, with its answer (if any) as the completion.

    A function of trl's own form may want chats or plain texts; which one is known only when the
    policy is open, so it has to take one of them.
    """
    columns = {key: [value] for key, value in row.items() if key != "completion"}
    columns |= trl_columns(1)
    prompt, answer = row["problem"], str(row.get("answer", ""))
    chat = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}]
    faults = []
    for asked, completion in ((prompt, answer), chat):
        [outcome] = score_batch(function, [completion], {**columns, "prompts": [asked]})
        if not isinstance(outcome, Fault):
            return
        faults.append(outcome.message)
        if isinstance(function, Reward):
            break
    raise UserError(f"a trial call failed: {faults[0]}")


def trl_columns(completions: int) -> dict[str, Any]:
    """What trl gives a reward function beside the columns of the data, outside of training."""
    columns: dict[str, Any] = {"completion_ids": [[0]] * completions}
    columns[EPISODE] = [{"reward": 0.0, "turn_rewards": [0.0], "ended": "done", "reason": ""}]
    columns[EPISODE] *= completions
    columns |= {"trainer_state": TrainerState()}
    return columns | dict.fromkeys(("log_extra", "log_metric"), lambda *logged: None)
