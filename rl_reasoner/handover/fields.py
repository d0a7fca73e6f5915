"""The table of fields: what a field of a recipe is called in another engine, and what is lost.

An engine has one list of `Field`s. Its configuration is made from that list, and so are the
table in the documents, the README of the written folder, and the warnings: they cannot differ.
`OURS` are all fields that the list has to name; a test holds it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel

from rl_reasoner.handover.subject import Subject
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage

ValueOf = Callable[[Subject], Any]


@dataclass(frozen=True)
class Field:
    """A field of the recipe, or of its grpo stage, and its counterpart in another engine."""

    ours: str
    theirs: Mapping[str, ValueOf] = field(default_factory=dict)
    """their setting -> its value; empty where there is no counterpart. UNSET leaves it out."""
    note: str = ""
    """what a reader of the table should know"""
    lost: Callable[[Subject], bool] = lambda subject: False
    """whether the engine does otherwise with this recipe's value"""
    else_does: str | Callable[[Subject], str] = ""
    """what it does then"""


UNSET = object()
"""The value of a setting that is left at the engine's default."""


def same(path: str) -> ValueOf:
    """The value of the stage's field at `path`, such as "group.size"."""

    def value(subject: Subject) -> Any:
        return value_at(subject, path)

    return value


def value_at(subject: Subject, path: str) -> Any:
    """The value at `path`, of the stage, or of the recipe where the stage has no such field."""
    names = path.split(".")
    found: Any = subject.stage if names[0] in GrpoStage.model_fields else subject.recipe
    if names[0] in _OF_RECIPE:
        found = subject.recipe
    for name in names:
        found = getattr(found, name) if found is not None else None
    return found


def settings(fields: Sequence[Field], subject: Subject) -> dict[str, Any]:
    """The engine's settings for a recipe, by their dotted names."""
    made = {name: value(subject) for one in fields for name, value in one.theirs.items()}
    return {name: value for name, value in made.items() if value is not UNSET}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as a tree, as YAML and TOML have it."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def warnings(fields: Sequence[Field], subject: Subject) -> list[str]:
    """What the engine does otherwise than this recipe says, a line each."""
    lines = []
    for one in fields:
        if one.lost(subject):
            value = value_at(subject, one.ours)
            plain = isinstance(value, (int, float)) or (value and str(value).isidentifier())
            shown = f" {value}" if plain else ""
            does = one.else_does if isinstance(one.else_does, str) else one.else_does(subject)
            lines.append(f"{one.ours}{shown}: {does or 'no counterpart, left out'}")
    return lines


def field_table(fields: Sequence[Field]) -> str:
    """The fields as a Markdown table, a row for each field of a recipe."""
    by_name = {one.ours: one for one in fields}
    lines = ["| recipe | there |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(by_name[name])} |" for name in OURS]
    return "\n".join(lines) + "\n"


def _cell(one: Field) -> str:
    names = ", ".join(f"`{name}`" for name in one.theirs)
    return "; ".join(filter(None, [names or ("" if one.note else "none"), one.note]))


# What is the recipe's own, beside the fields of the grpo stage that is handed over.
_OF_RECIPE = ("name", "policy", "rewards", "template", "system", "tools", "environment")
_WHOLE = (
    "rewards",
    "trainer",
    "tools",
    "environment",
    "data",
    "controls",
    "evals",
    "hacking_meter",
)
# Other stages, and what says which stage starts where, are not handed over.
_LEFT = ("stages", "stage.name", "kind")


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        kinds = [k for k in (info.annotation, *get_args(info.annotation)) if k is not NoneType]
        part = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if part is None or name in _WHOLE:
            yield path
        else:
            yield from _paths(part, f"{path}.")


def _ours() -> tuple[str, ...]:
    of_recipe = [path for path in _paths(Recipe) if path not in _LEFT]
    of_stage = [path for path in _paths(GrpoStage) if path not in (*_LEFT, "name", "policy")]
    return tuple(dict.fromkeys((*of_recipe, *of_stage)))


OURS = _ours()
"""Every field of a recipe and of a grpo stage, by its path, in the order of the schema."""
