"""Opening a policy by name: scratch models, folders, run folders, adapters, hub ids, GGUF files.

`scratch:NAME` builds a small random model; everything else goes through `from_pretrained`, in fp32,
and no code that comes with a model is run. Knows nothing of rewards.
"""

import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME, find_adapter_config_file

from rl_reasoner.distributed.shards import is_sharded, load_state, merged_state_dict
from rl_reasoner.errors import UserError, first_line
from rl_reasoner.moe.experts import without_router_logits
from rl_reasoner.policy.device import choose_device
from rl_reasoner.policy.fp8.weights import config_of, has_fp8_weights, whole_blocks
from rl_reasoner.policy.gguf import convert_gguf
from rl_reasoner.policy.names import locate
from rl_reasoner.policy.policy import NotWholeError, Policy, whole_model, with_whole_adapter
from rl_reasoner.policy.scratch import scratch_policy

_TASK = "CAUSAL_LM"  # in peft's words
# What the readers of a policy's files raise for files that are damaged, or not of their kind.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    RecursionError,
    SafetensorError,
    StrictDataclassError,
)


def quiet_libraries() -> None:
    """Turn off the progress bars and advice of datasets and transformers: we show our own."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\.")
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
    else:  # it reads this when something loads it, at a second or more
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def open_policy(source: str | Path, *, seed: int = 0, device: str = "auto") -> Policy:
    """Open the policy that `source` names, in fp32, on `device`.

    `source`: "scratch:moe-tiny" or another of them, a folder (also a run folder or a peft
    adapter, which can be trained on), a `.gguf` file (converted once, kept in the cache folder), or
    a hub id. `seed` sets the weights of scratch models. Raises `UserError` when it cannot be
    opened.
    """
    source = str(source)
    if source.startswith("scratch:"):
        policy = scratch_policy(source.removeprefix("scratch:"), seed)
    elif source.endswith(".gguf"):
        policy = _open_pretrained(str(convert_gguf(Path(source).expanduser())), source)
    else:
        with locate(source) as path:
            policy = _open_pretrained(path, source)
    policy.model.to(choose_device(device))
    return policy


def load_config(path: str) -> Any:
    """Load the configuration of a model in a folder or on the hub, to dequantise FP8 weights.

    Raises what transformers does, and ValueError for one that asks for code.
    """
    config = config_of(path)
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        kernel = getattr(part, "_attn_implementation", None)
        if "/" in str(kernel):
            raise ValueError(f"its config asks for {kernel!r}, an attention kernel that is code")
    return config


def _open_pretrained(path: str, source: str) -> Policy:
    folder = Path(path)
    tokenizer: Any = None
    try:
        if find_adapter_config_file(path) is not None:  # in the folder, or on the hub
            model, tokenizer = _open_adapter(path, source)
        elif is_sharded(folder):
            model = _merge_shards(folder)
        else:
            model = _open_whole(path)
    except NotWholeError as error:
        raise UserError(f"policy {source!r} {error}") from error
    except UNREADABLE as error:
        where = "is a folder without a model in it" if folder.is_dir() else "cannot be opened"
        raise UserError(f"policy {source!r} {where}: {reason_of(error)}") from error
    without_router_logits(model)
    if tokenizer is None:
        tokenizer = _open_tokenizer(path, source, None)
    if tokenizer is None:
        raise UserError(f"policy {source!r} has no tokenizer files")
    if tokenizer.eos_token is None:
        raise UserError(
            f"policy {source!r}: its tokenizer has no end-of-sequence token to end a completion"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Policy(model, tokenizer, source)


def _open_whole(path: str, **settings: Any) -> Any:
    """The model in a folder or on the hub; weights in FP8 are dequantised."""
    config = load_config(path)
    with whole_blocks() if has_fp8_weights(config) else nullcontext():
        return whole_model(path, config=config, **settings)


def _open_adapter(path: str, source: str) -> tuple[Any, Any]:
    """The model of an adapter with its base, and its tokenizer or that of the base."""
    from peft import PeftConfig

    adapter = PeftConfig.from_pretrained(path)
    if not adapter.base_model_name_or_path:
        raise UserError(f"policy {source!r} is an adapter that does not name its base policy")
    if adapter.task_type not in (None, _TASK):
        raise UserError(f"policy {source!r} is an adapter for {adapter.task_type}, not for {_TASK}")
    base = str(adapter.base_model_name_or_path)
    with locate(base) as place:
        try:
            model = _open_whole(place, revision=adapter.revision)
        except NotWholeError as error:
            raise NotWholeError(f"has a base, {base}, that {error}") from error
        tokenizer = _open_tokenizer(path, source, model.config)  # on the hub it may lack a config
        if tokenizer and len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))  # new tokens' rows are the adapter's
        if tokenizer is None:
            tokenizer = _open_tokenizer(place, source, model.config)
    model = with_whole_adapter(model, path, trained=not adapter.is_prompt_learning)
    return model.eval(), tokenizer  # as every other: dropout is for training


def _open_tokenizer(path: str, source: str, config: Any) -> Any:
    """The tokenizer in a folder or on the hub; None where there are no files of one.

    `config` is the model's, for a folder that has none of its own.
    """
    own = {"config": config} if config is not None else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, padding_side="left", trust_remote_code=False, **own
        )
    except UNREADABLE as error:
        raise UserError(f"policy {source!r} has no tokenizer: {reason_of(error)}") from error
    for name in ("is_local", "local_files_only"):  # of the place: saved, they are no part of it
        tokenizer.init_kwargs.pop(name, None)
    # transformers makes up an empty one where the folder holds no tokenizer files
    return tokenizer if tokenizer("1", add_special_tokens=False)["input_ids"] else None


def _merge_shards(folder: Path) -> PreTrainedModel:
    """Merge the shards of a checkpoint to a model. Raises ValueError for an adapter's shards."""
    model = AutoModelForCausalLM.from_config(load_config(str(folder)), trust_remote_code=False)
    try:
        load_state(model, merged_state_dict(folder))
    except RuntimeError as error:
        raise ValueError("its shards are an adapter's: finish the stage, then export") from error
    if (folder / GENERATION_CONFIG_NAME).is_file():  # it may name more ends than the model's
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def reason_of(error: BaseException) -> str:
    """What was wrong with a policy's files, without transformers' advice to run their code.

    Where its first line only says which check failed, what the check said.
    """
    if "trust_remote_code" in str(error):
        return "it comes with its own code, which is never run: a policy is weights and tokenizer"
    told = first_line(error)
    return first_line(error.__cause__) if told.endswith(":") and error.__cause__ else told
