"""In which type a policy's weights are sampled from: `sampling_dtype` decides it, once a run.

`own` is the policy as it is. `bfloat16` reads copies that are half as large and, where the
processor multiplies in bf16, takes products several times as fast; what is sampled then is from a
policy that is rounded, and its log-probabilities say so. `auto` is `bfloat16` for large policies in
fp32 on a processor that has it, and `own` for all others: tiny ones are exact.
"""

from typing import Any, Literal, get_args

import torch

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.kernels.packed_linear import bf16_pays, linear_bytes, plain_linears

SamplingWeights = Literal["auto", "own", "bfloat16"]
LARGE = 64 << 20  # bytes of linear layers from which `auto` takes bf16


def check_choice(field: str, wanted: str) -> None:
    """Raises `UserError` for a name that there is not."""
    if wanted not in get_args(SamplingWeights):
        raise unknown(field, str(wanted), get_args(SamplingWeights))


def sampling_dtype(model: Any, wanted: str, field: str = "sampling_weights") -> torch.dtype | None:
    """The type of the copies that `model` is sampled from, or None for its own weights.

    Raises `UserError`, which names `field`, where the model or the machine cannot do `wanted`.
    """
    check_choice(field, wanted)
    parameter = next(model.parameters())
    device, own = parameter.device.type, parameter.dtype
    if torch.is_autocast_enabled(device):  # its type is what training computes in, too
        cast = torch.get_autocast_dtype(device)
        return cast if cast == torch.bfloat16 and device == "cpu" else None
    if wanted == "own" or own == torch.bfloat16:
        return None
    if wanted == "auto":
        large = own == torch.float32 and device == "cpu" and linear_bytes(model) >= LARGE
        return torch.bfloat16 if large and bf16_pays() else None
    if own != torch.float32 or not plain_linears(model):
        kind = str(own).removeprefix("torch.")
        raise UserError(
            f"{field} is bfloat16, but the policy has no plain linear layers in float32 to copy "
            f"(its weights are {kind}): use own or auto"
        )
    if device == "cpu" and not _computes_bf16():
        raise UserError(
            f"{field} is bfloat16, but this processor has no instructions for it (avx512_bf16, "
            "amx_bf16, or bf16 on Arm) and would be slower: use own or auto"
        )
    return torch.bfloat16


def _computes_bf16() -> bool:
    """Whether this processor has products in bf16, by torch's word or by measurement."""
    return bool(torch.cpu._is_avx512_bf16_supported()) or bf16_pays()
