"""Completions outside of training: greedy and sampled, forced, and without a trace left."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from rl_reasoner import Policy, open_policy
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.rollout.sampler import eos_ids, prompt_ids, sample, weights_hash
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.types import Rollout

PROMPTS = ["1+1=", "(12+34)*5%10=", "7=", "0*0+0="]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return open_policy("scratch:moe-tiny", seed=2, device="cpu")


def by_hand(policy: Policy, prompt: str, limit: int) -> list[int]:
    """Greedy decoding, one whole forward pass a token, no cache and no padding."""
    ids = policy.tokenizer(prompt)["input_ids"]
    found: list[int] = []
    with torch.no_grad():
        while len(found) < limit and not set(found) & set(eos_ids(policy)):
            logits = policy.model(input_ids=torch.tensor([ids + found])).logits[0, -1]
            found.append(int(logits.argmax()))
    return found


def test_greedy_is_the_likeliest_token_each_time_whatever_the_batch(policy: Policy) -> None:
    groups = sample(policy, PROMPTS, max_tokens=12)
    for prompt, [rollout] in zip(PROMPTS, groups, strict=True):
        ids = by_hand(policy, prompt, 12)
        assert rollout.text == policy.tokenizer.decode(ids, skip_special_tokens=True)
        assert rollout.tokens == len(ids)
        assert rollout.truncated == (ids[-1] not in eos_ids(policy))
    assert sample(policy, PROMPTS[1:2], max_tokens=12) == [groups[1]]


@pytest.mark.parametrize("force", [None, "chain", "direct"])
@pytest.mark.parametrize("source", ["scratch:moe-tiny", "scratch:dense-tiny"])
def test_greedy_is_what_transformers_generates(
    source: str, force: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of the engine, and of `generate` where the engine cannot run a model."""
    policy = open_policy(source, seed=4, device="cpu")
    ours = sample(policy, PROMPTS, max_tokens=10, force=force)
    monkeypatch.setattr(
        "rl_reasoner.rollout.engine.generate", None
    )  # an error where it is still called
    monkeypatch.setattr("rl_reasoner.rollout.sampler.engine_runs", lambda model: False)
    assert sample(policy, PROMPTS, max_tokens=10, force=force) == ours


