"""Which arguments the trainers' configs take, read off their sources: importing trl takes seconds.

A stage's `trainer` names fields of trl's config classes, of transformers' and of our own
`GRPOConfig`. Their classes stand in known files, and a field is an annotated name in the class; a
test holds the names against the classes themselves. What a value may be, only the classes know
(`pipeline.trl_configs`).
"""

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.recipe.stages import TRL_NAMES, Loss

_OURS = "rl_reasoner", "training/config.py", "GRPOConfig"
_BASES = (
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("transformers", "training_args.py", "TrainingArguments"),
)
_CONFIGS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "sft": (("trl", "trainer/sft_config.py", "SFTConfig"), *_BASES),
    "grpo": (_OURS, ("trl", "trainer/grpo_config.py", "GRPOConfig"), *_BASES),
    "distill": (("trl", "trainer/distillation_config.py", "DistillationConfig"), *_BASES),
}
"""Kind of a stage -> (package, file, class) of its config and of all that this one extends."""
_EACH_STEP = ("logging_steps", "logging_strategy", "logging_first_step")
# Arguments that fields of a recipe set, of every kind of stage and of some.
_FIELDS = {
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "save_steps": "save_every",
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "lr_scheduler_kwargs": "optim.final_lr_share",
    "warmup_steps": "optim.warmup",
    "warmup_ratio": "optim.warmup",
    "adam_beta1": "optim.betas",
    "adam_beta2": "optim.betas",
    "weight_decay": "optim.weight_decay",
    "max_grad_norm": "optim.max_grad_norm",
    "output_dir": "run.folder",
    "seed": "run.seed",
    "bf16": "run.precision",
    "fp16": "run.precision",
}
_SAMPLING = {
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "top_k": "sampling.top_k",
    "max_completion_length": "sampling.max_tokens",
}
_OF_KIND: Mapping[str, Mapping[str, str]] = {
    "sft": {
        "per_device_train_batch_size": "micro_batch",
        "gradient_accumulation_steps": "batch",
        "router_aux_loss_coef": "router_aux",
    },
    "grpo": {
        **_SAMPLING,
        "per_device_train_batch_size": "group.micro_batch",
        "gradient_accumulation_steps": "group.prompts",
        "num_generations": "group.size",
        "reward_weights": "rewards",
        "router_aux_loss_coef": "router_aux",
        **{TRL_NAMES.get(name, name): f"loss.{name}" for name in Loss.model_fields},
    },
    "distill": {
        **_SAMPLING,
        "per_device_train_batch_size": "batch",
        "gradient_accumulation_steps": "batch",
        "beta": "beta",
    },
}


@cache
def known_arguments(kind: str) -> frozenset[str]:
    """The arguments of the config of a stage's kind; empty where a source is not as it was."""
    found: set[str] = set()
    for package, file, name in _CONFIGS[kind]:
        fields = _fields(package, file, name)
        if not fields:
            return frozenset()
        found |= fields
    return frozenset(found)


def check_trainer_argument(stage: str, kind: str, name: str, *, begun: bool = False) -> None:
    """Raise `UserError` where the config of a stage's kind has no argument `name`.

    One that a field of the stage sets goes by that field; a run that has `begun` keeps it, since
    earlier versions took it.
    """
    if name in _EACH_STEP:
        raise UserError(f"stage {stage}: trainer.{name} is not to be set: every step is recorded")
    field = {**_FIELDS, **_OF_KIND[kind]}.get(name)
    if field and (not begun or name == "algorithm"):
        raise UserError(f"stage {stage}: trainer.{name} is what the recipe's {field} sets")
    known = known_arguments(kind)
    if known and name not in known:
        owner = f"stage {stage}: {_CONFIGS[kind][0][2]}"
        raise unknown("argument", name, known, owner=owner)


def _fields(package: str, file: str, name: str) -> set[str]:
    """The annotated names in the class `name` of a file of a package."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, file)
        if path.is_file():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
                    return {line.target.id for line in lines if isinstance(line.target, ast.Name)}
    return set()
