"""The folder through which a vLLM server gets what it samples with, held by one run at a time.

What is written there is a folder named by its content: whole weights (`policy-3f2a9c…/`) or an
adapter (`adapter-…/`). It is written under another name first, so a name is there whole or not at
all. What else a user has in the folder, such as `policy-final`, stays. Knows files only.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Literal

from rl_reasoner.errors import UserError
from rl_reasoner.files import sha256_of

logger = logging.getLogger(__name__)
VersionKind = Literal["policy", "adapter"]
_KINDS: tuple[VersionKind, ...] = ("policy", "adapter")
_NEW, _LOCK = ".new-policy", ".rl-reasoner.lock"
_DIGITS = 16  # of a name


def new_folder(folder: Path) -> Path:
    """Where the next version is written, before it has its name; nothing is there."""
    new = folder / _NEW
    shutil.rmtree(new, ignore_errors=True)
    return new


def named(new: Path, folder: Path, kind: VersionKind, of: str = "") -> str:
    """Give `new` its name in `folder`, which follows from its files of weights and from `of`."""
    hashes = [sha256_of(file) for file in sorted(new.glob("*.safetensors"))]
    digest = hashlib.sha256("".join((*hashes, of)).encode()).hexdigest()
    name = f"{kind}-{digest[:_DIGITS]}"
    if (folder / name).is_dir():
        shutil.rmtree(new)
    else:
        new.rename(folder / name)
    return name


def remove_others(folder: Path, kind: VersionKind, name: str) -> None:
    """Remove all versions of a kind but `name`."""
    for old in _written(folder, kind):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)


def _written(folder: Path, *kinds: VersionKind) -> list[Path]:
    return [path for kind in kinds for path in folder.glob(f"{kind}-" + "[0-9a-f]" * _DIGITS)]


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Inside, `folder` holds this run's weights; afterwards none, and it is gone where it is empty.

    Raises `UserError` where another run has it, which would remove these weights, or where it
    cannot be written. On a file system without locks nobody can tell.
    """
    with _held(folder):
        try:
            yield folder
        finally:
            for part in (*_written(folder, *_KINDS), folder / _NEW):
                shutil.rmtree(part, ignore_errors=True)
            (folder / _LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # gone, or not empty
                folder.rmdir()


def _held(folder: Path) -> IO[str]:
    """The lock of a folder, held until it is closed."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / _LOCK).open("a")
        except OSError as error:
            raise UserError(f"cannot write vllm.folder {folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise UserError(
                f"vllm.folder {folder} holds another run's weights: give each run its own"
            ) from error
        except OSError as error:
            logger.info("%s has no locks (%s)", folder, error.strerror)
            return lock
        with suppress(OSError):
            if os.path.samestat(os.fstat(lock.fileno()), (folder / _LOCK).stat()):
                return lock
        lock.close()  # removed by the run before, between the two calls
