"""What a stage's trainer reports while it trains: metrics, evaluations, a forecast, its ledger.

A callback of transformers' trainer: it writes metrics.jsonl, feeds the live view, evaluates while
GRPO trains, has the disk hold the ledger before a checkpoint counts on it, and stops the training
when it is asked to.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rl_reasoner.distributed import processes
from rl_reasoner.distributed.sharding import any_rank, gathered_params_of
from rl_reasoner.evaluation.evaluate import evaluate
from rl_reasoner.evaluation.learning_alarms import LearningAlarms, highest_of
from rl_reasoner.evaluation.monitor import Watch
from rl_reasoner.files import append_rows, read_jsonl, write_jsonl
from rl_reasoner.foreign import mapping
from rl_reasoner.pipeline.forecaster import add_outcome, first_steps, forecast_first_steps
from rl_reasoner.pipeline.stage_trainers import Job
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.rollout.sampler import help_to_sample
from rl_reasoner.training.checkpointing.signals import StepGivenUp, Stop


def step_seconds(folder: Path) -> dict[int, float]:
    """How long each step took, by its number, as far as a stage's metrics.jsonl tells."""
    rows = read_jsonl(folder / "metrics.jsonl")
    return {row["step"]: row["step_time"] for row in rows if {"step", "step_time"} <= row.keys()}


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, feeds the live view, evaluates while training, and stops when asked."""

    def __init__(self, job: Job, trainer: Any, view: LiveView, stop: Stop) -> None:
        self.job = job
        self.trainer = trainer
        self.view = view
        self.stop = stop
        self.validated: dict[str, Any] = {}
        self.metered: dict[str, Any] = {}
        self.begun = 0.0
        self.started = time.perf_counter()
        self.rows = [*read_jsonl(job.folder / "metrics.jsonl")]
        name = job.recipe.evals.validation if job.stage.kind == "grpo" else None
        self.watch = Watch(job.folder, name, view.note) if name else None
        self.before = [*self.rows]  # of the processes before, in a run that is continued
        self.validating = 0.0  # seconds
        self.forecast_at = 0  # step; 0: never again
        self.hacked_at = 0  # the step at which an alarm of the hacking meter was told; 0: none
        self.alarms: LearningAlarms | None = None
        self.alarmed: dict[str, int] = {}  # kind of alarm -> step at which it was raised
        if isinstance(job.stage, GrpoStage):
            self.forecast_at = 0 if job.is_control else first_steps(job.stage)
            weights = (spec.weight for spec in job.recipe.rewards.values())
            longest, steps = job.stage.sampling.longest, job.stage.steps
            self.alarms = LearningAlarms(longest, steps, highest_of(weights))
            for row in self.rows:
                self.alarms.add(row)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of a step."""
        self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate where it is time, close the hacking meter's step, stop where that is asked."""
        if self.watch is not None and state.global_step % self.job.recipe.evals.every == 0:
            with suppress(StepGivenUp), self.stop.cuts():  # `make_up` evaluates when it goes on
                self.validated = self._evaluated(state.global_step)
        if self.job.meter is not None:  # in the main process
            last = state.global_step >= self.job.stage.steps
            self.metered = self.job.meter.close(state.global_step, last=last)
        self.stop.asked = self.stop.asked or state.global_step == self.job.until
        if any_rank(self.trainer, self.stop.asked):
            self.stop.asked = True  # of the job: the signal may have come to another process
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have the disk hold the ledger: a checkpoint counts on it."""
        if state.is_world_process_zero:
            self.job.ledger.sync()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what stands after the last step here."""
        self.ended(state.global_step)

    def ended(self, step: int) -> None:
        """Say what stands after `step`, the last one here; of a whole stage, what was forecast."""
        if self.alarms is not None and processes.is_main():
            for alarm in self.alarms.standing():
                if self.alarmed.get(alarm.kind) != step:  # not raised just now
                    self.view.note(f"stage {self.job.stage.name} ends with this alarm: {alarm}")
        standing = self.job.meter.alarm if self.job.meter is not None else ""
        if standing and self.hacked_at != step:
            self.view.note(f"stage {self.job.stage.name} ends with this alarm: {standing}")
        if processes.is_main() and step >= self.job.stage.steps:
            spent = None if self.before else time.perf_counter() - self.started
            if said := add_outcome(self.job, self.rows, spent):
                self.view.note(f"stage {self.job.stage.name}: {said}")

    def _forecast(self) -> None:
        """Forecast the rest of the stage from the steps so far."""
        self.forecast_at = 0
        spent = time.perf_counter() - self.started - self.validating
        spent += sum(row["step_time"] for row in self.before)
        if made := forecast_first_steps(self.job, self.rows, spent):
            minutes = f"{made.minutes['stage']:.1f} min{made.change_of_length}"
            self.view.note(f"stage {self.job.stage.name}, forecast: {made.sentence}; {minutes}")

    def make_up(self, step: int) -> None:
        """Evaluate after `step`, the last one done, where that was cut short: there was no time."""
        row, every = self.rows[-1] if self.rows else {}, self.job.recipe.evals.every
        if self.watch is None or processes.world_size() > 1 or row.get("step") != step:
            return
        if step % every or f"eval/{self.watch.name}/accuracy" in row:
            return
        row |= self._evaluated(step)
        row["alarms"] = {**self.watch.alarms(self.rows), **mapping(row.get("alarms"))}
        write_jsonl(self.job.folder / "metrics.jsonl", self.rows)

    def _evaluated(self, step: int) -> dict[str, Any]:
        """The metrics of the evaluation after `step`, in the main process; nothing in others."""
        assert self.watch is not None
        metrics: dict[str, Any] = {}
        with gathered_params_of(self.trainer):  # inside, all hold the whole weights
            started = time.perf_counter()
            if processes.is_main():
                with processes.shared(self.job.policy):
                    figures = self._validate(self.watch.name)
                metrics = self.watch.record(figures, step, self.job.policy)
            else:
                help_to_sample(self.job.policy)
            processes.wait()  # as long as it takes
            self.validating += time.perf_counter() - started
        return metrics

    def _validate(self, name: str) -> dict[str, Any]:
        recipe = self.job.recipe
        result = evaluate(
            self.job.policy,
            [name],
            max_tokens=recipe.evals.longest,
            template=recipe.template,
            system=recipe.system,
            asked=recipe.evals.overrides,
            limit=recipe.evals.limit,
            reward=recipe.evals.reward,
            reward_options=recipe.evals.reward_options,
            weights=recipe.evals.weights,
            tools=recipe.tools,
            environment=recipe.environment,
        )
        return result.sets[name]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a step's metrics, show them, tell alarms, and forecast when it is time."""
        if not logs or "train_runtime" in logs:  # the closing summary is no step
            return
        if not processes.is_main():
            return
        seconds = time.perf_counter() - self.begun  # of a step of sft: grpo logs its own
        row = {"step": state.global_step, "step_time": seconds, **logs, **self.validated}
        row |= self.metered
        self.rows.append(row)
        if self.watch is not None and self.validated:
            row["alarms"] = self.watch.alarms(self.rows)
        if self.metered and (meter := self.job.meter) is not None and meter.alarm:
            row["alarms"] = {**row.get("alarms", {}), "hacking": meter.alarm}
            if not self.hacked_at:
                self.view.note(f"alarm, step {state.global_step}: {meter.alarm}")
                self.hacked_at = state.global_step
        self.validated, self.metered = {}, {}
        if isinstance(self.job.stage, GrpoStage):
            group = self.job.stage.group
            seconds = sum(v for key, v in row.items() if key.startswith("timing/"))
            tokens = row.get("completions/mean_length", 0.0) * group.size * group.prompts
            if seconds:
                row["tokens_per_second"] = tokens / seconds
            loads = enumerate(self.trainer.last_expert_load)
            row |= {f"experts/load/layer{layer}": shares for layer, shares in loads}
        logs.update({k: v for k, v in row.items() if k not in logs})  # for dashboards behind us
        append_rows(self.job.folder / "metrics.jsonl", [row])
        for alarm in self.alarms.add(row) if self.alarms else ():
            self.view.note(f"alarm: {alarm}")
            self.alarmed[alarm.kind] = state.global_step
        self.view.update(row, state.global_step)
        if 0 < self.forecast_at <= state.global_step:
            self._forecast()
