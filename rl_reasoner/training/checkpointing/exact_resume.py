"""Exact resume: what trl's trainer forgets between a checkpoint and the run that continues it.

A run that is killed and resumed has to end with the weights of the run that was not. For that, on
top of what transformers keeps (weights, optimizer, scheduler, random states): how many
micro-batches are done, the completions that were sampled but not yet trained on, the place in the
data (`data_place`), a reference that moves (`reference_model`), and the whole of a
checkpoint (`whole_checkpoints`). The first two are kept in the file of the random
states, so that one checksum and one reader cover all.
Evaluation leaves every random state as it was: turning it on changes no training number.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl
from transformers.trainer_pt_utils import safe_globals

from rl_reasoner.rollout.long_prompts import fit_prompts
from rl_reasoner.training.checkpointing.data_place import PlaceInData, check_rows, check_trained
from rl_reasoner.training.checkpointing.reference_model import load_reference, save_reference
from rl_reasoner.training.checkpointing.whole_checkpoints import WholeCheckpoints

logger = logging.getLogger(__name__)
_KEY = "rl_reasoner"  # in the file of the random states


class ExactResume(PlaceInData, WholeCheckpoints, trl.GRPOTrainer):  # type: ignore[misc]
    """trl's trainer with whole checkpoints and isolated evaluation; see the module's docstring."""

    _buffered_inputs: list[dict[str, Any]] | None
    _step: int

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As trl's, with prompts that fit, data that fill a step and a step that trained."""
        fit_prompts(self)
        check_rows(self)
        output = super().train(*args, **kwargs)
        check_trained(self)
        return output

    def _own_state(self) -> dict[str, Any]:
        """What else a checkpoint keeps, by name: nothing here."""
        return {}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        """Take back what `_own_state` gave."""

    def _random_file(self, folder: str) -> Path:
        many = self.args.world_size > 1
        name = f"rng_state_{self.args.process_index}.pth" if many else "rng_state.pth"
        return Path(folder) / name

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        file = self._random_file(output_dir)
        state = _load(file)
        every = self.args.steps_per_generation * self.num_iterations
        left = self._buffered_inputs if self._step % every else None
        own = {"processes": self.args.world_size, **self._own_state()}
        state[_KEY] = {"step": self._step, "buffered": left, **own}
        partial = file.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(file)
        save_reference(self, Path(output_dir))
        self.accelerator.wait_for_everyone()  # the trainer state, written next, says: complete

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        load_reference(self, Path(checkpoint))
        file = self._random_file(checkpoint)
        kept = _load(file).get(_KEY) if file.is_file() else None
        if (writers := written_by(Path(checkpoint))) not in (0, self.args.world_size):
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
            kept = {"step": self.state.global_step * self.args.gradient_accumulation_steps}
        self._step = kept["step"]
        self._buffered_inputs = _moved(kept.get("buffered"), self.accelerator.device)
        self._restore_own_state(kept)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As trl's; the random states are the same before and after."""
        with same_random_states():
            return super().evaluate(*args, **kwargs)


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
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
