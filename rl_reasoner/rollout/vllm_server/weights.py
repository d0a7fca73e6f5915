"""The policy's weights, from the trainer to a vLLM server, by files that both can see.

Whole weights are a folder in transformers' form, named by the hash of its tensors (`folder`).
The server loads it (`worker`, over vLLM's `collective_rpc`), forgets the keys and values of earlier
weights, and is told the name; a server that was started again does not know it, and is given the
weights again. So a name that the server knows is the weights at hand. What changes from step to
step may be an adapter beside them (`adapters`).
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.vllm_server.adapters import has_adapter, is_adapted, put_adapter
from rl_reasoner.rollout.vllm_server.connection import (
    START_COMMAND,
    Connection,
    Unreachable,
    Waiting,
)
from rl_reasoner.rollout.vllm_server.folder import named, new_folder, remove_others

METHOD = "load_policy"
"""What `worker` adds to a server."""
_LOADING = "loading"  # the name while it may be the weights of before or the new ones


@dataclass(frozen=True)
class ServedWeights:
    """What a server is to sample with: whole weights, and the adapter on them, by their names."""

    weights: str
    adapter: str | None = None


def write_weights(model: Any, folder: Path, *, merged: bool = True) -> str:
    """Write a model to `folder`/NAME, and return the name, which follows from its tensors.

    An adapter is merged, in a copy, or left out. Versions before this one are removed.
    """
    new = new_folder(folder)
    _plain(model, merged).save_pretrained(new)
    name = named(new, folder, "policy")
    remove_others(folder, "policy", name)
    return name


def _plain(model: Any, merged: bool) -> Any:
    """The model as the server knows it: without an adapter."""
    if not is_adapted(model):
        return model
    whole = copy.deepcopy(model)
    return whole.merge_and_unload() if merged else whole.unload()


def has_weights(connection: Connection, folder: Path, written: ServedWeights) -> bool:
    """Whether the server samples with these. Raises `Unreachable` and `ServerFailed`."""
    if _version_of(connection) != written.weights:
        return False
    return written.adapter is None or has_adapter(connection, folder / written.adapter)


def _version_of(connection: Connection) -> str:
    """The name of the whole weights that the server has."""
    return str((connection.ask("/weight_info") or {}).get("weight_version"))


def load_weights(connection: Connection, folder: Path, written: ServedWeights) -> None:
    """Have the server load what was written to `folder`, and forget what it kept of others.

    A server that is not there is waited for. Raises `ServerFailed` where it cannot load them.
    """
    waiting = Waiting(connection)
    while True:
        try:
            if _version_of(connection) != written.weights:
                _load(connection, folder / written.weights)
            if written.adapter is not None:
                put_adapter(connection, folder / written.adapter)
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
        _version_of(connection)  # where it is gone, it is waited for
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
