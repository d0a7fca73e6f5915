"""GGUF files, made here with gguf's own writer, as policies: what the conversion has to keep."""

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_reasoner import open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.planning.shapes import shape_of
from rl_reasoner.policy.gguf import convert_gguf
from rl_reasoner.rollout.sampler import eos_ids

Q = gguf.GGMLQuantizationType
HIDDEN, HEADS, WIDE = 64, 2, 96
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
RANDOM = np.random.default_rng(0)


def weight(*shape: int) -> Any:
    return RANDOM.normal(0, 0.1, shape).astype(np.float32)


def add_scaling(writer: Any, scaling: Mapping[str, Any] | None) -> None:
    """Write down how rotary positions are scaled, as llama.cpp's converter does."""
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["length"])


def layer() -> dict[str, tuple[Any, Q]]:
    """The weights of the one layer, and the last norm."""
    made: dict[str, tuple[Any, Q]] = {}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        made[f"blk.0.{name}.weight"] = (weight(HIDDEN, HIDDEN), Q.F32)
    for name in ("ffn_gate", "ffn_up"):
        made[f"blk.0.{name}.weight"] = (weight(WIDE, HIDDEN), Q.F32)
    made["blk.0.ffn_down.weight"] = (weight(HIDDEN, WIDE), Q.F32)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        made[f"{name}.weight"] = (np.ones(HIDDEN, dtype=np.float32), Q.F32)
    return made


def write(
    file: Path,
    *,
    kind: str = "smollm",
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    end: str = "<|im_end|>",
    pad: str | None = "<|im_end|>",
    unknown: str | None = "<|endoftext|>",
    embedding: tuple[Any, Q] | None = None,
    head: tuple[Any, Q] | None = None,
    scaling: Mapping[str, Any] | None = None,
    further: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    parts: int = 1,
    **numbers: str,
) -> dict[str, Any]:
    """A llama of one layer; `embedding` and `head` are weights with their precisions.

    `further` tensors are added, those `without` left out; of several `parts` it is the first file.
    """
    tokens = [*special, *ALPHABET, "ĊĊ"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("made up")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(special) + [1] * (len(tokens) - len(special)))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_eos_token_id(tokens.index(end))
    for add, token in ((writer.add_pad_token_id, pad), (writer.add_unk_token_id, unknown)):
        if token is not None:
            add(tokens.index(token))
    add_scaling(writer, scaling)
    for name, number in (("no", 0), ("count", parts)) if parts > 1 else ():
        writer.add_uint16(f"split.{name}", number)
    for key, token in numbers.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", tokens.index(token))
    made = {"token_embd.weight": embedding or (weight(len(tokens), HIDDEN), Q.F32)}
    if head is not None:
        made["output.weight"] = head
    made |= layer()
    for name, values in (further or {}).items():
        made[name] = (np.asarray(values, dtype=np.float32), Q.F32)
    for name, (values, precision) in ((n, t) for n, t in made.items() if n not in without):
        writer.add_tensor(name, gguf.quantize(values, precision), raw_dtype=precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {token: number for number, token in enumerate(tokens)}


SIZE = 3 + len(ALPHABET) + 1


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("head_is_finer", [True, False])
def test_one_weight_at_two_precisions_is_tied_and_the_finer_is_taken(
    head_is_finer: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = weight(SIZE, HIDDEN)
    fine, coarse = (Q.Q8_0, Q.Q5_0)
    head, embedding = (fine, coarse) if head_is_finer else (coarse, fine)
    file = tmp_path / "twice.gguf"
    write(file, embedding=(same, embedding), head=(same, head))
    with caplog.at_level(logging.WARNING):
        policy = open_policy(str(file), device="cpu")
    model = policy.model
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(same, fine), fine))
    assert torch.equal(model.lm_head.weight.detach(), expected)
    taken = "output.weight" if head_is_finer else "token_embd.weight"
    assert f"{taken} is taken" in caplog.text and "one weight at two precisions" in caplog.text
    assert "lm_head" not in str(model.state_dict().keys() - model.all_tied_weights_keys.keys())
    assert gguf.GGUFReader.__module__ == "gguf.gguf_reader", "gguf is as it was"


