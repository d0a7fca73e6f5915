"""Where recipes come from: Python scripts, YAML files and flags, and where in them a mistake lies.

A recipe script has a function `recipe() -> Recipe`; a YAML file holds the same fields. Flags are
dotted paths into the recipe (`--group.size 16`). A path is looked up in the recipe first, then by
stage name (`--chains.steps 50`), then in the last stage that has such a field. Everything ends in
one validation, whose mistakes are all reported at once with file and line, or the flag.
"""

import ast
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from traceback import extract_tb
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from rl_reasoner.errors import UserError, did_you_mean, unknown
from rl_reasoner.foreign import yaml_value
from rl_reasoner.paths import room
from rl_reasoner.recipe.recipe import (
    Asked,
    DistillStage,
    FileData,
    GrpoStage,
    MixData,
    Recipe,
    RecipeLoader,
    RewardSpec,
    SampleStage,
    SftStage,
    StageData,
    TaskData,
)

Path_ = tuple[str | int, ...]
Places = Mapping[Path_, str]
_KINDS: dict[str, type[BaseModel]] = {
    "task": TaskData,
    "file": FileData,
    "stage": StageData,
    "mix": MixData,
    "sft": SftStage,
    "grpo": GrpoStage,
    "sample": SampleStage,
    "distill": DistillStage,
}
_STAGES: list[type[BaseModel]] = [SftStage, GrpoStage, SampleStage, DistillStage]
_PARTS: dict[str, list[type[BaseModel]]] = {
    "stages": _STAGES,
    "rewards": [RewardSpec],
    "mix": [TaskData, FileData, StageData],
    "asked": [Asked],
}


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, in alphabetical order."""
    return sorted(p.stem for p in room("recipes").glob("[a-z]*.py"))


def find_recipe(reference: str) -> Path:
    """The file of a recipe given as a path, or as the name of a shipped one (with `.yaml` or not).

    Raises `UserError` when there is none.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    for name in (reference, f"{reference}.py"):
        shipped = room("recipes") / name
        if Path(name).name == name and shipped.is_file():
            return shipped
    if path.suffix in (".py", ".yaml", ".yml") or len(path.parts) > 1:
        near = did_you_mean(path.stem, shipped_recipes())
        raise UserError(f"there is no recipe file {reference}.{near}")
    raise unknown("recipe", reference, shipped_recipes())


def load_recipe(reference: str, flags: Sequence[str] = ()) -> Recipe:
    """The recipe that `reference` names, with `flags` applied.

    Raises `UserError` with every mistake: its place, what was expected, the nearest spelling.
    """
    path = find_recipe(reference)
    if path.suffix == ".py":
        return apply_flags(run_script(path), flags)
    data, places = read_yaml(path)
    return apply_flags(validated(data, places, str(path)), flags)


def run_script(path: Path) -> Recipe:
    """The recipe made by the function `recipe()` of the script `path`.

    Raises `UserError` with file and line, for what the script itself raises too.
    """
    sys.path.insert(0, str(path.parent))
    try:
        names = runpy.run_path(str(path), run_name="rl_reasoner_recipe")
        if not callable(names.get("recipe")):
            raise UserError(f"{path} has no function `recipe()` that returns a Recipe")
        found = names["recipe"]()
    except UserError:
        raise
    except ValidationError as error:
        text = path.read_text(encoding="utf-8")
        raise _explained(error, python_places(text, str(path)), str(path)) from None
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}"
        raise UserError(f"{place}: syntax error: {error.msg}") from error
    except Exception as error:
        lines = [f":{f.lineno}" for f in extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f"{path}{lines[-1] if lines else ''}"
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(found, Recipe):
        raise UserError(f"{path}: recipe() returned {type(found).__name__}, not a Recipe")
    return found


def validated(data: Any, places: Places, source: str) -> Recipe:
    """`data` as a Recipe; mistakes are a `UserError` with their places."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _explained(error, places, source) from None


# ------------------------------------------------------------------------------------ places


def read_yaml(path: Path) -> tuple[Any, Places]:
    """The content of a YAML file and the `file:line` of every key in it."""
    try:
        node, data = yaml_value(path.read_text(encoding="utf-8"), RecipeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file (UTF-8): {error.reason}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{place}: not valid YAML: {reason}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of fields, this is {type(data).__name__}")
    return data, dict(_yaml_places(node, (), str(path)))


def _yaml_places(node: yaml.Node | None, at: Path_, source: str) -> Iterator[tuple[Path_, str]]:
    if node is None:  # an empty file
        return
    yield at, f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise UserError(f"{source}:{line}: the field {key.value!r} is there twice")
            seen.add(key.value)
            yield from _yaml_places(value, (*at, key.value), source)
            yield (*at, key.value), f"{source}:{key.start_mark.line + 1}"
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _yaml_places(item, (*at, index), source)


def python_places(text: str, source: str) -> Places:
    """The `file:line` of every field written in the `Recipe(...)` call of a script."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and "Recipe" in (
            getattr(node.func, "id", ""),  # Recipe(...)
            getattr(node.func, "attr", ""),  # rl_reasoner.Recipe(...)
        ):
            return dict(_python_places(node, (), source))
    return {}


