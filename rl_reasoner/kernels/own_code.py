"""Whether modules compute by the code that they came with: what our functions may stand in for.

A patch of a class, a hook, a mode of torch or another function in a library's place changes what a
model computes; whoever skips the module's own call would train or sample another model. Looked at
each time, as such changes come and go. Knows torch's and transformers' modules alone.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as everywhere
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

_SPECS = map(find_spec, ("torch", "transformers", "kernels"))  # kernels wraps forwards of models
_HOMES = tuple(f"{Path(spec.origin).parent}{os.sep}" for spec in _SPECS if spec and spec.origin)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GRADIENTS = "PreTrainedModel.enable_input_require_grads.<locals>.make_inputs_require_grads"
# what forwards of the known modules call, by the name under which they find it
_CALLED = ("apply_rotary_pos_emb",)


def changed_everywhere() -> str | None:
    """What changes every module's computation in this process, or None."""
    if any(vars(everywhere)[f"_global{name}"] for name in _HOOKS):
        return "hooks on every module"
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    if any(type(mode) is not DeviceContext for mode in modes):  # one that only places new tensors
        return "a mode of torch"
    if torch._C._len_torch_dispatch_stack():
        return "a mode of torch"
    functions: Any = nn.functional
    if functions.linear is not torch._C._nn.linear or not _is_librarys(functions.silu):
        return "another function in torch.nn.functional"
    if not (_is_librarys(nn.Module.__call__) and _is_librarys(nn.Module._call_impl)):
        return "another call of modules"
    return None if is_own(nn.Linear) else "another forward of linear layers"


def is_own(kind: type[nn.Module]) -> bool:
    """Whether a class of torch's or transformers' has the forward, and the call, of its own file.

    A patch is seen by the file of its code, or by the class that it is of.
    """
    forward: Any = kind.forward
    named = getattr(forward, "__qualname__", "") == f"{kind.__name__}.forward"
    home = sys.modules[kind.__module__]
    called = [vars(home)[name] for name in _CALLED if name in vars(home)]
    return (
        named
        and getattr(forward, "__module__", None) == kind.__module__
        and kind.__call__ is nn.Module.__call__
        and all(map(_is_librarys, (forward, *called)))
    )


def is_unheard(module: nn.Module) -> bool:
    """Whether no hook, and no forward of its own, is on a module."""
    return "forward" not in vars(module) and not any(getattr(module, name) for name in _HOOKS)


def asks_for_gradients(hook: Any) -> bool:
    """Whether a hook is transformers' own for checkpoints, which changes no value."""
    return getattr(hook, "__qualname__", "") == _GRADIENTS and _is_librarys(hook)


@contextmanager
def without_new_gradient_hooks(model: nn.Module) -> Iterator[None]:
    """Take off the hooks for checkpoints put on inside: transformers adds one at each call."""

    def found() -> set[tuple[nn.Module, int]]:
        hooks = ((m, key, hook) for m in model.modules() for key, hook in m._forward_hooks.items())
        return {(module, key) for module, key, hook in hooks if asks_for_gradients(hook)}

    before = found()
    try:
        yield
    finally:
        for module, key in found() - before:
            del module._forward_hooks[key]


def _is_librarys(function: Any) -> bool:
    """Whether a function, and all that it wraps, is of torch's or transformers' files."""
    if isinstance(function, nn.Module):  # as `kernels` makes one of a function
        made = "_create_func_module.<locals>" in type(function).__qualname__
        cells = getattr(type(function).forward, "__closure__", None) or ()
        wrapped = [cell.cell_contents for cell in cells if callable(cell.cell_contents)]
        return made and is_unheard(function) and all(map(_is_librarys, wrapped))
    seen = 0
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.startswith(_HOMES) or seen > 8:
            return False
        function, seen = getattr(function, "__wrapped__", None), seen + 1
    return True
