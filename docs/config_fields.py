"""Every field of trl's `GRPOConfig`, and what our trainer does with it: `make fields`.

Writes `docs/reference/trl-config.md`. A field that is in none of the lists below is one that a new
trl brought: tests/training/test_config_fields.py fails until somebody has looked at it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

import trl

PAGE = "docs/reference/trl-config.md"

HEEDS: Mapping[str, tuple[str, ...]] = {
    "the engine draws by it, with transformers' own processors": (
        "max_completion_length",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
    ),
    "what shapes the probabilities of a row: the engine; the rest (beams, guidance, other ends): "
    "`generate`, which is logged with the setting's name": ("generation_kwargs",),
    "part of the key that a row's random numbers follow from": ("seed",),
    "rows of a group share their prompt, in sampling and in the training pass": (
        "num_generations",
        "num_generations_eval",
    ),
    "the passes run in it, sampling too": ("bf16", "fp16"),
    "dropout that it turns off does not prevent packing": ("disable_dropout",),
    "micro-batches of an optimizer step are refilled; rows trained on before the policy moves need "
    "no pass for old log-probabilities": (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "steps_per_generation",
        "generation_batch_size",
        "num_iterations",
    ),
    "decides whether rows may be left out or change places without another gradient": (
        "beta",
        "loss_type",
        "router_aux_loss_coef",
        "top_entropy_quantile",
        "entropy_coef",
        "use_adaptive_entropy",
    ),
    "trl's own code, on log-probabilities of the packed pass": (
        "importance_sampling_level",
        "mask_truncated_completions",
        "off_policy_mask_threshold",
        "use_bias_correction_kl",
    ),
    "trl's advantages; ours for the named algorithms that trl lacks": (
        "scale_rewards",
        "multi_objective_aggregation",
        "reward_weights",
    ),
    "packed rows have nothing to pad": ("pad_to_multiple_of",),
    "the head's products are in fp32 in both passes": ("cast_lm_head_to_fp32",),
    "attention stays packed while layers are computed again; reentrant checkpointing goes trl's "
    "way, which is logged": (
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
    ),
    "the reference is in the checkpoint": (
        "sync_ref_model",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
    ),
    "also read by `correct_sampling`, where the engine samples": (
        "vllm_importance_sampling_correction",
        "vllm_importance_sampling_mode",
        "vllm_importance_sampling_clip_max",
        "vllm_importance_sampling_clip_min",
        "vllm_importance_sampling_cap",
    ),
    "trl's order of the rows; a resumed run is at the same place in it": (
        "shuffle_dataset",
        "max_steps",
        "num_train_epochs",
    ),
    "FSDP2 with every speed-up; its first version goes trl's way, which is logged": (
        "fsdp",
        "fsdp_config",
    ),
    "a checkpoint of the model alone is resumed with a word on what it lacks": ("save_only_model",),
    "the best model is loaded whole, fused experts too": ("load_best_model_at_end",),
    "every evaluation samples by the step alone, and leaves the random states as they were": (
        "eval_strategy",
        "eval_steps",
        "per_device_eval_batch_size",
    ),
}
"""What is done with the fields that our code reads, or whose effect it brings about itself."""

FALLS_BACK: Mapping[str, tuple[str, ...]] = {
    'trl\'s training pass and `generate`: "torch_compile"': (
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
    ),
    'trl\'s training pass and `generate`: "training under DEEPSPEED"': (
        "deepspeed",
        "ds3_gather_for_generation",
    ),
    'trl\'s training pass and `generate`: "the noise of NEFTune"': ("neftune_noise_alpha",),
    'trl\'s training pass and `generate`: "tensor parallelism"; trl refuses its other kinds': (
        "parallelism_config",
    ),
    '`generate` with that cache: "cache_implementation"': ("cache_implementation",),
    'transformers samples: "continuous batching"': (
        "use_transformers_continuous_batching",
        "transformers_continuous_batching_config",
        "use_transformers_paged",
    ),
    'vLLM samples: "vLLM"; the training pass stays packed': (
        "use_vllm",
        "vllm_mode",
        "vllm_model_impl",
        "vllm_enable_sleep_mode",
        "vllm_structured_outputs_regex",
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
        "vllm_group_port",
        "vllm_gpu_memory_utilization",
        "vllm_max_model_length",
        "vllm_tensor_parallel_size",
    ),
    "trl's loop of turns; with environments, trl's sampling as well: "
    '"tools, environments or a rollout function"': ("max_tool_calling_iterations",),
}
"""What trl does itself then, and the words that the log has once for it."""

CANNOT_MATTER: Mapping[str, tuple[str, ...]] = {
    "constants of the loss, which is trl's code": (
        "epsilon",
        "epsilon_high",
        "delta",
        "sapo_temperature_neg",
        "sapo_temperature_pos",
        "vespo_k_pos",
        "vespo_lambda_pos",
        "vespo_k_neg",
        "vespo_lambda_neg",
        "entropy_coef_min",
        "entropy_coef_max",
        "entropy_coef_delta",
        "entropy_target",
    ),
    "optimizer and schedule: they come after the gradient": (
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "optim_args",
        "optim_target_modules",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "torch_empty_cache_steps",
    ),
    "how a model is opened, before we see it": (
        "model_init_kwargs",
        "trust_remote_code",
        "use_liger_kernel",
        "liger_kernel_config",
        "use_cache",
        "tf32",
        "full_determinism",
        "use_cpu",
    ),
    "trl's GRPO trainer does not read it": (
        "label_smoothing_factor",
        "average_tokens_across_devices",
        "train_sampling_strategy",
        "length_column_name",
        "data_seed",
        "label_names",
    ),
    "rendering prompts: trl's code, before sampling": ("chat_template_kwargs",),
    "trl refuses it": ("auto_find_batch_size",),
    "reading rows": (
        "ignore_data_skip",
        "accelerator_config",
        "dataloader_drop_last",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "dataloader_in_order",
        "remove_unused_columns",
    ),
    "the loop of an evaluation, around sampling and loss": (
        "eval_delay",
        "eval_on_start",
        "bf16_full_eval",
        "fp16_full_eval",
        "prediction_loss_only",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "eval_accumulation_steps",
        "include_for_metrics",
        "batch_eval_metrics",
        "metric_for_best_model",
        "greater_is_better",
    ),
    "DDP's exchange of gradients": (
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
    ),
    "what is logged, and where": (
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "log_on_each_node",
        "logging_nan_inf_filter",
        "include_num_input_tokens_seen",
        "log_level",
        "log_level_replica",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "trackio_space_id",
        "trackio_bucket_id",
        "trackio_static_space_id",
        "log_completions",
        "log_multimodal",
        "num_completions_to_print",
        "log_unique_prompts",
        "log_completions_hub_repo",
        "debug",
        "skip_memory_metrics",
    ),
    "when and where checkpoints are written": (
        "output_dir",
        "save_strategy",
        "save_steps",
        "save_on_each_node",
        "save_total_limit",
        "enable_jit_checkpoint",
        "restore_callback_states_from_checkpoint",
        "push_to_hub",
        "hub_token",
        "hub_private_repo",
        "hub_model_id",
        "hub_strategy",
        "hub_always_push",
        "hub_revision",
    ),
    "read by scripts, not by the trainer": (
        "do_train",
        "do_eval",
        "do_predict",
        "resume_from_checkpoint",
        "local_rank",
    ),
}
"""Why a field can have no part in what the fast path computes."""

_HEAD = """# trl's config, field by field

