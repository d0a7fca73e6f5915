"""Policies: scratch models, the byte tokenizer, folders, adapters, and every mistake in them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from rl_reasoner import open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.language.thinking import TAGS
from rl_reasoner.paths import cache_folder
from rl_reasoner.policy.device import choose_device, choose_precision
from rl_reasoner.policy.gguf import convert_gguf
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.policy.policy import Policy
from rl_reasoner.policy.scratch import byte_tokenizer
from rl_reasoner.recipe.adapter import Lora

TOKENIZER = byte_tokenizer()


def logits(policy: Policy, text: str = "(1+2)%10=") -> torch.Tensor:
    ids = policy.tokenizer(text, return_tensors="pt")["input_ids"].to(policy.device)
    with torch.no_grad():
        found: torch.Tensor = policy.model(input_ids=ids).logits
    return found


# ---------------------------------------------------------------------------------- tokenizer


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_goes_through_the_byte_tokenizer_and_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    if not any(tag in text for tag in (*TAGS, "<pad>", "<eos>")):
        assert len(ids) == len(text.encode())


@given(st.lists(st.one_of(st.sampled_from(TAGS), st.text(st.sampled_from("<>/thinkans 1+")))))
def test_tags_are_single_tokens_kept_when_decoding(parts: list[str]) -> None:
    text = "".join(parts)
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    tags = [TOKENIZER.convert_tokens_to_ids(tag) for tag in TAGS]
    assert [sum(i == tag for i in ids) for tag in tags] == [text.count(tag) for tag in TAGS]


def test_pad_and_end_are_tokens_apart() -> None:
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    batch = TOKENIZER(["1", "123"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]], "padded on the left"
    assert len(TOKENIZER) == 2 + len(TAGS) + 256


# ------------------------------------------------------------------------------------ scratch


@pytest.mark.parametrize("name", ["scratch:moe-tiny", "scratch:dense-tiny"])
def test_a_scratch_policy_follows_its_seed_and_touches_no_generator(name: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, again, other = (open_policy(name, seed=s, device="cpu") for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(logits(one), logits(again))
    assert not torch.equal(logits(one), logits(other))
    assert one.model.dtype == torch.float32 and one.source == name
    assert one.model.config.eos_token_id == one.tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["scratch:moe-tiny", "scratch:dense-tiny"])
def test_a_saved_policy_opens_anywhere(name: str, tmp_path: Path) -> None:
    policy = open_policy(name, seed=3, device="cpu")
    policy.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "<think>é\n</think>"
    assert tokenizer(text)["input_ids"] == policy.tokenizer(text)["input_ids"]
    for found in (Policy(model, tokenizer, "it"), open_policy(str(tmp_path), device="cpu")):
        assert torch.equal(logits(found), logits(policy))
    again = open_policy(str(tmp_path), device="cpu")
    assert again.tokenizer.padding_side == "left"
    assert again.tokenizer.pad_token_id != again.tokenizer.eos_token_id


# ------------------------------------------------------------------------------------ adapters


def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.save(tmp_path)
    whole = {file.name for file in tmp_path.iterdir()}
    (tmp_path / ".tmpPV0M57").write_bytes(b"half of the weights")  # as safetensors names it
    policy.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == whole


def test_an_adapter_changes_nothing_at_first_and_follows_its_seed() -> None:
    plain = open_policy("scratch:moe-tiny", device="cpu")
    before = logits(plain)
    first: list[dict[str, torch.Tensor]] = []
    for seed in (4, 4, 5):
        policy = open_policy("scratch:moe-tiny", device="cpu")
        add_lora(policy, Lora(rank=4), seed)
        assert torch.equal(logits(policy), before)
        trainable = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
        assert trainable and all("lora" in name for name in trainable)
        first.append(trainable)
    names = [name for name in first[0] if "lora_A" in name]
    assert all(torch.equal(first[0][name], first[1][name]) for name in names)
    assert any(not torch.equal(first[0][name], first[2][name]) for name in names)


def test_an_adapter_folder_opens_on_its_base(tmp_path: Path) -> None:
    open_policy("scratch:dense-tiny", seed=1, device="cpu").save(tmp_path / "base")
    policy = open_policy(str(tmp_path / "base"), device="cpu")
    add_lora(policy, Lora(rank=2, targets=("q_proj", "v_proj")), seed=0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    policy.save(tmp_path / "adapter")
    again = open_policy(str(tmp_path / "adapter"), device="cpu")
    assert torch.allclose(logits(again), logits(policy), atol=1e-6)
    base = open_policy(str(tmp_path / "base"), device="cpu")
    assert not torch.allclose(logits(again), logits(base), atol=1e-3)


# ------------------------------------------------------------------------- device and precision


def test_the_device_is_one_that_is_there() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device() in ("cuda", "mps", "cpu")
    for name, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
    ):
        if not there:
            with pytest.raises(UserError, match=f"device '{name}' is not on this machine"):
                choose_device(name)


def test_precision_is_what_is_wanted_and_safe_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("bf16", "cpu") == "bf16"
    assert choose_precision("auto", "cpu") == "fp32"
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert choose_precision("auto", "cuda") == ("bf16" if able else "fp32")


# ------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    open_policy("scratch:dense-tiny", device="cpu").save(tmp_path / "policy")
    return tmp_path / "policy"


def refused(source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_policy(str(source), device="cpu")
    assert len(caught.value.messages) == 1 and "\n" not in caught.value.messages[0]


def test_an_unknown_scratch_policy() -> None:
    refused("scratch:moe-tny", r"'scratch:moe-tny'\. Did you mean 'scratch:moe-tiny'\?")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder without a model in it")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "is a folder without a model in it")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 3}')
    refused(tmp_path, "is a folder without a model in it: The hidden size .* is not a multiple")


def test_a_folder_without_a_tokenizer(saved: Path) -> None:
    for file in saved.glob("*token*"):
        file.unlink()
    refused(saved, "has no tokenizer")


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_weights_that_are_cut_off(saved: Path, keep: float) -> None:
    weights = saved / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    refused(saved, "model.safetensors|cannot be opened|without a model")


def test_a_tokenizer_that_cannot_end_a_completion(saved: Path) -> None:
    config = json.loads((saved / "tokenizer_config.json").read_text())
    for name in ("eos_token", "pad_token"):
        config.pop(name, None)
    (saved / "tokenizer_config.json").write_text(json.dumps(config))
    refused(saved, "no end-of-sequence token")


def test_a_run_that_is_not_finished(tmp_path: Path, saved: Path) -> None:
    (tmp_path / "run").mkdir()
    for name, text in ((".lock", ""), ("recipe.yaml", "name: x\n")):
        (tmp_path / "run" / name).write_text(text)
    refused(tmp_path / "run", "has no policy/ yet: continue it")
    shutil.copytree(saved, tmp_path / "run" / "policy")
    assert open_policy(str(tmp_path / "run"), device="cpu").parameter_counts[0] > 0


def test_what_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(tmp_path / "none", "there is no policy '.*/none': no such folder")
    refused("nobody/nothing", "available on the hub .*does not answer: .*offline mode")


def test_a_name_that_is_no_folder_is_told_with_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policies").mkdir()
    nowhere = r"'policie' is neither a folder nor available on the hub \(.*\)\."
    refused("policie", rf"{nowhere} Did you mean 'policies'\?")
    refused("moe-tiny", r"Did you mean 'scratch:moe-tiny'\?")


# ----------------------------------------------------------------------------------------- gguf


def test_files_that_are_no_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    refused(tmp_path / "none.gguf", "there is no policy file")
    (tmp_path / "text.gguf").write_text("once upon a time")
    refused(tmp_path / "text.gguf", "is not a GGUF file")
    for body in (b"", b"\x03\x00\x00\x00", b"\x03\x00\x00\x00" + b"\xff" * 64):
        (tmp_path / "torn.gguf").write_bytes(b"GGUF" + body)
        with pytest.raises(UserError, match=r"torn\.gguf.*cannot be read"):
            convert_gguf(tmp_path / "torn.gguf")
    assert not list((tmp_path / "cache").glob("*")), "nothing half made is left"


def test_a_policy_that_was_trained_gives_keys_to_whoever_decodes_with_it(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    Trainer(policy.model, TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to="none"))
    assert policy.model.config.use_cache is False  # by the trainer, for its own passes
    policy.save(tmp_path / "policy")
    assert policy.model.config.use_cache is False
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    ids = policy.tokenizer("1+1=", return_tensors="pt")["input_ids"]
    assert model(ids).past_key_values.get_seq_length() == ids.shape[1]