def test_two_weights_stay_two(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = weight(SIZE, HIDDEN), weight(SIZE, HIDDEN)
    file = tmp_path / "two.gguf"
    write(file, embedding=(one, Q.F32), head=(other, Q.F32))
    model = open_policy(str(file), device="cpu").model
    assert not model.config.tie_word_embeddings and not caplog.text
    assert torch.equal(model.model.embed_tokens.weight, torch.from_numpy(one))
    assert torch.equal(model.lm_head.weight, torch.from_numpy(other))


def test_a_head_that_moved_away_from_its_embedding_stays_a_weight_of_its_own(
    tmp_path: Path,
) -> None:
    one = weight(SIZE, HIDDEN)
    write(
        tmp_path / "moved.gguf",
        embedding=(one, Q.F32),
        head=(one + 0.3 * weight(*one.shape), Q.F32),
    )
    assert not open_policy(str(tmp_path / "moved.gguf")).model.config.tie_word_embeddings


def test_a_file_without_a_head_is_tied_and_needs_no_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = weight(SIZE, HIDDEN)
    write(tmp_path / "tied.gguf", embedding=(one, Q.Q8_0))
    model = open_policy(str(tmp_path / "tied.gguf"), device="cpu").model
    assert model.config.tie_word_embeddings and not caplog.text
    stored = torch.from_numpy(gguf.dequantize(gguf.quantize(one, Q.Q8_0), Q.Q8_0))
    assert torch.equal(model.lm_head.weight.detach(), stored)


def test_a_file_that_lacks_weights_is_refused_and_nothing_of_it_is_kept(
    tmp_path: Path, cache: Path
) -> None:
    """They would be random, and a policy of them would be trained."""
    write(tmp_path / "torn.gguf", without=("blk.0.attn_q.weight",))
    one = r"torn\.gguf lacks weights of its model \(model\.layers\.0\.self_attn\.q_proj\.weight\)"
    with pytest.raises(UserError, match=one):
        open_policy(str(tmp_path / "torn.gguf"), device="cpu")
    four = ("blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_norm", "output_norm")
    write(tmp_path / "less.gguf", without=tuple(f"{name}.weight" for name in four))
    with pytest.raises(
        UserError, match=r"\(model\.layers\.0\.input_layernorm\.weight, .* 1 more\)"
    ):
        open_policy(str(tmp_path / "less.gguf"), device="cpu")
    assert not [*cache.glob("*")]


def test_weights_without_a_place_in_the_model_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers' llama has no biases of its own, and drops a file's unsaid."""
    head = (weight(SIZE, HIDDEN), Q.Q8_0)
    write(tmp_path / "plain.gguf", head=head, further={"rope_freqs.weight": [1.0] * 16})
    open_policy(str(tmp_path / "plain.gguf"), device="cpu")
    assert "left out" not in caplog.text
    caplog.clear()
    write(tmp_path / "biased.gguf", head=head, further={"blk.0.attn_q.bias": [1.0] * HIDDEN})
    open_policy(str(tmp_path / "biased.gguf"), device="cpu")
    [held, placed] = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{4,}", caplog.text)]
    assert held - placed == HIDDEN and "the others are left out" in caplog.text


def test_one_file_of_a_split_policy_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "big-00001-of-00002.gguf"
    write(file, parts=2, without=("blk.0.ffn_down.weight", "output_norm.weight"))
    words = r"big-00001-of-00002\.gguf is one of 2 files .* \(llama-gguf-split --merge"
    with pytest.raises(UserError, match=words):
        open_policy(str(file), device="cpu")
    with pytest.raises(UserError, match=words):
        shape_of(str(file))


def test_a_file_is_planned_by_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are not converted for that."""
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "planned.gguf")
    source = str(tmp_path / "planned.gguf")
    shape = shape_of(source)
    assert not (tmp_path / "cache").exists()
    model = open_policy(source, device="cpu").model
    assert shape.total == sum(p.numel() for p in model.parameters())
    assert shape.layers == model.config.num_hidden_layers


def test_the_digits_step_of_smollm(tmp_path: Path) -> None:
    write(tmp_path / "smollm.gguf")
    write(tmp_path / "plain.gguf", kind="gpt-2")
    smollm = AutoTokenizer.from_pretrained(convert_gguf(tmp_path / "smollm.gguf"))
    assert smollm.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
    assert smollm.decode(smollm("é 12\n\n3")["input_ids"]) == "é 12\n\n3"
    plain = AutoTokenizer.from_pretrained(convert_gguf(tmp_path / "plain.gguf"))
    assert plain.tokenize("\n\n12") == ["Ċ", "Ċ", "1", "2"]


