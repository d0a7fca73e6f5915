"""A run as a folder that is ready for a hub: policy, card, report, results, and what proves them.

    README.md config.json model.safetensors tokenizer.json … report.html audit.json
    run/{recipe.yaml,lock.json,hashes.json,evals,stages}    all that an audit reads, but weights

Written beside its place and renamed, so that a folder that is there is whole.
"""

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from rl_reasoner.audit import Audit, audit_run
from rl_reasoner.audit.hashes import part_of, stage_folders
from rl_reasoner.errors import RunStopped, UserError, first_line
from rl_reasoner.files import whole_folder, write_json, write_text
from rl_reasoner.foreign import json_object
from rl_reasoner.hub import is_name
from rl_reasoner.paths import check_goes_on, check_run, no_links, resume_command
from rl_reasoner.pipeline.run_folder import HASHES, sealed_files
from rl_reasoner.publishing.card import write_card
from rl_reasoner.recipe.load import load_recipe


class NotPublished(RunStopped):
    """A run that its audit found to be another than it says."""

    title = "not published"


def publish_run(
    run: Path,
    folder: Path,
    *,
    records: bool = True,
    run_its_code: bool = False,
    note: Callable[[str], None],
) -> Audit:
    """Write the finished run in `run` to the new folder `folder`; the audit that is in it.

    `records`: with the run's own files under run/, which an audit needs; `run_its_code`: as of an
    audit. Raises `UserError` where
    the run is not finished or `folder` is there, and `NotPublished` where the run is not what it
    says it is.
    """
    check_run(run)
    check_goes_on(run)
    no_links(run)
    if os.path.lexists(folder):
        raise UserError(f"{folder} exists already; give a new folder")
    recipe = load_recipe(str(run / "recipe.yaml"))
    if not (run / "policy" / "config.json").is_file():
        raise UserError(f"{run} has no policy yet: finish it with {resume_command(run)}")
    for name, stage in stage_folders(run, recipe).items():  # policy/ may be of an earlier end
        if not (stage / "done.json").is_file():
            raise UserError(f"stage {name} of {run} is not finished: {resume_command(run)}")
    if not (run / HASHES).is_file():  # its last files may be half written
        raise UserError(f"{run} has not come to its end: finish it with {resume_command(run)}")
    audit = audit_run(run, replays=False, quiet=True, run_its_code=run_its_code, note=note)
    if not audit.holds:
        wrong = "\n".join(f"{finding.part}: {finding.said}" for finding in audit.of("differs"))
        raise NotPublished(f"{run} is not what it says it is, and is not published:\n{wrong}")
    with whole_folder(folder) as partial:
        _copy_policy(run, partial)
        weights = sorted(partial.glob("*.safetensors"))
        if (run / "report.html").is_file():
            shutil.copy(run / "report.html", partial)
        card = write_card(run, recipe, audit, folder.name, weights, records=records)
        write_text(partial / "README.md", card)
        write_json(partial / "audit.json", audit.to_json())
        if records:
            _copy_records(run, partial / "run")
    return audit


def _copy_policy(run: Path, target: Path) -> None:
    """Copy the files of policy/ that the run has made: what else lies there is not published."""
    made = json_object(run / HASHES)
    for file in sealed_files(run):
        name = file.relative_to(run)
        if name.parts[0] == "policy" and str(name) in made:
            place = target / name.relative_to("policy")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)


def _copy_records(run: Path, target: Path) -> None:
    """Copy what an audit reads of a run: all that is sealed, but no weights."""
    files = [file for file in sealed_files(run) if part_of(str(file.relative_to(run))) != "weights"]
    for file in [*files, *filter(Path.is_file, [run / HASHES])]:
        place = target / file.relative_to(run)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)


def files_to_push(folder: Path) -> list[dict[str, Any]]:
    """The files of a published folder, each with its size in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [{"file": str(p.relative_to(folder)), "bytes": p.stat().st_size} for p in files]


def check_repository(name: str) -> None:
    """Raise `UserError` where `name` can name no repository on the hub."""
    if not is_name(name) or "/" not in name:
        raise UserError(f"--push {name!r:.80}: expected OWNER/NAME, as on the hub")


def upload_command(folder: Path, repository: str, private: bool) -> str:
    """The command that uploads a folder: what is there on the hub already it leaves out."""
    hidden = ["--private"] if private else []  # without it the hub makes a public one
    return shlex.join(["hf", "upload", repository, str(folder), *hidden])


def push_folder(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload a published folder to the hub, as a new commit of `repository`; its address.

    Made where it is not there. Raises `UserError` where the hub does not take it.
    """
    check_repository(repository)
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Published by rl-reasoner"
        )
    except Exception as error:  # each version of its client raises those of another HTTP library
        by_hand = upload_command(folder, repository, private)
        raise UserError(
            f"--push {repository}: the hub did not take it: {first_line(error)}. {folder} is "
            f"written: log in with `hf auth login`, then `{by_hand}`"
        ) from error
    return f"https://huggingface.co/{repository}"
