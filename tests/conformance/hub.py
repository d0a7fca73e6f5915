"""The hub's edge, made here: what trl's tests load by name, for machines that reach no hub.

`build` lays models, processors and data sets down as the hub's own client caches them, so that
`from_pretrained` finds them by name: the architectures that the names stand for, tiny, with random
weights; tokenizers of bytes, with the few whole words and numbers that trl's tests spell out. Texts
of the data sets are written here, except where a test asks for a prompt by its words.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

OWNER = "trl-internal-testing"
_SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
_EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}

# name -> what its config has beyond `_SIZES`
LANGUAGE: dict[str, dict[str, Any]] = {
    "Cohere2ForCausalLM": {},
    "Gemma2ForCausalLM": {},
    "Glm4MoeForCausalLM": {
        **_EXPERTS,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "GptOssForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "LlamaForCausalLM-3.2": {},
    "LlamaForSequenceClassification-3.2": {"num_labels": 1},
    "MistralForCausalLM-0.2": {},
    "NemotronHForCausalLM-nano": {
        "layers_block_type": ["mamba", "attention", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 4,
        "mamba_n_groups": 1,
        "n_groups": 1,
        "ssm_state_size": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
        "use_mamba_kernels": False,
    },
    "Qwen2ForCausalLM-2.5": {},
    "Qwen2ForSequenceClassification-2.5": {"num_labels": 1},
    "Qwen3ForCausalLM": {},
    "Qwen3ForSequenceClassification": {"num_labels": 1},
    "Qwen3MoeForCausalLM": {**_EXPERTS, "num_experts": 4},
}
_TEMPLATES = {"Qwen2": "qwen2_5", "Qwen3": "qwen3", "Llama": "llama3_2", "Remote": "llama3_2"}

# Numbers that trl's tests write for Qwen's tokenizer, and what they stand for.
_WORDS = {
    293: " b",
    314: " {",
    330: ' "',
    397: ">\n",
    411: "out",
    450: "de",
    497: '",',
    522: "</",
    606: "name",
    788: '":',
    894: " any",
    927: "sh",
    944: "'t",
    1318: "text",
    1414: " know",
    1513: " don",
    2765: " won",
    4913: '{"',
    5212: ' {"',
    5392: " tool",
    6023: "hi",
    6659: "call",
    7692: "async",
    9520: "step",
    11248: "}}\n",
    13477: "crement",
    14172: "tool",
    16252: " increment",
    16370: "arguments",
    17453: "Done",
    22785: "_tool",
    35744: "increment",
    64648: "multiply",
    93054: "_multiply",
    95642: '"}}\n',
}
# Words of tools' replies, with numbers of our own: byte by byte these replies are longer than the
# completions of trl's tests may be, and trl ends such a row.
_REPLIES = {
    1000 + n: word
    for n, word in enumerate(
        (
            *("assistant", "user", "response", "error", " got", " an", " unexpected", " keyword"),
            *(" argument", "Error", " Invalid", " type", " missing", " required", " positional"),
        )
    )
}
_QWEN = {
    151643: "<|endoftext|>",
    151644: "<|im_start|>",
    151645: "<|im_end|>",
    151657: "<tool_call>",
    151658: "</tool_call>",
}
_LLAMA = {256: "<|begin_of_text|>", 257: "<|eot_id|>", 258: "<|finetune_right_pad_id|>"}
_OTHERS = {256: "<|end|>", 257: "<|pad|>"}

# One test asks for these by their words, in this order; the rest only need to be there.
PROMPTS = [
    "Beautiful is better than",
    "Explicit is",
    "Simple is better",
    "Complex",
    "Flat is better than",
    "Sparse is better",
    "Readability",
    "Special cases aren't special",
    "Although practicality beats",
    "Errors should never",
    "Unless explicitly",
    "In the face of ambiguity, refuse",
    *[f"Count to {number} and" for number in ("five", "six", "seven", "eight", "nine")],
]

_REMOTE = {
    "configuration_remote.py": """
from transformers import LlamaConfig


class RemoteConfig(LlamaConfig):
    model_type = "remote"
""",
    "modeling_remote.py": """
from transformers import LlamaForCausalLM

from .configuration_remote import RemoteConfig


class RemoteForCausalLM(LlamaForCausalLM):
    config_class = RemoteConfig
