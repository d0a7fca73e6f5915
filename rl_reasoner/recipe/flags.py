"""Flags of a recipe: dotted paths into it (`--group.size 16`), and the table that `--help` prints.

A path is looked up in the recipe first, then by stage name (`--chains.steps 50`), then in the
stages: a flag means the last stage that has such a field, and all others of that stage's kind, so
that `--vllm.mode` is heard by every grpo stage and `--optim.lr` does not reach into sft. tyro
parses only the verb's own arguments, since a recipe is a list of stages of different kinds and all
mistakes in flags are reported at once.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.foreign import yaml_value
from rl_reasoner.recipe.data import FileData, MixData, StageData, TaskData
from rl_reasoner.recipe.flag_habits import habit_hint
from rl_reasoner.recipe.locations import FieldPath, model_in, validate
from rl_reasoner.recipe.old_names import OLD_NAMES, current_path, note_old_name
from rl_reasoner.recipe.recipe import EvalOverrides, Evals, Recipe, RecipeLoader, RewardSpec
from rl_reasoner.recipe.stages import (
    DistillStage,
    FilterStage,
    GrpoStage,
    Loss,
    SampleStage,
    SftStage,
)

_LISTS: dict[str, list[type[BaseModel]]] = {
    "stages": [SftStage, GrpoStage, SampleStage, FilterStage, DistillStage],
    "rewards": [RewardSpec],
    "mix": [TaskData, FileData, StageData],
    "overrides": [EvalOverrides],
}


def apply_flags(recipe: Recipe, flags: Sequence[str]) -> Recipe:
    """`recipe` with dotted-path flags applied (`["--group.size", "16", "--name=x"]`).

    Their order does not matter, but the last one of the same name holds. Raises `UserError` with
    every mistake in the flags at once.
    """
    if not flags:
        return recipe
    data = _with_sets(recipe.model_dump(mode="json"), flags)
    settings: list[tuple[FieldPath, Any, str, bool]] = []
    problems: list[str] = []
    for flag, text in _pairs(flags):
        try:
            paths, annotation = _resolve(data, flag)
            value = _read(flag, text, annotation)
            if "loss" in paths[0]:  # where an algorithm compares it with its own
                value = _meant(value, annotation)
            one = len(paths) == 1
            settings += [(path, value, _spelled(flag, text), one) for path in paths]
        except UserError as error:
            problems += error.messages
    # a whole before its parts, the kind of data before its settings, all stages before one of them
    settings.sort(key=lambda f: (len(f[0]), f[0][-1] not in ("task", "path", "stage", "mix"), f[3]))
    for stage in {path[1] for path, _, _, _ in settings if path[2:] == ("loss", "algorithm")}:
        _open_to_another(recipe, data, int(stage))
    for stage in {path[1] for path, _, _, _ in settings if path[2:] == ("loss", "epsilon")}:
        _open_to_epsilon(recipe, data, int(stage))
    for path, value, spelled, _ in settings:
        if problem := _not_there(data, path):
            problems.append(f"{spelled}: {problem}")
        else:
            _set(data, path, deepcopy(value))  # its parts may be set in one stage alone
    try:
        changed = validate(data, {path: place for path, _, place, _ in settings}, "flags")
    except UserError as error:
        problems += error.messages
    if problems:
        raise UserError(*problems)
    return changed


def flag_places(recipe: Recipe, flags: Sequence[str]) -> dict[FieldPath, str]:
    """The path into `recipe` of every field that `flags` set -> the flag, as it is spelled."""
    data = _with_sets(recipe.model_dump(mode="json"), flags)
    given = [(_resolve(data, flag)[0], _spelled(flag, text)) for flag, text in _pairs(flags)]
    given.sort(key=lambda one: len(one[0]) == 1)  # as they are applied: one stage's own is last
    return {path: spelled for paths, spelled in given for path in paths}


def _with_sets(data: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """The dumped recipe with the sets that a flag names: flags for one of them may stand before."""
    for flag, text in _pairs(flags):
        if flag == "evals.sets":
            with suppress(UserError):  # told when the flag is applied
                named = _read(flag, text, Evals.model_fields["sets"].annotation)
                data["evals"]["sets"] = named if isinstance(named, list) else []
    return data


def _spelled(flag: str, text: str | None) -> str:
    return f"--{flag}" if text is None else f"--{flag} {text}"


def _pairs(flags: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise UserError(f"expected a flag that starts with --, got {flag!r}")
        name, equals, text = flag[2:].partition("=")
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
    kinds = tuple(str if _is_checked_text(kind) else kind for kind in kinds)
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


def _is_checked_text(kind: Any) -> bool:
    return get_origin(kind) is Annotated and get_args(kind)[0] is str


def _meant(value: Any, annotation: Any) -> Any:
    """A value as its field will hold it; what the field cannot hold is told by the schema."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError:
        return value


