"""In which type a policy's weights are sampled from: `sampling_dtype` decides it, once a run.

`own` is the policy as it is. `bfloat16` and `int8` read copies that are a half or a quarter as
large, whose products some processors take several times as fast; what is sampled then is from a
policy that is rounded, and its log-probabilities say so. `int8` rounds linear layers alone, experts
stay as they are. `auto` is `bfloat16` for large policies in fp32 on a processor that is faster with
it, and `own` for all others: tiny ones are exact.
"""

from typing import Any, Literal, get_args

import torch

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.kernels import integer_weights
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.packed_linear import ROUNDED, bf16_pays, linear_bytes, plain_linears
from rl_reasoner.rollout.agreement import engine_runs

SamplingWeights = Literal["auto", "own", "bfloat16", "int8"]
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
        if wanted == "int8":
            raise UserError(
                f"{field} is int8, but the run computes in bf16 or fp16: use auto or own"
            )
        cast = torch.get_autocast_dtype(device)
        return cast if cast == torch.bfloat16 and device == "cpu" else None
    if wanted == "own" or (own == torch.bfloat16 and wanted != "int8"):
        return None
    if wanted == "auto":
        large = own == torch.float32 and device == "cpu" and linear_bytes(model) >= LARGE
        return torch.bfloat16 if large and bf16_pays() else None
    if own != torch.float32 or not plain_linears(model):
        kind = str(own).removeprefix("torch.")
        raise UserError(
            f"{field} is {wanted}, but the policy has no plain linear layers in float32 to copy "
            f"(its weights are {kind}): use own or auto"
        )
    if obstacle := _obstacle(wanted, device):
        raise UserError(f"{field} is {wanted}, but {obstacle}: use own or auto")
    return ROUNDED[wanted]


def sampled_weights(model: Any, wanted: str, field: str) -> str:
    """What `wanted` comes to in an evaluation on this machine: own, bfloat16 or int8.

    Only our engine samples from copies. Raises as `sampling_dtype`, and for a copy that is asked
    for where transformers' `generate` samples.
    """
    if not engine_runs(base_of(model)):
        if wanted in ROUNDED:
            why = "transformers' generate samples this policy, from its own weights"
            raise UserError(f"{field} is {wanted}, but {why}: use own or auto")
        return "own"
    copies = sampling_dtype(base_of(model), wanted, field)
    return next((name for name, dtype in ROUNDED.items() if dtype == copies), "own")


def _obstacle(wanted: str, device: str) -> str | None:
    """Why this machine should not sample from copies of that type, if so."""
    if wanted == "int8" and (device != "cpu" or not integer_weights.work()):
        return (
            f"{device} has no exact products of such integers in this torch (it takes a processor "
            "with avx512_vnni, avx_vnni or amx_int8)"
        )
    if wanted == "bfloat16" and device == "cpu" and not _computes_bf16():
        return (
            "this processor has no instructions for it (avx512_bf16, amx_bf16, or bf16 on Arm) "
            "and would be slower"
        )
    return None


def _computes_bf16() -> bool:
    """Whether this processor has products in bf16, by torch's word or by measurement."""
    return bool(torch.cpu._is_avx512_bf16_supported()) or bf16_pays()
