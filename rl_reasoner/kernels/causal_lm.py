"""The causal language model inside the wrappers that training puts around it."""

from peft import PeftModel
from torch import nn


def base_of(model: nn.Module) -> nn.Module:
    """The causal language model inside wrappers of accelerate and adapters of peft."""
    inner = getattr(model, "module", model)
    base: nn.Module = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    return base
