"""What each stage of a run was made from; and so which stages have to run again.

The facts of a stage are all that decides its result: its own fields, what it uses of the recipe,
the content of its files, and the hashes of what it takes from other stages. They are in the
stage's `lock.json`; a stage whose facts are unchanged does not run again. Results are identified by
their content: where a stage comes out the same as before, what follows stays as it is. Knows
recipes and files; nothing of torch.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from rl_reasoner.dataset.sets import find_set
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.files import sha256_of
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.paths import policy_folder
from rl_reasoner.recipe.data import (
    AnyData,
    FileData,
    MadeData,
    MixData,
    StageData,
    data_sources,
)
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.recipe.old_names import current_stage
from rl_reasoner.recipe.recipe import Evals, Recipe
from rl_reasoner.recipe.stages import RowStage, Stage
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.scoring.registry import code_of_own

# Fields of a stage that change nothing in its result.
_WITHOUT_EFFECT = ("name", "start", "policy", "teacher", "save_every")
_CODE_OPTIONS = ("function", "factory")  # of `judge` and its copies, and of the environment `trl`
_SHOWN = 3  # differences that are named
_MISSING = object()
_NONE: Mapping[str, str] = {}


def facts_of(
    recipe: Recipe, stage: Stage, made: Mapping[str, str], read: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What decides the result of `stage`, as JSON values.

    `made` has the hash of what each stage has made that this one needs (see `Recipe.needs`),
    `read` those of files as they were when a run read them (`hashes_of_data`, `hashes_of_code`).
    """
    read = read or {}
    if stage.reuse is not None:
        return {"reuse": hash_of(reused_path(stage))}
    fields = stage.model_dump(mode="json")
    facts: dict[str, Any] = {k: v for k, v in fields.items() if k not in _WITHOUT_EFFECT}
    facts["data"] = recipe.data_of(stage).model_dump(mode="json")
    facts["files"] = _files(recipe, stage, made, read)
    start = recipe.start_of(stage)
    source = getattr(stage, "policy", None) or recipe.policy.source
    facts["from"] = made[start] if start else hash_of_source(source, recipe.run.seed)
    if (teacher := getattr(stage, "teacher", None)) is not None:
        facts["teacher"] = made.get(teacher) or hash_of_source(teacher, recipe.run.seed)
    facts["template"], facts["seed"] = recipe.template, recipe.run.seed
    if recipe.system:
        facts["system"] = recipe.system
    if recipe.tools:
        facts["tools"] = facts_of_tools(recipe.tools, read)
    if recipe.environment:
        facts["environment"] = facts_of_environment(recipe.environment, read)
    if stage.kind == "grpo":
        facts["rewards"] = {
            n: spec.model_dump(mode="json", exclude_none=True) for n, spec in recipe.rewards.items()
        }
        facts["code"] = _codes(recipe.rewards, read)
    if isinstance(stage, RowStage):
        read = {}  # its reward is loaded when it begins
        if stage.reward:
            facts["code"] = code_of_own(stage.reward)
    if named := _named_in_options(recipe, stage, read):
        facts["named"] = named
    if not isinstance(stage, RowStage):
        facts["precision"] = recipe.run.precision
        if recipe.run.precision == "fp8":
            facts["fp8"] = recipe.run.fp8
        facts["lora"] = recipe.policy.lora and recipe.policy.lora.model_dump(mode="json")
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def with_new_fields(
    recipe: Recipe, stage: Stage, before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
    """The facts `before`, with the stage's fields that they do not have but `now` has by default.

    An older version wrote them, in which those fields did not exist: no reason to run again. The
    same where it did not write down `fp8`, the code of `MODULE:FUNCTION` or the files that options
    name, or hashed the whole folder of a run for its policy.
    """
    before = _with_modules(before, now, str(getattr(stage, "reward", "")))
    used = recipe.environment.use if recipe.environment else ""
    for part in ("tools", "environment"):
        if isinstance(before.get(part), Mapping) and isinstance(now.get(part), Mapping):
            before = {**before, part: _with_modules(before[part], now[part], used)}
    # options that came or went are a difference of their own
    before = {**{name: now[name] for name in ("fp8", "named") if name in now}, **before}
    source = getattr(stage, "policy", None) or recipe.policy.source
    for name, policy in (("from", source), ("teacher", getattr(stage, "teacher", ""))):
        run, hashed = Path(policy).expanduser(), before.get(name)
        of_run = hashed != now.get(name) and (run / "recipe.yaml").is_file()
        if of_run and hashed == hash_of(run):
            before = {**before, name: now[name]}
    given = stage.model_dump(mode="json", exclude_defaults=True)
    given["data"] = recipe.data_of(stage).model_dump(mode="json", exclude_defaults=True)
    fields = {name for name in now if name in type(stage).model_fields}
    return {**before, **_filled(before, {name: now[name] for name in fields}, given)}


def _with_modules(before: Any, now: Any, reference: str) -> dict[str, Any]:
    """The facts `before`, with the hashes of code that an older version took otherwise.

    It had none of a `MODULE:FUNCTION`, and of a file none but its own. `reference` is what one hash
    that stands alone is of.
    """
    code, kept = now.get("code"), before.get("code")
    if isinstance(code, Mapping) and (kept is None or isinstance(kept, Mapping)):
        modules = {name: value for name, value in code.items() if not _is_file(name)}
        names = {**modules, **(kept or {})}
        return {**before, "code": {n: _of_now(n, was, code.get(n)) for n, was in names.items()}}
    if isinstance(code, str) and isinstance(kept, str):
        return {**before, "code": _of_now(reference, kept, code)}
    new = isinstance(code, str) and kept is None and not _is_file(reference)
    return {**before, **({"code": code} if new else {})}


def _of_now(reference: str, before: Any, now: Any) -> Any:
    """The hash `now` where the one before is of the file of `reference` without its helpers."""
    file = Path(reference.rpartition(":")[0]).expanduser()
    alone = _is_file(reference) and file.is_file() and before == hash_of(file)
    return now if alone and now else before


def _is_file(reference: str) -> bool:
    return reference.rpartition(":")[0].endswith(".py")


def _filled(before: Any, now: Any, given: Any) -> Any:
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        return before
    given = given if isinstance(given, Mapping) else {}
    filled = {
        name: _filled(before[name], value, given.get(name)) if name in before else value
        for name, value in now.items()
        if name in before or name not in given
    }
    return {**before, **filled}


def _files(
    recipe: Recipe, stage: Stage, made: Mapping[str, str], read: Mapping[str, str]
) -> dict[str, str]:
    """The hash of each file, and of each stage's data, that the stage's rows come from."""
    hashes, sources = {}, data_sources(recipe.data_of(stage))
    if any(isinstance(source, StageData) for source in sources):
        read = {}  # beside those of a stage, files are read when this one begins
    for source in sources:
        if isinstance(source, StageData):
            hashes[source.stage] = made[source.stage]
        elif isinstance(source, FileData):
            hashes[source.path] = read.get(source.path) or hash_of_set(source.path)
    return hashes


def hashes_of_data(recipe: Recipe, stage: Stage) -> dict[str, str]:
    """The hash of each file that the stage's rows come from, by path; none of what is not there."""
    hashes = {}
    for source in data_sources(recipe.data_of(stage)):
        if isinstance(source, FileData):
            with suppress(OSError):
                hashes[source.path] = hash_of_set(source.path)
    return hashes


def hashes_of_code(recipe: Recipe) -> dict[str, str]:
    """The hash of each file of the user's that decides what stages make, but for data and policies.

    By their references: rewards, tools, the environment, and what options name. But for those of
    a stage that makes rows: it loads its reward when it begins.
    """
    tools = recipe.tools.use if recipe.tools else ()
    played = [recipe.environment.use] if recipe.environment else []
    small = [
        {name: value for name, value in options.items() if name != "policy"}
        for stage in recipe.stages
        if not isinstance(stage, RowStage)
        for options in _options_of(recipe, stage)
    ]
    code = _codes([*recipe.rewards, *tools, *played], {})
    return files_of_options(*small) | code


def edited_since(recipe: Recipe, read: Mapping[str, str]) -> list[str]:
    """Which of the files that a run has `read` have other hashes now, by their names there."""
    now = hashes_of_code(recipe)
    for stage in recipe.stages:
        now |= hashes_of_data(recipe, stage)
    return [name for name, was in read.items() if now.get(name) != was]


def hash_of_set(name: str) -> str:
    """What stands for a data file: its content's hash, or that it comes from the hub."""
    file = find_set(name)
    return hash_of(file) if file else "from the hub"


def hash_of_source(source: str, seed: int) -> str:
    """What stands for a policy that no stage made: its content here, else its name.

    Of a run it is that of its policy. Raises `UserError` for a run without one.
    """
    path = Path(source).expanduser()
    if path.exists():
        return hash_of(policy_folder(path) or path)
    return f"{source}, seed {seed}" if source.startswith("scratch:") else source


def facts_of_tools(tools: ToolSettings, read: Mapping[str, str] = _NONE) -> dict[str, Any]:
    """What decides what calls give: the settings, and the files of the user's tools."""
    code = _codes(tools.use, read)
    return {**tools.model_dump(mode="json"), **({"code": code} if code else {})}


def facts_of_environment(
    environment: EnvironmentSettings, read: Mapping[str, str] = _NONE
) -> dict[str, Any]:
    """What decides what an environment answers: the settings, and the user's file."""
    code = _codes([environment.use], read).get(environment.use)
    return {**environment.model_dump(mode="json"), **({"code": code} if code else {})}


def files_of_options(*used: Mapping[str, Any]) -> dict[str, str]:
    """The hashes of what options name: a judge's function, rubric and policy, a class of trl's.

    What has no file here is named by the option alone.
    """
    found: dict[str, str | None] = {}
    for option, value in (pair for options in used for pair in options.items()):
        if not isinstance(value, str) or option not in (*_CODE_OPTIONS, "rubric", "policy"):
            continue
        with suppress(OSError, ValueError, RuntimeError):  # other rewards' may be any text
            file = Path(value).expanduser()
            if option in _CODE_OPTIONS:
                found[value] = code_of_own(value)
            elif option == "rubric" and file.is_file():
                found[value] = hash_of(file)
            elif option == "policy" and (file.is_file() or _is_policy(file)):
                found[value] = hash_of_source(value, 0)
    return {name: value for name, value in found.items() if value is not None}


def _is_policy(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "policy/config.json"))