def test_samples_of_transformers_repeat_too(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl_reasoner.rollout.sampler.engine_runs", lambda model: False)
    state = torch.get_rng_state()
    one, again, other = (
        sample(policy, PROMPTS, samples=3, temperature=1.0, max_tokens=5, seed=s) for s in (1, 1, 2)
    )
    assert one == again != other
    more = sample(policy, PROMPTS[1:], samples=4, temperature=1.0, max_tokens=5, seed=1)
    assert [group[:3] for group in more] == one[1:], "more samples, another batch: only adds"
    monkeypatch.setattr(policy.model.generation_config, "repetition_penalty", 5.0)
    monkeypatch.setattr(policy.model.generation_config, "min_p", 0.9)
    assert sample(policy, PROMPTS, samples=3, temperature=1.0, max_tokens=5, seed=1) == one
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("by_engine", [True, False])
def test_cut_offs_leave_the_likeliest_tokens(
    policy: Policy, by_engine: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not by_engine:
        monkeypatch.setattr("rl_reasoner.rollout.sampler.engine_runs", lambda model: False)
    cache = SampleCache(tmp_path, "one policy")
    drawn = {"samples": 4, "temperature": 1.0, "max_tokens": 5, "cache": cache}
    whole = sample(policy, PROMPTS, **drawn)  # type: ignore[arg-type]
    greedy = [[group[0]] * 4 for group in sample(policy, PROMPTS, max_tokens=5)]
    assert sample(policy, PROMPTS, top_k=1, **drawn) == greedy != whole  # type: ignore[arg-type]
    assert sample(policy, PROMPTS, top_p=1e-6, **drawn) == greedy  # type: ignore[arg-type]
    some = sample(policy, PROMPTS, top_k=5, **drawn)  # type: ignore[arg-type]
    assert some not in (greedy, whole)
    assert sample(policy, PROMPTS, **drawn) == whole  # type: ignore[arg-type]


def test_samples_follow_the_seed_and_the_policy(policy: Policy) -> None:
    one, again, other = (
        sample(policy, PROMPTS, samples=5, temperature=1.0, max_tokens=6, seed=s) for s in (1, 1, 2)
    )
    assert one == again != other
    assert [len(group) for group in one] == [5] * 4
    first = {rollout.text[:1] for group in one for rollout in group}
    assert len(first) > 5
    cold = sample(policy, PROMPTS, samples=2, temperature=1e-4, max_tokens=6, seed=3)
    greedy = sample(policy, PROMPTS, max_tokens=6)
    assert cold == [[group[0]] * 2 for group in greedy]


def test_sampling_is_from_the_whole_distribution(policy: Policy) -> None:
    """No top-k or nucleus of a generation config cuts the tail: pass@k would be wrong with it."""
    policy.model.generation_config.update(top_k=1, top_p=0.1, do_sample=True)
    try:
        groups = sample(policy, ["1="], samples=200, temperature=1.0, max_tokens=1)
    finally:
        policy.model.generation_config.update(top_k=50, top_p=1.0, do_sample=False)
    with torch.no_grad():
        ids = policy.tokenizer("1=", return_tensors="pt")["input_ids"]
        chances = policy.model(input_ids=ids).logits[0, -1].softmax(-1)
    by_text: dict[str, float] = {}  # bytes that are no text by themselves look alike
    for token, chance in enumerate(chances.tolist()):
        text = policy.tokenizer.decode([token], skip_special_tokens=True)
        by_text[text] = by_text.get(text, 0.0) + chance
    expected = sum(1 - (1 - chance) ** 200 for chance in by_text.values())
    kinds = len({rollout.text for rollout in groups[0]})
    assert 0.8 * expected < kinds < 1.2 * expected


def test_forced_starts_are_part_of_the_text(policy: Policy) -> None:
    for force, start in (("chain", "<think>"), ("direct", "<think></think>")):
        for [rollout] in sample(policy, PROMPTS, max_tokens=6, force=force):  # type: ignore[arg-type]
            assert rollout.text.startswith(start) and rollout.tokens <= 6


def test_a_forced_chain_does_not_close_at_once(policy: Policy) -> None:
    closing = policy.tokenizer.convert_tokens_to_ids("</think>")

    def only_closing(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([closing]), 50.0)

    handle = policy.model.lm_head.register_forward_hook(only_closing)
    try:
        [[chain]] = sample(policy, ["1="], max_tokens=3, force="chain")
        [[direct]] = sample(policy, ["1="], max_tokens=3)
    finally:
        handle.remove()
    assert direct.text == "</think>" * 3
    assert chain.text.startswith("<think>") and chain.text.endswith("</think>" * 2)
    assert not chain.text.startswith("<think></think>")


def test_sampling_leaves_no_trace(policy: Policy) -> None:
    """Evaluating between two training steps must not change the second one."""
    policy.model.train()
    torch.manual_seed(9)
    random.seed(9)
    np.random.seed(9)
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand())
    torch.manual_seed(9)
    random.seed(9)
    np.random.seed(9)
    before = [p.clone() for p in policy.model.parameters()]
    sample(policy, PROMPTS, samples=3, temperature=1.0, max_tokens=5)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected
    assert policy.model.training, "in training mode as before"
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert all(p.grad is None for p in policy.model.parameters())
    policy.model.eval()
    sample(policy, PROMPTS[:1], max_tokens=1)
    assert not policy.model.training


def room_for(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl_reasoner.rollout.engine._CACHE_BYTES", tokens * 1536)


def test_order_and_progress_within_a_small_budget(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample(policy, PROMPTS, samples=3, temperature=1.0, max_tokens=5)
    done: list[int] = []
    room_for(25, monkeypatch)
    monkeypatch.setattr("rl_reasoner.rollout.sampler._KEEP_S", 0.0)
    small = sample(policy, PROMPTS, samples=3, temperature=1.0, max_tokens=5, progress=done.append)
    assert small == whole
    assert sum(done) == 12 and len(done) > 3


@pytest.mark.parametrize(("room", "passes"), [(40, 4), (39, 8), (20, 8)])
def test_a_prompt_counts_once_for_its_samples(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, room: int, passes: int
) -> None:
    """Eight rows of five tokens: at once, one of them late, or one half after the other."""
    prompts = ["1+2+3+4=", "4+3+2+1="]
    shared = sum(len(prompt_ids(policy, prompt)) for prompt in prompts)
    sample(policy, prompts, max_tokens=1)  # the engine is tried on a policy once: not counted here
    room_for(shared + room, monkeypatch)
    monkeypatch.setattr("rl_reasoner.rollout.sampler.eos_ids", lambda policy: [-1])
    count = 0

    def counted(module: Any, arguments: Any, output: Any) -> None:
        nonlocal count
        count += arguments[0].shape[-2] == 1  # tokens of a row

    handle = policy.model.model.layers[0].register_forward_hook(counted)
    try:
        sample(policy, prompts, samples=4, temperature=1.0, max_tokens=5)
    finally:
        handle.remove()
    assert count == passes


def test_generate_has_a_prompt_for_each_of_its_rows(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = len(prompt_ids(policy, "1+2+3+4=")) + 5
    monkeypatch.setattr("rl_reasoner.rollout.sampler.engine_runs", lambda model: False)
    monkeypatch.setattr("rl_reasoner.rollout.sampler._KEEP_S", 0.0)
    room_for(3 * width, monkeypatch)
    done: list[int] = []
    sample(policy, ["1+2+3+4="], samples=4, temperature=1.0, max_tokens=5, progress=done.append)
    assert done == [3, 1]


def test_a_prompt_beyond_the_budget_still_goes_alone(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_for(1, monkeypatch)
    assert len(sample(policy, PROMPTS, max_tokens=2)) == 4
    assert sample(policy, [], max_tokens=2) == []


def test_every_end_of_the_model_ends_a_completion(policy: Policy) -> None:
    """A chat model names two end tokens; the tokenizer knows one of them."""
    config = policy.model.generation_config
    letter = policy.tokenizer.convert_tokens_to_ids("x")
    before = config.eos_token_id
    handle = policy.model.lm_head.register_forward_hook(
        lambda module, inputs, output: output.index_fill(-1, torch.tensor([letter]), 50.0)
    )
    try:
        config.eos_token_id = [policy.tokenizer.eos_token_id, letter]
        assert eos_ids(policy) == [policy.tokenizer.eos_token_id, letter]
        assert sample(policy, ["1="], max_tokens=4) == [[Rollout("x", 1, False)]]
        config.eos_token_id = None
        assert eos_ids(policy) == [policy.tokenizer.eos_token_id]
        assert sample(policy, ["1="], max_tokens=4) == [[Rollout("xxxx", 4, True)]]
    finally:
        config.eos_token_id = before
        handle.remove()


def test_ending_exactly_at_the_limit_is_not_cut_off(policy: Policy) -> None:
    end = policy.tokenizer.eos_token_id
    handle = policy.model.lm_head.register_forward_hook(
        lambda module, inputs, output: output.index_fill(-1, torch.tensor([end]), 50.0)
    )
    try:
        assert sample(policy, ["1="], max_tokens=1) == [[Rollout("", 1, False)]]
    finally:
        handle.remove()


def test_a_chat_goes_through_its_template(policy: Policy) -> None:
    policy.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    try:
        ids = prompt_ids(policy, [{"role": "user", "content": "1+1="}], "<think>")
    finally:
        policy.tokenizer.chat_template = None
    assert policy.tokenizer.decode(ids) == "[user]1+1=[assistant]<think>"
    assert prompt_ids(policy, "1+1=", "<think>") == policy.tokenizer("1+1=<think>")["input_ids"]


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, 0)])
def test_transformers_finds_nothing_against_the_settings(
    temperature: float, top_k: int | None
) -> None:
    """What it finds it would print, once for every model that is opened."""
    settings = SamplingParams(max_tokens=3, ends=(1,), temperature=temperature).settings
    settings.validate(strict=True)  # raises what it would print
    assert settings.do_sample == bool(temperature)
    assert settings.top_k == top_k, "0 draws from the whole distribution; greedy has none to set"


def test_the_scale_of_an_adapter_is_part_of_the_weights(tmp_path: Path) -> None:
    """Else samples of another policy would come out of the cache."""
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.save(tmp_path / "base")
    made = get_peft_model(policy.model, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"]))
    made.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    made.save_pretrained(tmp_path / "adapter")
    policy.tokenizer.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    first = weights_hash(open_policy(str(tmp_path / "adapter"), device="cpu"))
    assert weights_hash(open_policy(str(tmp_path / "adapter"), device="cpu")) == first
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 64}))
    assert weights_hash(open_policy(str(tmp_path / "adapter"), device="cpu")) != first


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_distribution_ends_where_generate_samples_too(
    temperature: float, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl_reasoner.rollout.sampler.engine_runs", lambda model: False)
    token = prompt_ids(policy, "7")[-1]
    with torch.no_grad():
        policy.model.model.embed_tokens.weight[token] = torch.nan
    [[found]] = sample(policy, ["7"], temperature=temperature, max_tokens=5)
    assert not found.truncated and found.text == ""