def _open_to_another(recipe: Recipe, data: dict[str, Any], number: int) -> None:
    """Take out of a stage's loss what it has by default or by its algorithm: another sets it.

    What the recipe says itself stays. A run's recipe says all that there was in its version: there
    a default is no wish.
    """
    stage = recipe.stages[number]
    if not isinstance(stage, GrpoStage):  # it has no such field: told later
        return
    named, said = stage.loss.algorithm, stage.loss.model_fields_set
    by_itself = Loss(algorithm=named)
    compared = named or len(said) > len(Loss.model_fields) / 2
    data["stages"][number]["loss"] = {
        name: value
        for name, value in stage.loss.model_dump(mode="json").items()
        if name in said and not (compared and value == getattr(by_itself, name))
    }


def _open_to_epsilon(recipe: Recipe, data: dict[str, Any], number: int) -> None:
    """Take out of a stage's loss its algorithm's `epsilon_high`: it has to suit a new `epsilon`."""
    stage = recipe.stages[number]
    if not isinstance(stage, GrpoStage) or stage.loss.algorithm is None:
        return
    if stage.loss.epsilon_high == Loss(algorithm=stage.loss.algorithm).epsilon_high:
        data["stages"][number]["loss"].pop("epsilon_high", None)


def _set(data: dict[str, Any], path: FieldPath, value: Any) -> None:
    """Write `value` into the dumped recipe at `path`; what is missing on the way is made."""
    holder: Any = data
    for at, part in enumerate(path[:-1]):
        if isinstance(holder, dict) and not isinstance(holder.get(part), (dict, list)):
            weighed = path[:at] == ("rewards",) and part in holder  # by another flag
            holder[part] = {"weight": holder[part]} if weighed else {}
        holder = holder[part]
    last = path[-1]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if path == ("policy",) and isinstance(value, str):
        holder, last = holder[last], "source"  # --policy NAME keeps the adapter's settings
    elif path[:-1] == ("rewards",) and number and isinstance(holder.get(last), dict):
        holder, last = holder[last], "weight"  # --rewards.NAME 2 keeps the reward's options
    elif _is_data(path) and isinstance(value, str):
        value = {"path": value}
    if _is_data(path[:-1]) and last in ("task", "path", "stage", "mix") and last not in holder:
        holder.clear()  # --data.path in place of a generator, and the other way round
    holder[last] = value


def _is_data(path: FieldPath) -> bool:
    """Whether rows come from what stands at `path`: the recipe's data, a stage's, one of a mix."""
    own = path[2:] if path[:1] == ("stages",) else path
    return own[:1] == ("data",) and (len(own) == 1 or (len(own) == 3 and own[1] == "mix"))


def _not_there(data: dict[str, Any], path: FieldPath) -> str:
    """Why nothing can be written at `path`, where a list on the way has no such place; else ""."""
    holder: Any = data
    for at, part in enumerate(path):
        listed, where = isinstance(holder, list), ".".join(map(str, path[:at]))
        if isinstance(part, int) and not (listed and part < len(holder)):
            has = f"it has {len(holder)}, counted from 0" if listed else "it is not a list"
            return f"{where} has no part {part}: {has}"
        if isinstance(part, str) and listed:
            return f"{where} is a list by another flag: give all of it there"
        holder = holder.get(part) if isinstance(holder, dict) else holder[part] if listed else None
    return ""


def _resolve(data: dict[str, Any], flag: str) -> tuple[list[FieldPath], Any]:
    """The paths into the dumped recipe that `flag` means (see the module's docstring), their type.

    All of them end alike: one, or one in each stage of a kind.
    """
    written = _parts(data, flag if "." in flag else flag.replace("-", "_"))
    parts = [str(part) for part in current_path(written)]
    if parts != written:
        note_old_name(f"--{flag}", f"--{'.'.join(parts)}")
    stages = data["stages"]
    names = {stage["name"]: index for index, stage in enumerate(stages)}
    if parts[0] == "stages" and len(parts) > 1:
        index = names.get(parts[1], int(parts[1]) if parts[1].isdecimal() else -1)
        parts = ["stages", str(index), *parts[2:]] if 0 <= index < len(stages) else [flag]
    candidates: list[list[list[str]]] = [[parts]] if data.get(parts[0]) is not None else []
    if parts[0] in names and len(parts) > 1:
        candidates.append([["stages", str(names[parts[0]]), *parts[1:]]])
    kind = next((stage["kind"] for stage in reversed(stages) if parts[0] in stage), None)
    # a stage's own data stand before the recipe's, when the recipe has none
    candidates.append(
        [["stages", str(i), *parts] for i, stage in enumerate(stages) if stage["kind"] == kind]
    )
    candidates += [[parts]] if parts[0] in Recipe.model_fields else []
    for candidate in filter(None, candidates):
        annotation = _annotation(candidate[-1], [Recipe])
        if annotation is not None:
            return [_path(one) for one in candidate], annotation
    raise UserError(f"--{flag}: the recipe has no such field.{_hint(data, flag)}")


