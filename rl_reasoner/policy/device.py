"""Choosing the device and the precision of a run."""

import torch

from rl_reasoner.errors import UserError


def choose_device(wanted: str = "auto") -> str:
    """The device to use: `wanted`, or for "auto" CUDA, else Apple's MPS, else the CPU.

    Raises `UserError` when the wanted one is not there.
    """
    devices = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, available in devices.items() if available)
    if not devices[wanted]:
        raise UserError(f"device {wanted!r} is not on this machine; there is: {choose_device()}")
    return wanted


def choose_precision(wanted: str, device: str) -> str:
    """ "fp32", "bf16" (mixed: weights stay in fp32, the passes run in bf16), "fp16" (the same in
    fp16, with a scaled loss: rl_reasoner.training.checkpointing.loss_scaling), or "fp8" (as bf16,
    with the products of linear layers and experts in FP8: rl_reasoner.policy.fp8.layers).

    "auto" is bf16 on CUDA cards that have it, fp32 elsewhere: on CPUs bf16 is seldom faster, and
    in a mixture of experts it flips routing decisions between rollout and training.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The type in which passes run with this precision; None for the weights' own."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
    return mixed.get(precision)