def test_pad_ends_no_turn(tmp_path: Path) -> None:
    ids = write(tmp_path / "pad.gguf")
    policy = open_policy(str(tmp_path / "pad.gguf"), device="cpu")
    assert policy.tokenizer.pad_token == "<|endoftext|>"
    assert policy.model.config.pad_token_id == ids["<|endoftext|>"]
    assert policy.model.generation_config.pad_token_id == ids["<|endoftext|>"]
    assert eos_ids(policy) == [ids["<|im_end|>"]]
    write(tmp_path / "nameless.gguf", unknown=None)
    nameless = open_policy(str(tmp_path / "nameless.gguf"), device="cpu")
    assert nameless.tokenizer.pad_token == "<|endoftext|>"


LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


@pytest.mark.parametrize(
    ("kind", "fields", "ends"),
    [
        ("qwen2", {"pad": "<|endoftext|>"}, ["<|im_end|>", "<|endoftext|>"]),
        ("qwen2", {"pad": None, "end": "<|endoftext|>"}, ["<|endoftext|>", "<|im_end|>"]),
        ("smollm", {}, ["<|im_end|>"]),
        (
            "llama-bpe",
            {"special": LLAMA, "end": "<|eot_id|>", "pad": None, "unknown": None},
            ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"],
        ),
        ("other", {"eot_token_id": "<|endoftext|>"}, ["<|im_end|>", "<|endoftext|>"]),
    ],
)
def test_all_ends_of_the_family(
    kind: str, fields: dict[str, Any], ends: list[str], tmp_path: Path
) -> None:
    ids = write(tmp_path / "ends.gguf", kind=kind, **fields)
    folder = convert_gguf(tmp_path / "ends.gguf")
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [ids[token] for token in ends]
    policy = open_policy(str(folder), device="cpu")
    assert eos_ids(policy) == saved["eos_token_id"]
    policy.save(tmp_path / "again")
    assert eos_ids(open_policy(str(tmp_path / "again"), device="cpu")) == saved["eos_token_id"]


# The real files: a folder with them, as benchmarks/real/fetch.py leaves them.
REAL = os.environ.get("RL_REASONER_GGUF")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_qwen_coder_as_it_is_fetched() -> None:
    file = Path(REAL or ".") / "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf"
    if not file.is_file():
        pytest.skip("RL_REASONER_GGUF names no folder with the Qwen2.5-Coder-0.5B-Instruct file")
    folder = convert_gguf(file)
    saved = json.loads((folder / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [151645, 151643] and saved["pad_token_id"] == 151643
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.config.tie_word_embeddings
    assert sum(p.numel() for p in model.parameters()) == 494_032_768
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is 17 + 25? Answer with just the number."}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert tokenizer.decode(out[0, inputs["input_ids"].shape[1] :]) == "42<|im_end|>"


def slowed(factor: float, length: int) -> list[float]:
    """How Llama 3.1's rotary frequencies are slowed down, as llama.cpp's converter writes it."""
    found = []
    for place in range(0, HIDDEN // HEADS, 2):
        wave = 2 * np.pi * 10000.0 ** (place / (HIDDEN // HEADS))
        share = min(max((length / wave - 1.0) / 3.0, 0.0), 1.0)
        found.append(1 / ((1 - share) / factor + share))
    return found


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192), (8.0, 64)])
def test_slowed_rotary_frequencies_are_kept(factor: float, length: int, tmp_path: Path) -> None:
    write(tmp_path / "llama.gguf", further={"rope_freqs.weight": slowed(factor, length)})
    model = open_policy(str(tmp_path / "llama.gguf"), device="cpu").model
    plain = 10000.0 ** -(torch.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS))
    expected = plain / torch.tensor(slowed(factor, length))
    assert torch.allclose(model.model.rotary_emb.inv_freq, expected.float(), rtol=1e-3)


def test_scaled_rotary_positions_are_kept_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "y.gguf", scaling={"type": "yarn", "factor": 4.0, "length": 32})
    found = open_policy(str(tmp_path / "y.gguf"), device="cpu").model.config.rope_parameters
    told = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert found == {"rope_theta": 10000.0, **told}
    for other in (
        {"scaling": {"type": "longrope", "factor": 4.0, "length": 32}},
        {"further": {"rope_freqs.weight": np.linspace(1, 3, HIDDEN // HEADS // 2)}},
        {"further": {"rope_factors_long.weight": np.ones(HIDDEN // HEADS // 2)}},
    ):
        write(tmp_path / "other.gguf", **other)
        with pytest.raises(UserError, match=r"scaled .* in a way that is not known here"):
            open_policy(str(tmp_path / "other.gguf"), device="cpu")
