"""Exact resume: what trl's trainers forget between a checkpoint and the run that continues it.

A run that is killed and resumed has to end with the weights of the run that was not. `ExactResume`
gives that to any trainer of trl's, on top of what transformers keeps (weights, optimizer,
scheduler, random states): the place in the data (`data_place`), a reference that moves
(`reference_model`), the whole of a checkpoint (`whole_checkpoints`), and what the trainer names in
`own_state`: of `GRPOTrainer` how many micro-batches are done and the completions that were sampled
but not yet trained on, and what was chosen by measurement (rl_reasoner.machine). That is kept in
the file of the random states, so that one checksum and one reader cover all.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer
from transformers.trainer_pt_utils import safe_globals

from rl_reasoner.distributed.sharding import load_shards
from rl_reasoner.machine import choices
from rl_reasoner.training.checkpointing.data_place import steps_done, wind_on
from rl_reasoner.training.checkpointing.loss_scaling import scale_losses
from rl_reasoner.training.checkpointing.reference_model import load_reference, save_reference
from rl_reasoner.training.checkpointing.whole_checkpoints import (
    Sealing,
    best_is_damaged,
    checkpoint_to_resume,
    put_together,
)

logger = logging.getLogger(__name__)
_KEY = "rl_reasoner"  # in the file of the random states


class ExactResume(Trainer):  # type: ignore[misc]
    """A trainer whose checkpoints are whole or not used, and continue exactly; see the module."""

    checked: Path | None = None  # a checkpoint that is known to be whole
    _sampler: Any = None  # of the training rows; a stream has none

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scale_losses(self.accelerator)
        self.add_callback(Sealing(self))

    def while_training(self) -> AbstractContextManager[None]:
        """What a trainer does before and after its training: nothing here."""
        return nullcontext()

    def own_state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps of the trainer itself, by name: nothing here."""
        return None

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `own_state` gave, or nothing where a checkpoint has none."""

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *others: Any, **named: Any
    ) -> Any:
        """As trl's; with `True` the last whole checkpoint is used, damaged ones are passed over.

        Raises `UserError` for a damaged one that is named.
        """
        with choices.during(), self.while_training():
            checkpoint = checkpoint_to_resume(self, resume_from_checkpoint)
            return super().train(checkpoint, *others, **named)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """(passes over the data that are done, micro-batches of the one at hand that are done)."""
        done: tuple[int, int] = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return done
        checkpoint = Path(resume_from_checkpoint)
        wind_on(self._sampler, int(self.state.epoch or 0))
        if self.own_state() is not None:
            load_reference(self, checkpoint)
            kept = self._kept(checkpoint)
            choices.adopt(kept.pop("choices", {}))
            self.restore_own_state(kept)
        return steps_done(self, checkpoint) or done

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As transformers'; one process also takes the shards of many."""
        checkpoint, target = Path(resume_from_checkpoint), self.model if model is None else model
        if not (put_together(self, checkpoint, target) or load_shards(self, checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if not (best_is_damaged(self) or put_together(self, best, self.model)):
            super()._load_best_model()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if (own := self.own_state()) is None:
            return
        file = self._random_file(Path(output_dir))
        state = _load(file)
        about = {"processes": self.args.world_size, "choices": choices.taken()}
        state[_KEY] = {**about, **own}
        partial = file.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(file)
        save_reference(self, Path(output_dir))
        self.accelerator.wait_for_everyone()  # the trainer state, written next, says: complete

    def _random_file(self, folder: Path) -> Path:
        many = self.args.world_size > 1
        return folder / (f"rng_state_{self.args.process_index}.pth" if many else "rng_state.pth")

    def _kept(self, checkpoint: Path) -> dict[str, Any]:
        """What `checkpoint` keeps of this trainer; its step alone where others wrote it."""
        file = self._random_file(checkpoint)
        kept: dict[str, Any] | None = _load(file).get(_KEY) if file.is_file() else None
        if (writers := written_by(checkpoint)) not in (0, self.args.world_size):
            if self.accelerator.is_main_process:
                logger.warning(
                    "%s was written by %d processes, not %d: the run continues with the same "
                    "weights and prompts but new completions, not exactly as it would have",
                    checkpoint,
                    writers,
                    self.args.world_size,
                )
            kept = None
        if kept is None:  # a checkpoint of trl's own, or of another number of processes
            return {"step": self.state.global_step * self.args.gradient_accumulation_steps}
        return {**kept, "buffered": _moved(kept.get("buffered"), self.accelerator.device)}


def written_by(checkpoint: Path) -> int:
    """How many processes wrote `checkpoint`, by their files of random states; 0 without any."""
    return len([*checkpoint.glob("rng_state*.pth")])


def _load(file: Path) -> dict[str, Any]:
    with safe_globals():
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _moved(batches: Any, device: torch.device) -> Any:
    """The buffered micro-batches on the device they are trained on."""
    if batches is None:
        return None
    return [
        {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        for batch in batches
    ]


@contextmanager
def same_random_states() -> Iterator[None]:
    """Put the random states of Python, numpy and torch back afterwards."""
    states = random_states()
    try:
        yield
    finally:
        set_random_states(states)


def random_states() -> tuple[Any, ...]:
    """The states of Python's, numpy's and torch's generators, on every device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def set_random_states(states: tuple[Any, ...]) -> None:
    """Put back what `random_states` gave."""
    python, legacy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(legacy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)
