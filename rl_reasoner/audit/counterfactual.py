"""What one step of a run would have been under another reward: its advantages, its gradient.

The policy of that step is had by a replay (`replaying`), which samples the step's completions
again, and they have to be those that the run kept. Then the trainer's own code makes advantages of
what the other reward says of them, and the gradient of the step is taken twice, from the same
micro-batches: with the advantages that they had, and with those that they would have had. No step
is taken with either.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from rl_reasoner.audit.replaying import scratch_of, step_to_replay, unlike_here
from rl_reasoner.dataset.code_rows import continuing
from rl_reasoner.environments.environment import EPISODE
from rl_reasoner.errors import UserError
from rl_reasoner.foreign import json_object
from rl_reasoner.paths import check_run, no_links
from rl_reasoner.pipeline.placement import Placement, choose_placement
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.pipeline.why import read_step
from rl_reasoner.policy.opening import quiet_libraries
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.scoring.outcome import outcome_json, usable
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.training.objective import row_means, trained_tokens
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.training.trl_internals import OLD_LOGPS, put_on
from rl_reasoner.types import Outcome, Row

_OTHER = "other_advantages"  # a column of a batch, beside the advantages
_SURE = 1e-4  # how far the gradient that is taken again may turn from the step's own


@dataclass(frozen=True)
class Counterfactual:
    """A step under another reward.

    `cosine` between the step's gradient and the one that it would have had, None where one of them
    is 0; `norms` of both, before they are clipped. `rows` as in `why`, in their order: `number`,
    `prompt`, `completion`, and of either reward `reward`, `advantage` (`then`, `now`), `reason`.
    """

    stage: str
    step: int
    reward: str
    cosine: float | None
    norms: tuple[float, float]
    rows: list[Row] = field(repr=False)

    @property
    def turned(self) -> int:
        """How many rows would have been pushed the other way."""
        return sum(row["then"] * row["now"] < 0 for row in self.rows)

    def most_changed(self, most: int) -> list[Row]:
        """The rows whose advantages change most, the largest change first."""
        changes = sorted(self.rows, key=lambda row: -abs(row["now"] - row["then"]))
        return [row for row in changes if row["now"] != row["then"]][:most]

    def to_json(self) -> dict[str, Any]:
        """The step as JSON values."""
        return {
            "stage": self.stage,
            "step": self.step,
            "reward": self.reward,
            "cosine": self.cosine,
            "norm": {"then": self.norms[0], "now": self.norms[1]},
            "turned": self.turned,
            "rows": self.rows,
        }


def ask_counterfactual(
    run: Path,
    step: int,
    reference: str,
    stage: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Counterfactual:
    """The step `step` of the run in `run` under the reward that `reference` names.

    Its `options` are by default the recipe's, where the recipe has the reward, else its own.

    Raises `UserError` where there is no such step, where nothing was sampled in it, where the
    reward cannot be loaded, or where this machine samples other completions than the run did.
    """
    quiet_libraries()
    check_run(run)
    no_links(run)
    recipe = load_recipe(str(run / "recipe.yaml"))
    known = read_step(run, step, stage)  # says so where nothing was sampled in it
    trained, step = step_to_replay(run, recipe, known.stage, step)
    assert isinstance(trained, GrpoStage)
    spec = recipe.rewards.get(reference)
    own, source = (spec.options, spec.source) if spec is not None else ({}, None)
    reward = load_reward(reference, options or own, source)
    lock = json_object(run / "lock.json")
    if (many := lock.get("processes", 1)) != 1:
        raise UserError(f"{run} was trained by {many} processes: its steps cannot be made again")
    prepared = prepare(recipe, choose_placement(recipe))
    with scratch_of(run, recipe, trained, step, prepared, quiet=quiet) as scratch:
        session = scratch.session
        probe = _Probe(step, reward)
        session.on_trainer = probe.attach
        session.make(trained.name)
        if probe.batch is None or not probe.norms:
            raise UserError(f"stage {trained.name}: nothing was trained on in step {step}")
        _check_same(known.rollouts, probe, lock, session.placement, session.threads_used)
    rows = [
        {
            "number": i,
            "prompt": rollout["prompt"],
            "completion": rollout["completion"],
            "reward": {"then": rollout["reward"], "now": outcome_json(outcome)["value"]},
            "then": rollout["advantage"],
            "now": now,
            "reason": outcome_json(outcome)["reason"],
        }
        for i, (rollout, outcome, now) in enumerate(
            zip(known.rollouts, probe.outcomes, probe.advantages, strict=True), 1
        )
    ]
    return Counterfactual(trained.name, step, reference, probe.cosine, probe.norms, rows)


def _check_same(
    kept: list[Row], probe: "_Probe", lock: dict[str, Any], placement: Placement, threads: int
) -> None:
    """Raise `UserError` where the replay has not come to the step that the run took."""
    assert probe.batch is not None
    because = "; ".join(unlike_here(lock, placement, threads)) or "rl-reasoner audit says more"
    if [row["completion"] for row in kept] != probe.batch.texts:
        said = "this machine samples other completions in it than the run did"
        raise UserError(f"step {probe.step}: {said}: {because}")
    if abs(1.0 - probe.repeated) > _SURE:
        raise UserError(f"step {probe.step}: its gradient does not come out again: {because}")


class _Probe(TrainerCallback):  # type: ignore[misc]
    """Sits at a trainer until the step `step`, and takes its gradient under either reward.

    `repeated`: the cosine of the step's own gradient and of the one that is taken again.
    """

    def __init__(self, step: int, reward: Callable[..., Any]) -> None:
        self.step = step
        self.reward = reward
        self.trainer: Any = None
        self.batch: RolloutBatch | None = None
        self.outcomes: list[Outcome] = []
        self.advantages: list[float] = []
        self.cosine: float | None = None
        self.repeated = 1.0
        self.norms: tuple[float, float] | tuple[()] = ()

    def attach(self, trainer: Any) -> None:
        """Watch the trainer's batches, and its gradients before each step."""
        self.trainer = trainer
        columns = {*trainer.train_dataset.column_names}
        if isinstance(self.reward, Reward):
            given = {"prompts", *((EPISODE,) if trainer.environment_use else ())}
            lacking = [name for name in self.reward.columns if name not in columns | given]
            if lacking:
                raise UserError(
                    f"the reward {self.reward.name} needs the column {lacking[0]!r}; "
                    "the run's data do not have it"
                )
        self.reward = continuing(self.reward, trainer.train_dataset)
        make = trainer.prompt_selection.batch

        def batch(inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output: dict[str, Any] = make(inputs)
            if trainer.model.training and trainer.state.global_step + 1 == self.step:
                output[_OTHER] = self._other_advantages(output["advantages"])
            return output

        trainer.prompt_selection.batch = batch
        trainer.add_callback(self)

    def _other_advantages(self, own: Tensor) -> Tensor:
        """The advantages of the batch that was just made, under the other reward."""
        trainer, batch = self.trainer, self.trainer.rollout_batch
        self.batch = batch
        self.outcomes = trainer.reward_pass.judge(self.reward, batch)
        table = torch.full_like(batch.rewards, math.nan)
        table[:, 0] = torch.tensor([usable(outcome) for outcome in self.outcomes])
        weights = torch.ones_like(trainer.reward_weights)
        if trainer.objective.punishes:  # what its length costs a completion is not the reward's
            table[:, -1] = batch.rewards[:, -1]
            weights[-1] = trainer.reward_weights[-1]
        other = replace(batch, scored=True, rewards=table)
        with put_on(trainer, "reward_weights", weights):
            output = trainer._scored(other)
        trainer.rollout_batch = batch
        self.advantages = row_means(output["advantages"], trained_tokens(output)).tolist()
        found: Tensor = output["advantages"].to(own.dtype)
        return found

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """The gradient of the step is there: take it again, and as it would have been."""
        if state.global_step + 1 != self.step or self.batch is None:
            return
        step = self._gradient(model)
        own = self._taken(model, "advantages")
        self.repeated = _cosine(step, own) or 1.0
        other = self._taken(model, _OTHER)
        self.cosine = _cosine(own, other)
        self.norms = _norm(own), _norm(other)

    def _taken(self, model: Any, advantages: str) -> list[Tensor]:
        """The step's gradient with the advantages in this column of its micro-batches."""
        trainer, internals = self.trainer, self.trainer.internals
        count = trainer.args.gradient_accumulation_steps
        done, buffer, defers = internals.step, internals.buffer, trainer.old_logprobs.defers
        model.zero_grad()
        with _given_batches(trainer):
            for at in range(done - count, done):
                batch = dict(buffer[at % len(buffer)])
                batch["advantages"], _ = batch[advantages], batch.pop(_OTHER)
                if defers:  # kept of the rows that moved: the policy is still the one that sampled
                    batch.pop(OLD_LOGPS, None)
                internals.step = at
                trainer.training_step(model, batch)
        internals.step = done
        return self._gradient(model)

    def _gradient(self, model: Any) -> list[Tensor]:
        parameters = (p for p in model.parameters() if p.requires_grad)
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


@contextmanager
def _given_batches(trainer: Any) -> Iterator[None]:
    """Inside, a training step takes the micro-batch that it is given."""
    with put_on(trainer, "_prepare_inputs", lambda batch: batch):
        yield


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _norm(a: list[Tensor]) -> float:
    return math.sqrt(_dot(a, a))


def _cosine(a: list[Tensor], b: list[Tensor]) -> float | None:
    size = _norm(a) * _norm(b)
    return _dot(a, b) / size if size else None