def _parts(data: dict[str, Any], flag: str) -> list[str]:
    """The parts of a dotted path. Names of rewards and sets are whole, with the dots in them."""
    sets = [*data["evals"]["sets"], *data["evals"]["overrides"]]
    for above, names in (("rewards.", [*data["rewards"]]), ("evals.overrides.", sets)):
        rest = flag.removeprefix(above)
        if rest != flag:
            new = re.match(r"[^:]+:\w+", rest)  # a reward that the recipe does not have yet
            names += [new[0]] if new and above == "rewards." else []
            for name in sorted(names, key=len, reverse=True):
                if f"{rest}.".startswith(f"{name}."):
                    inner = rest[len(name) + 1 :]
                    return [*above[:-1].split("."), name, *(inner.split(".") if inner else ())]
    return flag.split(".")


def _path(parts: Sequence[str]) -> FieldPath:
    """Places in a list are numbers."""
    return tuple(
        int(part) if part.isdecimal() and before in ("stages", "mix") else part
        for before, part in zip(["", *parts], parts, strict=False)
    )


def _hint(data: dict[str, Any], flag: str) -> str:
    """What may have been meant by a flag that the recipe does not have."""
    known = [f"--{path}" for path in _paths(data) if path != flag]
    known += ["--resume", "--quiet", "--json"]
    given = {*known, *(f"--{name}" for name in Recipe.model_fields)}
    given |= {f"--data.{name}" for name in ("path", "task") if "--data" in given}
    if hint := habit_hint(flag, given):
        return hint
    flag = flag if "." in flag else flag.replace("-", "_")
    # the last part of a path alone (--lr for --optim.lr) is nearer than another path like it
    ends = {p.lstrip("-").rpartition(".")[2]: p for p in sorted(known, key=len, reverse=True)}
    renamed = {
        f"{path.removesuffix(new)}{old}": path
        for old, new in OLD_NAMES.items()
        for path in known
        if re.split("[.-]", path)[-1] == new
    }
    return did_you_mean(ends.get(flag, f"--{flag}"), known, renamed)


def _annotation(parts: Sequence[str], models: Sequence[type[BaseModel]]) -> Any:
    """The type of the field at `parts`, `Any` where every value is taken; None: no such field."""
    name, *rest = parts
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    if not fields:
        return None
    annotation = fields[0].annotation
    if not rest:
        return annotation
    if name in ("trainer", "options", "columns", "reward_options"):
        return Any if len(rest) == 1 else None
    inner: Sequence[type[BaseModel]] = [m] if (m := model_in(annotation)) else []
    if name == "data":
        inner = [TaskData, FileData, StageData, MixData]
    elif name in _LISTS and get_origin(annotation) in (tuple, Mapping):
        if get_origin(annotation) is tuple and not rest[0].isdecimal():
            return None
        inner = _LISTS[name]  # its parts have a number or a name
        rest = rest[1:]
    return _annotation(rest, inner) if rest else Any


def _paths(data: Mapping[str, Any], at: str = "") -> list[str]:
    """Every flag that the dumped recipe takes, stages by their names."""
    paths = []
    for key, value in data.items():
        if key == "stages" and not at:
            for stage in value:
                paths += _paths(stage, f"{stage['name']}.") + _paths(stage)
        else:
            paths.append(f"{at}{key}")
            paths += _paths(value, f"{at}{key}.") if isinstance(value, dict) else []
    return paths


def flag_table(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Every flag of a recipe: (flag, value now, what it means), for `train RECIPE --help`."""
    parts = [("", recipe), *((f"{stage.name}.", stage) for stage in recipe.stages)]
    return [row for prefix, part in parts for row in _flag_rows(part, prefix)]


def flags_of(recipe: Recipe) -> list[str]:
    """Every flag that `recipe` takes, short forms of its stages' fields among them."""
    return [f"--{path}" for path in dict.fromkeys(_paths(recipe.model_dump(mode="json")))]


def choices_of(recipe: Recipe, flag: str) -> list[str]:
    """The values that `flag` (without dashes) can have, where these are words or a yes and no."""
    _, annotation = _resolve(recipe.model_dump(mode="json"), flag)
    kinds = [annotation, *(get_args(annotation) if get_origin(annotation) is not Literal else ())]
    words = [str(w) for kind in kinds if get_origin(kind) is Literal for w in get_args(kind)]
    return [*words, *(("true", "false") if bool in kinds else ())]


def _as_typed(value: object) -> str:
    """A value as one types it behind its flag in a shell; nothing for one that is left out."""
    if value is None:
        return ""
    plain = to_jsonable_python(value, exclude_none=True, fallback=str)
    return shlex.quote(plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False))


def _shortest(value: object) -> object:
    """A reward of a recipe as its weight, where that is all that is said of it."""
    if not isinstance(value, BaseModel):
        return value
    said = value.model_dump(mode="json", exclude_defaults=True)
    return getattr(value, "weight", said) if said.keys() <= {"weight"} else said


def _flag_rows(part: BaseModel, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _flag_rows(value, f"{prefix}{name}.")
        elif name not in ("stages", "kind"):
            if isinstance(value, Mapping):
                value = {k: _shortest(v) for k, v in value.items()}
            yield f"--{prefix}{name}", _as_typed(value), field.description or ""
