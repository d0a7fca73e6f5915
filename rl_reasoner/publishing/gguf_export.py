"""A policy as one GGUF file, as llama.cpp and Ollama open them, and a check that it is the same.

For the families that are trained here: Llama, Qwen2, Qwen3 and Qwen3-MoE, with byte-pair
tokenizers. What the format has no place for is refused by name. The file is opened again by
rl_reasoner.policy.gguf, and its logits are compared with the policy's.
"""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.files import whole_folder, write_text
from rl_reasoner.policy.gguf import convert_to
from rl_reasoner.policy.policy import Policy

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""GGUF's name of an architecture by transformers' `model_type`."""
TOLERANCE_OF_LOGITS = 1e-4
"""How far logits may lie from the policy's, as a share of their largest size."""
_TEXTS = ("What is 12 * 34? Think step by step.", "x^2 - 5x + 6 = 0\n", "Ein Satz mit 3.14 und ä.")
_OF_QWEN = "p{L}+|\\\\p{N}| ?["  # of its pattern, as JSON: one digit at a time
_MODELFILE = """# ollama create NAME -f Modelfile
FROM ./policy.gguf
"""


def export_gguf(policy: Policy, folder: Path, dtype: str) -> tuple[Path, float]:
    """Write `policy` (merged, on the CPU) to policy.gguf in a new `folder`, and a Modelfile.

    `dtype` of matrices is "fp32" or "bf16" (the policy's are rounded to it); vectors stay fp32.
    Returns the file, and how far its logits lie from the policy's when it is opened again
    (`TOLERANCE_OF_LOGITS`). Raises `UserError` for a family or a tokenizer that has no place in the
    format, or where the logits lie too far.
    """
    architecture = _architecture(policy.model.config)
    vocabulary = _vocabulary(policy)
    if dtype == "bf16":
        _round_matrices(policy.model)
    with whole_folder(folder) as partial:
        file = partial / "policy.gguf"
        _write(policy, file, architecture, vocabulary, dtype)
        apart = compare_logits(policy, file)
        if apart > TOLERANCE_OF_LOGITS:
            raise UserError(
                f"--gguf: opened again, its logits lie {apart:.2g} apart from the policy's "
                f"(relative), and {TOLERANCE_OF_LOGITS:g} is allowed: no file was written"
            )
        write_text(partial / "Modelfile", _MODELFILE)
    return folder / file.name, apart


