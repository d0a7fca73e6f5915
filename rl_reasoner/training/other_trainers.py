"""The trainers of the stages beside GRPO: trl's for `sft` and for on-policy distillation.

What trl's SFTTrainer needs here: checkpoints that are whole, weights that can be sharded anywhere.
In distillation the student samples, the teacher says how likely each token should be; trl's
DistillationTrainer (Agarwal et al., arXiv 2306.13649) with the reverse KL as its default
divergence. What it needs: a teacher at rest, samples that depend on the step alone, so that a run
that is continued draws what it would have drawn, and its place in the data. Knows trl; nothing of
recipes.
"""

from typing import Any

import torch
import trl

from rl_reasoner.distributed.sharding import Sharding
from rl_reasoner.errors import UserError
from rl_reasoner.policy.policy import Policy
from rl_reasoner.training.checkpointing.exact_resume import ExactResume


class SFTTrainer(ExactResume, trl.SFTTrainer, Sharding):  # type: ignore[misc]
    """trl's trainer with checkpoints that continue exactly, and weights in shards on a CPU too."""

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside trl's: how many tokens were trained on."""
        return {"tokens": int(self._total_train_tokens)}

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Go on counting from what `own_state` gave."""
        self._total_train_tokens = state.get("tokens", 0)


class DistillationTrainer(ExactResume, trl.DistillationTrainer):  # type: ignore[misc]
    """trl's trainer with draws that follow from seed and step, and an exact place in the data."""

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        draw = self.args.seed * 1_000_003 + self.state.global_step
        draw = draw * 1_009 + self.accelerator.process_index
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(draw)
            return super()._generate_single_turn(*args, **kwargs)


def check_vocabulary(student: Policy, teacher: Policy) -> None:
    """Raise `UserError` where the two do not mean the same tokens by the same numbers."""
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise UserError(
            f"the teacher {teacher.source} and the student {student.source} have different "
            "vocabularies: distil by samples instead (a sft stage on the data of a sample stage)"
        )


def teacher_of(policy: Policy) -> Any:
    """The model of a policy as a teacher: no dropout, no gradients."""
    return policy.model.eval().requires_grad_(False)
