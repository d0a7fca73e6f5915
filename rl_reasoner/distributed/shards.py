"""Weights in shards without their trainer: checked, read as one state dict, loaded, gathered.

torch's reader of distributed checkpoints unpickles the index (`.metadata`) and every value that is
no tensor, so whoever wrote the folder could have any code run. `check_shards` reads both with
unpicklers that know only what torch itself writes there; only then is a folder given to torch or
accelerate. Opening and sampling a policy need this; the trainers of `sharding` bring trl along.
"""

import io
import math
import pathlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.serialization import _get_layout

from rl_reasoner.errors import UserError

MODEL_SHARDS = "pytorch_model_fsdp_0"
"""The folder of a sharded checkpoint with its weights, as transformers writes it."""
INDEX = ".metadata"
_MOST_IN_LIST = 100_000  # places of a list in a state dict: parameter groups


class _Fixed(type):
    """Classes that nothing changes: pickles can set attributes, also of a class that they name.

    With methods of an index's own making, torch would read other bytes than are checked here.
    """

    def __setattr__(cls, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it changes the class {cls.__name__}")


def _fixed(known: type) -> type:
    return _Fixed(known.__name__, (known,), {})


def _called(function: Callable[[Any], object]) -> type:
    """A stand-in for `function` that a pickle can call and cannot change."""
    return _Fixed("function", (), {"__new__": lambda cls, argument: function(argument)})


_METADATA = "torch.distributed.checkpoint.metadata"
_IN_INDEX: dict[tuple[str, str], Any] = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _called(_get_layout),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _fixed(filesystem._StorageInfo),
    (_METADATA, "_MEM_FORMAT_ENCODING"): _called(metadata._MEM_FORMAT_ENCODING),
    **{
        (_METADATA, known.__name__): _fixed(known)
        for known in (
            metadata.BytesStorageMetadata,
            metadata.ChunkStorageMetadata,
            metadata.Metadata,
            metadata.MetadataIndex,
            metadata.StorageMeta,
            metadata.TensorProperties,
            metadata.TensorStorageMetadata,
        )
    },
    ("pathlib", "PosixPath"): _fixed(pathlib.PosixPath),
    ("pathlib._local", "PosixPath"): _fixed(pathlib.PosixPath),  # of Python 3.13
}


class _Index(pickle.Unpickler):
    """Unpickles what torch writes into an index; anything else that is named raises."""

    def find_class(self, module: str, name: str) -> Any:
        """The class `name`, one of those that an index is made of, or a dtype of torch's."""
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) not in _IN_INDEX:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of weights has")
        return _IN_INDEX[module, name]


def check_shards(folder: Path) -> None:
    """Raise `UserError` where the shards in `folder` are more than tensors and plain values."""
    try:
        with (folder / INDEX).open("rb") as file:
            index = _Index(file).load()
        if wrong := next(_wrong(folder, index), None):
            raise ValueError(wrong)
        _check_values(folder, index)
    except Exception as error:  # damaged or hostile bytes make both readers raise nearly anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{folder} is not loaded: {reason}") from error


def _wrong(folder: Path, index: Any) -> Iterator[str]:
    """Yield what in an index would lead its reader out of the folder or past the memory."""
    if not _is_index(index):
        yield f"its {INDEX} is not an index of shards"
        return
    if others := [file.name for file in folder.glob(f"__*{INDEX}")]:
        yield f"{others[0]} is an index that torch may read instead of {INDEX}"
    there = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    wanted = 0
    for kept in index.state_dict_metadata.values():
        if isinstance(kept, TensorStorageMetadata):
            wanted += math.prod(map(abs, kept.size)) * kept.properties.dtype.itemsize
    if wanted > there:
        yield f"its {INDEX} declares {wanted:,} bytes of tensors, its files have {there:,}"
    for path in (index.planner_data or {}).values():
        if not all(isinstance(p, str) or (type(p) is int and p < _MOST_IN_LIST) for p in path):
            yield f"its {INDEX} puts a value at {path!r:.60}"
    for stored in index.storage_data.values():
        name = stored.relative_path
        if Path(name).name != name or name in ("", ".."):
            yield f"its {INDEX} names a file elsewhere, {name!r:.60}"
        if stored.transform_descriptors is not None:  # then torch reads other bytes than we do
            yield f"its {INDEX} has a value compressed, {stored.transform_descriptors!r:.60}"


def _is_index(index: Any) -> bool:
    """Whether an index is of the types torch writes: others could tell torch something else."""
    return (
        isinstance(index, Metadata)
        and type(index.state_dict_metadata) is type(index.storage_data) is dict
        and isinstance(index.planner_data, (dict, type(None)))
        and isinstance(index.storage_meta, (metadata.StorageMeta, type(None)))
        and all(type(name) is str for name in index.state_dict_metadata)
        and all(
            isinstance(at, metadata.MetadataIndex)
            and isinstance(stored, filesystem._StorageInfo)
            and type(at.fqn) is type(stored.relative_path) is str
            and type(stored.offset) is type(stored.length) is int
            for at, stored in index.storage_data.items()
        )
    )


def _check_values(folder: Path, index: Metadata) -> None:
    """Read the values that are no tensors as torch will, but without unpickling any code."""
    for at, stored in index.storage_data.items():
        if isinstance(index.state_dict_metadata.get(at.fqn), TensorStorageMetadata):
            continue
        with (folder / stored.relative_path).open("rb") as file:
            file.seek(stored.offset)
            torch.load(io.BytesIO(file.read(stored.length)), weights_only=True)


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