def _python_places(node: ast.expr, at: Path_, source: str) -> Iterator[tuple[Path_, str]]:
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


def place_of(reference: str, flags: Sequence[str] = ()) -> Callable[[Path_], str]:
    """A function from the path of a field to where it is set: a flag, or file and line.

    For mistakes that show only when the recipe is put to work. What is not written down itself has
    the place of what it is part of.
    """
    path = find_recipe(reference)
    if path.suffix == ".py":
        places = dict(python_places(path.read_text(encoding="utf-8"), str(path)))
    else:
        places = dict(read_yaml(path)[1])
    data = load_recipe(reference).model_dump(mode="json")
    for flag, text in _pairs(flags):
        places[_resolve(data, flag)[0]] = f"--{flag}" if text is None else f"--{flag} {text}"

    def place(field: Path_) -> str:
        above = (places[field[:n]] for n in range(len(field), 0, -1) if field[:n] in places)
        return next(above, str(path))

    return place


# ------------------------------------------------------------------------------------ errors


def _explained(error: ValidationError, places: Places, source: str) -> UserError:
    return UserError(*(_message(item, places, source) for item in error.errors()))


def _message(item: Any, places: Places, source: str) -> str:
    path, model = _located(item["loc"])
    above = (places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in places)
    below = ", ".join(where for at, where in places.items() if at[: len(path)] == path)
    place = next(above, below or source)
    dotted = ".".join(map(str, path)) or "recipe"
    if item["type"] == "extra_forbidden":
        known = list(model.model_fields) if model else []
        return f"{place}: {dotted}: unknown field.{did_you_mean(str(path[-1]), known)}"
    if item["type"] == "missing":
        return f"{place}: {dotted}: this field is required"
    given = item.get("input")
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "union_tag_invalid":
        text += "." + did_you_mean(str(item["ctx"]["tag"]), _KINDS)
    if item["type"] == "literal_error":
        text += "." + did_you_mean(str(given), re.findall("'([^']*)'", item["ctx"]["expected"]))
    shown = f" (given: {given!r:.60})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{place}: {dotted}: {text[:1].lower()}{text[1:]}{shown}"


def _located(loc: Sequence[str | int]) -> tuple[Path_, type[BaseModel] | None]:
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
            inner = _model_in(field.annotation) if field else None
            model = inner if field else model
    return tuple(path), holder


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for arg in get_args(annotation) if (m := _model_in(arg))), None)


# ------------------------------------------------------------------------------------- flags


def apply_flags(recipe: Recipe, flags: Sequence[str]) -> Recipe:
    """`recipe` with dotted-path flags applied (`["--group.size", "16", "--name=x"]`).

    Their order does not matter, but the last one of the same name holds. Raises `UserError` with
    every mistake in the flags at once.
    """
    if not flags:
        return recipe
    data = recipe.model_dump(mode="json")
    found: list[tuple[Path_, Any, str]] = []
    problems: list[str] = []
    for flag, text in _pairs(flags):
        try:
            path, annotation = _resolve(data, flag)
            value = _read(flag, text, annotation)
            found.append((path, value, f"--{flag}" if text is None else f"--{flag} {text}"))
        except UserError as error:
            problems += error.messages
    # a whole before its parts, and the kind of data before its settings
    found.sort(key=lambda f: (len(f[0]), f[0][-1] not in ("task", "path", "stage", "mix")))
    for path, value, _ in found:
        _set(data, path, value)
    try:
        changed = validated(data, {path: place for path, _, place in found}, "flags")
    except UserError as error:
        problems += error.messages
    if problems:
        raise UserError(*problems)
    return changed


