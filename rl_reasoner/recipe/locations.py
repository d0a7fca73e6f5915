"""Where in a script or a YAML file each field of a recipe is set, and the messages that say so.

`validate` makes a `Recipe` of plain data; its mistakes become one `UserError` whose messages name
file and line (or the flag), the field, what was expected and the nearest spelling.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.foreign import not_utf8, yaml_value
from rl_reasoner.recipe.data import FileData, MixData, StageData, TaskData
from rl_reasoner.recipe.old_names import OLD_NAMES, TRLS_FIELDS, current_path
from rl_reasoner.recipe.recipe import Recipe, RecipeLoader, RewardSpec
from rl_reasoner.recipe.stages import DistillStage, FilterStage, GrpoStage, SampleStage, SftStage

FieldPath = tuple[str | int, ...]
Places = Mapping[FieldPath, str]
_MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`
_KINDS: dict[str, type[BaseModel]] = {
    "task": TaskData,
    "file": FileData,
    "stage": StageData,
    "mix": MixData,
    "sft": SftStage,
    "grpo": GrpoStage,
    "sample": SampleStage,
    "filter": FilterStage,
    "distill": DistillStage,
}
_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping, such as {{name: value}}",
    "mapping_type": "a mapping, such as {{name: value}}",
    "model_type": "a mapping, such as {{name: value}}",
    "greater_than": "a value above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a value below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of the kinds {expected_tags}",
    "union_tag_not_found": "a {discriminator}, such as kind: grpo",
}
"""A kind of mistake, as pydantic calls it -> what was expected, in plain words."""


def validate(data: Any, places: Places, source: str) -> Recipe:
    """Make a Recipe of `data`; its mistakes are one `UserError` with their places."""
    file = Path(source)
    of_run = file.name == "recipe.yaml" and (file.parent / "lock.json").is_file()
    try:
        return Recipe.model_validate(data, context={"of_run": of_run})
    except ValidationError as error:
        raise user_error(error, places, source) from None


def _current(places: Iterable[tuple[FieldPath, str]]) -> Places:
    return {current_path(path): place for path, place in places}


def read_yaml(path: Path) -> tuple[Any, Places]:
    """The content of a YAML file and the `file:line` of every key in it."""
    try:
        node, data = yaml_value(path.read_text(encoding="utf-8"), RecipeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {not_utf8(error)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{place}: not valid YAML: {reason}") from error
    if not isinstance(data, dict):
        found = "the file is empty" if data is None else f"this is {type(data).__name__}"
        raise UserError(f"{path}: a recipe is a mapping of fields, {found}")
    return data, _current(_yaml_places(node, (), str(path)))


def _yaml_places(
    node: yaml.Node | None, at: FieldPath, source: str
) -> Iterator[tuple[FieldPath, str]]:
    if node is None:  # an empty file
        return
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    for merged in (value for key, value in pairs if key.tag == _MERGE):
        several = merged.value if isinstance(merged, yaml.SequenceNode) else [merged]
        for one in reversed(several):  # the first of them holds, and what is given beside it
            yield from _yaml_places(one, at, source)
    yield at, f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise UserError(f"{source}:{line}: the field {key.value!r} is given twice")
            seen.add(key.value)
            if key.tag == _MERGE:
                continue
            yield from _yaml_places(value, (*at, key.value), source)
            yield (*at, key.value), f"{source}:{key.start_mark.line + 1}"
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _yaml_places(item, (*at, index), source)


def python_places(script: Path) -> Places:
    """The `file:line` of every field written in the `Recipe(...)` call of a script."""
    for node in ast.walk(ast.parse(script.read_bytes())):  # with a mark or an encoding, as Python
        if isinstance(node, ast.Call) and "Recipe" in (
            getattr(node.func, "id", ""),  # Recipe(...)
            getattr(node.func, "attr", ""),  # rl_reasoner.Recipe(...)
        ):
            return _current(_python_places(node, (), str(script)))
    return {}


def _python_places(node: ast.expr, at: FieldPath, source: str) -> Iterator[tuple[FieldPath, str]]:
    yield at, f"{source}:{node.lineno}"
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg:
                yield from _python_places(keyword.value, (*at, keyword.arg), source)
                yield (*at, keyword.arg), f"{source}:{keyword.lineno}"
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, (ast.Constant, ast.Name)):
                name = key.value if isinstance(key, ast.Constant) else key.id
                yield from _python_places(value, (*at, name), source)  # type: ignore[arg-type]
    elif isinstance(node, (ast.List, ast.Tuple)):
        for index, item in enumerate(node.elts):
            yield from _python_places(item, (*at, index), source)


def user_error(error: ValidationError, places: Places, source: str) -> UserError:
    """The `UserError` with a message for each mistake that pydantic found."""
    return UserError(*(_message(item, places, source) for item in error.errors()))


def _message(item: Any, places: Places, source: str) -> str:
    path, model = _located(item["loc"])
    above = (places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in places)
    below = ", ".join(where for at, where in places.items() if at[: len(path)] == path)
    place = next(above, below or source)
    dotted = ".".join(map(str, path)) or "recipe"
    if item["type"] == "extra_forbidden":
        known = list(model.model_fields) if model else []
        renamed = {**TRLS_FIELDS, **OLD_NAMES}
        renamed = {old: new for old, new in renamed.items() if new.partition(".")[0] in known}
        return f"{place}: {dotted}: unknown field.{did_you_mean(str(path[-1]), known, renamed)}"
    if item["type"] == "missing":
        return f"{place}: {dotted}: this field is required"
    given = item.get("input")
    text = str(item["msg"]).removeprefix("Value error, ")
    context, near = item.get("ctx") or {}, ""
    if expected := _EXPECTED.get(item["type"]):
        text = f"expected {expected.format_map(context)}"
    if item["type"] == "model_type" and context.get("class_name") == RewardSpec.__name__:
        text = "expected a weight (a number) or {weight, options, optional}"
    if item["type"] == "union_tag_invalid":
        given = context["tag"]
        near = did_you_mean(given, re.findall("'([^']*)'", context["expected_tags"]))
    if item["type"] == "literal_error":
        near = did_you_mean(str(given), re.findall("'([^']*)'", context["expected"]))
    shown = f" (given: {given!r:.60})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{place}: {dotted}: {text[:1].lower()}{text[1:]}{shown}{near and f'.{near}'}"


def _located(loc: Sequence[str | int]) -> tuple[FieldPath, type[BaseModel] | None]:
    """pydantic's location without the union tags in it, and the model that holds its last name."""
    path: list[str | int] = []
    model: type[BaseModel] | None = Recipe
    holder: type[BaseModel] | None = Recipe
    in_union = False
    for part in loc:
        if in_union and part in _KINDS:
            model = holder = _KINDS[str(part)]
            in_union = False
            continue
        path.append(part)
        in_union = part == "data" or (path[0] == "stages" and len(path) == 2)
        in_union |= isinstance(part, int) and path[-2:-1] == ["mix"]
        holder = model
        if model is not None and isinstance(part, str):
            field = model.model_fields.get(part)
            inner = model_in(field.annotation) if field else None
            model = inner if field else model
    return tuple(path), holder


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The first class of the schema in a field's annotation; None where there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for arg in get_args(annotation) if (m := model_in(arg))), None)
