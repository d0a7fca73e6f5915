"""GGUF files as safetensors folders, converted once and kept in the cache folder.

What transformers' own conversion loses is mended here: the digits step of a tokenizer, a pad token
that is not the end token, all end tokens of the family, scaled rotary positions, and embeddings
that are tied but lie in the file twice, at two precisions. The file is opened once for
configuration, tokenizer and weights.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GgufConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rl_reasoner.errors import UserError, first_line
from rl_reasoner.files import sha256_of
from rl_reasoner.paths import cache_folder
from rl_reasoner.policy.policy import NotWholeError, no_room_told, whole_model

_log = logging.getLogger(__name__)
_FORM = 4  # of what a conversion writes: an older one in the cache is not taken for a new one
_ARCHITECTURE = "general.architecture"
_PARTS = "split.count"  # of files that a policy is divided into
# Sizes that transformers leaves at its own defaults, of some families: config -> the file's key.
_UNREAD = {
    "moe_intermediate_size": "expert_feed_forward_length",
    "head_dim": "attention.key_length",
}
_FREQUENCIES = "rope_freqs.weight"
_LLAMA_ROPE = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Tokens on which a model was trained before its positions were scaled: Llama 3's, and others.
_LLAMA_LENGTHS = (8192, *(2**power for power in range(5, 20)))
_HEAD, _EMBEDDING = "output.weight", "token_embd.weight"
_ALIKE = 0.2  # relative difference of one weight's two precisions; of two weights it is about 1.4
_ROWS = 1024  # of both tensors, evenly spaced, that are compared
# By the file's type of tokenizer: all tokens that end a turn or a text, from the generation configs
# of Qwen2.5 and Llama 3. The file names one of them, and that one comes first.
_ENDS = {
    "qwen2": ("<|im_end|>", "<|endoftext|>"),
    "llama-bpe": ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
}
_END_KEYS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a safetensors folder in fp32, once: it is cached by the file's hash.

    Where `output.weight` and `token_embd.weight` are one weight at two precisions, the embeddings
    are tied, with the more precise of them; a warning says which. The pad token is one that ends no
    turn (training would else mask the end of every completion), where the tokenizer has one.
    Raises `UserError` when the file cannot be read, or has not the whole model.
    """
    _check_is_gguf(file)
    folder = cache_folder() / f"{file.stem}-{sha256_of(file)[:16]}-{_FORM}"
    if (folder / "config.json").is_file():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        convert_to(file, partial)
    except NotWholeError as error:
        raise UserError(f"{file} {error}") from error
    except Exception as error:  # the readers' own errors are many and share no base class
        raise UserError(f"{file} cannot be read or converted: {_said(error)}") from error
    else:
        if not folder.exists():  # another process may have been quicker
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def convert_to(file: Path, folder: Path) -> Any:
    """Write the model and the tokenizer of a GGUF file to `folder`; the tokenizer.

    Raises whatever the readers of the file raise.
    """
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with _opened_once(file) as reader:
        kind = _value(reader, "tokenizer.ggml.pre")
        ends = [_value(reader, key) for key in _END_KEYS]
        if (twins := _one_weight_twice(reader)) is not None:
            _log.warning("%s: %s", file.name, twins)
        tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
        config = _config(file, reader)
        model = whole_model(
            str(file.parent),
            gguf_file=file.name,
            config=config,
            quantization_config=GgufConfig(dequantize=True),
        )
        if left := _left_out(reader, model):
            _log.warning("%s: %s", file.name, left)
    if kind == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    vocabulary = {  # transformers adds tokens of its own behind those that the model knows
        token: number
        for token, number in tokenizer.get_vocab().items()
        if number < model.config.get_text_config().vocab_size
    }
    spare = ("<|endoftext|>", tokenizer.unk_token, tokenizer.bos_token)
    free = [token for token in spare if token in vocabulary and token != tokenizer.eos_token]
    if tokenizer.pad_token not in vocabulary or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.pad_token = free[0] if free else tokenizer.eos_token
    named = [vocabulary[token] for token in _ENDS.get(kind, ()) if token in vocabulary]
    all_ends = [tokenizer.eos_token_id, *ends, *named]
    settings = model.generation_config
    settings.eos_token_id = list(dict.fromkeys(end for end in all_ends if end is not None))
    model.config.pad_token_id = settings.pad_token_id = tokenizer.pad_token_id
    settings._from_model_config = False  # else transformers may make it anew, with one end
    with no_room_told(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return tokenizer


def gguf_config(file: Path) -> Any:
    """The configuration of a GGUF file, without its weights. Raises `UserError`."""
    _check_is_gguf(file)
    try:
        with _opened_once(file) as reader:
            _one_weight_twice(reader)
            return _config(file, reader)
    except NotWholeError as error:
        raise UserError(f"{file} {error}") from error
    except Exception as error:  # as above
        raise UserError(f"{file} cannot be read: {_said(error)}") from error


def _config(file: Path, reader: Any) -> Any:
    """The configuration of an opened file, with what transformers does not read of it."""
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    kind = _value(reader, _ARCHITECTURE)
    for name, key in _UNREAD.items():
        size = _value(reader, f"{kind}.{key}")
        if size is not None and hasattr(config, name):
            setattr(config, name, size)
    if scaled := _scaled_positions(reader, kind, config):
        own = config.rope_parameters
        if "rope_type" in own:
            config.rope_parameters = {**own, **scaled}
        else:  # Gemma 3: one for each kind of layer, and only those without a window are scaled
            config.rope_parameters = {**own, "full_attention": {**own["full_attention"], **scaled}}
    return config


def _scaled_positions(reader: Any, kind: str, config: Any) -> dict[str, Any]:
    """How rotary positions are scaled, as `rope_parameters` say it; {} where they are not.

    Llama 3.1 and later have factors of frequencies as a tensor; others name a rule and a factor.
    Raises ValueError for what transformers could not be told.
    """
    rule = _value(reader, f"{kind}.rope.scaling.type") or "none"
    found = next((t.data for t in reader.tensors if t.name == _FREQUENCIES), None)
    factors = None if found is None else np.asarray(found).reshape(-1)
    own = getattr(config, "rope_parameters", None) or {}
    others = any(t.name.startswith("rope_factors_") for t in reader.tensors)  # Phi 3's
    others |= _value(reader, f"{kind}.rope.scale_linear") not in (None, 1.0)  # of old files
    if factors is None and not others and rule in ("none", own.get("rope_type")):
        return {}
    whole = "rope_type" in own or (factors is None and "full_attention" in own)
    length = _value(reader, f"{kind}.rope.scaling.original_context_length")
    factor = _value(reader, f"{kind}.rope.scaling.factor")
    if whole and factors is None and not others and rule in ("linear", "yarn") and factor:
        given = {"rope_type": rule, "factor": float(factor)}
        return {**given, "original_max_position_embeddings": length} if length else given
    told = deepcopy(config)
    for trained_on in filter(None, (length, *_LLAMA_LENGTHS)):
        if factors is None or others or not whole:
            break
        known = {**_LLAMA_ROPE, "factor": round(float(factors.max()), 4)}
        known["original_max_position_embeddings"] = trained_on
        told.rope_parameters = {**own, **known}
        if np.allclose(_factors_of(told), factors, rtol=1e-3):
            return known
    raise ValueError(f"its rotary positions are scaled ({rule}) in a way that is not known here")


def _factors_of(config: Any) -> Any:
    """(pairs of a head,) by how much a configuration slows its rotary frequencies down."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, width, 2) / width)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    return plain / np.asarray(scaled.double())


def _check_is_gguf(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"there is no policy file {file}")
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file (its first bytes are not 'GGUF')")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _opened_once(file: Path) -> Iterator[Any]:
    """Yield a reader of the file, which transformers, too, is given inside when it opens one.

    It does so three times, and reading 150,000 tokens and merges takes 10 s each time. Raises
    `NotWholeError` for one of several files that a policy is divided into.
    """
    own = gguf.GGUFReader
    reader = _plain_reader()(file)
    if (parts := _value(reader, _PARTS) or 1) > 1:
        raise NotWholeError(
            f"is one of {parts} files that the policy is split into: put them together "
            "(llama-gguf-split --merge FIRST.gguf WHOLE.gguf), and give the whole"
        )
    gguf.GGUFReader = lambda *_: reader
    try:
        yield reader
    finally:
        gguf.GGUFReader = own


def _plain_reader() -> Any:
    """gguf's reader on a plain array: slices of its memmap cost three times as much."""

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, value: Any) -> None:
            self._plain = value.view(np.ndarray)

    return Reader