def _pairs(flags: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise UserError(f"expected a flag that starts with --, got {flag!r}")
        name, equals, text = flag[2:].partition("=")
        name = name.replace("-", "_") if "." not in name else name
        if equals:
            yield name, text
        else:
            yield name, rest.pop(0) if rest and not rest[0].startswith("--") else None


def _read(flag: str, text: str | None, annotation: Any) -> Any:
    """The value that a flag's text means for a field of this type.

    Numbers and words are left to the schema, lists may be written with commas, all else is YAML.
    """
    whole = (tuple, Literal, Mapping)  # their arguments are not alternatives
    kinds = () if get_origin(annotation) in whole else get_args(annotation)
    kinds = kinds or (annotation,)
    if text is None:
        if bool in kinds or Any in kinds:
            return True
        raise UserError(f"--{flag}: expected a value after it")
    if NoneType in kinds and text.lower() in ("", "~", "none", "null"):
        return None
    if any(get_origin(kind) is tuple for kind in kinds) and not text.startswith("["):
        items = [item.strip() for item in text.split(",") if item.strip()]
        return text if str in kinds else items
    if all(k in (str, int, float, bool, NoneType) or get_origin(k) is Literal for k in kinds):
        return text
    try:
        return yaml_value(text, RecipeLoader)[1]
    except yaml.YAMLError as error:
        raise UserError(f"--{flag} {text}: cannot be read as YAML") from error


def _set(data: dict[str, Any], path: Path_, value: Any) -> None:
    """Write `value` into the dumped recipe at `path`; what is missing on the way is made."""
    holder: Any = data
    for part in path[:-1]:
        if isinstance(holder, dict) and not isinstance(holder.get(part), (dict, list)):
            holder[part] = {}
        holder = holder[part]
    last = path[-1]
    if path == ("policy",) and isinstance(value, str):
        holder, last = holder[last], "source"  # --policy NAME keeps the adapter's settings
    if last == "data" and isinstance(value, str):
        value = {"path": value}
    if last in ("task", "path", "stage", "mix") and last not in holder:
        holder.clear()  # --data.path in place of a generator, and the other way round
    holder[last] = value


def _resolve(data: dict[str, Any], flag: str) -> tuple[Path_, Any]:
    """The path into the dumped recipe that `flag` means (see the module's docstring), its type."""
    parts = flag.split(".")
    stages = data["stages"]
    names = {stage["name"]: index for index, stage in enumerate(stages)}
    if parts[0] == "stages" and len(parts) > 1:
        index = names.get(parts[1], int(parts[1]) if parts[1].isdecimal() else -1)
        parts = ["stages", str(index), *parts[2:]] if 0 <= index < len(stages) else [flag]
    candidates: list[list[str]] = [parts] if data.get(parts[0]) is not None else []
    if parts[0] in names and len(parts) > 1:
        candidates.append(["stages", str(names[parts[0]]), *parts[1:]])
    last = [i for i in reversed(range(len(stages))) if parts[0] in stages[i]]
    # a stage's own data stand before the recipe's, when the recipe has none
    candidates += [["stages", str(last[0]), *parts]] if last else []
    candidates += [parts] if parts[0] in Recipe.model_fields else []
    for candidate in candidates:
        annotation = _annotation(candidate, [Recipe])
        if annotation is not None:
            lists = ("stages", "mix")
            above = ["", *candidate]
            return tuple(
                int(p) if p.isdecimal() and before in lists else p
                for before, p in zip(above, candidate, strict=False)
            ), annotation
    known = [f"--{path}" for path in _paths(data)] + ["--resume", "--quiet", "--json"]
    # the last part of a path alone (--lr for --optim.lr) is nearer than another path like it
    ends = {p.lstrip("-").rpartition(".")[2]: p for p in sorted(known, key=len, reverse=True)}
    near = did_you_mean(ends.get(flag, f"--{flag}"), known)
    raise UserError(f"--{flag}: the recipe has no such field.{near}")


def _annotation(parts: Sequence[str], models: Sequence[type[BaseModel]]) -> Any:
    """The type of the field at `parts`, `Any` where every value is taken; None: no such field."""
    name, *rest = parts
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    if not fields:
        return None
    annotation = fields[0].annotation
    if not rest:
        return annotation
    if name in ("trainer", "options", "columns"):
        return Any if len(rest) == 1 else None
    inner: Sequence[type[BaseModel]] = [m] if (m := _model_in(annotation)) else []
    if name == "data":
        inner = [TaskData, FileData, StageData, MixData]
    elif name in _PARTS and get_origin(annotation) in (tuple, Mapping):
        inner = _PARTS[name]  # its parts have a number or a name
        rest = rest[1:]
    return _annotation(rest, inner) if rest else Any


def _paths(data: Mapping[str, Any], at: str = "") -> list[str]:
    """Every flag that the dumped recipe takes, stages by their names."""
    found = []
    for key, value in data.items():
        if key == "stages" and not at:
            for stage in value:
                found += _paths(stage, f"{stage['name']}.") + _paths(stage)
        else:
            found.append(f"{at}{key}")
            found += _paths(value, f"{at}{key}.") if isinstance(value, dict) else []
    return found


def flag_table(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Every flag of a recipe: (flag, value now, what it means), for `train RECIPE --help`."""
    rows = []
    for prefix, part in [("", recipe), *((f"{s.name}.", s) for s in recipe.stages)]:
        rows += list(_flag_rows(part, prefix))
    return rows


def _flag_rows(part: BaseModel, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _flag_rows(value, f"{prefix}{name}.")
        elif name not in ("stages", "kind"):
            shown = (
                {k: getattr(v, "weight", v) for k, v in value.items()}
                if isinstance(value, Mapping)
                else value
            )
            yield f"--{prefix}{name}", str(shown), field.description or ""
