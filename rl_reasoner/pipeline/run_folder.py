"""The run folder: its layout, its lock, what it records, and what is finished in it.

    recipe.yaml lock.json evals/*.json stages/1-NAME/{checkpoints,metrics.jsonl,rollouts.jsonl,
    policy} policy/ report.html; of control arms controls.json controls/NAME/{evals,stages}

At its end a run is sealed: `hashes.json` has the SHA-256 of every file (`rl-reasoner audit` holds
the folder against it). Knows nothing of torch.
"""

import fcntl
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.files import flock_holder, sha256_of, write_json, write_text
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.paths import check_run, no_links
from rl_reasoner.recipe.locations import read_yaml, validate
from rl_reasoner.recipe.recipe import Recipe

HASHES = "hashes.json"
_UNSEALED = ("checkpoints", "old", "reference")
"""Folders that `hashes.json` leaves out: checkpoints have seals of their own, the others are what a
run has replaced, and copies of a policy that is in the folder."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class FolderGone(RunStopped):
    """The run's folder was removed or moved while the run wrote to it."""

    title = "the run's folder is gone"

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} was removed or moved while the run wrote to it; what now lies there is what "
            "was written since. Where it was moved, continue there: rl-reasoner train --resume "
            "FOLDER"
        )


class RunFolder:
    """One run's folder, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._home = path.absolute()  # should the process change its working folder
        self._lock: IO[str] | None = None
        self._old: Path | None = None
        self._undo: list[Callable[[], object]] | None = []  # None: what was changed stays
        self.lengths: Mapping[str, Any] = {}  # of completions, from the lock of another recipe

    @classmethod
    def create(cls, recipe: Recipe) -> "RunFolder":
        """A new folder for `recipe`, locked. Raises `UserError` when it exists or can't be made."""
        path = cls.new_path(recipe)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path)
            run.lock()
            write_text(path / "recipe.yaml", recipe.to_yaml())
        except OSError as error:
            raise UserError(f"cannot write to the run folder {path}: {error.strerror}") from error
        return run

    @staticmethod
    def new_path(recipe: Recipe) -> Path:
        """Where a new run of `recipe` goes. Raises `UserError` where something is there already."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        path = Path(recipe.run.folder or f"runs/{recipe.name}-{stamp}").expanduser()
        if path.exists() and not path.is_dir():
            raise UserError(f"--run.folder {path}: this is a file; give a folder")
        if path.exists() and not all(map(_unbegun, path.iterdir())):
            resume = shlex.join(["--resume", str(path)])
            raise UserError(
                f"the run folder {path} exists already; continue it with {resume}, "
                "or choose another one with --run.folder"
            )
        whole = path.absolute()
        there = next(place for place in (whole, *whole.parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            why = "is not a folder that can be written to"
            raise UserError(f"cannot write to the run folder {path}: {there} {why}")
        try:
            tempfile.TemporaryFile(dir=there).close()  # some folders only look as if they could
        except OSError as error:
            why = f"nothing can be made in {there} ({error.strerror})"
            raise UserError(f"cannot write to the run folder {path}: {why}") from error
        return path

    @classmethod
    def reopen(cls, path: Path) -> tuple["RunFolder", Recipe]:
        """The run in `path`, locked, with its recipe. Raises `UserError` when there is none."""
        check_run(path)
        no_links(path)
        data, places = read_yaml(path / "recipe.yaml")
        recipe = validate(data, places, str(path / "recipe.yaml"))
        run = cls(path)
        try:
            run.lock()
            run._unseal()
        except OSError as error:
            raise UserError(f"cannot write to the run folder {path}: {error.strerror}") from error
        if not (path / "lock.json").is_file():
            run.lengths = mapping(run._last_lock().get("max_tokens"))
        return run, recipe

    def check_there(self) -> None:
        """Raise `FolderGone` where it was removed or moved while it is held."""
        if self._is_gone():
            raise FolderGone(self.path)

    def _is_gone(self) -> bool:
        """Whether it was removed or moved while it is held; a part of it may have been made anew.

        The lock that is held is then not the one that stands there, or neither is there.
        """
        if self._lock is None:
            return False
        held = os.fstat(self._lock.fileno())
        try:
            there = (self._home / ".lock").stat()
        except (FileNotFoundError, NotADirectoryError):
            # the lock alone is removed by who thinks that it was left over
            return not os.path.lexists(self._home / "recipe.yaml")
        except OSError:
            return False
        return not os.path.samestat(held, there)

    def seal(self) -> None:
        """Write the hashes of all files that the run has made, now that it has come to its end."""
        names = [str(file.relative_to(self.path)) for file in sealed_files(self.path)]
        write_json(self.path / HASHES, {name: sha256_of(self.path / name) for name in names})

    def lock(self) -> None:
        """Hold the folder until the process ends. Raises `UserError` when another process does."""
        self._lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = flock_holder(self.path / ".lock")
            who = f"another process ({holder})" if holder else "another process"
            raise UserError(f"{who} is training in {self.path}") from error

    def discard(self) -> None:
        """Remove the folder of a run in which nothing was done: no evaluation, no stage begun.

        An evaluation that has come to no result is none.
        """
        if [*(self.path / "evals").glob("*.json")] or (self.path / "stages").exists():
            return
        for made in self.path.iterdir():
            if made.is_dir() and not made.is_symlink():
                shutil.rmtree(made)
            else:
                made.unlink()
        if not self.path.is_symlink():  # a folder of the user's, elsewhere
            self.path.rmdir()

    def settle(self) -> None:
        """What was changed for this process stays: all that it was asked for has been looked at."""
        self._undo = None

    def take_back(self) -> None:
        """Make the folder what it was before this process, unless that is settled."""
        if self._undo is None:
            return
        for undo in reversed(self._undo):
            undo()
        self._undo = None
        if self._old is not None:  # copies, and folders that are empty now
            shutil.rmtree(self._old)
            with suppress(OSError):  # of earlier changes
                self._old.parent.rmdir()

    def _unseal(self) -> None:
        """Remove the hashes of the end, until the run has come to it again."""
        if (file := self.path / HASHES).is_file():
            sealed = file.read_bytes()
            self._may_undo(lambda: file.write_bytes(sealed))
            file.unlink()

    def _may_undo(self, undo: Callable[[], object]) -> None:
        if self._undo is not None:
            self._undo.append(undo)

    def release(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def arrange(self, names: Sequence[str]) -> None:
        """Number the stages' folders as the recipe does now; move those aside that it lacks."""
        for folder in sorted((self.path / "stages").glob("*-*")):
            name = folder.name.partition("-")[2]
            if name not in names:
                self.set_aside(folder)
            elif folder.name != (wanted := f"{names.index(name) + 1}-{name}"):
                self._may_undo(partial(folder.with_name(wanted).rename, folder))
                folder.rename(folder.with_name(wanted))

    def set_aside(self, path: Path) -> Path | None:
        """Move what a changed recipe replaces to `old/N/`, and return where; None for nothing.

        N goes up by one for each process that moves something.
        """
        if not path.exists():
            return None
        target = self._place_aside(path)
        self._may_undo(partial(target.rename, path))
        path.rename(target)
        return target

    def _place_aside(self, path: Path) -> Path:
        """Where in `old/N/` a file or folder of the run goes."""
        if self._old is None:
            numbers = [int(p.name) for p in (self.path / "old").glob("*") if p.name.isdecimal()]
            self._old = self.path / "old" / str(max(numbers, default=0) + 1)
        target = self._old / path.relative_to(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def set_end_aside(self) -> None:
        """Move the policy, evaluation and page of an end that is to be made again to `old/N/`.

        Should the run be stopped before it, they would be taken for those of its recipe. A page
        alone is of a run that has not come to its end: it stays.
        """
        made = [
            self.path / name for name in ("evals/after.rows.jsonl", "evals/after.json", "policy")
        ]
        if any(file.exists() for file in made):
            for file in (self.path / "report.html", *made):
                self.set_aside(file)

    def keep_policy(self, save: Callable[[Path], None]) -> None:
        """Have the policy of the run's end written by `save`: it is there whole or not at all."""
        policy, new = self.path / "policy", self.path / ".policy.part"
        shutil.rmtree(new, ignore_errors=True)  # of a process that was killed
        try:
            new.mkdir()
            save(new)
            if not policy.is_dir():
                new.rename(policy)
                return
            for file in sorted(new.rglob("*")):  # of this end, too; a user may have added to it
                place = policy / file.relative_to(new)
                place.mkdir(exist_ok=True) if file.is_dir() else shutil.move(file, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def choices(self) -> Mapping[str, Any]:
        """What the run chose by measurement (rl_reasoner.machine), as far as it has come."""
        return mapping(self._last_lock().get("choices"))

    def _last_lock(self) -> Mapping[str, Any]:
        """What the lock says; where there is none, the last one that was moved aside.

        A process was stopped then between the two: by a kill, or a mistake that it was told.
        """
        files = [*_old_locks(self.path), self.path / "lock.json"]
        return next((json_object(file) for file in reversed(files) if file.is_file()), {})

    def keep_choices(self, taken: Mapping[str, Any]) -> None:
        """Write down what was chosen, once the lock is there."""
        file = self.path / "lock.json"
        if file.is_file():
            write_json(file, {**json_object(file), "choices": dict(taken)})

    def change(self, recipe: Recipe) -> None:
        """Continue with another recipe; move the one before, and what belongs to it, aside.

        The recipe itself is copied: a folder without one, should this be killed, is no run.
        """
        self.set_lock_aside()
        self.set_aside(self.path / "controls.json")
        file = self.path / "recipe.yaml"
        before = file.read_text(encoding="utf-8")
        self._may_undo(partial(write_text, file, before))
        write_text(self._place_aside(file), before)
        write_text(file, recipe.to_yaml())

    def set_lock_aside(self) -> None:
        """Move the lock, and the overlaps of what it names, aside; lengths that are found stay."""
        if (file := self.path / "lock.json").is_file():
            self.lengths = mapping(json_object(file).get("max_tokens"))
        for name in ("lock.json", "contamination.json"):
            self.set_aside(self.path / name)


def sealed_files(folder: Path) -> list[Path]:
    """The files of a run that `hashes.json` names, in the order of their paths."""
    files = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part in _UNSEALED for part in parts)
        if path.is_file() and not hidden and parts != (HASHES,):
            files.append(path)
    return files


def given_flags(folder: Path) -> list[str]:
    """The flags that the run in `folder` was started with, and then those of its resumes.

    A resume that changes the recipe writes a lock of its own, and moves the one before to `old/N/`.
    """
    flags: list[str] = []
    for file in (*_old_locks(folder), folder / "lock.json"):
        lock = json_object(file) if file.is_file() else {}
        words = shlex.split(str(lock.get("command", "")))
        given = words[3:] if words[:2] == ["rl-reasoner", "train"] else []
        # a resume with a recipe repeats what was given before it, one without does not
        flags = given if given[: len(flags)] == flags else flags + given
    return flags


def _old_locks(folder: Path) -> list[Path]:
    """The locks that were moved aside, the oldest first."""
    found = [file for file in (folder / "old").glob("*/lock.json") if file.parent.name.isdecimal()]
    return sorted(found, key=lambda file: int(file.parent.name))


def _unbegun(file: Path) -> bool:
    """Whether a run left this that was killed before its recipe was written.

    There is nothing to go on with then. A run's lock is an empty file.
    """
    if file.name == ".lock":
        return file.is_file() and not file.is_symlink() and not file.stat().st_size
    return file.name == ".recipe.yaml.part"
