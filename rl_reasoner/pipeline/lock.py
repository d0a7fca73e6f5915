"""What a run writes down when it begins: what it is made with, what it trains and tests on.

`lock.json` and `contamination.json` are written once a run, and again where it goes on with other
data or rewards; a resumed run is compared with its lock. Lengths of completions are added to it as
they are found (`completion_lengths`). Knows recipes, policies and run folders; nothing of trainers.
"""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rl_reasoner import sandbox
from rl_reasoner.dataset.sets import find_set
from rl_reasoner.evaluation.monitor import measure_overlaps, overlap_notes
from rl_reasoner.files import write_json
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.machine import choices, processor
from rl_reasoner.pipeline.lineage import files_of_options, hash_of_set
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.preflight import Notice, warn_if
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.policy.fp8.layers import fp8_facts
from rl_reasoner.policy.policy import Policy
from rl_reasoner.provenance import made_with
from rl_reasoner.recipe.data import FileData, data_sources
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import RowStage
from rl_reasoner.scoring.beside import hash_of_code
from rl_reasoner.scoring.registry import shipped_rewards, source_file
from rl_reasoner.types import Row

Note = Callable[[str], None]


def lock(
    run: RunFolder,
    recipe: Recipe,
    placement: Placement,
    policy: Policy,
    threads: str,
    command: str | None,
    note: Note,
) -> None:
    """Write lock.json, or note where this process differs from the one that is there.

    One of other data or rewards than there are now is moved aside first, with what was counted of
    them. In it are versions, commit, machine, hashes of data and rewards, and what the policy is
    computed with.
    `threads` are those that the policy is computed with, in words; `command` is what the user gave.
    """
    device, precision = placement.device, placement.precision
    file = run.path / "lock.json"
    before = json_object(file) if file.is_file() else {}
    if before and _other_files(before, recipe):
        run.set_lock_aside()
    elif before:
        begun, now = before.get("threads"), torch.get_num_threads()
        if device == "cpu" and begun not in (None, now):
            started = f"started with OMP_NUM_THREADS={begun}, resumed with {now}"
            note(f"{started}: sums are rounded in another order")
        return
    total, active = policy.parameter_counts
    facts: dict[str, Any] = {
        **made_with(),
        "seed": recipe.run.seed,
        "data": _data_hashes(recipe),
        "rewards": reward_hashes(recipe),
        "named": hashes_of_options(recipe),
        "command": before.get("command") or command or shlex.join(["rl-reasoner", *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processor": processor(),
        "processes": placement.processes,
        "device": device,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "choices": choices.taken(),
        "sandbox": str(sandbox.strength()),
        "policy": {
            "source": recipe.policy.source,
            "parameters": total,
            "active_parameters": active,
        },
    }
    if run.lengths:
        facts["max_tokens"] = dict(run.lengths)
    if precision == "fp8":
        facts["fp8"] = fp8_facts(policy.model, recipe.run.fp8, device)
    write_json(file, facts)
    size = f"{total / 1e6:.2f}M parameters"
    size += f", {active / 1e6:.2f}M active" if active != total else ""
    by = f", {threads}" if device == "cpu" else ""
    note(f"{policy.source}: {size}; {device}, {precision}{by}")


def lengths_once(
    run: RunFolder, name: str, facts: Any, find: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """What `find` finds of the lengths of completions in the stage `name`, from lock.json.

    It is found once, and again where the `facts` that decide it have changed.
    """
    file = run.path / "lock.json"
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    kept = mapping(mapping(json_object(file).get("max_tokens")).get(name))
    if kept.get("key") == key:
        return kept
    found = {**find(), "key": key}
    lock = json_object(file)  # what was found may itself have been written there
    write_json(file, {**lock, "max_tokens": {**mapping(lock.get("max_tokens")), name: found}})
    return found


def _other_files(lock: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether data or rewards of the user's are others than those that the `lock` names."""
    own = {name: of for name, of in reward_hashes(recipe).items() if name not in shipped_rewards()}
    pairs = [(lock.get("data"), _data_hashes(recipe)), (lock.get("rewards"), own)]
    other = any(
        kept and kept.get(name) != value for kept, now in pairs for name, value in now.items()
    )
    named = lock.get("named")  # older locks have none
    return other or (named is not None and named != hashes_of_options(recipe))


def _data_hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of every data file that the recipe names, by path; generators by their settings."""
    data = [recipe.data, *(stage.data for stage in recipe.stages)]
    sources = [source for part in data for source in data_sources(part)]
    names = [source.path for source in sources if isinstance(source, FileData)]
    return {name: hash_of_set(name) for name in [*names, *evaluated_sets(recipe)]}


def reward_hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of the code of every reward that the recipe names, where there is a file to read."""
    return {name: hash_of_code(file) for name, file in reward_files(recipe).items()}


def hashes_of_options(recipe: Recipe) -> dict[str, str]:
    """The hashes of what the options of rewards and environment name, such as a judge's rubric."""
    used = [spec.options for spec in recipe.rewards.values()]
    used += [stage.reward_options for stage in recipe.stages if isinstance(stage, RowStage)]
    used += [recipe.evals.reward_options]
    used += [recipe.environment.options] if recipe.environment else []
    return files_of_options(*used)


def reward_files(recipe: Recipe) -> dict[str, Path]:
    """The file of every reward that the recipe names, where there is one to be read."""
    named = [name for name, spec in recipe.rewards.items() if spec.source is None]
    judges = [stage.reward for stage in recipe.stages if isinstance(stage, RowStage)]
    names = dict.fromkeys([*named, *filter(None, [*judges, recipe.evals.reward])])
    return {name: file for name in names if (file := source_file(name)) is not None}


def evaluated_sets(recipe: Recipe) -> list[str]:
    """The sets that a run is evaluated on, at its ends and while it trains, each once."""
    sets = [*recipe.evals.sets, *filter(None, [recipe.evals.validation])]
    return list(dict.fromkeys(sets))


def find_overlaps(run: RunFolder, recipe: Recipe, rows: Sequence[Row], note: Note) -> None:
    """Warn, once a run, of evaluated problems that are trained on; write down which."""
    file, names = run.path / "contamination.json", evaluated_sets(recipe)
    if not names or file.is_file():
        return
    shared = measure_overlaps(rows, names)
    write_json(file, shared)
    for warning in overlap_notes(shared):
        note(warning)


def overlap_notices(recipe: Recipe, rows: Mapping[str, Sequence[Row]]) -> list[Notice]:
    """For each evaluated set that is here: whether some of its problems are trained on.

    `rows` are those of each stage; of one whose rows its run makes there are none yet.
    """
    names = [name for name in evaluated_sets(recipe) if find_set(name) is not None]
    known = [row for own in rows.values() for row in own]
    unknown = ", ".join(stage for stage, own in rows.items() if not own)
    notices = []
    for name, counts in measure_overlaps(known, names).items():
        found = f"{counts['contaminated']:,} of the {counts['rows']:,} problems of {name} are in "
        if counts["contaminated"] or not unknown:
            fix = "train on other rows, or evaluate with --decontaminated"
            doubtful = counts["contaminated"] > 0
            notices.append(warn_if(doubtful, "overlap", f"{found}the training data", fix))
        else:
            message = f"{found}the rows that are known; those of {unknown} are made in the run"
            notices.append(Notice("overlap", "skipped", message))
    return notices
