"""The trainers' config objects, made from the stages of a recipe.

A translation and nothing else: our names and defaults into those of trl's config classes. What trl
refuses is reported before anything is loaded (`check_configs`). Knows recipes, not runs.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from trl import DistillationConfig, SFTConfig

from rl_reasoner.distributed.strategy import per_process, trainer_arguments
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.recipe.dashboards import project_of
from rl_reasoner.recipe.optim import Optim
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import (
    TRL_NAMES,
    DistillStage,
    GrpoStage,
    RowStage,
    SftStage,
    TrainedStage,
    Vllm,
)
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from rl_reasoner.scoring import ray_cluster
from rl_reasoner.training.config import GRPOConfig


def check_configs(recipe: Recipe, placement: Placement) -> dict[str, int]:
    """Make the config of every stage; returns how many prompts a step takes, by stage.

    Of the stages that sample what they train on: trl draws whole steps for these alone.
    Raises `UserError` for arguments that trl does not take.
    """
    step_prompts: dict[str, int] = {}
    for stage in recipe.stages:
        if isinstance(stage, RowStage):
            continue
        try:
            made = config(recipe, stage, Path(), placement)
        except (ValueError, TypeError, UserError) as error:
            raise UserError(f"stage {stage.name}: {error}") from error
        if isinstance(stage, GrpoStage):
            step_prompts[stage.name] = made.generation_batch_size // made.num_generations
        elif isinstance(stage, DistillStage):
            passes = made.per_device_train_batch_size * made.gradient_accumulation_steps
            step_prompts[stage.name] = passes * placement.processes
    return step_prompts


def config(
    recipe: Recipe, stage: TrainedStage, folder: Path, placement: Placement
) -> SFTConfig | GRPOConfig | DistillationConfig:
    """The config of trl's trainer for `stage`, whose checkpoints lie in `folder`."""
    processes = placement.processes
    common = _common(recipe, stage, folder, placement)
    if not isinstance(stage, DistillStage):  # trl's distillation has no balancing loss
        common["router_aux_loss_coef"] = stage.router_aux
    if isinstance(stage, SftStage):
        rows = per_process(stage.batch, processes, f"batch {stage.batch}")
        passes = _passes(rows, stage.micro_batch)
        return SFTConfig(**{**common, **passes, "max_length": None, **stage.trainer})
    if isinstance(stage, DistillStage):
        return DistillationConfig(**{**common, **_distill(stage, processes), **stage.trainer})
    weights = [spec.weight for spec in recipe.rewards.values()]
    if recipe.run.rewards_on == "ray":
        ray_cluster.installed()
    if recipe.turns_by and stage.vllm and not gets_files(stage.vllm):
        raise UserError(
            f"vllm: {recipe.turns_by} in the middle of completions by a server that gets files "
            "alone, not by trl's (NCCL): give vllm.folder, which the server has to see, too"
        )
    given = {
        "reward_weights": weights,
        "rewards_on": recipe.run.rewards_on,
    }
    return GRPOConfig(**{**common, **_grpo(stage, processes), **given, **stage.trainer})


def _common(
    recipe: Recipe, stage: TrainedStage, folder: Path, placement: Placement
) -> dict[str, Any]:
    schedule, arguments = _schedule(stage.optim, stage.steps)
    optim = stage.optim
    return {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": stage.steps,
        "learning_rate": optim.lr,
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": arguments,
        "warmup_steps": optim.warmup,
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.max_grad_norm,
        "seed": recipe.run.seed,
        "bf16": placement.precision in ("bf16", "fp8"),
        "fp16": placement.precision == "fp16",
        "use_cpu": placement.device == "cpu",
        "gradient_checkpointing": placement.device != "cpu",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": stage.save_every,
        "save_total_limit": 2,
        "report_to": "none",  # dashboards are callbacks of ours: see there
        "project": project_of(recipe.name),
        "run_name": f"{folder.parent.parent.name}/{folder.name}",
        "disable_tqdm": True,
        "log_level_replica": "error",  # as in the main process: else a tied head "is missing"
        **_parallel(recipe, stage, placement),
    }


def _parallel(recipe: Recipe, stage: TrainedStage, placement: Placement) -> dict[str, Any]:
    """Who holds which weights; distillation samples with the weights in the trainer: DDP."""
    if isinstance(stage, DistillStage):
        return {}
    parallel = recipe.run.parallel
    arguments = trainer_arguments(parallel, placement.processes)
    if "deepspeed" not in arguments:
        return arguments
    if placement.device == "cpu":  # accelerate's state: DeepSpeed "and not cpu"
        raise UserError(
            f"run.parallel: {parallel} trains on GPUs only: on a CPU transformers and accelerate "
            "leave DeepSpeed out, and train as ddp without a word. Use ddp or fsdp"
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"run.parallel: {parallel} needs DeepSpeed: pip install deepspeed")
    return arguments


