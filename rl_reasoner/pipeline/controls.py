"""Control arms: the last grpo stage of a run again, with a reward that says nothing of right.

Each arm of `Recipe.controls` starts from the policy that entered that stage, and has its seed,
data, order of prompts and steps; only the reward differs (`control_rewards`). It is trained behind
the stages of the run, in `controls/NAME/` of its folder, which is laid out as a run folder, and
evaluated as the run is. `controls.json` holds the comparison (`report.controls`). What is finished
is kept, and a killed arm continues, as stages do.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from rl_reasoner.distributed import processes
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import read_jsonl, write_json, write_text
from rl_reasoner.foreign import json_object, mapping, number
from rl_reasoner.pipeline.control_rewards import control_reference, control_reward, with_forms
from rl_reasoner.pipeline.lineage import data_in
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.pipeline.session import PolicyRef, Session, StageOrder
from rl_reasoner.recipe.recipe import Recipe, RewardSpec
from rl_reasoner.recipe.stages import GrpoStage, Stage, TrainedStage
from rl_reasoner.report.controls import CONTROLS_FILE, against_controls
from rl_reasoner.scoring.reward import name_of
from rl_reasoner.types import Row

_DIGITS = 6  # of the random reward's mean


@dataclass(frozen=True)
class Arm:
    """What the main process tells the others of an arm: its name, and its reward's options."""

    name: str
    options: Mapping[str, Any]


@dataclass
class ArmSession(Session):
    """One process's way through an arm of the run `treatment`, whose stage is `treated`.

    Its recipe has that stage alone, by the arm's name.
    """

    treatment: Session
    treated: GrpoStage
    is_control: ClassVar[bool] = True

    @classmethod
    def of(cls, treatment: Session, arm: Arm) -> "ArmSession":
        """The session of `arm`, with its rows and its reward."""
        stage = treatment.recipe.controlled
        assert stage is not None  # checked by the recipe
        recipe = _recipe_of(treatment, stage, arm)
        rows = treatment._rows(stage)
        if arm.name == "form_only":
            rows = with_forms(rows, treatment.recipe, treatment.prepared.rewards)
        prepared = replace(
            treatment.prepared,
            rows={arm.name: rows},
            rewards={control_reference(arm.name): control_reward(arm.name, arm.options)},
        )
        tools = treatment.placement, prepared, treatment.view, treatment.stop, treatment.threads
        return cls(recipe, RunFolder(_folder(treatment, arm.name)), *tools, treatment, stage)

    def train_and_evaluate(self) -> EvalResult:
        """Train what is left of the arm; its evaluation."""
        [stage] = self.recipe.stages
        write_text(self.run.path / "recipe.yaml", self.recipe.to_yaml())
        self._run_stage(stage, again=False)
        ref = PolicyRef(stage.name)
        self._evaluate("after", ref)
        self.opened = None
        processes.broadcast(StageOrder(None, ref))
        return self.evals["after"]

    def _facts(self, stage: Stage) -> dict[str, Any]:
        """What the treatment is made from, but for the reward."""
        rewards = {
            name: spec.model_dump(mode="json", exclude_none=True)
            for name, spec in self.recipe.rewards.items()
        }
        facts = {**self.treatment._facts(self.treated), "rewards": rewards, "code": {}}
        return json.loads(json.dumps(facts))  # type: ignore[no-any-return]

    def _rows(self, stage: Stage) -> list[Row]:
        return self.prepared.rows[stage.name]


def train_controls(session: Session) -> None:
    """Train the arms of a run whose stages are all finished, and compare; in the main process."""
    run, names = session.run, session.recipe.controls
    for folder in sorted((run.path / "controls").glob("*")):
        if folder.name not in names:
            run.set_aside(folder)
    if names and session.is_over:
        stage = session.recipe.controlled
        assert stage is not None  # checked by the recipe
        before, treatment = _evaluated_around(session, stage)
        session.opened = None  # the arm's policy takes its memory
        arms: dict[str, EvalResult] = {}
        for name in names:
            arm = Arm(name, _options(session, stage) if name == "random_reward" else {})
            session.view.note(f"control arm {name}: stage {stage.name} again, {_words(arm)}")
            processes.broadcast((arm,))
            arms[name] = ArmSession.of(session, arm).train_and_evaluate()
        facts = {name: facts_of_arm(_folder(session, name)) for name in arms}
        value = against_controls(stage.name, before, treatment, arms, facts)
        write_json(run.path / CONTROLS_FILE, value)
    processes.broadcast(())


