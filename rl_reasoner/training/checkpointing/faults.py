"""Faults in the middle of a run: what a trainer does about them, whichever trainer it is.

A gradient that is not finite: the step is left out and recorded, and the run stops after so many in
a row. A run that has to stop in the middle of a step (a reward kept failing, the machine is taken
away): the step is given up, and the checkpoint holds the state after the one before, exactly. A
full disk: the half-written checkpoint goes, the last good one stays. Knows nothing of recipes.
"""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rl_reasoner.distributed.sharding import any_rank, local_shard
from rl_reasoner.errors import RunStopped
from rl_reasoner.files import NO_ROOM
from rl_reasoner.training.checkpointing.checkpoints import drop_damaged, is_sealed, steps_in
from rl_reasoner.training.checkpointing.exact_resume import random_states, set_random_states
from rl_reasoner.training.trl_internals import training_metrics

logger = logging.getLogger(__name__)
MOST_SKIPPED = 10
# how the writers of torch and safetensors say that a disk is full
_IN_WORDS = (
    "No space left",
    "os error 28",
    "os error 27",
    "os error 122",
    "PytorchStreamWriter failed",
    "iostream error",
)


class Diverged(RunStopped):
    """Step after step has gradients that are not finite."""

    title = "the training has diverged"


class DiskFull(RunStopped):
    """Nothing more can be written."""

    title = "the disk is full"


class SkipBadSteps(TrainerCallback):  # type: ignore[misc]
    """Leaves out optimizer steps whose gradients are not finite.

    Weights, moments and the optimizer's step count stay as they are; the learning rate goes on.
    `skipped` counts them; a trainer with trl's metrics logs each as `steps/skipped`. Raises
    `Diverged` after `most` in a row. In fp16 the gradient scaler leaves the step out and halves its
    scale, which is how it finds one; only steps that fail with a scale of 1 count as a row.
    """

    def __init__(self, trainer: Any, most: int = MOST_SKIPPED) -> None:
        self.trainer = trainer
        self.most = most
        self.skipped = 0
        self.in_a_row = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        if self._finite(optimizer):
            self.in_a_row = 0
            return
        scaler = self.trainer.accelerator.scaler
        if scaler is None:
            optimizer.zero_grad(set_to_none=True)  # a parameter without a gradient is passed over
        self.skipped += 1
        self.in_a_row += scaler is None or scaler.get_scale() <= 1.0
        training_metrics(self.trainer)["steps/skipped"].append(1.0)
        step = state.global_step + 1
        logger.warning("step %d is skipped: its gradients are not finite", step)
        if self.in_a_row >= self.most:
            raise Diverged(
                f"the gradients of {self.in_a_row} steps in a row, up to step {step}, are not "
                "finite: lower the learning rate, or check the rewards and log-probabilities"
            )

    def _finite(self, optimizer: Any) -> bool:
        """Whether all gradients of all processes are finite."""
        gradients = [
            local_shard(p.grad)
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        worst = [g.detach().abs().max().float() for g in gradients if g.numel()]
        bad = bool(worst) and not bool(torch.stack(worst).max().isfinite())
        return not any_rank(self.trainer, bad)


class LastStep(TrainerCallback):  # type: ignore[misc]
    """Knows the state after the last whole step, so that the one at hand can be given up.

    What a checkpoint keeps beside weights and optimizer: the random states, the micro-batches done,
    the completions not trained on yet, the tokens seen, what else the trainer keeps of its own.
    `busy` is True while the optimizer changes weights, and until the step's metrics are written
    (`recorded`): it cannot be given up then. Nor can it with several processes (`alone` is False):
    they would not be at the same place.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.alone = trainer.accelerator.num_processes == 1
        self.busy = False
        self.recorded = True
        self.kept: dict[str, Any] | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.busy, self.recorded = False, True  # of the step before

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.busy = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        own: dict[str, Any] = self.trainer.own_state() or {}
        rows = own.pop("buffered", None)  # completions, which are many: no copy
        own = {**copy.deepcopy(own), "buffered": rows}
        self.kept = {"random": random_states(), "own": own, "tokens": state.num_input_tokens_seen}
        self.recorded = False  # its metrics come now

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.busy, self.recorded = False, True
        self.kept = None

    def save(self) -> bool:
        """Write the checkpoint of the last whole step; False where there was none in this process.

        Nor is there one where the step's metrics are not written: a run that went on from it would
        lack them. The trainer cannot train on afterwards.
        """
        trainer, kept = self.trainer, self.kept
        if kept is None or not self.recorded:
            return False
        there = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        if not any_rank(trainer, not is_sealed(there)):  # a good one is not put at stake
            return True
        trainer.restore_own_state(kept["own"])
        set_random_states(kept["random"])
        trainer.state.num_input_tokens_seen = kept["tokens"]
        trainer.model.zero_grad()
        trainer._save_checkpoint(trainer.model, trial=None)
        trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)
        return True


def disk_is_full(error: BaseException) -> bool:
    """Whether `error`, or what it came from, says that nothing more can be written."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NO_ROOM:
            return True
        if any(words in str(seen) for words in _IN_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def stopped_by_full_disk(checkpoints: Path, error: BaseException) -> DiskFull:
    """Take away what was half written; the error that ends the run."""
    drop_damaged(checkpoints)
    left = steps_in(checkpoints)
    last = (
        f"the checkpoint of step {max(left)} is intact" if left else "there was no checkpoint yet"
    )
    return DiskFull(f"{type(error).__name__} while writing to {checkpoints}: {last}")
