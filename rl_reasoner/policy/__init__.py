"""Names to models and tokenizers, and back to disk: opening, saving, adapting, FP8 weights.

May import `moe`, `kernels`, `distributed`, the recipe's specs and the ground. Public: `open_policy`
and `Policy`, loaded on first use, for both need torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_reasoner.policy.opening import open_policy
    from rl_reasoner.policy.policy import Policy

__all__ = ["Policy", "open_policy"]
_MODULES = {"Policy": "policy", "open_policy": "opening"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rl_reasoner.policy' has no attribute {name!r}")
    return getattr(import_module(f"rl_reasoner.policy.{_MODULES[name]}"), name)