def follow_controls(session: Session) -> None:
    """The same in a process that is not the main one."""
    nothing: tuple[Arm, ...] = ()
    while arms := processes.broadcast(nothing):
        session.opened = None
        ArmSession.of(session, arms[0]).follow()


def _evaluated_around(session: Session, stage: GrpoStage) -> tuple[EvalResult, EvalResult]:
    """The evaluations of the policy that `stage` starts from, and of the one that it makes."""
    before, after = evaluated_around(session.recipe)
    session._evaluate(before, session._start_of(stage), alone=True)
    session._evaluate(after, PolicyRef(stage.name), alone=True)
    return session.evals[before], session.evals[after]


def evaluated_around(recipe: Recipe) -> tuple[str, str]:
    """The names of the evaluations of the policies before and after the stage that arms repeat."""
    stages, stage = recipe.stages, recipe.controlled
    assert stage is not None  # checked by the recipe
    first = next(s for s in stages if s.kind == "grpo")
    last = next(s for s in reversed(stages) if isinstance(s, TrainedStage))
    before = "before" if stage is first else recipe.start_of(stage) or f"before-{stage.name}"
    return before, "after" if stage is last else stage.name


def _folder(treatment: Session, name: str) -> Path:
    return treatment.run.path / "controls" / name


def _words(arm: Arm) -> str:
    if arm.name == "form_only":
        return "with a reward for the form of the answer alone"
    return "with a reward that is drawn, mean {mean:.3g} of {low:.3g} to {high:.3g}".format_map(
        arm.options
    )


def _recipe_of(treatment: Session, stage: GrpoStage, arm: Arm) -> Recipe:
    """The arm as a recipe of its own."""
    recipe, start, evals = treatment.recipe, treatment._start_of(stage), treatment.recipe.evals
    if processes.is_main():  # what max_tokens auto came to is the same for all arms
        fitted, evals = treatment._fitted(stage), treatment._fitted_evals(start)
        assert isinstance(fitted, GrpoStage)
        stage = fitted
    source = treatment._folder(start.stage) / "policy" if start.stage else start.source
    own = {
        "name": arm.name,
        "start": None,
        "policy": str(source),
        "data": data_in(treatment.run.path, recipe, stage),
    }
    return recipe.model_copy(
        update={
            "stages": (stage.model_copy(update=own),),
            "rewards": {control_reference(arm.name): RewardSpec(options=arm.options)},
            "controls": (),
            "evals": evals.model_copy(update={"stages": False}),
        }
    ).in_folder(str(_folder(treatment, arm.name)))


def _options(treatment: Session, stage: GrpoStage) -> dict[str, float]:
    """The random reward's options: mean, lowest and highest of what the stage's completions got.

    The sum of the recipe's rewards by their weights; completions that were out of their group do
    not count. Raises `UserError` where no completion is there any more.
    """
    file = treatment._folder(stage.name) / "rollouts.jsonl"
    weights = {
        name_of(treatment.prepared.rewards[key]): spec.weight
        for key, spec in treatment.recipe.rewards.items()
    }
    count, total, low, high = 0, 0.0, float("inf"), float("-inf")
    for row in read_jsonl(file):
        if number(row.get("reward")) is None:
            continue
        scores = mapping(row.get("scores"))
        values = {name: number(mapping(scores.get(name)).get("value")) for name in weights}
        worth = sum(weights[name] * value for name, value in values.items() if value is not None)
        count, total = count + 1, total + worth
        low, high = min(low, worth), max(high, worth)
    if not count:
        raise UserError(
            f"{file} has no completion with a reward: controls: random_reward takes its mean there"
        )
    figures = {"mean": total / count, "low": low, "high": high}
    return {name: round(value, _DIGITS) for name, value in figures.items()}


def facts_of_arm(folder: Path) -> dict[str, Any]:
    """What an arm was, for those who read the comparison."""
    [stage] = folder.glob("stages/1-*")
    made, done = json_object(stage / "lock.json"), json_object(stage / "done.json")
    [spec] = mapping(mapping(made.get("made_from")).get("rewards")).values()
    options = mapping(mapping(spec).get("options"))
    return {"reward": dict(options), "steps": done.get("steps"), "seconds": done.get("seconds")}