def _named_in_options(recipe: Recipe, stage: Stage, read: Mapping[str, str]) -> dict[str, str]:
    """The hashes of what the options of a stage's rewards and of its environment name.

    As it was `read`, also where it is not there any more; else as it is.
    """
    used = _options_of(recipe, stage)
    given = [options.get(name) for options in used for name in (*_CODE_OPTIONS, "rubric")]
    texts = [value for value in given if isinstance(value, str)]
    return files_of_options(*used) | {value: read[value] for value in texts if value in read}


def _options_of(recipe: Recipe, stage: Stage) -> list[Mapping[str, Any]]:
    """The options of a stage's rewards and of its environment."""
    used: list[Mapping[str, Any]] = [recipe.environment.options] if recipe.environment else []
    if stage.kind == "grpo":
        used += [spec.options for spec in recipe.rewards.values()]
    if isinstance(stage, RowStage):
        used.append(stage.reward_options)
    return used


def facts_of_turns(recipe: Recipe) -> list[dict[str, Any]]:
    """The facts of a recipe's tools, or of its environment; nothing without."""
    facts = [facts_of_tools(recipe.tools)] if recipe.tools else []
    return facts + ([facts_of_environment(recipe.environment)] if recipe.environment else [])


def key_of_evaluation(recipe: Recipe, evals: Evals, made: str) -> str:
    """What decides an evaluation's result, hashed, but for its files; `made`: the policy's hash."""
    facts = [made, evals.facts(), recipe.template, recipe.run.seed]
    facts += [recipe.system] if recipe.system else []
    facts += [turns, "policy_text"] if (turns := facts_of_turns(recipe)) else []
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def files_of_evaluation(recipe: Recipe, evals: Evals) -> dict[str, str]:
    """The hash of each set, of the code of a reward of the user's, and of what options name."""
    code = {evals.reward: found} if evals.reward and (found := code_of_own(evals.reward)) else {}
    played = [recipe.environment.options] if recipe.environment else []
    named = files_of_options(evals.reward_options, *played)
    return {**{name: hash_of_set(name) for name in evals.sets}, **code, **named}


