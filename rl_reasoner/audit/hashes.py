"""The hashes that a run keeps, held against its files: of the whole folder, and of what it is from.

`hashes.json` has every file as the run left it; the locks of run and stages have data, rewards,
code and policies. A forger may write `hashes.json` anew: what the other checks of the room find
does not depend on it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rl_reasoner.audit.findings import (
    AuditFinding,
    as_finding,
    counted,
    differs,
    held,
    listed,
    unchecked,
)
from rl_reasoner.audit.versions import maker_of, moved_sets
from rl_reasoner.dataset.sets import find_set
from rl_reasoner.errors import first_line
from rl_reasoner.files import sha256_of
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.pipeline.lineage import (
    differences,
    facts_of,
    hash_of,
    hash_of_set,
    with_new_fields,
)
from rl_reasoner.pipeline.lock import hashes_of_options, reward_files, reward_hashes
from rl_reasoner.pipeline.run_folder import HASHES, sealed_files
from rl_reasoner.provenance import code_hash
from rl_reasoner.recipe.old_names import current_stage
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import RowStage, Stage, TrainedStage
from rl_reasoner.scoring.registry import shipped_rewards
from rl_reasoner.training.checkpointing.checkpoints import broken_seal, steps_in

_BY_NAME = {
    "rollouts.jsonl": "completions",
    "metrics.jsonl": "metrics",
    "data.jsonl": "data",
    "recipe.yaml": "recipe",
    "report.html": "report",
    "lock.json": "lock",
    "done.json": "lock",
    "contamination.json": "results",
    "controls.json": "results",
    "forecast.json": "results",
    "hacking.jsonl": "results",
}
_OUTSIDE = {
    "files": ("data", ""),
    "code": ("rewards", "the reward "),
    "named": ("rewards", ""),
    "tools.code": ("code", "the tool "),
    "environment.code": ("code", "the environment "),
    "from": ("weights", "the policy "),
    "teacher": ("weights", "the teacher "),
}
"""Facts of a stage that are hashes of files, which may lie on another machine: the part of the run
that each is of, and what its file is called."""
_POLICIES = ("from", "teacher")


def part_of(name: str) -> str:
    """The part of the run that the file `name` (a path in the run folder) is of."""
    path = PurePosixPath(name)
    if {"policy", "adapter", "best"} & {*path.parts} and path.name != "evaluation.json":
        return "weights"
    if "evals" in path.parts:
        return "results"
    if path.name.startswith("ledger"):
        return "ledger"
    return _BY_NAME.get(path.name, "files")


def check_files(run: Path) -> Iterator[AuditFinding]:
    """Every file as `hashes.json` has it; report.html is left to the check that makes it anew."""
    if not (run / HASHES).is_file():
        yield unchecked(
            "files", f"there is no {HASHES}: the run has not come to its end, or is older than that"
        )
        return
    kept = {name: str(value) for name, value in json_object(run / HASHES).items()}
    wrong: dict[str, list[str]] = {}
    right: dict[str, int] = {}
    away = 0
    for name, value in kept.items():
        part, file = part_of(name), run / name
        if part == "report":
            continue
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            wrong.setdefault("files", []).append(f"{HASHES} names {name}, which is not of the run")
        elif part == "weights" and not file.is_file():  # of a published run they lie elsewhere
            found = _published(run, name)
            away += found is None
            if found is not None and sha256_of(found) != value:
                wrong.setdefault(part, []).append(f"{found} differs from the run's {name}")
        elif not file.is_file():
            wrong.setdefault(part, []).append(f"{name} is missing")
        elif sha256_of(file) != value:
            wrong.setdefault(part, []).append(f"{name} has changed")
        else:
            right[part] = right.get(part, 0) + 1
    for part in dict.fromkeys([*right, *wrong]):
        if part in wrong:
            yield differs(part, f"since the run ended, {listed(wrong[part])}")
        else:
            yield held(part, f"{counted(right[part], 'file')} as the run left them")
    if away:
        yield unchecked("weights", f"{counted(away, 'file')} of policies are not here")
    names = [str(file.relative_to(run)) for file in sealed_files(run)]
    if new := [name for name in names if name not in kept]:
        yield unchecked("files", f"not of the run: {listed(new)}")


def _published(run: Path, name: str) -> Path | None:
    """Where a file of policy/ lies in a published folder, whose run/ has no weights of its own."""
    inner = PurePosixPath(name)
    file = run.parent / inner.name
    return file if inner.parts[0] == "policy" and len(inner.parts) == 2 and file.is_file() else None


def check_code(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """This package and the rewards, as the run had them; data files by their names."""
    lock = json_object(run / "lock.json")
    kept = lock.get("code")
    if kept is None:
        yield unchecked("code", "the run did not keep the hash of its code: it is older than that")
    elif kept == code_hash():
        yield held("code", "this is the code of rl-reasoner that the run was made with")
    else:
        said = f"the run was made with other code than this: {maker_of(run)}"
        yield unchecked("code", f"{said}; what has changed since can be checked with that")
    yield from _rewards(mapping(lock.get("rewards")), recipe, known=kept in (None, code_hash()))
    found = list[AuditFinding]()
    with as_finding("rewards", found):  # a judge may be a run that has lost its policy
        found += _named_files(mapping(lock.get("named")), hashes_of_options(recipe))
    yield from found
    wrong, right, moved = [], 0, moved_sets(run)
    for name, value in mapping(lock.get("data")).items():
        if name in moved:
            yield unchecked("data", f"{name} is that of another rl-reasoner than the run's")
        elif value != "from the hub" and find_set(name) is None:
            yield unchecked("data", f"{name} is not here")
        elif hash_of_set(name) != value:
            wrong.append(name)
        else:
            right += 1
    if wrong:
        yield differs("data", f"changed since the run read it: {listed(wrong)}")
    elif right:
        yield held("data", f"{counted(right, 'file')} of rows as the run read them")


def _rewards(kept: Mapping[str, Any], recipe: Recipe, *, known: bool) -> Iterator[AuditFinding]:
    """The rewards' files; a shipped one is another where all of the package is, too."""
    if not kept:
        named = [name for name, spec in recipe.rewards.items() if spec.source is None]
        if named:
            yield unchecked("rewards", "the run did not keep the hashes of its rewards")
        return
    here, files = reward_hashes(recipe), reward_files(recipe)
    for name, value in kept.items():
        if name not in here:
            yield unchecked("rewards", f"the file of {name} is not here")
        elif value in (here[name], sha256_of(files[name])):  # older versions: without helpers
            yield held("rewards", f"{name} is the code that the run scored with")
        elif known or name not in shipped_rewards():
            yield differs("rewards", f"{name} is other code than the run scored with")
        else:
            yield unchecked("rewards", f"{name} is that of another rl-reasoner than the run's")


