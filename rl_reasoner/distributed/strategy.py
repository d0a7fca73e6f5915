"""How several processes share the training of a model: DDP, FSDP2 or DeepSpeed's ZeRO.

Only settings, for transformers' trainers; `sharding` adds what these lack.
"""

from typing import Any

from rl_reasoner.errors import UserError


def trainer_arguments(parallel: str, processes: int) -> dict[str, Any]:
    """Arguments of a transformers trainer for `parallel`; none for a single process.

    "auto" is what the launcher's settings say, and DDP where they say nothing.
    """
    if processes == 1 or parallel in ("auto", "ddp"):
        return {}
    if parallel == "fsdp":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "reshard_after_forward": True,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "state_dict_type": "SHARDED_STATE_DICT",
            },
        }
    return {"deepspeed": deepspeed_settings(int(parallel.removeprefix("zero")))}


def deepspeed_settings(stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ZeRO stage 2 or 3; "auto" is filled in by transformers."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "reduce_bucket_size": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        **dict.fromkeys(batch, "auto"),
    }


def per_process(total: int, processes: int, what: str, unit: str = "row") -> int:
    """The number of a step's rows or groups that each process takes.

    Raises `UserError` where they do not divide.
    """
    if total % processes:
        never = ", and a group is never split" if unit == "group" else ""
        raise UserError(
            f"{what} is not a multiple of the {processes} processes: each takes the same number "
            f"of {unit}s a step{never}"
        )
    return total // processes
