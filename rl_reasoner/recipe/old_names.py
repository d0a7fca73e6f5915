"""Old names of recipe fields: they still work, and each is pointed out once.

They are replaced in what is read (`current_fields`, `current_stage`) and in paths into it
(`current_path`), so that the schema knows only the new ones. What a run wrote down itself is read
without a word.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner.errors import OldName

_OF_STAGES = {"use": "reuse", "least": "min_score"}
_OF_PARTS = {
    "evals": {"asked": "overrides"},
    "group": {"schedule": "curriculum"},
    "optim": {"final": "final_lr_share"},
    "vllm": {"most": "clip_max"},
}
OLD_NAMES: Mapping[str, str] = {
    **_OF_STAGES,
    **{old: new for names in _OF_PARTS.values() for old, new in names.items()},
}
"""Old name -> new name, of every field that was renamed."""
TRLS_FIELDS: Mapping[str, str] = {
    "num_generations": "group.size",
    "per_device_train_batch_size": "group.micro_batch",
    "learning_rate": "optim.lr",
    "lr_scheduler_type": "optim.schedule",
    "warmup_ratio": "optim.warmup",
    "warmup_steps": "optim.warmup",
    "weight_decay": "optim.weight_decay",
    "max_grad_norm": "optim.max_grad_norm",
    "max_steps": "steps",
    "save_steps": "save_every",
    "max_completion_length": "sampling.max_tokens",
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "top_k": "sampling.top_k",
    "beta": "loss.beta",
    "epsilon": "loss.epsilon",
    "epsilon_high": "loss.epsilon_high",
    "loss_type": "loss.type",
    "num_iterations": "loss.iterations",
    "scale_rewards": "loss.scale_rewards",
    "mask_truncated_completions": "loss.mask_truncated",
    "router_aux_loss_coef": "router_aux",
}
"""trl's name of a field -> where it stands in a stage: what somebody may write who knows trl."""
_NO_STAGES = ("rewards", "tools", "environment")  # parts whose fields are called as stages' were
_noted: set[str] = set()


def current_fields(recipe: Any, *, note: bool = True) -> Any:
    """The content of a recipe with the names of fields as they are now; `note`: warn of old ones.

    Raises ValueError where a field is there by both of its names.
    """
    if not isinstance(recipe, Mapping):
        return recipe
    fields = _without_overlap(_parts_renamed(recipe, note))
    if isinstance(stages := fields.get("stages"), (list, tuple)):
        fields["stages"] = [current_stage(stage, note=note) for stage in stages]
    return fields


def _without_overlap(fields: dict[Any, Any]) -> dict[Any, Any]:
    """`fields` without `run.overlap`, which older runs kept as off.

    Raises ValueError for a recipe that asks for it.
    """
    run = fields.get("run")
    if not isinstance(run, Mapping) or "overlap" not in run:
        return fields
    if run["overlap"] not in ("off", False):
        raise ValueError(
            "run.overlap: sampling beside the training is gone (on two cores a step was 0.8 to "
            "1.25 times as fast): leave the field out"
        )
    return {**fields, "run": {name: v for name, v in run.items() if name != "overlap"}}


def current_stage(stage: Any, *, note: bool = False) -> Any:
    """The fields of one stage, likewise."""
    if not isinstance(stage, Mapping):
        return stage
    return _parts_renamed(_renamed(stage, _OF_STAGES, "", note), note)


def current_path(path: Sequence[str | int]) -> tuple[str | int, ...]:
    """A path into a recipe, or a flag's dotted path, with the names of fields as they are now."""
    current: list[str | int] = []
    for index, part in enumerate(path):
        above = path[index - 1] if index else ""
        names = _OF_PARTS.get(str(above), {})
        # --reuse, --STAGE.reuse, stages.0.reuse
        of_stage = index == 1 and above not in _NO_STAGES
        if index == 0 or of_stage or path[index - 2] == "stages":
            names = {**_OF_STAGES, **names}
        current.append(names.get(part, part) if isinstance(part, str) else part)
    return tuple(current)


def _parts_renamed(fields: Mapping[Any, Any], note: bool) -> dict[Any, Any]:
    return {
        name: _renamed(value, _OF_PARTS[name], f"{name}.", note)
        if name in _OF_PARTS and isinstance(value, Mapping)
        else value
        for name, value in fields.items()
    }


def _renamed(
    fields: Mapping[Any, Any], names: Mapping[str, str], prefix: str, note: bool
) -> dict[Any, Any]:
    for old, new in names.items():
        if old in fields:
            if new in fields:
                raise ValueError(f"{prefix}{old} is the old name of {prefix}{new}: give only one")
            if note:
                note_old_name(f"{prefix}{old}", f"{prefix}{new}")
    return {names.get(name, name): value for name, value in fields.items()}


def note_old_name(old: str, new: str) -> None:
    """Warn, once per process, that `old` is an old name."""
    if old not in _noted:
        _noted.add(old)
        kind = "flag" if old.startswith("--") else "recipe field"
        warnings.warn(f"the {kind} {old} is now called {new}", OldName, stacklevel=2)