def _value(reader: Any, key: str) -> Any:
    field = reader.fields.get(key)
    return None if field is None else field.contents()


def _left_out(reader: Any, model: Any) -> str:
    """What the file has more than the model, in words: transformers leaves it out unsaid."""
    held = sum(
        int(np.prod(tensor.shape)) for tensor in reader.tensors if tensor.name != _FREQUENCIES
    )
    own = {value.data_ptr(): value.numel() for value in model.state_dict().values()}  # tied: once
    if held <= (placed := sum(own.values())):
        return ""
    return (
        f"its weights are {held:,} numbers, and a model of its kind has a place for {placed:,}: "
        "the others are left out. The policy may not be the one that was trained"
    )


def _one_weight_twice(reader: Any) -> str | None:
    """Where head and embedding are one weight, leave the more precise in `reader` as embedding.

    Returns what was done in words, None where they are two weights or the file has one of them.
    transformers ties the embeddings of a file that has no head.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    if head is None or embedding is None or list(head.shape) != list(embedding.shape):
        return None
    rows = np.linspace(0, len(head.data) - 1, min(_ROWS, len(head.data))).astype(int)
    ours, theirs = (gguf.dequantize(t.data[rows], t.tensor_type) for t in (head, embedding))
    size = float(np.linalg.norm(ours))
    difference = float(np.linalg.norm(ours - theirs)) / size if size else float("inf")
    if difference > _ALIKE:
        return None
    taken, left = (head, embedding) if head.n_bytes >= embedding.n_bytes else (embedding, head)
    kept = [tensor for tensor in reader.tensors if tensor.name not in (_HEAD, _EMBEDDING)]
    reader.tensors = [taken._replace(name=_EMBEDDING), *kept]
    return (
        f"{_HEAD} ({head.tensor_type.name}) and {_EMBEDDING} ({embedding.tensor_type.name}) are "
        f"one weight at two precisions (they differ by {difference:.1%}): the embeddings are tied, "
        f"{taken.name} is taken and {left.name} left out"
    )
