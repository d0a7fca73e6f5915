"""A rubric: what a judge looks at, each item with its weight, in YAML or in Python.

    items:
    - {name: correct, text: the final answer is right, weight: 3}
    - {name: clear, text: each step follows from the one before}
    points: 4

An item gets 0 to `points` from the judge; a completion's score is the weighted mean of its items'
shares, 0 to 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.foreign import yaml_value

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")


class Item(BaseModel):
    """One thing that a judge looks at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    text: str = Field(min_length=1, max_length=2000)
    weight: float = Field(default=1.0, gt=0, le=1e6)

    @field_validator("name")
    @classmethod
    def _is_a_word(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a name is letters, digits and _, at most 40")
        return name


class Rubric(BaseModel):
    """The items, the most points of each, and what else the judge is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: tuple[Item, ...] = Field(min_length=1, max_length=20)
    points: int = Field(default=4, ge=1, le=100)
    instructions: str = Field(default="", max_length=8000)

    @field_validator("items")
    @classmethod
    def _have_names_of_their_own(cls, items: tuple[Item, ...]) -> tuple[Item, ...]:
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two items are called {name}")
        return items

    def value(self, points: Mapping[str, float]) -> float:
        """The score of a completion, 0 to 1, from the points of each item."""
        whole = sum(item.weight for item in self.items)
        return sum(i.weight * points[i.name] for i in self.items) / (whole * self.points)


DEFAULT = Rubric(
    items=(
        Item(name="correct", text="The final answer is right.", weight=2),
        Item(name="sound", text="Every step follows from the problem and the steps before it."),
    )
)
"""What a judge looks at where nothing is said: is it right, and is the way there sound?"""


@dataclass(frozen=True)
class _Source:
    name: str
    value: Any


def read_rubric(given: Rubric | Mapping[str, Any] | str | None) -> Rubric:
    """The rubric in a YAML file, a mapping of its fields, or itself; `DEFAULT` for None.

    Raises `UserError` that names the file or field.
    """
    if given is None:
        return DEFAULT
    if isinstance(given, Rubric):
        return given
    source = _from_file(Path(given)) if isinstance(given, str) else _Source("rubric", given)
    if not isinstance(source.value, Mapping):
        kind = type(source.value).__name__
        raise UserError(f"{source.name}: expected a mapping with items, got {kind}")
    try:
        return Rubric.model_validate(dict(source.value))
    except ValidationError as error:
        raise UserError(*(_mistake(source.name, one) for one in error.errors())) from error


def _from_file(path: Path) -> _Source:
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        return _Source(str(path), yaml_value(text, yaml.SafeLoader)[1])
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"rubric {path}: cannot be read: {why}") from error
    except yaml.YAMLError as error:
        raise UserError(f"rubric {path}: not YAML: {error}") from error


def _mistake(source: str, error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    near = ""
    if error["type"] == "extra_forbidden":
        known = Item.model_fields if "items" in error["loc"] else Rubric.model_fields
        message = "there is no such field"
        near = did_you_mean(str(error["loc"][-1]), known)
    return f"{source}: {place}: {message}{near and '.' + near}"
