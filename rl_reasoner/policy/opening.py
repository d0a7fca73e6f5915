"""Opening a policy: scratch models, folders, hub ids and GGUF files; dtype, device, LoRA.

A `Policy` is a causal language model of transformers with its tokenizer. `scratch:NAME` builds a
small random one from a config, with a byte-level tokenizer of its own; everything else goes through
`from_pretrained`. A policy that is saved opens with `AutoModelForCausalLM.from_pretrained`.
Knows nothing of rewards.
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rl_reasoner import hub
from rl_reasoner.distributed.sharding import (
    gathered_state_dict,
    is_sharded,
    load_state,
    merged_state_dict,
)
from rl_reasoner.errors import UserError, did_you_mean, unknown
from rl_reasoner.language.thinking import TAGS
from rl_reasoner.moe.experts import parameter_counts, without_router_logits
from rl_reasoner.policy.fp8_weights import config_of, in_fp8, whole_blocks
from rl_reasoner.policy.lora import adapted
from rl_reasoner.recipe.recipe import Lora

_TINY: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "use_cache": True,
}
SCRATCH: dict[str, tuple[str, dict[str, Any]]] = {
    "moe-tiny": (
        "Qwen3MoeConfig",
        {
            **_TINY,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "moe_intermediate_size": 96,
            "intermediate_size": 192,
            "decoder_sparse_step": 1,
            "router_aux_loss_coef": 0.001,
        },
    ),
    "deepseek-tiny": (
        "DeepseekV3Config",
        {
            **{name: value for name, value in _TINY.items() if name != "head_dim"},
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 0,
            "moe_intermediate_size": 96,
            "intermediate_size": 192,
            "q_lora_rank": None,
            "kv_lora_rank": 48,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 24,
        },
    ),
    "dense-tiny": ("Qwen3Config", {**_TINY, "intermediate_size": 384}),
}
# What the readers of a policy's files raise for files that are damaged, or not of their kind.
UNREADABLE = (OSError, ValueError, KeyError, ImportError, RecursionError, SafetensorError)


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
        """The device that the model lies on."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def save(self, folder: Path) -> None:
        """Write model and tokenizer to `folder`, in safetensors.

        A sharded model is saved inside `sharding.gathered_params`.
        """
        without_router_logits(self.model)
        for stale in folder.glob(".tmp??????"):  # of a save that was killed: safetensors' file
            stale.unlink(missing_ok=True)
        self.model.save_pretrained(folder, state_dict=gathered_state_dict(self.model))
        self.tokenizer.save_pretrained(folder)


def choose_device(wanted: str = "auto") -> str:
    """The device to use: `wanted`, or for "auto" CUDA, else Apple's MPS, else the CPU.

    Raises `UserError` when the wanted one is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, found in there.items() if found)
    if not there[wanted]:
        raise UserError(f"device {wanted!r} is not on this machine; there is: {choose_device()}")
    return wanted


def choose_precision(wanted: str, device: str) -> str:
    """ "fp32", "bf16" (mixed: weights stay in fp32, the passes run in bf16), or "fp8" (as bf16,
    with the products of linear layers and experts in FP8: rl_reasoner.policy.fp8).

    "auto" is bf16 on CUDA cards that have it, fp32 elsewhere: on CPUs bf16 is seldom faster, and
    in a mixture of experts it flips routing decisions between rollout and training.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def quiet_libraries() -> None:
    """Turn off the progress bars and advice of datasets and transformers: we show our own."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def open_policy(source: str, *, seed: int = 0, device: str = "auto") -> Policy:
    """Open the policy that `source` names, in fp32, on `device`.

    `source`: "scratch:moe-tiny" or another of `SCRATCH`, a folder (also a run folder or a peft
    adapter, which can be trained on), a `.gguf` file (converted once, kept in the cache folder), or
    a hub id. `seed` sets the weights of scratch models. Raises `UserError` when it cannot be
    opened.
    """
    if source.startswith("scratch:"):
        policy = _scratch(source.removeprefix("scratch:"), seed)
    elif source.endswith(".gguf"):
        policy = _pretrained(str(convert_gguf(Path(source))), source)
    else:
        with located(source) as path:
            policy = _pretrained(path, source)
    policy.model.to(choose_device(device))
    return policy


def configuration(path: str) -> Any:
    """The configuration of the model in a folder or on the hub; weights in FP8 are dequantised.

    Raises what transformers does, and ValueError for one that asks for code.
    """
    config = config_of(path)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        kernel = getattr(part, "_attn_implementation", None)
        if "/" in str(kernel):
            raise ValueError(f"its config asks for {kernel!r}, an attention kernel that is code")
    return config


def add_lora(policy: Policy, lora: Lora, seed: int) -> None:
    """Put a fresh low-rank adapter on the policy's model; `seed` sets its first weights.

    On linear layers and experts, on the router only if it is named (rl_reasoner.policy.lora).
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        **adapted(policy.model, lora.targets, lora.dropout),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy.model = get_peft_model(policy.model, config)


def merge_adapter(policy: Policy) -> bool:
    """Merge the adapter of a policy that was opened from one into its base; whether it had one.

    Raises `UserError` for one that has no merged form (prompts and prefixes that are learned).
    """
    from peft import PeftModel

    if not isinstance(policy.model, PeftModel):
        return False
    if policy.model.active_peft_config.is_prompt_learning:
        kind = policy.model.active_peft_config.peft_type.value
        raise UserError(
            f"policy {policy.source!r} is an adapter of the kind {kind}, which cannot be merged "
            "into its base: give the base, or an adapter of the kind LORA"
        )
    policy.model = policy.model.merge_and_unload().requires_grad_(True)
    return True


