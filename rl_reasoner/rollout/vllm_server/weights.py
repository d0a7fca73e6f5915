"""The policy's weights, from the trainer to a vLLM server, by files that both can see.

A version of the weights is a folder in transformers' form, named by the hash of its tensors:
`policy-3f2a9c…/`. The server loads it (`worker`, over vLLM's `collective_rpc`), forgets the keys
and values of earlier weights, and is told the name; a server that was started again does not know
it, and is given the weights again. So a name that the server knows is the weights at hand.
"""

import copy
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rl_reasoner.errors import UserError
from rl_reasoner.files import sha256_of
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.vllm_server.connection import (
    START_COMMAND,
    Connection,
    Unreachable,
    Waiting,
)

logger = logging.getLogger(__name__)
METHOD = "load_policy"
"""What `worker` adds to a server."""
_NEW, _PREFIX, _LOCK = ".new-policy", "policy-", ".rl-reasoner.lock"
_DIGITS = 16  # of a name
_LOADING = "loading"  # the name while it may be the weights of before or the new ones


def write_weights(model: Any, folder: Path) -> str:
    """Write a model to `folder`/NAME, and return the name, which follows from its tensors.

    An adapter is merged, in a copy. Versions before this one are removed.
    """
    new = folder / _NEW
    shutil.rmtree(new, ignore_errors=True)
    _plain(model).save_pretrained(new)
    hashes = [sha256_of(file) for file in sorted(new.glob("*.safetensors"))]
    name = _PREFIX + hashlib.sha256("".join(hashes).encode()).hexdigest()[:_DIGITS]
    for old in _written(folder):
        if old.name != name:
            shutil.rmtree(old, ignore_errors=True)
    if (folder / name).is_dir():
        shutil.rmtree(new)
    else:
        new.rename(folder / name)
    return name


def _written(folder: Path) -> list[Path]:
    """The versions in `folder`: what else a user has there, such as `policy-final`, stays."""
    return [*folder.glob(_PREFIX + "[0-9a-f]" * _DIGITS)]


def _plain(model: Any) -> Any:
    """The model as the server knows it: without an adapter."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return copy.deepcopy(model).merge_and_unload()


def version_of(connection: Connection) -> str:
    """The name of the weights that the server has. Raises `Unreachable` and `ServerFailed`."""
    return str((connection.ask("/weight_info") or {}).get("weight_version"))


def load_weights(connection: Connection, folder: Path, name: str) -> None:
    """Have the server load the weights `name` in `folder`, and forget what it kept of others.

    A server that is not there is waited for. Raises `ServerFailed` where it cannot load them.
    """
    waiting = Waiting(connection)
    while True:
        try:
            if version_of(connection) != name:
                _load(connection, folder / name)
            return
        except Unreachable as error:
            waiting.pause(error)


def _load(connection: Connection, weights: Path) -> None:
    path = str(weights.absolute())
    # first, so that a load which breaks off does not leave other weights under the name of these
    connection.ask("/update_weight_version", {"new_version": _LOADING})
    try:
        reply = connection.ask("/collective_rpc", {"method": METHOD, "kwargs": {"folder": path}})
    except Unreachable as error:
        if error.not_now:
            raise
        version_of(connection)  # where it is gone, it is waited for
        raise ServerFailed(
            f"{connection} cannot load {path} ({error}). Start it again, with {START_COMMAND}"
        ) from error
    if why := [found["error"] for found in (reply or {}).get("results", ()) if "error" in found]:
        raise ServerFailed(
            f"{connection} cannot load {path}: {why[0]}. It has to see this folder under the same "
            "path (vllm.folder), and to serve a model of the same kind and sizes"
        )
    if not (connection.ask("/reset_prefix_cache", {}) or {}).get("success"):
        raise Unreachable("it keeps keys and values of earlier weights: requests are under way")
    connection.ask("/update_weight_version", {"new_version": weights.name})


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
            for part in (*_written(folder), folder / _NEW):
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