def _named_files(kept: Mapping[str, Any], here: Mapping[str, str]) -> Iterator[AuditFinding]:
    """What options of rewards and of the environment name, such as a judge's rubric."""
    for name, value in kept.items():
        if name not in here:
            yield unchecked("rewards", f"{name} is not here")
        elif value == here[name]:
            yield held("rewards", f"{name} is as the run read it")
        else:
            yield differs("rewards", f"{name} is other than the run read it")


def check_stages(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """Each stage: made from what the recipe says, and what it made as it made it."""
    folders, moved = stage_folders(run, recipe), moved_sets(run)
    made: dict[str, str] = {}
    for stage in recipe.stages:
        done = folders[stage.name] / "done.json"
        made[stage.name] = str(json_object(done).get("made")) if done.is_file() else ""
    for stage in recipe.stages:
        folder, found = folders[stage.name], list[AuditFinding]()
        if not (folder / "lock.json").is_file():
            yield unchecked("recipe", f"stage {stage.name} has not begun, or is of an old version")
            continue
        with as_finding("recipe", found):
            found += _facts(recipe, stage, folder, made, moved)
        found += _result(stage, folder, made[stage.name])
        yield from found


def stage_folders(run: Path, recipe: Recipe) -> dict[str, Path]:
    """The folder of each stage of `recipe` in the run, by its name."""
    return {s.name: run / "stages" / f"{i}-{s.name}" for i, s in enumerate(recipe.stages, 1)}


def _facts(
    recipe: Recipe, stage: Stage, folder: Path, made: Mapping[str, str], moved: frozenset[str]
) -> Iterator[AuditFinding]:
    before = current_stage(mapping(json_object(folder / "lock.json").get("made_from")))
    now = facts_of(recipe, stage, made)
    before = with_new_fields(recipe, stage, before, now)
    (old, kept), (new, asked) = _outside(before), _outside(now)
    for key in {**old, **new}:
        was, is_now = old.get(key), new.get(key)
        if was == is_now:
            continue
        part, what = _OUTSIDE[key[0]][0], _named(key, recipe, stage)
        if key[0] == "files" and key[1] in moved:
            said = f"stage {stage.name} was made from {what}, which is other in this version"
            yield unchecked(part, said)
        elif _is_lost(key[0], was, is_now):
            yield unchecked(part, f"stage {stage.name} was made from {what}, which is not here")
        elif key[0] in _POLICIES and not _is_hash(was) and not _is_hash(is_now):
            yield differs(part, f"stage {stage.name} was made from {was}, not from {is_now}")
        else:
            yield differs(part, f"stage {stage.name}: {what} has changed since the stage began")
    if kept != asked:
        changed = differences(kept, asked)
        yield differs("recipe", f"stage {stage.name} was made with other settings: {changed}")
    else:
        yield held("recipe", f"stage {stage.name} was made with the settings in recipe.yaml")


def _outside(facts: Mapping[str, Any]) -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """The facts that are hashes of files, by (fact, name); and all others."""
    hashes = {fact: facts[fact] for fact in _OUTSIDE if fact in facts}
    rest = {fact: value for fact, value in facts.items() if fact not in _OUTSIDE}
    for part in ("tools", "environment"):
        settings = mapping(rest.get(part))
        if "code" in settings:
            hashes[f"{part}.code"] = settings["code"]
            rest[part] = {name: value for name, value in settings.items() if name != "code"}
    found: dict[tuple[str, str], Any] = {}
    for fact, value in hashes.items():
        by_name = value if isinstance(value, Mapping) else {"": value}
        found |= {(fact, name): inner for name, inner in by_name.items()}
    return found, rest


def _named(key: tuple[str, str], recipe: Recipe, stage: Stage) -> str:
    """What was hashed, in words: "the tool notes.py:look", "the policy of stage cold"."""
    fact, name = key
    if fact == "from" and (start := recipe.start_of(stage)):
        return f"the policy of stage {start}"
    of_stage = {
        "code": getattr(stage, "reward", None),
        "environment.code": recipe.environment and recipe.environment.use,
        "from": getattr(stage, "policy", None) or recipe.policy.source,
        "teacher": getattr(stage, "teacher", None),
    }
    return f"{_OUTSIDE[fact][1]}{name or of_stage.get(fact) or ''}".strip()


def _is_lost(fact: str, before: Any, now: Any) -> bool:
    """Whether a file was hashed then that is not here now."""
    if fact == "files":
        return before is not None and bool(now == "from the hub")
    if fact in _POLICIES:
        return _is_hash(before) and not _is_hash(now)
    return now is None


def _is_hash(value: Any) -> bool:
    """Whether a policy was hashed; else it has a name, of the hub, or is not made."""
    return isinstance(value, str) and len(value) == 64 and value.isalnum()


def _result(stage: Stage, folder: Path, made: str) -> Iterator[AuditFinding]:
    rows = isinstance(stage, RowStage)
    part, path = ("data", folder / "data.jsonl") if rows else ("weights", folder / "policy")
    if not made:
        yield unchecked(part, f"stage {stage.name} is not finished")
    elif not path.exists():
        yield unchecked(part, f"what stage {stage.name} made is not here: {path}")
    elif hash_of(path) != made:
        yield differs(part, f"what stage {stage.name} made has changed: {path}")
    else:
        yield held(part, f"stage {stage.name} made what is in {path.parent.name}/{path.name}")


def check_checkpoints(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """Every checkpoint against its seal, and the run's policy against that of its last stage."""
    for folder in stage_folders(run, recipe).values():
        for step, path in sorted(steps_in(folder / "checkpoints").items()):
            name = f"{folder.name}/checkpoints/{path.name}"
            if broken := broken_seal(path):
                yield differs("checkpoints", f"{name}: {broken}")
            elif (path / "checksums.json").is_file():
                yield held("checkpoints", f"{name} is unchanged since it was sealed at step {step}")
            else:
                yield unchecked("checkpoints", f"{name} has no seal")
    trained = [s for s in recipe.stages if isinstance(s, TrainedStage)]
    if not trained or not (run / "policy").is_dir():
        published = (run.parent / "config.json").is_file()  # the policy itself is above
        why = "the weights of stages are not published" if published else "the run has no policy/"
        yield unchecked("weights", why)
        return
    last = stage_folders(run, recipe)[trained[-1].name] / "policy"
    if not last.is_dir():
        yield unchecked("weights", f"{last} is not here: is policy/ what the last stage made?")
        return
    try:
        other = first_other_tensor(last, run / "policy")
    except ValueError as error:
        yield differs("weights", str(error))
        return
    if other:
        yield differs("weights", f"policy/ is not what the last stage made: {other}")
    else:
        yield held("weights", "policy/ has the weights that the last stage made")


def first_other_tensor(one: Path, other: Path) -> str | None:
    """The first tensor by which the safetensors of two folders differ, in words; None for equal.

    Raises `ValueError` as `tensor_files` does.
    """
    a, b = tensor_files(one), tensor_files(other)
    if only := sorted(a.keys() ^ b.keys()):
        return f"{only[0]} is in one of them only"
    for name in a:
        with safe_open(str(a[name]), "pt") as left, safe_open(str(b[name]), "pt") as right:
            if not same_tensors(left.get_tensor(name), right.get_tensor(name)):
                return f"{name} differs"
    return None


def same_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same type and the same values."""
    return one.dtype == other.dtype and torch.equal(one, other)


def tensor_files(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a folder's safetensors, by the tensor's name.

    Raises `ValueError` with the name of a file that cannot be read.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), "pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read: {first_line(error)}") from error
    return dict(sorted(found.items()))
