"""`Policy`: a causal language model of transformers with its tokenizer, and all of its weights.

A policy that is saved opens with `AutoModelForCausalLM.from_pretrained` anywhere. What a file lacks
that function makes up, and so does peft: it would be trained so, and is refused here. What a file
has more than the model they leave out, and say nothing: it is told here.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl_reasoner.distributed.shards import gathered_state_dict
from rl_reasoner.files import NO_ROOM
from rl_reasoner.moe.experts import parameter_counts, without_router_logits

_log = logging.getLogger(__name__)
_NAMED = 3  # weights in a message; the others are counted
_LACKING = "Found missing adapter keys"  # in peft's words
_OF_SYSTEM = re.compile(r"\(os error (\d+)\)")  # in Rust's words
_LISTED = re.compile(r"'([^'\n]+)'")
_UNLIKE = re.compile(r"size mismatch for ([\w.]+):")  # in torch's words
_TORN = "conversion of the weights"  # in transformers' words for stacks that cannot be made


@dataclass
class Policy:
    """A causal language model with its tokenizer; `source` says where it came from."""

    model: Any
    tokenizer: Any
    source: str

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """(total, active for one token) number of parameters."""
        return parameter_counts(self.model)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def save(self, folder: Path | str) -> None:
        """Write model and tokenizer to `folder`, in safetensors.

        A sharded model is saved inside `sharding.gathered_params`.
        """
        folder = Path(folder)
        without_router_logits(self.model)
        for stale in folder.glob(".tmp??????"):  # of a save that was killed: safetensors' file
            stale.unlink(missing_ok=True)
        with no_room_told(folder):
            with _keeping_keys(self.model):
                self.model.save_pretrained(
                    folder,
                    state_dict=gathered_state_dict(self.model),
                    **_adapter_in_use(self.model),
                )
            self.tokenizer.save_pretrained(folder)
        mode = next(folder.glob("*config.json")).stat().st_mode
        for file in folder.glob("*.safetensors"):  # safetensors writes them for their owner alone
            file.chmod(mode)


@contextmanager
def no_room_told(folder: Path) -> Iterator[None]:
    """A full disk is an OSError: the writers of weights and tokenizers tell it in words only."""
    try:
        yield
    except Exception as error:
        found = _OF_SYSTEM.search(str(error))
        number = int(found[1]) if found else 0
        if number not in NO_ROOM:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


@contextmanager
def _keeping_keys(model: Any) -> Iterator[None]:
    """Have the config say `use_cache`, which transformers' trainers turn off for their own passes.

    Off in a file, whoever decodes token by token gets no keys and values to go on with.
    """
    text = model.config.get_text_config()
    of_training = getattr(text, "use_cache", None)
    if of_training is False:
        text.use_cache = True
    try:
        yield
    finally:
        if of_training is False:
            text.use_cache = False


def _adapter_in_use(model: Any) -> dict[str, Any]:
    """Which of an adapted model's adapters are saved: not that of a reference.

    Its targets are put in order: peft writes sets, which come in another order in each process.
    """
    active = getattr(model, "active_adapter", None) if hasattr(model, "peft_config") else None
    if not isinstance(active, str):
        return {}
    config = model.peft_config[active]
    for name in ("target_modules", "target_parameters"):
        if isinstance(targets := getattr(config, name, None), set | list):
            setattr(config, name, sorted(targets))
    return {"selected_adapters": [active]}


class NotWholeError(ValueError):
    """Files of a policy that have not all weights of its model, or others than its sizes say.

    Its text goes on from the name of the file or folder.
    """


def whole_model(path: str, **settings: Any) -> Any:
    """The model in a folder, file or place on the hub, in fp32. Runs no code of its own.

    `settings` are `from_pretrained`'s. A head that is tied to the embeddings needs no weight. A
    warning names weights that the model has no place for. Raises `NotWholeError`, and what
    transformers does.
    """
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            **settings,
            dtype=torch.float32,
            trust_remote_code=False,
            use_kernels=False,  # they are code of a hub, which transformers fetches unasked
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by their names
        )
    except RuntimeError as error:
        if _TORN not in str(error):
            raise
        raise NotWholeError("has weights that do not fit the sizes of its config") from error
    if lacking := sorted(found["missing_keys"]):
        raise NotWholeError(f"lacks weights of its model ({_first(lacking)})")
    if unlike := sorted(name for name, *_ in found["mismatched_keys"]):
        raise _of_other_sizes(unlike)
    _tell_left_out(path, found["unexpected_keys"])
    return model


def with_whole_adapter(model: Any, path: str, *, trained: bool) -> Any:
    """`model` with the adapter in a folder or on the hub; `trained`: it can be trained on.

    peft warns of weights that the adapter lacks, and makes them up. A warning names those that it
    has no place for. Raises `NotWholeError`.
    """
    from peft import PeftModelForCausalLM, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=f".*{_LACKING}")
            adapted = PeftModelForCausalLM.from_pretrained(model, path, is_trainable=trained)
    except UserWarning as warning:
        lacking = _LISTED.findall(str(warning).partition(_LACKING)[2])
        raise NotWholeError(f"lacks weights of its adapter ({_first(lacking)})") from warning
    except RuntimeError as error:
        if not (unlike := _UNLIKE.findall(str(error))):
            raise
        raise _of_other_sizes(unlike) from error
    known = get_peft_model_state_dict(adapted, save_embedding_layers=True).keys()
    _tell_left_out(path, load_peft_weights(path, device="cpu").keys() - known)
    return adapted


def _tell_left_out(path: str, names: Iterable[str]) -> None:
    if left := sorted(names):
        _log.warning(
            "%s has weights that its model has no place for (%s): they are left out. Does its "
            "config belong to them?",
            path,
            _first(left),
        )


def _of_other_sizes(names: list[str]) -> NotWholeError:
    return NotWholeError(f"has weights of other sizes than its config says ({_first(names)})")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
    return ", ".join(names[:_NAMED]) + more
