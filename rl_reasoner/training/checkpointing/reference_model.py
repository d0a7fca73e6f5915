"""A reference policy that moves (`sync_ref_model`) is part of a checkpoint.

It is a mixture of what the policy was at every synchronisation, which nothing else in a checkpoint
tells. One file holds it whole, whatever the number of processes, as weights in shards are gathered
one tensor at a time. Knows trainers of trl; nothing of recipes.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

logger = logging.getLogger(__name__)
_FILE = "reference.safetensors"
_GONE = (
    "%s has no reference policy, which sync_ref_model moves: the run continues with the reference "
    "it started from, not exactly as it would have"
)


def _moving(trainer: Any) -> nn.Module | None:
    """The reference of a trainer that moves it, or None."""
    if not getattr(trainer.args, "sync_ref_model", False) or trainer.ref_model is None:
        return None
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.ref_model)
    return model


def save_reference(trainer: Any, checkpoint: Path) -> None:
    """Write the moving reference into `checkpoint`; all processes call it, the first one writes."""
    model = _moving(trainer)
    if model is None or trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        return
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if trainer.args.should_save:
            state[name] = whole.cpu().clone()  # tied weights share their memory
    if trainer.args.should_save:
        save_file(state, checkpoint / _FILE)


def load_reference(trainer: Any, checkpoint: Path) -> None:
    """Put the reference of `checkpoint` in the place of the trainer's, or say that it has none."""
    model = _moving(trainer)
    if model is None:
        return
    if not (checkpoint / _FILE).is_file():
        logger.warning(_GONE, checkpoint)
        return
    saved = load_file(checkpoint / _FILE)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if isinstance(tensor, DTensor):
                part = saved[name].to(tensor.device)
                tensor.copy_(distribute_tensor(part, tensor.device_mesh, tensor.placements))
            else:
                tensor.copy_(saved[name])