`GRPOConfig` takes every field of trl's (here as of trl {version}). What the fast path makes of each
is below. `make fields` writes the list, and a test holds it against the installed trl: a field that
a new trl brings has to be looked at first. Our own fields are described in
[the trainer](../trainer.md) and in [training](training.md).
"""
_PARTS = (
    (
        "Heeded",
        "Our code reads the field, or has to bring its effect about. The gradients with these set "
        "are compared with stock trl's in `tests/training/test_config_fields.py` and "
        "`tests/training/test_trainer_gradients.py`.",
        HEEDS,
    ),
    (
        "trl's own way",
        "A speed-up steps back, trl's code runs, and the log says so once, in these words.",
        FALLS_BACK,
    ),
    ("Without a part in it", "The field acts before or after, or not at all.", CANNOT_MATTER),
)


def page() -> str:
    """The document, as it lies in `PAGE`."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    defaults = {f.name: f.default for f in fields(trl.GRPOConfig)}
    series = ".".join(trl.__version__.split(".")[:2])
    yield _HEAD.format(version=series)
    for title, said, part in _PARTS:
        yield f"## {title}\n\n{said}\n\n| field | default | |\n|---|---|---|"
        for what, names in part.items():
            for name in names:
                yield f"| `{name}` | {_shown(defaults.get(name))} | {what} |"
        yield ""


def _shown(value: Any) -> str:
    return "" if value is MISSING or value is None else f"`{getattr(value, 'value', value)}`"


if __name__ == "__main__":
    print(page(), end="")
