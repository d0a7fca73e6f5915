"""rl-reasoner: reinforcement-learning fine-tuning for reasoning, in the GRPO style.

The public face. What needs torch is imported on first use, so that `import rl_reasoner` is quick;
`reward` and `evaluate` are imported at once, because a module of the same name would otherwise
take the function's place in this namespace.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rl_reasoner.distributed.threads import wait_asleep
from rl_reasoner.evaluation.evaluate import EvalResult, compare, evaluate
from rl_reasoner.scoring.reward import Score, reward
from rl_reasoner.version import __version__

if TYPE_CHECKING:
    from rl_reasoner.answers import verify, verify_many
    from rl_reasoner.pipeline.train import Run, train
    from rl_reasoner.policy.opening import Policy, open_policy
    from rl_reasoner.recipe.recipe import Recipe
    from rl_reasoner.training.grpo_trainer import GRPOConfig, GRPOTrainer

_HOMES = {
    "GRPOConfig": "trainer",
    "GRPOTrainer": "trainer",
    "Policy": "policy",
    "Recipe": "recipe",
    "Run": "stages",
    "open_policy": "policy",
    "train": "stages",
    "verify": "answers",
    "verify_many": "answers",
}

__all__ = [
    "EvalResult",
    "GRPOConfig",
    "GRPOTrainer",
    "Policy",
    "Recipe",
    "Run",
    "Score",
    "__version__",
    "compare",
    "evaluate",
    "open_policy",
    "reward",
    "train",
    "verify",
    "verify_many",
]


wait_asleep()  # heeded only until torch is loaded


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rl_reasoner' has no attribute {name!r}")
    return getattr(import_module(f"rl_reasoner.{_HOMES[name]}"), name)
