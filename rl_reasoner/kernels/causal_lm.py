"""The causal language model inside the wrappers that training puts around it."""

import sys

from torch import nn


def base_of(model: nn.Module) -> nn.Module:
    """The causal language model inside wrappers of accelerate and adapters of peft."""
    inner = getattr(model, "module", model)
    peft = sys.modules.get("peft")  # no adapter is there before it is loaded, at a second or more
    if peft is not None and isinstance(inner, peft.PeftModel):
        inner = inner.get_base_model()
    base: nn.Module = inner
    return base