def _policy_folder(path: Path) -> Path | None:
    """The folder with the weights: `path` itself, or `policy/` in a run folder."""
    if not path.is_dir():
        return None
    if (path / "recipe.yaml").is_file():
        if not (path / "policy" / "config.json").is_file():
            raise UserError(f"the run {path} has no finished policy/ yet: resume it first")
        return path / "policy"
    return path


# ----------------------------------------------------------------------------------- scratch


def _scratch(name: str, seed: int) -> Policy:
    if name not in SCRATCH:
        raise unknown("scratch policy", f"scratch:{name}", [f"scratch:{n}" for n in SCRATCH])
    tokenizer = byte_tokenizer()
    kind, settings = SCRATCH[name]
    config = getattr(transformers, kind)(
        **settings,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return Policy(model, tokenizer, f"scratch:{name}")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token a byte, plus the think and answer tags as single tokens.

    Any text goes through it and back unchanged; the tags are ordinary tokens, kept when decoding.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *TAGS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=None))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_tokens(list(TAGS))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


# -------------------------------------------------------------------------------- pretrained


def _pretrained(path: str, source: str) -> Policy:
    folder = Path(path)
    try:
        if (folder / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM, PeftConfig

            adapter = PeftConfig.from_pretrained(path)
            with located(str(adapter.base_model_name_or_path)) as base:
                configuration(base)
                model = AutoPeftModelForCausalLM.from_pretrained(
                    path,
                    is_trainable=not adapter.is_prompt_learning,
                    dtype=torch.float32,
                    trust_remote_code=False,
                ).eval()  # as every other: dropout is for training
        elif is_sharded(folder):
            model = _merged(folder)
        else:
            config = configuration(path)
            with whole_blocks() if in_fp8(config) else nullcontext():
                model = AutoModelForCausalLM.from_pretrained(
                    path, dtype=torch.float32, config=config, trust_remote_code=False
                )
    except UNREADABLE as error:
        where = "is a folder without a model in it" if folder.is_dir() else "cannot be opened"
        raise UserError(f"policy {source!r} {where}: {told(error)}") from error
    without_router_logits(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, padding_side="left", trust_remote_code=False
        )
    except UNREADABLE as error:
        raise UserError(f"policy {source!r} has no tokenizer: {told(error)}") from error
    for name in ("is_local", "local_files_only"):  # of the place: saved, they are no part of it
        tokenizer.init_kwargs.pop(name, None)
    if not tokenizer("1", add_special_tokens=False)["input_ids"]:
        # transformers makes up an empty one where the folder holds no tokenizer files
        raise UserError(f"policy {source!r} has no tokenizer: no files of one are there")
    if tokenizer.eos_token is None:
        raise UserError(
            f"policy {source!r}: its tokenizer has no end-of-sequence token to end a completion"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(model, tokenizer, source)


@contextmanager
def located(source: str) -> Iterator[str]:
    """The folder that `source` names, else its hub id, which can be opened inside.

    Raises `UserError` for what is neither, before transformers asks the hub again and again.
    """
    path = Path(source).expanduser()
    if (folder := _policy_folder(path)) is not None:
        yield str(folder)
        return
    if path.is_file():
        raise UserError(f"policy {source!r} is a file: give a folder, a .gguf file or a hub id")
    around = path.parent.iterdir() if path.parent.is_dir() else ()
    near = did_you_mean(
        str(path), [*map(str, filter(Path.is_dir, around)), *(f"scratch:{n}" for n in SCRATCH)]
    )
    if not hub.is_name(source) or (near and "/" in source):  # beside it lies what was meant
        raise UserError(f"there is no policy {source!r}: no such folder.{near}")
    try:
        with hub.asked("model", source):
            yield source
    except hub.NotThereError as error:
        raise UserError(
            f"policy {source!r} is no folder here and not to be had from the hub ({error}).{near}"
        ) from error


def _merged(folder: Path) -> PreTrainedModel:
    """The model of a checkpoint in shards, whole. Raises ValueError for one of an adapter alone."""
    model = AutoModelForCausalLM.from_config(configuration(str(folder)), trust_remote_code=False)
    try:
        load_state(model, merged_state_dict(folder))
    except RuntimeError as error:
        raise ValueError("its shards are an adapter's: end the stage, then export") from error
    return model


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def told(error: BaseException) -> str:
    """What was wrong with a policy's files, without transformers' advice to run their code."""
    if "trust_remote_code" in str(error):
        return "it brings code of its own, and that is never run: a policy is weights and tokenizer"
    return _first_line(error)


# -------------------------------------------------------------------------------------- gguf


def cache_folder() -> Path:
    """Where converted models are kept: `$RL_REASONER_CACHE`, else `~/.cache/rl-reasoner`."""
    return Path(os.environ.get("RL_REASONER_CACHE", "~/.cache/rl-reasoner")).expanduser()


def convert_gguf(file: Path) -> Path:
    """The safetensors folder of a GGUF file; made once, kept under the file's hash.

    Two things that the plain conversion loses are mended: the digit splitting of tokenizers whose
    GGUF type is `smollm`, and a pad token that is the end-of-sequence token (training would then
    mask the end of every completion). Raises `UserError` when the file cannot be read.
    """
    if not file.is_file():
        raise UserError(f"there is no policy file {file}")
    with file.open("rb") as handle:
        if handle.read(4) != b"GGUF":
            raise UserError(f"{file} is no GGUF file (its first bytes are not 'GGUF')")
        handle.seek(0)
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    folder = cache_folder() / f"{file.stem}-{digest}"
    if (folder / "config.json").is_file():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        _convert(file, partial)
    except Exception as error:  # the readers' own errors are many and share no base class
        what = f"{type(error).__name__}: {_first_line(error)}"
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
