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


def check_trainer_argument(stage: str, kind: str, name: str) -> None:
    """Raise `UserError` where the config of a stage's kind has no argument `name`.

    One that a field of the stage sets goes by that field.
    """
    if name == "algorithm":
        raise UserError(f"stage {stage}: name the algorithm as loss.algorithm")
    if name in _EACH_STEP:
        raise UserError(f"stage {stage}: trainer.{name} is not to be set: every step is recorded")
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
