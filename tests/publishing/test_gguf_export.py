"""A policy as a GGUF file: every family that is trained here, opened again, logit by logit."""

import json
import math
import resource
import signal
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rl_reasoner.errors import UserError
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.policy.policy import Policy
from rl_reasoner.policy.scratch import scratch_policy
from rl_reasoner.publishing.gguf_export import TOLERANCE_OF_LOGITS, compare_logits, export_gguf
from support.commands import Cli
from support.ready import Ready

_TEXT = ["What is 12 * 34? Think step by step, then say the answer.", "x^2 - 5x + 6 = 0, so x = 2"]
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, tied": ("LlamaConfig", {"tie_word_embeddings": True, "rope_theta": 5000.0}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 moe": ("Qwen3MoeConfig", {**MIXTURE, "head_dim": 16}),
}


def a_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Byte pairs learned from two lines, which are split as SmolLM (a Llama) or as Qwen does."""
    core = Tokenizer(models.BPE())
    split: Any = pre_tokenizers.Split(Regex(QWEN), "isolated")
    if kind.startswith("llama"):
        split = pre_tokenizers.Digits(individual_digits=True)
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind.startswith("llama"))
    core.pre_tokenizer = pre_tokenizers.Sequence([split, levels])
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<|endoftext|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def a_policy(kind: str, **changes: Any) -> Policy:
    """A tiny random policy of a family."""
    name, own = FAMILIES[kind]
    tokenizer = a_tokenizer(kind)
    config = getattr(transformers, name)(
        **{**_SIZES, **own, **changes},
        vocab_size=len(tokenizer) + 3,  # as padded to a round size
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return Policy(AutoModelForCausalLM.from_config(config), tokenizer, kind)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_file_has_the_policys_logits(kind: str, tmp_path: Path) -> None:
    policy = a_policy(kind)
    file, apart = export_gguf(policy, tmp_path / "out", "fp32")
    assert apart <= TOLERANCE_OF_LOGITS and file.name == "policy.gguf"
    opened = open_policy(str(file), device="cpu")
    ids = policy.tokenizer(_TEXT[0], return_tensors="pt")["input_ids"]
    assert opened.tokenizer(_TEXT[0])["input_ids"] == ids[0].tolist()
    assert opened.tokenizer.decode(ids[0]) == _TEXT[0]
    with torch.no_grad():
        ours, theirs = (one.model(input_ids=ids).logits for one in (policy, opened))
    size = float(ours.abs().max())
    assert torch.allclose(ours, theirs, atol=TOLERANCE_OF_LOGITS * size)
    assert (tmp_path / "out/Modelfile").read_text().splitlines()[-1] == "FROM ./policy.gguf"


def test_bf16_rounds_matrices_and_nothing_else(tmp_path: Path) -> None:
    policy = a_policy("qwen3 moe")
    whole, _ = export_gguf(policy, tmp_path / "whole", "fp32")
    half, apart = export_gguf(policy, tmp_path / "half", "bf16")
    assert apart <= TOLERANCE_OF_LOGITS
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(half).tensors}
    assert kinds == {"BF16", "F32"} and half.stat().st_size < whole.stat().st_size


def test_a_file_that_would_be_another_policy_is_not_written_and_leaves_no_folder(
    tmp_path: Path,
) -> None:
    """The format has no place for an activation: the file would be opened with another one."""
    with pytest.raises(UserError, match="no file was written"):
        export_gguf(a_policy("llama", hidden_act="relu"), tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bytes_each", [1 << 10, 1 << 16], ids=["settings", "tensors"])
def test_no_room_for_the_file_is_one_line_and_leaves_none(
    bytes_each: int, tmp_path: Path, cli: Cli
) -> None:
    a_policy("qwen3").save(tmp_path / "policy")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_each, hard))
    try:
        ended = cli("export", "policy", "out", "--gguf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ended.code == 2 and "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ") and "out" in ended.err
    assert [file.name for file in tmp_path.iterdir()] == ["policy"]


def test_a_killed_export_may_be_given_again(tmp_path: Path, cli: Cli) -> None:
    a_policy("qwen3").save(tmp_path / "policy")
    argv = ("export", "policy", "out", "--gguf")
    killing = "import os\nfrom gguf import GGUFWriter as Writer\n"
    killing += "Writer.write_tensors_to_file = lambda _: os.kill(os.getpid(), 9)\n"
    killing += "import sys; from rl_reasoner.cli import main; sys.exit(main())"
    assert Ready(tmp_path, killing, *argv).wait().returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists(), "a part of a file"
    assert cli(*argv).code == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"policy.gguf", "Modelfile"}


def test_another_policys_file_is_told(tmp_path: Path) -> None:
    file, _ = export_gguf(a_policy("llama"), tmp_path / "out", "fp32")
    assert compare_logits(a_policy("llama, tied"), file) > 100 * TOLERANCE_OF_LOGITS


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (lambda: scratch_policy("deepseek-tiny", 0), ("family", "'deepseek_v3'", "qwen3_moe")),
        (lambda: scratch_policy("moe-tiny", 0), ("tokenizer is of bytes without merges",)),
        (lambda: a_policy("qwen3 moe", norm_topk_prob=False), ("norm_topk_prob",)),
        (lambda: a_policy("qwen3 moe", mlp_only_layers=[0]), ("dense layers",)),
        (
            lambda: a_policy(
                "llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
            ),
            ("'linear'",),
        ),
    ],
)
def test_what_the_format_cannot_hold_is_refused_by_name(
    policy: Any, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        export_gguf(policy(), tmp_path / "out", "fp32")
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_close_the_logits_are(tmp_path: Path, cli: Cli) -> None:
    a_policy("qwen2").save(tmp_path / "policy")
    ended = cli("export", "policy", "out", "--gguf", "--json")
    value = json.loads(ended.out)
    assert ended.code == 0 and value["policy"] == "out/policy.gguf"
    assert value["logits_apart"] <= TOLERANCE_OF_LOGITS
    assert cli("export", "policy", "two", "--gguf", "--fp8").code == 2


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    policy = a_policy("llama")
    with torch.no_grad():
        policy.model.model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match="are not finite"):
        export_gguf(policy, tmp_path / "out", "fp32")
    assert not (tmp_path / "out").exists()
