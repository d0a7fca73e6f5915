"""A policy's adapter, from the trainer to a vLLM server that was started with `--enable-lora`.

The server has the base under the name of its weights (`weights`), and the adapter beside it under
another one, by vLLM's own `/v1/load_lora_adapter`. Completions are asked of that name. vLLM keys
its prefix cache by an adapter's name and path, and both follow from the adapter's content, so no
keys and values of an earlier adapter are met. Where the server or the adapter does not do,
`why_merged` says why, and the policy goes merged. Knows models and the server; nothing of trainers.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.vllm_server.connection import (
    LORA_FLAGS,
    Connection,
    NotThere,
    Unreachable,
)
from rl_reasoner.rollout.vllm_server.folder import named, new_folder, remove_others

_HEARD = frozenset(  # of peft's settings by vLLM, or they say nothing of the finished adapter
    (
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("lora_dropout", "inference_mode", "task_type", "peft_type", "auto_mapping"),
        *("peft_version", "base_model_name_or_path", "revision", "runtime_config"),
    )
)
_INITS = (True, False, "gaussian", "orthogonal")  # those that leave the base as it is
_A, _B = "lora_A", "lora_B"


def is_adapted(model: Any) -> bool:
    """Whether a model is one of peft's, with an adapter."""
    return hasattr(model, "merge_and_unload")


def why_merged(connection: Connection, model: Any) -> str | None:
    """Why the adapter of `model` has to be merged for this server; None: it goes by itself.

    A server that is not there is waited for. It is asked only where the adapter would do.
    """
    if (reason := _unfit(model)) is not None:
        return reason
    # on the first question vLLM also looks at its machine, which takes seconds
    said = connection.ask_when_there("/server_info?config_format=json")
    try:
        served, allowed = said["vllm_config"]["lora_config"], said["vllm_env"]
        if not served:
            return "the server was started without --enable-lora"
        if not allowed.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            return "the server was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
        most = int(served["max_lora_rank"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return "the server's /server_info says nothing of adapters"
    config = model.peft_config[model.active_adapters[0]]
    rank = max((config.r, *(config.rank_pattern or {}).values()))
    if rank > most:
        return f"its rank is {rank}, the server was started with --max-lora-rank {most}"
    return None


def _unfit(model: Any) -> str | None:
    """What of an adapter vLLM 0.32 does not take, or None.

    By vLLM's `lora/peft_helper.py`, and with less trust: a setting that it is not known to hear is
    one that it does not.
    """
    from peft import LoraConfig

    if len(model.active_adapters) != 1:
        return f"{len(model.active_adapters)} adapters are active"
    config = model.peft_config[model.active_adapters[0]]
    if type(config) is not LoraConfig:
        return f"vLLM takes no adapter of type {config.peft_type.value}"
    if config.init_lora_weights not in _INITS:
        return f"vLLM takes no adapter with init_lora_weights={config.init_lora_weights!r}"
    plain = LoraConfig()
    for name in sorted({field.name for field in fields(config)} - _HEARD - {"init_lora_weights"}):
        if (value := getattr(config, name)) and value != getattr(plain, name):
            return f"vLLM takes no adapter with {name}"
    for name, parameter in model.named_parameters():
        if "lora_embedding_" in name:
            return "an adapter of the embeddings is not tried by itself"
        if parameter.requires_grad and "lora_" not in name:
            return f"{name} is trained, too"
    return None


def base_tensors(model: Any) -> list[torch.Tensor]:
    """The tensors of a model that are none of its adapter's."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [tensor for name, tensor in tensors if "lora_" not in name]


def write_adapter(model: Any, folder: Path) -> str:
    """Write a model's adapter to `folder`/NAME in peft's form, and return the name.

    It follows from the tensors, the settings and the folder: two runs at one server have two names.
    """
    [active] = model.active_adapters
    new = new_folder(folder)
    # "auto" asks the hub for the base, each time
    model.save_pretrained(new, selected_adapters=[active], save_embedding_layers=False)
    place = new if active == "default" else new / active
    said = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    # peft writes sets in any order
    settings = {key: sorted(it) if isinstance(it, list) else it for key, it in said.items()}
    return named(place, folder, "adapter", json.dumps([settings, str(folder.absolute())]))


def has_adapter(connection: Connection, adapter: Path) -> bool:
    """Whether the server has this adapter. Raises `Unreachable` and `ServerFailed`."""
    return _known(connection).get(adapter.name) == str(adapter.absolute())


def put_adapter(connection: Connection, adapter: Path) -> None:
    """Have the server take an adapter, if it has not, and forget others of the same folder.

    Their files are removed. Raises `Unreachable`, or `ServerFailed` where it does not take it.
    """
    path = str(adapter.absolute())
    if not has_adapter(connection, adapter):
        wanted = {"lora_name": adapter.name, "lora_path": path}
        try:
            connection.tell("/v1/load_lora_adapter", wanted)
        except NotThere as error:
            raise ServerFailed(
                f"{connection} cannot load {path} ({error.said}). It has to see this folder under "
                f"the same path (vllm.folder), and to have been started with {LORA_FLAGS}"
            ) from error
        except Unreachable as error:
            if error.not_now or not error.replied:  # asked again, and it may have it by then
                raise
            _known(connection)  # where it is gone, it is waited for
            raise ServerFailed(
                f"{connection} does not take the adapter {path} ({error}). For a server that is "
                "started without --enable-lora it is merged"
            ) from error
    forget_adapters(connection, adapter.parent, adapter.name)
    remove_others(adapter.parent, "adapter", adapter.name)


def forget_adapters(connection: Connection, folder: Path, but: str = "") -> None:
    """Have the server forget the adapters that it has from `folder`, before their files go.

    vLLM would else look for them where one is asked for after a load of other weights, and its
    engine ends where it finds none (`lora/worker_manager.py`, `_load_adapter`).
    """
    for name, root in _known(connection).items():
        if name != but and Path(root).parent == folder.absolute():
            try:
                connection.tell("/v1/unload_lora_adapter", {"lora_name": name})
            except NotThere:  # it was started again meanwhile
                continue


def _known(connection: Connection) -> dict[str, str]:
    """The names of a server's adapters, and where their files are."""
    found = connection.ask("/v1/models")
    try:
        return {str(it["id"]): str(it["root"]) for it in found["data"] if it.get("parent")}
    except (KeyError, TypeError, AttributeError) as error:
        raise ServerFailed(f"{connection} names no models") from error


def stir(model: Any, seed: int) -> None:
    """Move the weights of a model's adapter at random, as far as the larger of its two matrices.

    A new adapter computes nothing, for one of the two is zero.
    """
    draws = torch.Generator().manual_seed(seed)
    parts = {name: part for name, part in model.named_parameters() if "lora_" in name}
    spread = {name: float(part.detach().float().std(correction=0)) for name, part in parts.items()}
    with torch.no_grad():
        for name, part in parts.items():
            other = name.replace(_A, _B) if _A in name else name.replace(_B, _A)
            noise = torch.randn(part.shape, generator=draws).to(part)
            part.add_(max(spread[name], spread.get(other, 0.0)) * noise)


@contextmanager
def stirred(model: Any) -> Iterator[None]:
    """Inside, a model's adapter is stirred; afterwards it is as before, bit for bit."""
    parts = [part for name, part in model.named_parameters() if "lora_" in name]
    kept = [(part, part.detach().clone()) for part in parts]
    stir(model, 0)
    try:
        yield
    finally:
        with torch.no_grad():
            for part, before in kept:
                part.copy_(before)
