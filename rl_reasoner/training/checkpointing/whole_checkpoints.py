"""A trainer's checkpoints: sealed when complete, checked before use, and taken whole.

Every checkpoint gets the checksums of its files (`checkpoints`). One that is damaged is
not trained on, and not taken for the best model at the end. Where files hold other tensors than a
model in memory, as those of mixtures hold the experts one by one, `from_pretrained` puts them
together: transformers' trainer passes over what it does not find.
Knows trainers of transformers; nothing of recipes.
"""

import logging
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from rl_reasoner.distributed.sharding import any_rank, opened_whole
from rl_reasoner.distributed.shards import is_sharded
from rl_reasoner.errors import UserError
from rl_reasoner.training.checkpointing.checkpoints import broken_seal, last_checkpoint, seal

logger = logging.getLogger(__name__)


def load_whole(checkpoint: Path, model: PreTrainedModel) -> None:
    """Put the weights of a checkpoint into `model`, with experts that files hold one by one.

    By the config in memory: the checkpoint's own may ask for a kernel that is code.
    """
    with opened_whole():
        saved = type(model).from_pretrained(
            checkpoint, dtype=model.dtype, config=model.config, use_kernels=False
        )
    model.load_state_dict(saved.state_dict())


class Sealing(TrainerCallback):  # type: ignore[misc]
    """Seals each checkpoint of `trainer` behind all that was written before this is called."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            seal(checkpoint)


def checkpoint_to_resume(trainer: Any, wanted: str | bool | None) -> str | bool | None:
    """The checkpoint that is meant: with `True` the last whole one, damaged ones are passed over.

    Raises `UserError` for a damaged one that is named.
    """
    if wanted is True:
        last = last_checkpoint(Path(trainer.args.output_dir), logger.warning)
        if last is None:
            raise UserError(f"there is no intact checkpoint in {trainer.args.output_dir}")
        return str(last[0])
    if wanted and Path(wanted) != trainer.checked:
        damage = broken_seal(Path(wanted))
        if damage is not None:
            raise UserError(
                f"checkpoint {wanted} is damaged ({damage}): "
                "resume_from_checkpoint=True takes the last intact one"
            )
    return wanted


def best_is_damaged(trainer: Any) -> bool:
    """Whether the best checkpoint cannot be used: said, and the same in all processes."""
    best = Path(trainer.state.best_model_checkpoint)
    damage = broken_seal(best)
    damaged = any_rank(trainer, damage is not None)
    if damaged:
        logger.warning(
            "the best checkpoint %s is damaged (%s): the model of the last step is kept",
            best,
            damage,
        )
    return damaged


def put_together(trainer: Any, checkpoint: Path, model: nn.Module) -> bool:
    """Load files whose tensors are not those in memory; whether that was to be done."""
    in_memory = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or is_sharded(checkpoint)
    if in_memory or not isinstance(model, PreTrainedModel):  # an adapter is no model
        return False
    names: set[str] = set()
    for file in checkpoint.glob("model*.safetensors"):
        with safe_open(str(file), "pt") as tensors:
            names.update(tensors.keys())
    if names <= model.state_dict().keys():
        return False
    load_whole(checkpoint, model)
    return True
