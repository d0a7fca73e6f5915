"""fp16 on a CPU, with the loss scaled as on a card.

fp16 has no numbers below 6e-8: small gradients become 0. So the backward pass starts from S times
the loss, and gradients are divided by S before the step (mixed precision training, arXiv
1710.03740, section 3.2):

    theta <- theta - lr * update((1 / S) * grad(S * L))

A step whose gradients overflow is left out and halves S; after 2000 steps without one, S doubles.
torch's `GradScaler` does this, and transformers keeps its state in checkpoints (scaler.pt). Where
accelerate makes no scaler, on a CPU, it computes in fp32 without a word. Here one is made.
`SkipBadSteps` counts the steps that are left out. Knows accelerate; nothing of trainers.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from rl_reasoner.errors import UserError

_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU)


def scale_losses(accelerator: Accelerator) -> None:
    """Have `accelerator` compute in fp16 on a CPU where it is to: passes, and a scaled loss.

    Raises `UserError` where processes hold shards of the weights, whose scaler torch lacks there.
    """
    if accelerator.mixed_precision != "fp16" or accelerator.device.type != "cpu":
        return
    if accelerator.distributed_type not in _WHOLE:
        raise UserError("fp16 on a CPU is for whole weights: take run.parallel ddp, or bf16")
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu")
