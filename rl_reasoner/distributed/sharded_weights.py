"""Weights in shards without their trainer: read as one state dict, loaded, gathered.

What opening and sampling a policy needs of `sharding`, whose trainers bring trl along.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.fsdp import FSDPModule

from rl_reasoner.distributed.shards import check_shards
from rl_reasoner.errors import UserError

MODEL_SHARDS = "pytorch_model_fsdp_0"
"""The folder of a sharded checkpoint with its weights, as transformers writes it."""


def is_sharded(checkpoint: Path) -> bool:
    """Whether the weights in `checkpoint` are in shards, one or more a process."""
    return (checkpoint / MODEL_SHARDS).is_dir()


def merged_state_dict(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a sharded checkpoint as one state dict, by one process, on the CPU."""
    return merged_shards(checkpoint / MODEL_SHARDS, "model")


def merged_shards(folder: Path, name: str) -> dict[str, Any]:
    """What `folder` holds as `name` in shards, merged. Raises `UserError` as `check_shards`."""
    check_shards(folder)
    loaded: dict[str, Any] = {}
    try:
        _load_state_dict(
            loaded,
            storage_reader=FileSystemReader(folder),
            planner=_EmptyStateDictLoadPlanner(),  # type: ignore[no-untyped-call]
            no_dist=True,
        )
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise UserError(f"{folder} cannot be read: {type(cause).__name__}: {cause}") from error
    if not isinstance(state := loaded.get(name), dict):
        raise UserError(f"{folder} is not loaded: there is no {name} in it")
    return state


def load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a merged state dict into a model, or into its adapter where that alone was trained."""
    from peft import PeftModel, set_peft_model_state_dict

    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, state)
    else:
        model.load_state_dict(state)


def gathered_state_dict(model: nn.Module) -> dict[str, Tensor] | None:
    """The state dict of a sharded model inside `gathered_params`; None for one that is not.

    `model.state_dict()` itself would shard it again.
    """
    if not isinstance(model, FSDPModule):
        return None
    state: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        lasting = module._buffers.keys() - module._non_persistent_buffers_set
        kept = {name: module._buffers[name] for name in lasting}
        for name, tensor in {**module._parameters, **kept}.items():
            if tensor is not None:
                state[f"{prefix}.{name}" if prefix else name] = tensor.detach()
    return state
