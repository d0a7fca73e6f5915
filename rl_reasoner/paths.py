"""Where things lie: sibling rooms (`rewards`, `recipes`, `data`), the cache, runs, their policies.

In a wheel the rooms are sub-packages of `rl_reasoner`; in a clone they are folders beside it. What
a run writes into its folder, and how it goes on, is `pipeline.run_folder`'s.
"""

import os
import shlex
import stat
from collections.abc import Collection
from pathlib import Path

from rl_reasoner.errors import UserError, did_you_mean, nearest

LAUNCH = "RL_REASONER_LAUNCH"
"""The environment variable in which the processes of a job find its `--launch`."""
_PACKAGE = Path(__file__).resolve().parent
# What a run's folder has beside its recipe: the first from its first moment on, where hidden files
# were not lost; published records have the next two.
_MARKS = (".lock", "lock.json", "hashes.json", "stages/*-*", "evals/*.json", "policy/config.json")
_NOT_BEGUN = (
    "it has a recipe.yaml, but no run was begun in it, as in what `rl-reasoner export --to` writes "
    "for another engine"
)


def room(name: str) -> Path:
    """The folder of the room `name`: one of "rewards", "recipes", "data".

    Raises `FileNotFoundError` when the installation lacks it.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the installation of rl_reasoner is missing its folder {name!r}")


def resume_command(run: Path | str, launch: str | None = None) -> str:
    """The command that continues a run, as a shell takes it.

    `launch` is its `--launch`; in a process of a job it is the job's (`LAUNCH`).
    """
    launch = launch or os.environ.get(LAUNCH)
    several = ["--launch", launch] if launch else []
    return shlex.join(["rl-reasoner", "train", "--resume", str(run), *several])


def cache_folder() -> Path:
    """Where what was made once is kept: `$RL_REASONER_CACHE`, else `~/.cache/rl-reasoner`.

    Raises `FileNotFoundError` for a user without a home folder, as in some containers.
    """
    folder = Path(os.environ.get("RL_REASONER_CACHE", "~/.cache/rl-reasoner"))
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{folder}: {error} Set RL_REASONER_CACHE to a folder.") from error


def told_apart(path: Path, files: Collection[Path]) -> str:
    """A file's name without its ending, with as many of its folders as tell it from the `files`.

    The whole path, ending and all, where that does not do.
    """
    own, *others = (
        (one.with_suffix("") if one.name else one).parts  # the folder "." has no name
        for one in (path, *(one for one in files if one != path))
    )
    for length in range(1, len(own) + 1):
        if all(other[-length:] != own[-length:] for other in others):
            return "/".join(own[-length:])
    return str(path)  # but for its ending it is called as another one


def file_meant(name: str, endings: Collection[str]) -> str:
    """` Did you mean 'x.csv'?` for the file beside `name` that is most like it, or an empty string.

    It has one of `endings`, and `name` may have another: only what stands before them is compared.
    """
    path = Path(name).expanduser()
    try:
        beside = [file for file in path.parent.iterdir() if file.suffix.lower() in endings]
    except OSError:
        return ""
    stem = nearest(path.stem, sorted({file.stem for file in beside}))
    alike = sorted(str(file) for file in beside if file.stem == stem)
    return f" Did you mean {nearest(str(path), alike) or alike[0]!r}?" if alike else ""


def is_run(folder: Path) -> bool:
    """Whether a run was begun in `folder`: it has a recipe, and what only runs put beside one."""
    return (folder / "recipe.yaml").is_file() and any(any(folder.glob(mark)) for mark in _MARKS)


def check_run(folder: Path) -> None:
    """Raise `UserError` where `folder` is none of a run, with the run beside it that is meant."""
    if is_run(folder):
        return
    around = folder.parent.iterdir() if folder.parent.is_dir() else ()
    near = did_you_mean(folder.name, [path.name for path in around if is_run(path)])
    what = "it has no recipe.yaml" if folder.is_dir() else "there is no such folder"
    if folder.is_file():
        what = "this is a file"
    if (folder / "recipe.yaml").is_file():
        what = _NOT_BEGUN
    raise UserError(f"{folder} is not a run folder: {what}.{near or runs_beside(folder)}")


def check_goes_on(run: Path) -> None:
    """Raise `UserError` where `run` has the records of a published run, which cannot go on."""
    above = Path(os.path.normpath(run / ".."))
    published = all((above / name).is_file() for name in ("audit.json", "config.json"))
    if published and not (run / "policy").exists():
        raise UserError(
            f"{run} has the records of a published run, and no weights: its policy is {above}"
        )


def runs_beside(folder: Path, most: int = 5) -> str:
    """` Runs there: a, b.`, the newest first, of `folder`'s own parent or of runs/.

    An empty string where there are none.
    """
    for place in (folder.parent, Path("runs")):
        around = list(place.iterdir()) if place.is_dir() else []
        runs = [path for path in around if is_run(path)]
        runs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        if runs:
            more = f" and {len(runs) - most} more" if len(runs) > most else ""
            return f" Runs there: {', '.join(map(str, runs[:most]))}{more}."
    return ""


def no_links(folder: Path) -> None:
    """Raise `UserError` where a link lies in `folder`, at any depth: it would lead out of it.

    Likewise for pipes and devices, which never end. For run folders, into which nothing of the kind
    is ever written. The folder itself may be a link.
    """
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            try:
                kind = path.lstat().st_mode
            except FileNotFoundError:  # a run that trains has renamed it
                continue
            if stat.S_ISLNK(kind):
                raise UserError(
                    f"{path} is a link, which may lead outside the run: "
                    "put a copy of its target in its place"
                )
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise UserError(f"{path} is neither file nor folder, and does not belong in a run")


def policy_folder(path: Path) -> Path | None:
    """The folder with the weights: `path` itself, or `policy/` in a run folder; None for no folder.

    Raises `UserError` for a run that has none yet, and for a recipe without a run.
    """
    if not path.is_dir():
        return None
    if is_run(path):
        if not (path / "policy" / "config.json").is_file():
            check_goes_on(path)
            resume = f"continue it ({resume_command(path)})"
            stages = finished_stages(path)
            also = f", or take that of its last finished stage: {stages[-1]}" if stages else ""
            raise UserError(f"the run {path} has no policy/ yet: {resume}{also}")
        return path / "policy"
    if (path / "recipe.yaml").is_file() and not any(path.glob("*config.json")):
        raise UserError(f"{path} has no policy: {_NOT_BEGUN}")
    return path


def finished_stages(run: Path) -> list[Path]:
    """The policy folders of the stages that a run has finished, in their order."""
    done = [folder for folder in numbered_stages(run) if (folder / "done.json").is_file()]
    return [at / "policy" for at in done if (at / "policy" / "config.json").is_file()]


def numbered_stages(run: Path) -> list[Path]:
    """The folders stages/NUMBER-NAME of a run, by number."""
    named = [(p.name.partition("-")[0], p) for p in run.glob("stages/*-*") if p.is_dir()]
    known = [(int(n), path) for n, path in named if n.isdecimal() and len(n) < 10]
    return [path for _, path in sorted(known)]


def run_of(policy: Path) -> Path | None:
    """The run that a policy is of: the folder itself, or the one around a stage's policy."""
    inside = policy.name in ("policy", "best") and policy.parent.parent.name == "stages"
    run = policy.parents[2] if inside else policy
    return run if is_run(run) else None
