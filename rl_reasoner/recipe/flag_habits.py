"""The names that other trainers have for what is a field of a recipe here.

A flag that exists under another name in trl, verl, OpenRLHF or unsloth is answered with ours. Not
accepted as an alias: a recipe has one name for a thing. Imports nothing; `recipe/flags.py` and the
verbs of the command line ask it.
"""

from collections.abc import Container, Mapping, Sequence

_Flags = Sequence[tuple[str, str]]  # (our flag, what it counts or takes)

_LR: _Flags = [("--optim.lr", "")]
_STEPS: _Flags = [("--steps", "optimiser steps of the last stage, and of all others of its kind")]
_EPOCHS: _Flags = [("--steps", "stages count optimiser steps, not epochs")]
_BATCH: _Flags = [
    ("--group.prompts", "prompts per step"),
    ("--batch", "rows per step of sft"),
]
_MICRO: _Flags = [("--group.micro_batch", ""), ("--micro_batch", "")]
_POLICY: _Flags = [("--policy", "")]
_DATA: _Flags = [("--data.path", "a file, set or hub id"), ("--data.task", "a generator")]
_FOLDER: _Flags = [("--run.folder", "")]
_BETA: _Flags = [("--loss.beta", "")]
_GROUP: _Flags = [("--group.size", "completions per prompt")]
_TOKENS: _Flags = [("--sampling.max_tokens", "")]
_REWARDS: _Flags = [("--rewards", "{NAME: WEIGHT}")]
_WARMUP: _Flags = [("--optim.warmup", "steps")]

RECIPE_HABITS: Mapping[str, _Flags] = {
    **dict.fromkeys(("lr", "learning_rate", "actor_learning_rate"), _LR),
    **dict.fromkeys(("max_steps", "num_steps", "total_steps", "train_steps", "iters"), _STEPS),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "total_epochs"), _EPOCHS),
    **dict.fromkeys(("batch_size", "train_batch_size", "rollout_batch_size", "bs"), _BATCH),
    **dict.fromkeys(
        ("per_device_train_batch_size", "micro_batch_size", "micro_train_batch_size"), _MICRO
    ),
    **dict.fromkeys(
        ("model", "model_name", "model_name_or_path", "model_path", "pretrain", "base_model"),
        _POLICY,
    ),
    **dict.fromkeys(
        ("dataset", "dataset_name", "dataset_path", "datasets", "train_file", "train_data"), _DATA
    ),
    **dict.fromkeys(("output", "output_dir", "out", "out_dir", "save_path", "run_dir"), _FOLDER),
    **dict.fromkeys(("beta", "kl", "kl_coef", "init_kl_coef", "kl_coeff"), _BETA),
    **dict.fromkeys(
        ("num_generations", "group_size", "n_samples_per_prompt", "rollout_n", "num_samples"),
        _GROUP,
    ),
    **dict.fromkeys(
        ("max_new_tokens", "max_completion_length", "max_tokens", "max_response_length",
         "generate_max_len", "max_length", "max_seq_length"),
        _TOKENS,
    ),
    **dict.fromkeys(("reward", "reward_funcs", "reward_function", "reward_fn"), _REWARDS),
    **dict.fromkeys(("warmup", "warmup_steps", "warmup_ratio", "num_warmup_steps"), _WARMUP),
    "lr_scheduler_type": [("--optim.schedule", "")],
    "lr_scheduler": [("--optim.schedule", "")],
    "max_grad_norm": [("--optim.max_grad_norm", "")],
    "loss_type": [("--loss.type", ""), ("--loss.algorithm", "")],
    "algorithm": [("--loss.algorithm", "")],
    "algo": [("--loss.algorithm", "")],
    "num_iterations": [("--loss.iterations", "")],
    "save_steps": [("--save_every", "")],
    "eval_steps": [("--evals.every", "")],
    "seed": [("--run.seed", "")],
    "device": [("--run.device", "")],
    "bf16": [("--run.precision bf16", "")],
    "fp16": [("--run.precision fp16", "")],
    "use_peft": [("--policy.lora", "")],
    "lora_r": [("--policy.lora", "")],
    "lora_rank": [("--policy.lora", "")],
    "system_prompt": [("--system", "")],
    "wandb": [("--run.report_to wandb", "")],
    "resume_from_checkpoint": [("--resume", "RUN")],
}  # fmt: skip
"""Their name, with underscores -> our flags for it, the likeliest first."""


def habit_hint(name: str, known: Container[str]) -> str:
    """` Did you mean '--optim.lr'?` for another trainer's `name` of a field, or an empty string.

    `name` has no dashes before it; `known` are the flags that this recipe takes.
    """
    ours = RECIPE_HABITS.get(name.replace("-", "_").lower(), ())
    fitting = [(flag, note) for flag, note in ours if flag.split()[0] in known]
    texts = [f"{flag!r} ({note})" if note else repr(flag) for flag, note in fitting]
    return f" Did you mean {' or '.join(texts)}?" if texts else ""