""",
}


def build(folder: Path) -> None:
    """Write `hub/` and `wide/` below `folder`: models as huggingface_hub caches them, data sets.

    `wide/` has models whose tokenizer is as wide as Qwen's, and the numbers of its words; they are
    slow, and only for tests that spell such numbers out; its data sets are short.
    """
    for name in LANGUAGE:
        _snapshot(folder / "hub", f"tiny-{name}", partial(_language, name))
        if name.startswith("Qwen"):
            _snapshot(folder / "wide", f"tiny-{name}", partial(_language, name, wide=True))
    _snapshot(folder / "hub", "tiny-RemoteForCausalLM", _remote)
    _texts(folder / "hub" / "zen", PROMPTS)
    _texts(folder / "wide" / "zen", PROMPTS[:4])


def data_folder(folder: Path, name: str) -> Path | None:
    """Where the data set of that name lies in `hub/` or `wide/`, or None."""
    owner, _, short = name.partition("/")
    path = folder / short
    return path if owner == OWNER and path.is_dir() else None


def _snapshot(folder: Path, name: str, write: Callable[[Path], None]) -> None:
    """One repository in the layout of the hub's cache."""
    home = folder / f"models--{OWNER}--{name}"
    revision = "0" * 40
    path = home / "snapshots" / revision
    path.mkdir(parents=True)
    torch.manual_seed(0)
    write(path)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision, encoding="utf-8")


def _language(name: str, path: Path, wide: bool = False) -> None:
    tokenizer = tokenizer_of(name, wide)
    kind = getattr(transformers, name.partition("-")[0])
    sizes = {**_SIZES, **LANGUAGE[name], **_ids(tokenizer)}
    config = kind.config_class(vocab_size=len(tokenizer), **sizes)
    model = kind(config).to(torch.bfloat16)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }


def _remote(path: Path) -> None:
    """A model whose code lies beside its weights."""
    tokenizer = tokenizer_of("Remote")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), **_SIZES, **_ids(tokenizer), tie_word_embeddings=True
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    for file, source in _REMOTE.items():
        (path / file).write_text(source.lstrip(), encoding="utf-8")
    written = json.loads((path / "config.json").read_text(encoding="utf-8"))
    written |= {
        "model_type": "remote",
        "architectures": ["RemoteForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_remote.RemoteConfig",
            "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
        },
    }
    (path / "config.json").write_text(json.dumps(written), encoding="utf-8")


def tokenizer_of(name: str, wide: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with the special tokens and the chat template of a family.

    `wide`: with Qwen's numbers for its special tokens and for a few words.
    """
    family = name[:5] if name.startswith(("Qwen", "Llama")) else name.partition("For")[0]
    if family.startswith("Qwen"):
        words, special = (
            (_WORDS | _REPLIES, _QWEN) if wide else ({}, dict(enumerate(_QWEN.values(), 256)))
        )
        end, pad, begin = "<|im_end|>", "<|endoftext|>", None
    elif family in ("Llama", "Remote"):
        words, special, end, pad, begin = {}, _LLAMA, "<|eot_id|>", None, "<|begin_of_text|>"
    else:
        words, special, end, pad, begin = {}, _OTHERS, "<|end|>", "<|pad|>", None
    spelled = _bytes()
    vocabulary = {char: number for number, char in enumerate(spelled.values())}
    for number, word in words.items():
        vocabulary["".join(spelled[byte] for byte in word.encode())] = number
    taken = {*vocabulary.values(), *special}
    for number in range(max(special)):
        if number not in taken:
            vocabulary[f"\N{WHITE SQUARE}{number}"] = number
    vocabulary |= {token: number for number, token in special.items()}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # words stay whole
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=end, pad_token=pad, bos_token=begin, padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    tokenizer.chat_template = _template(_TEMPLATES.get(family))
    return tokenizer


def _template(name: str | None) -> str:
    """A file of trl's own, by which trl knows how to read tool calls, or a plain template."""
    if name is not None:
        return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    return (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )


def _bytes() -> dict[int, str]:
    """What byte-level tokenizers write for each byte, in the order of their numbers."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain}
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _texts(folder: Path, texts: list[str]) -> None:
    """`zen`: prompts as plain text and as chats, in a file for each config and split."""
    chats = [[{"role": "user", "content": text}] for text in texts]
    for config, prompts in (
        ("standard_prompt_only", texts),
        ("conversational_prompt_only", chats),
    ):
        parts = DatasetDict(
            train=Dataset.from_dict({"prompt": prompts}),
            test=Dataset.from_dict({"prompt": prompts[:2]}),
        )
        for split, rows in parts.items():
            rows.to_parquet(folder / config / f"{split}.parquet")
