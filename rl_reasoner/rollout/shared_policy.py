"""A policy in two processes: its modules are sent once, its tensors lie in memory that both see.

`SharedPolicy` makes a model's modules to bytes without the numbers in their tensors, for which it
has a place each in a file without a name; `publish` copies them there. `opened` makes a model of
both in the other process, whose parameters and buffers are that memory (on a CPU) or a copy of it
(on another device), taken with `Opened.refresh`. Hooks, and a `forward` that a trainer has put on a
module, stay where they are. Knows modules and tensors alone.
"""

import copyreg
import io
import mmap
import os
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_ALIGNED = 64  # bytes
_MEMORY = Path("/dev/shm")
_HOOKS = frozenset(name for name in vars(nn.Identity()) if name.endswith("_hooks"))
# a place of a tensor: its number, where it begins, dtype, shape, whether it is a parameter
Place = tuple[int, int, torch.dtype, tuple[int, ...], bool]


class SharedPolicy:
    """The modules of a model as `modules`, and a place for its tensors in `file`, of `size` bytes.

    Raises what pickle raises for a module that cannot be sent, OSError where no memory is left.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tensors: list[Tensor] = []
        written = io.BytesIO()
        sender = _Sender(written, self._tensors)
        sender.dump(model)
        self.modules = written.getvalue()
        self.size = max(sender.end, 1)
        self.file = _nameless(self.size)
        self._memory = mmap.mmap(self.file.fileno(), self.size)
        self._places = [
            _placed(self._memory, start, tensor.dtype, tuple(tensor.shape))
            for tensor, start in zip(self._tensors, sender.starts, strict=True)
        ]

    def publish(self) -> None:
        """Copy the numbers of now; whoever reads them meanwhile reads both."""
        for place, tensor in zip(self._places, self._tensors, strict=True):
            place.copy_(tensor.detach())

    def close(self) -> None:
        """Let go of the memory; the other process keeps what it has."""
        self._places = []
        self.file.close()


class _Sender(pickle.Pickler):
    """Pickles modules; of a tensor only its place."""

    def __init__(self, file: IO[bytes], tensors: list[Tensor]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors = tensors
        self.starts: list[int] = []
        self.end = 0
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Place | None:
        if not isinstance(obj, Tensor):
            return None
        if type(obj) not in (Tensor, nn.Parameter):  # as quantised weights, which are more
            raise pickle.PicklingError(f"its tensors are not plain ones: {type(obj).__name__}")
        if (number := self._numbers.get(id(obj))) is None:
            number = self._numbers[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
            self.starts.append(self.end)
            self.end += -(-obj.numel() * obj.element_size() // _ALIGNED) * _ALIGNED
        shape = tuple(obj.shape)
        return number, self.starts[number], obj.dtype, shape, isinstance(obj, nn.Parameter)

    def reducer_override(self, obj: Any) -> Any:
        """A module as pickle would send it, without its hooks; one that says how, as it says."""
        if not isinstance(obj, nn.Module) or _reduces_itself(type(obj)):
            return NotImplemented
        reduced: Any = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        made, arguments, state, *rest = reduced
        if isinstance(state, dict):
            state = {k: v for k, v in state.items() if k != "forward" and not _is_hook(v)}
            state |= {name: OrderedDict() for name in _HOOKS & state.keys()}
        return made, arguments, state, *rest


def _reduces_itself(kind: Any) -> bool:
    """Whether pickle asks a class, or a table, how its objects are taken apart."""
    if kind in copyreg.dispatch_table:
        return True
    names = ("__reduce__", "__reduce_ex__")
    return any(getattr(kind, name) is not getattr(object, name) for name in names)


def _is_hook(value: Any) -> bool:
    """Whether a module keeps the handles of hooks here, as transformers does for checkpointing."""
    handles = value if isinstance(value, list) else [value]
    return bool(handles) and all(isinstance(handle, RemovableHandle) for handle in handles)


class _Receiver(pickle.Unpickler):
    """Makes modules whose tensors lie in `memory`."""

    def __init__(self, modules: bytes, memory: mmap.mmap) -> None:
        super().__init__(io.BytesIO(modules))
        self.memory = memory
        self.found: dict[int, Tensor] = {}

    def persistent_load(self, pid: Place) -> Tensor:
        number, start, dtype, shape, parameter = pid
        if number not in self.found:
            tensor = _placed(self.memory, start, dtype, shape)
            made = nn.Parameter(tensor, requires_grad=False) if parameter else tensor
            self.found[number] = made
        return self.found[number]


class Opened:
    """A model in the process that it was sent to; `refresh` before each use of it."""

    def __init__(self, model: nn.Module, refresh: Callable[[], None]) -> None:
        self.model = model
        self.refresh = refresh


def opened(modules: bytes, file: int, size: int, device: str) -> Opened:
    """The model of a `SharedPolicy`, in evaluation mode; its `file` is an open descriptor here."""
    receiver = _Receiver(modules, mmap.mmap(file, size))
    model: nn.Module = receiver.load().eval()
    if device == "cpu":
        return Opened(model, lambda: None)
    shared = _tensors(model)
    model.to(device)
    return Opened(model, lambda: _copy(shared, _tensors(model)))


def _tensors(model: nn.Module) -> list[Tensor]:
    return [t.data for t in (*model.parameters(), *model.buffers())]


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _placed(memory: mmap.mmap, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The tensor that lies in `memory` from the byte `start` on."""
    count = int(torch.Size(shape).numel())
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=start).view(shape)


def _nameless(size: int) -> IO[bytes]:
    """A file without a name: in memory where that has room, else on disk."""
    for folder in (str(_MEMORY), None) if _MEMORY.is_dir() else (None,):
        file = None
        try:
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError:
            if file is not None:
                file.close()
            if folder is None:
                raise
            continue
        return file
    raise AssertionError("unreachable")
