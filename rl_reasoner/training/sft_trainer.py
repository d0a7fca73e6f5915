"""`SFTTrainer`: trl's, whose checkpoints are whole and whose weights can be sharded anywhere."""

import trl

from rl_reasoner.distributed.sharding import Sharding
from rl_reasoner.training.checkpointing.exact_resume import ExactResume


class SFTTrainer(ExactResume, trl.SFTTrainer, Sharding):  # type: ignore[misc]
    """trl's trainer with checkpoints that continue exactly, and weights in shards on a CPU too."""