def _write(policy: Policy, file: Path, architecture: str, vocabulary: Any, dtype: str) -> None:
    """Write settings, tokenizer and tensors to `file`."""
    writer = gguf.GGUFWriter(file, architecture)
    _add_settings(writer, policy.model.config)
    vocabulary(writer)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        policy.model.config.num_hidden_layers,
    )
    for name, tensor in _tensors(policy.model):
        _add_tensor(writer, names, name, tensor, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    try:
        writer.write_tensors_to_file()
    except OSError as error:
        if error.errno is not None:
            raise
        full = errno.ENOSPC  # numpy says only that less was written
        raise OSError(full, os.strerror(full), str(file)) from error
    writer.close()


def _architecture(config: Any) -> str:
    """GGUF's name of the policy's family. Raises `UserError` where it cannot hold the policy."""
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise unknown("family for --gguf", kind, FAMILIES)
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if (scaled := rope.get("rope_type", "default")) != "default":
        raise UserError(f"--gguf: positions scaled by {scaled!r} are not written yet")
    if kind == "qwen3_moe":
        if not config.norm_topk_prob:
            raise UserError(
                "--gguf: llama.cpp normalises the chosen experts' weights, this policy "
                "does not (norm_topk_prob)"
            )
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            raise UserError("--gguf: a mixture with dense layers between has no place in GGUF")
    if getattr(config, "use_sliding_window", False):
        raise UserError("--gguf: a sliding window (use_sliding_window) is not written yet")
    return FAMILIES[kind]


@torch.no_grad()
def _round_matrices(model: Any) -> None:
    """Round what is written in bf16, so that the file's logits are to be the policy's."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(parameter.bfloat16())


def _add_settings(writer: Any, config: Any) -> None:
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = dict(getattr(config, "rope_parameters", None) or {})
    writer.add_name("policy")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors as GGUF divides them: a mixture's experts in three stacks, tied heads left out.

    llama.cpp turns pairs of neighbours where transformers' Llama turns halves: rows of its queries
    and keys change places.
    """
    config = model.config
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj"), gate
            yield name.replace("gate_up_proj", "up_proj"), up
            continue
        if config.model_type == "llama" and ".self_attn." in name:
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            if (part := name.split(".")[-2]) in heads:
                halves = tensor.view(heads[part], 2, -1, *tensor.shape[1:])
                tensor = halves.transpose(1, 2).reshape(tensor.shape)
        yield name, tensor


def _add_tensor(writer: Any, names: Any, name: str, tensor: Tensor, dtype: str) -> None:
    base, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):  # a stack of experts
        base, suffix = name, "weight"
    found = names.get_name(base)
    if found is None:
        raise UserError(f"--gguf: the tensor {name} has no place in GGUF")
    values = np.ascontiguousarray(tensor.detach().float().cpu().numpy())
    if dtype == "bf16" and values.ndim > 1:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(f"{found}.{suffix}", gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(f"{found}.{suffix}", values)


# ---------------------------------------------------------------------------- the tokenizer


def _vocabulary(policy: Policy) -> Any:
    """What writes the tokenizer. Raises `UserError` for one that is no byte-pair tokenizer."""
    tokenizer, config = policy.tokenizer, policy.model.config
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    model = core["model"]
    if model.get("type") != "BPE" or not model.get("merges"):
        kind = "bytes without merges" if model.get("type") == "BPE" else str(model.get("type"))
        raise UserError(f"--gguf: its tokenizer is of {kind}; llama.cpp wants byte pairs (BPE)")
    before = _pre_tokenizer(core.get("pre_tokenizer"))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    added = {token["id"]: token for token in core["added_tokens"]}
    texts = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for number in range(config.vocab_size):
        tokens.append(texts.get(number, f"[PAD{number}]"))
        kind = gguf.TokenType.NORMAL if number in texts else gguf.TokenType.UNUSED
        if number in added:
            special = added[number]["special"]
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        kinds.append(kind)
    first = tokenizer("a")["input_ids"][0]

    def add(writer: Any) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(before)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
        if tokenizer.bos_token_id is not None:
            writer.add_bos_token_id(tokenizer.bos_token_id)
            writer.add_add_bos_token(first == tokenizer.bos_token_id)
        if isinstance(template := getattr(tokenizer, "chat_template", None), str):
            writer.add_chat_template(template)

    return add


def _pre_tokenizer(found: Any) -> str:
    """llama.cpp's name of how texts are split before pairs are merged. Raises `UserError`."""
    text = json.dumps(found)
    if '"Digits"' in text:
        return "smollm"
    if "p{N}{1,3}" in text:
        return "llama-bpe"
    if _OF_QWEN in text:
        return "qwen2"
    if '"use_regex": true' in text:
        return "gpt-2"
    raise UserError("--gguf: llama.cpp has no name for how its tokenizer splits texts")


# -------------------------------------------------------------------------------- the check


def compare_logits(policy: Policy, file: Path) -> float:
    """How far the logits of a GGUF file lie from the policy's, relative to their largest size.

    On a few texts, token by token. Raises `UserError` where the file's tokenizer reads them
    otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="rl-reasoner-gguf-") as place:
        tokenizer = convert_to(file, Path(place))
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, trust_remote_code=False, use_kernels=False
        ).eval()
    policy.model.eval()
    largest, apart = 0.0, 0.0
    for text in _TEXTS:
        ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
            raise UserError(
                f"--gguf: opened again, its tokenizer reads {text!r} otherwise: llama.cpp splits "
                "texts in its own ways"
            )
        rows = torch.tensor([ids])
        with torch.no_grad():
            ours, theirs = (m(input_ids=rows).logits.float() for m in (policy.model, model))
        if not (ours.isfinite().all() and theirs.isfinite().all()):
            raise UserError(f"--gguf: logits of {text!r} are not finite: it would answer nothing")
        width = min(ours.shape[-1], theirs.shape[-1])
        largest = max(largest, float(ours.abs().max()))
        apart = max(apart, float((ours[..., :width] - theirs[..., :width]).abs().max()))
    return apart / largest if largest else apart