def _passes(rows: int, micro_batch: int | None) -> dict[str, Any]:
    """A process's `rows` of a step in passes of at most `micro_batch`."""
    micro = min(micro_batch or rows, rows)
    if rows % micro:
        raise UserError(
            f"{rows} rows of a step per process are not a multiple of micro_batch {micro}"
        )
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": rows // micro}


def _distill(stage: DistillStage, processes: int) -> dict[str, Any]:
    return {
        **_passes(per_process(stage.batch, processes, f"batch {stage.batch}"), None),
        "temperature": stage.sampling.temperature,
        "top_p": stage.sampling.top_p,
        "top_k": stage.sampling.top_k,
        "max_completion_length": stage.sampling.longest,
        "beta": stage.beta,
    }


def _grpo(stage: GrpoStage, processes: int) -> dict[str, Any]:
    group = stage.group
    if gets_files(stage.vllm) and processes > 1:
        raise UserError(
            f"vllm: a server that gets weights by files samples for one process, not {processes} "
            "yet: train in one, or use trl's server (NCCL)"
        )
    groups = per_process(group.prompts, processes, f"group.prompts {group.prompts}", "group")
    return {
        **_passes(groups * group.size, group.micro_batch),
        "num_generations": group.size,
        "temperature": stage.sampling.temperature,
        "top_p": stage.sampling.top_p,
        "top_k": stage.sampling.top_k,
        "long_prompts": stage.long_prompts,
        "sampling_weights": stage.sampling.weights,
        "keep_sampling_mask": stage.sampling.keep_mask,
        "max_completion_length": stage.sampling.longest,
        "prompt_schedule": group.curriculum is True,
        "level_band": list(group.band) if group.curriculum == "levels" else None,
        "router_replay": stage.router_replay,
        "router_bias_update": stage.router_bias,
        "router_sequence_loss_coef": stage.router_sequence,
        "freeze_router": stage.freeze_router,
        **(_vllm(stage.vllm) if stage.vllm is not None else {}),
        **{TRL_NAMES.get(name, name): value for name, value in stage.loss},
    }


def gets_files(vllm: Vllm | None) -> bool:
    """Whether a vLLM server gets the weights by files, and not over NCCL, through trl."""
    if vllm is None or vllm.mode != "server":
        return False
    return vllm.folder is not None or not trl_can_serve()


def trl_can_serve() -> bool:
    """Whether trl's client of its own server can work here: it broadcasts weights over NCCL."""
    return torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None


def vllm_rollouts_of(vllm: Vllm | None, place: Path) -> VllmRollouts | None:
    """The server that samples and gets weights by files, in `place` where it names no folder."""
    if vllm is None or not gets_files(vllm):
        return None
    folder = Path(vllm.folder) if vllm.folder else place / "vllm_weights"
    return VllmRollouts(str(vllm.url), folder, vllm.timeout_s)


def _vllm(vllm: Vllm) -> dict[str, Any]:
    correction = vllm.correction
    arguments: dict[str, Any] = {"vllm_importance_sampling_correction": correction != "off"}
    if not gets_files(vllm):
        arguments |= {"use_vllm": True, "vllm_mode": vllm.mode}
    if correction != "off":
        arguments["vllm_importance_sampling_mode"] = correction
        arguments["vllm_importance_sampling_clip_max"] = vllm.clip_max
    if gets_files(vllm):
        return arguments
    if vllm.mode == "server":
        return {**arguments, "vllm_server_base_url": vllm.url}
    return {
        **arguments,
        "vllm_gpu_memory_utilization": vllm.memory,
        "vllm_tensor_parallel_size": vllm.gpus,
        "vllm_enable_sleep_mode": vllm.sleep,
    }


def _schedule(optim: Optim, steps: int) -> tuple[str, dict[str, float]]:
    """transformers' scheduler name and arguments for a schedule that ends at `final` times lr.

    Where a warm-up takes all steps there is nothing to fall: transformers' would divide by zero.
    """
    if optim.warmup >= steps:
        return "constant_with_warmup", {}
    if optim.schedule == "linear":
        return "polynomial", {"lr_end": optim.final_lr_share * optim.lr, "power": 1.0}
    if optim.schedule == "cosine":
        return "cosine_with_min_lr", {"min_lr_rate": optim.final_lr_share}
    return "constant_with_warmup", {}