def evaluations_of(file: Path, key: str, files: Mapping[str, str]) -> list[Path]:
    """Results beside `file`, itself first, of the evaluation with this key, of the same files.

    Older ones do not say of which files they are, or not of those that options name.
    """

    def is_same(one: Path) -> bool:
        manifest = mapping(json_object(one).get("manifest")) if one.is_file() else {}
        return manifest.get("key") == key and {**files, **mapping(manifest.get("files"))} == files

    return [one for one in dict.fromkeys((file, *file.parent.glob("*.json"))) if is_same(one)]


def _codes(references: Iterable[str], read: Mapping[str, str]) -> dict[str, str]:
    """The hashes of the user's code among `references`: as it was `read`, else as it is."""
    found = {name: read.get(name) or code_of_own(name) for name in references}
    return {name: code for name, code in found.items() if code}


def reused_path(stage: Stage) -> Path:
    """What a stage reuses instead of running: a policy's folder, or the file of a data set.

    Raises `UserError` where it is not there, or of the wrong kind.
    """
    path = Path(str(stage.reuse)).expanduser()
    if isinstance(stage, RowStage):
        file = path / "data.jsonl" if path.is_dir() else path
        if not file.is_file():
            raise UserError(f"stage {stage.name}: reuse: there is no data set {file}")
        return file
    folder = path / "policy" if (path / "policy").is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(f"stage {stage.name}: reuse: {folder} is not a folder with a policy in it")
    return folder


