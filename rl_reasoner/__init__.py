"""rl-reasoner: reinforcement-learning fine-tuning for reasoning, in the GRPO style.

The public face: every name is loaded on first use, so that `import rl_reasoner` is quick.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rl_reasoner.distributed.threads import wait_asleep
from rl_reasoner.errors import UserError
from rl_reasoner.version import __version__, out_of_range

if TYPE_CHECKING:
    from rl_reasoner.answers import verify, verify_many
    from rl_reasoner.evaluation.comparison import Comparison
    from rl_reasoner.evaluation.evaluate import evaluate
    from rl_reasoner.evaluation.result import EvalResult, compare
    from rl_reasoner.handover.rewards import RecipeRewards
    from rl_reasoner.judging.judge import ModelJudge
    from rl_reasoner.pipeline.train import Run, train
    from rl_reasoner.policy import Policy, open_policy
    from rl_reasoner.recipe.recipe import Recipe
    from rl_reasoner.scoring.reward import Column, reward
    from rl_reasoner.tools.tool import Tool, tool
    from rl_reasoner.training.config import GRPOConfig
    from rl_reasoner.training.grpo_trainer import GRPOTrainer
    from rl_reasoner.types import Score

_HOMES = {
    "Column": "scoring.reward",
    "Comparison": "evaluation.comparison",
    "EvalResult": "evaluation.result",
    "GRPOConfig": "training.config",
    "GRPOTrainer": "training.grpo_trainer",
    "ModelJudge": "judging.judge",
    "Policy": "policy",
    "Recipe": "recipe.recipe",
    "RecipeRewards": "handover.rewards",
    "Run": "pipeline.train",
    "Score": "types",
    "Tool": "tools.tool",
    "compare": "evaluation.result",
    "evaluate": "evaluation.evaluate",
    "open_policy": "policy",
    "reward": "scoring.reward",
    "tool": "tools.tool",
    "train": "pipeline.train",
    "verify": "answers",
    "verify_many": "answers",
}

__all__ = [
    "Column",
    "Comparison",
    "EvalResult",
    "GRPOConfig",
    "GRPOTrainer",
    "ModelJudge",
    "Policy",
    "Recipe",
    "RecipeRewards",
    "Run",
    "Score",
    "Tool",
    "__version__",
    "compare",
    "evaluate",
    "open_policy",
    "reward",
    "tool",
    "train",
    "verify",
    "verify_many",
]


wait_asleep()  # heeded only until torch is loaded
# Where rewards were once told to import from: those of earlier runs still do.
sys.modules.setdefault("rl_reasoner.reward", sys.modules[__name__])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rl_reasoner' has no attribute {name!r}")
    try:
        return getattr(import_module(f"rl_reasoner.{_HOMES[name]}"), name)
    except ImportError as error:
        if found := out_of_range():
            raise UserError(str(error), *found) from error
        raise
