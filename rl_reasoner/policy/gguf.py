"""GGUF files as safetensors folders, converted once and kept in the cache folder."""

import hashlib
import os
import shutil
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_reasoner.errors import UserError, first_line
from rl_reasoner.paths import cache_folder


def convert_gguf(file: Path) -> Path:
    """Convert a GGUF file to a safetensors folder, once: it is cached by the file's hash.

    Two things that the plain conversion loses are mended: the digit splitting of tokenizers whose
    GGUF type is `smollm`, and a pad token that is the end-of-sequence token (training would then
    mask the end of every completion). Raises `UserError` when the file cannot be read.
    """
    if not file.is_file():
        raise UserError(f"there is no policy file {file}")
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file (its first bytes are not 'GGUF')")
        handle.seek(0)
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    folder = cache_folder() / f"{file.stem}-{digest}"
    if (folder / "config.json").is_file():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        _convert(file, partial)
    except Exception as error:  # the readers' own errors are many and share no base class
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{file} cannot be read or converted: {what}") from error
    else:
        if not folder.exists():  # another process may have been quicker
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import GgufConfig

    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    config = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        **place, dtype=torch.float32, quantization_config=config, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    if _gguf_text(file, "tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    free = tokenizer.unk_token or tokenizer.bos_token
    if tokenizer.pad_token in (None, tokenizer.eos_token) and free:
        tokenizer.pad_token = free
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gguf_text(file: Path, key: str) -> str:
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get(key)
    return bytes(field.parts[-1]).decode() if field is not None else ""
