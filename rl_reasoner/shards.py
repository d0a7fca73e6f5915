"""What a sharded checkpoint may hold: tensors and plain values, checked before torch reads them.

torch's reader of distributed checkpoints unpickles the index (`.metadata`) and every value that is
no tensor, so whoever wrote the folder could have any code run. `checked` reads both with unpicklers
that know nothing but what torch itself writes there; only then a folder is given to torch or
accelerate. Knows files; nothing of models.
"""

import io
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from rl_reasoner.errors import UserError

INDEX = ".metadata"
_IN_INDEX = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),  # of Python 3.13
}
_MOST_IN_LIST = 100_000  # places of a list in a state dict: parameter groups


class _Index(pickle.Unpickler):
    """Unpickles what torch writes into an index; anything else that is named raises."""

    def find_class(self, module: str, name: str) -> Any:
        """The class `name`, one of those that an index is made of, or a dtype of torch's."""
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _IN_INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index of weights has")
        return super().find_class(module, name)


def checked(folder: Path) -> None:
    """Raise `UserError` where the shards in `folder` are more than tensors and plain values."""
    try:
        with (folder / INDEX).open("rb") as file:
            index = _Index(file).load()
        if wrong := next(_wrong(folder, index), None):
            raise ValueError(wrong)
        _check_values(folder, index)
    except Exception as error:  # damaged or hostile bytes make both readers raise nearly anything
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"{folder} is not read: {said}") from error


def _wrong(folder: Path, index: Any) -> Iterator[str]:
    """What of an index would lead its reader out of the folder, or past the machine's memory."""
    if not isinstance(index, Metadata):
        yield f"its {INDEX} is no index of shards"
        return
    there = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    wanted = 0
    for kept in index.state_dict_metadata.values():
        if isinstance(kept, TensorStorageMetadata):
            wanted += math.prod(kept.size) * kept.properties.dtype.itemsize
    if wanted > there:
        yield f"its {INDEX} tells of {wanted:,} bytes of tensors, its files have {there:,}"
    for path in (index.planner_data or {}).values():
        if not all(isinstance(p, str) or (type(p) is int and p < _MOST_IN_LIST) for p in path):
            yield f"its {INDEX} places a value at {path!r:.60}"
    for stored in index.storage_data.values():
        name = stored.relative_path
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            yield f"its {INDEX} names a file elsewhere, {name!r:.60}"


def _check_values(folder: Path, index: Metadata) -> None:
    """Read the values that are no tensors as torch will, but without unpickling any code."""
    for at, stored in index.storage_data.items():
        if isinstance(index.state_dict_metadata.get(at.fqn), TensorStorageMetadata):
            continue
        with (folder / stored.relative_path).open("rb") as file:
            file.seek(stored.offset)
            torch.load(io.BytesIO(file.read(stored.length)), weights_only=True)
