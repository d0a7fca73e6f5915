"""Trainers whose weights are in shards: FSDP2 (`torch.distributed.fsdp.fully_shard`), and back.

accelerate shards; this module adds what sampling, checkpoints and the next stage need: all weights
for a while (`gathered_params`), a sharded checkpoint in one process (`load_shards`), and FSDP2 over
gloo on a CPU, which torch can do and accelerate does not offer, so that a recipe for many GPUs can
be tried on a laptop. Knows trainers of transformers; nothing of recipes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.integrations import deepspeed as hf_deepspeed
from trl.models.utils import unwrap_model_for_generation

from rl_reasoner.distributed.shards import (
    MODEL_SHARDS,
    check_shards,
    is_sharded,
    load_state,
    merged_shards,
    merged_state_dict,
)
from rl_reasoner.errors import UserError

OPTIMIZER_SHARDS = "optimizer_0"
"""The folder of a sharded checkpoint with the optimizer's state, as transformers writes it."""


class Sharding(Trainer):  # type: ignore[misc]
    """A trainer that also shards over gloo on a CPU, and whose sharded checkpoints say what of.

    `fsdp=True` in its arguments shards; a launcher's own FSDP settings hold where it is not given.
    """

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers'; on a CPU accelerate's state is told what torch can do there."""
        super().create_accelerator_and_postprocess()
        arguments = self.args.fsdp_plugin_args
        asked = arguments is not None or os.environ.get("ACCELERATE_USE_FSDP") == "true"
        if not asked or self.accelerator.distributed_type != DistributedType.MULTI_CPU:
            return
        plugin = FullyShardedDataParallelPlugin(**(arguments or {}))
        kind = {"distributed_type": DistributedType.FSDP}
        PartialState._shared_state |= kind
        AcceleratorState._shared_state |= {**kind, "fsdp_plugin": plugin}
        self.is_fsdp_enabled = True

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if (folder / MODEL_SHARDS).is_dir() and self.args.should_save:
            self.model.config.save_pretrained(folder)
            if self.model.generation_config is not None:
                self.model.generation_config.save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_fsdp_enabled or not is_sharded(Path(checkpoint)):
            if checkpoint is not None and (shards := Path(checkpoint) / OPTIMIZER_SHARDS).is_dir():
                check_shards(shards)
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = merged_shards(Path(checkpoint) / OPTIMIZER_SHARDS, "optimizer")
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=options)
        schedule = torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)


def load_shards(trainer: Any, checkpoint: Path) -> bool:
    """Load the shards of many processes into the model of one; whether `checkpoint` was that.

    Raises `UserError` for weights that the trainer cannot take, and for shards that are damaged.
    """
    if is_sharded(checkpoint) and not trainer.is_fsdp_enabled:
        load_state(trainer.model, merged_state_dict(checkpoint))
        return True
    if trainer.is_fsdp_enabled and not is_sharded(checkpoint):
        raise UserError(
            f"{checkpoint} was not written in shards: resume it in one process, or under DDP"
        )
    if is_sharded(checkpoint):
        check_shards(checkpoint / MODEL_SHARDS)
    return False


def forward_is_collective(trainer: Any) -> bool:
    """Whether a forward pass is a collective call, so that all ranks must run the same number."""
    kind = trainer.accelerator.distributed_type
    return bool(kind in (DistributedType.FSDP, DistributedType.DEEPSPEED))


@contextmanager
def gathered_params(model: nn.Module) -> Iterator[None]:
    """Gather all sharded parameters on every rank; passes inside need no communication.

    Costs the memory of the model, once. A model that is not sharded is left alone.
    """
    if not torch.distributed.is_initialized():  # one process alone shards nothing
        yield
        return
    if isinstance(model, FSDPModule):  # the root, before a part of it (under an adapter) is passed
        model._get_fsdp_state()._lazy_init()
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    freed = [_frees(unit) for unit in units]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit, frees in zip(units, freed, strict=True):
            unit.set_reshard_after_forward(frees, recurse=False)
            unit.reshard()


@contextmanager
def gathered_params_of(trainer: Any) -> Iterator[None]:
    """`gathered_params` of a trainer's model, also under DeepSpeed ZeRO-3; every rank enters it."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator):
            yield
        return
    with gathered_params(trainer.model):
        yield


@contextmanager
def opened_whole() -> Iterator[None]:
    """Inside, `from_pretrained` gives every rank all weights, under DeepSpeed ZeRO-3 too.

    transformers would open a model in its parts there, as long as a trainer's arguments live: for
    DeepSpeed's engine alone, not for sampling or another stage.
    """
    sees = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = sees


def _frees(unit: FSDPModule) -> bool:
    """Whether a unit frees its gathered parameters after its forward pass."""
    group = unit._get_fsdp_state()._fsdp_param_group
    return group is not None and group.post_forward_mesh_info is not None


def local_shard(tensor: Tensor) -> Tensor:
    """The shard of a tensor on this rank: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def params_are_sharded(trainer: Any) -> bool:
    """Whether no rank alone holds all of a trainer's parameters."""
    if trainer.accelerator.distributed_type == DistributedType.FSDP:
        return True
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    return bool(plugin is not None and plugin.zero_stage == 3)


def any_rank(trainer: Any, here: bool) -> bool:
    """Whether `here` is true on any rank; a collective call."""
    if trainer.accelerator.num_processes == 1:
        return here
    flag = torch.tensor(float(here), device=trainer.accelerator.device)
    return bool(trainer.accelerator.reduce(flag, "sum") > 0)