def data_in(run: Path, recipe: Recipe, stage: Stage) -> AnyData:
    """The data of `stage` in the run folder `run`: files in place of the stages they come from."""
    names = [other.name for other in recipe.stages]
    by_name = dict(zip(names, recipe.stages, strict=True))

    def file(source: Any) -> Any:
        if not isinstance(source, StageData):
            return source
        made = run / "stages" / f"{names.index(source.stage) + 1}-{source.stage}" / "data.jsonl"
        kind = FileData if by_name[source.stage].reuse else MadeData  # who wrote it, we or others
        return kind(path=str(made), **source.model_dump(exclude={"stage"}))

    data = recipe.data_of(stage)
    if isinstance(data, MixData):
        return MixData(mix=tuple(file(source) for source in data.mix))
    return file(data)  # type: ignore[no-any-return]


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder with their names."""
    if not path.is_dir():
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)}\0{hash_of(file)}\n".encode())
    return digest.hexdigest()


def window_of(recipe: Recipe, first: str | None, last: str | None) -> range:
    """The places of the stages from `first` to `last`; raises `UserError` for unknown names."""
    names = [stage.name for stage in recipe.stages]
    for flag, name in (("--from", first), ("--until", last)):
        if name is not None and name not in names:
            raise unknown(f"stage ({flag})", name, names)
    start = names.index(first) if first else 0
    end = names.index(last) if last else len(names) - 1
    if end < start:
        raise UserError(f"--until {last} comes before --from {first}")
    return range(start, end + 1)


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, time: int) -> str:
    """The file's SHA-256; read again only when its size or time has changed."""
    return sha256_of(path)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the facts of a stage have changed, in a few words: "optim.lr 0.001 -> 0.002"."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    changed = [
        name for name in {**old, **new} if old.get(name, _MISSING) != new.get(name, _MISSING)
    ]
    shown = [_in_words(name, old.get(name), new.get(name)) for name in changed[:_SHOWN]]
    more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
    return ", ".join([*shown, *more])


def _in_words(name: str, before: Any, now: Any) -> str:
    fact, _, inner = name.removeprefix("tools.").partition(".")
    whole = {
        "from": "starting policy",
        "environment.code": "the environment's code",
        "code": "its reward's code" if isinstance(before or now, str) else "code",
    }
    if name in whole or fact in ("files", "teacher", "reuse", "code", "named"):
        what = whole.get(name, inner or name)
        return f"{what} {'added' if before is None else 'left out' if now is None else 'changed'}"
    return f"{name} {before} -> {now}"


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{at}.{name}" if at else name)
    else:
        yield at, value


def facts_in(folder: Path) -> dict[str, Any] | None:
    """What an existing stage was begun with; None where there is none, empty in older runs."""
    if not any(folder.glob("[!.]*")):  # a hidden file alone: killed while the lock was written
        return None
    file = folder / "lock.json"
    if not file.is_file():
        return {}
    return dict(current_stage(mapping(json_object(file).get("made_from"))))
