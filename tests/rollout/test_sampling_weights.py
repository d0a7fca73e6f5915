"""Which weights a policy is sampled from, and that what is drawn is drawn from these."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rl_reasoner import evaluate, open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.kernels import integer_weights
from rl_reasoner.kernels.packed_linear import packed_linears
from rl_reasoner.machine import VARIABLE
from rl_reasoner.rollout import sampling_weights
from rl_reasoner.rollout.agreement import engine_runs
from rl_reasoner.rollout.decode_pass import decode_pass
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.mismatch import measure
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.sampling_weights import sampling_dtype
from support.processors import needs_int8
from support.ways import multiplied

pytestmark = pytest.mark.usefixtures("any_processor_rounds")

INT8 = pytest.param(torch.int8, marks=needs_int8)
TYPES = [None, torch.bfloat16, INT8]
SIZE = 24  # of the vocabulary


def tiny(own: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return transformers.AutoModelForCausalLM.from_config(config).to(own).eval()


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_auto_is_exact_for_tiny_policies_and_slow_processors(
    pays: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_weights, "bf16_pays", lambda: pays)
    monkeypatch.setattr(sampling_weights, "LARGE", 0 if large else 64 << 20)
    model = tiny()
    assert sampling_dtype(model, "auto") == (torch.bfloat16 if pays and large else None)
    assert sampling_dtype(model, "own") is None
    assert sampling_dtype(tiny(torch.bfloat16), "auto") is None


@needs_int8
def test_int8_is_for_those_who_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast it is; and not where training computes in bf16."""
    times = {"float32": 100.0, "bfloat16": 90.0, "int8": 30.0}
    said = {"dtype": "float32", "ms": times}
    threads = f"sampling_weights/{torch.get_num_threads()}_threads"
    monkeypatch.setenv(VARIABLE, json.dumps({"native": False, threads: said}))
    monkeypatch.setattr(sampling_weights, "LARGE", 0)
    assert sampling_dtype(tiny(), "auto") is None
    assert sampling_dtype(tiny(), "int8") == torch.int8
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="computes in bf16"):
        sampling_dtype(tiny(), "int8")


@needs_int8
def test_the_compiled_pass_samples_from_int8_too() -> None:
    model, sampling = tiny(), SamplingParams(max_tokens=32, ends=(-1,), weights=torch.int8)
    with multiplied("torch, fused") as able:
        if not able:
            pytest.skip("no compiler here")
        assert engine_runs(model)
        made = decode_pass(model, torch.int8)
        assert made is not None and made.operations is not None
        [row] = generate(model, [[3, 5, 7]], [(0,)], sampling)
    ids = torch.tensor([[3, 5, 7, *row.ids[:-1]]])
    with torch.no_grad(), packed_linears(model, torch.int8):
        logits = model(input_ids=ids, use_cache=False).logits[0, 2:]
    logps = logits.log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(row.logps), logps, atol=2e-3, rtol=0)


def test_what_cannot_be_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="bfloat61"):
        sampling_dtype(tiny(), "bfloat61")
    with pytest.raises(UserError, match=r"x\.weights is bfloat16, .*weights are float16"):
        sampling_dtype(tiny(torch.float16), "bfloat16", "x.weights")
    monkeypatch.setattr(sampling_weights, "_computes_bf16", lambda: False)
    with pytest.raises(UserError, match="this processor has no instructions for it"):
        sampling_dtype(tiny(), "bfloat16")
    monkeypatch.setattr(integer_weights, "work", lambda: False)
    with pytest.raises(UserError, match="is int8, but cpu has no exact products"):
        sampling_dtype(tiny(), "int8")


@pytest.mark.parametrize("weights", TYPES)
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_tokens_come_from_the_distribution_of_the_weights_used(
    own: torch.dtype, weights: torch.dtype | None
) -> None:
    """Chi-square of the pairs of tokens, against passes over whole rows with the same weights."""
    model, rows, prompt = tiny(own), 4000, [3, 5, 7]
    sampling = SamplingParams(max_tokens=2, ends=(-1,), weights=weights)
    keys = [(1, row) for row in range(rows)]
    counts = torch.zeros(SIZE, SIZE)
    for row in generate(model, [prompt] * rows, keys, sampling):
        counts[row.ids[0], row.ids[1]] += 1
    ids = torch.tensor([[*prompt, token] for token in range(SIZE)])
    with torch.no_grad(), packed_linears(model, weights):
        logits = model(input_ids=ids, use_cache=False).logits.float()
    expected = rows * logits[0, -2].softmax(-1)[:, None] * logits[:, -1].softmax(-1)
    often = expected >= 5
    terms = (counts - expected)[often] ** 2 / expected[often]
    freedom = int(often.sum()) - 1
    assert float(terms.sum()) < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("weights", TYPES)
def test_log_probs_are_those_under_the_weights_used(weights: torch.dtype | None) -> None:
    model = tiny()
    sampling = SamplingParams(max_tokens=32, ends=(-1,), weights=weights)
    [row] = generate(model, [[3, 5, 7]], [(0,)], sampling)

    def apart(copies: torch.dtype | None) -> torch.Tensor:
        ids = torch.tensor([[3, 5, 7, *row.ids[:-1]]])
        with torch.no_grad(), packed_linears(model, copies):
            logits = model(input_ids=ids, use_cache=False).logits[0, 2:].float()
        logps = logits.log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None]).squeeze(1)
        return (torch.tensor(row.logps) - logps).abs()

    if weights is None:
        assert apart(None).max() < 1e-5
    else:
        assert 1e-4 < apart(None).mean() < 0.1, "rounded, and said to be"
        assert apart(weights).mean() < apart(None).mean()


def test_the_mismatch_is_measured_with_the_weights_that_are_sampled() -> None:
    gaps = {
        weights: measure(tiny(), [[3, 5, 7]] * 4, ends=[-1], weights=weights).plain
        for weights in ("own", "bfloat16", *(["int8"] if integer_weights.work() else []))
    }
    own = gaps.pop("own")
    assert all(own.largest < 1e-4 < gap.mean < 0.1 for gap in gaps.values())


def test_an_evaluation_says_that_its_weights_were_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path))
    rows = tmp_path / "sums.jsonl"
    rows.write_text('{"problem": "1+1=", "answer": "2"}\n', encoding="utf-8")
    policy = open_policy("scratch:dense-tiny", seed=0, device="cpu")
    found = {
        weights: evaluate(policy, [str(rows)], max_tokens=3, weights=weights, cache=tmp_path / "c")
        for weights in ("own", "bfloat16")
    }
    assert "weights" not in found["own"].settings
    assert found["bfloat16"].settings["weights"] == "bfloat16"
