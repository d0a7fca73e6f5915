"""Packed rows: where every token lies, and that attention by layout is attention of rows alone."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from rl_reasoner import open_policy
from rl_reasoner.kernels.packing import arguments, attention_of, pack, visible
from rl_reasoner.kernels.prefix_attention import prefix_attention

Rows = list[tuple[list[int], list[int]]]  # prompt, completion


def table(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Left-padded prompts and right-padded completions: ids, mask, width of the completions."""
    edge = max(len(prompt) for prompt, _ in rows)
    width = max(len(completion) for _, completion in rows)
    ids = torch.zeros(len(rows), edge + width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (prompt, completion) in enumerate(rows):
        at = slice(edge - len(prompt), edge + len(completion))
        ids[i, at], mask[i, at] = torch.tensor([*prompt, *completion]), 1
    return ids, mask, width


tokens = st.lists(st.integers(1, 5), max_size=4)
batches = st.lists(
    st.tuples(st.sampled_from([[7], [8, 9], [7, 8, 9]]), tokens), min_size=1, max_size=6
).filter(lambda rows: any(completion for _, completion in rows))


@given(batches, st.booleans())
def test_every_completion_token_is_scored_once_where_it_came_from(rows: Rows, whole: bool) -> None:
    ids, mask, width = table(rows)
    packed = pack(ids, mask, width, whole=whole)
    assert packed is not None
    labels, places = packed.labels[0].tolist(), packed.places.tolist()
    expected = {i * width + j: token for i, (_, c) in enumerate(rows) for j, token in enumerate(c)}
    assert dict(zip(places, labels, strict=True)) == expected and len(places) == len(expected)
    for position, place in zip(packed.scored.tolist(), places, strict=True):
        prompt, completion = rows[place // width]
        before = [*prompt, *completion][: len(prompt) + place % width]
        assert packed.input_ids[0, position] == before[-1]
        assert packed.position_ids[0, position] == len(before) - 1


@given(batches)
def test_weights_count_every_real_token_of_the_table(rows: Rows) -> None:
    """With `whole`, as mixtures of experts count: a prompt's token once for each of its rows."""
    ids, mask, width = table(rows)
    packed = pack(ids, mask, width, whole=True)
    assert packed is not None and int(packed.weights.sum()) == int(mask.sum())
    counted = torch.bincount(packed.input_ids[0], packed.weights[0].float(), minlength=10)
    assert torch.equal(counted, torch.bincount(ids[mask.bool()], minlength=10).float())


def test_rows_that_are_not_kept_are_not_packed() -> None:
    ids, mask, width = table([([7], [1]), ([8], [2, 3]), ([7], [4])])
    packed = pack(ids, mask, width, keep=torch.tensor([True, False, True]))
    assert packed is not None and packed.labels.tolist() == [[1, 4]]
    assert len(packed.groups) == 1, "equal prompts are one group wherever they lie"
    assert pack(ids, mask, width, keep=torch.zeros(3, dtype=torch.bool)) is None


segments = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.integers(1, 6), min_size=1, max_size=3)),
    min_size=1,
    max_size=3,
)


def by_rows(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Any, scale: float
) -> torch.Tensor:
    """The same attention written down token by token: one mask over everything."""
    length = q.shape[2]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for start, prefix, lengths in layout:
        mask[start : start + prefix, start : start + prefix] = visible(
            0, prefix, prefix, 0, q.device
        )
        at = start + prefix
        for size in lengths:
            mask[at : at + size, start : start + prefix] = True
            mask[at : at + size, at : at + size] = visible(0, size, size, 0, q.device)
            at += size
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)


@settings(max_examples=30, deadline=None)
@given(segments, st.sampled_from([1, 2]), st.sampled_from([8, 16]), st.integers(0, 99))
def test_prefix_attention_and_its_gradients(
    drawn: list[tuple[int, list[int]]], shared: int, width: int, seed: int
) -> None:
    """By torch's kernels, and by the compiled function, which takes heads of 16."""
    layout, start = [], 0
    for prefix, lengths in drawn:
        layout.append((start, prefix, lengths))
        start += prefix + sum(lengths)
    torch.manual_seed(seed)
    shapes = [(1, heads, start, width) for heads in (2, shared, shared)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    weight = torch.randn(shapes[0])
    found = prefix_attention(*inputs, layout, 0.4)
    expected = by_rows(*inputs, layout, 0.4)
    assert torch.allclose(found, expected, atol=1e-5)
    ours = torch.autograd.grad((found * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_under_autocast_queries_and_values_may_differ_in_type() -> None:
    """As in models that norm their queries: fp32 beside bf16, which torch's attention takes."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 7, 8, requires_grad=True) for _ in range(3))
    layout = [(0, 3, [2, 2])]
    with torch.autocast("cpu", torch.bfloat16):
        found = prefix_attention(q, k, v.bfloat16(), layout, 0.4)
    found.sum().backward()
    assert found.dtype == torch.bfloat16 and v.grad is not None
    assert torch.allclose(found.float(), by_rows(q, k, v, layout, 0.4), atol=0.03)


@pytest.mark.parametrize("width", [8, 16])
def test_in_bf16_attention_is_that_of_rounded_numbers(width: int) -> None:
    """With its gradients; by either way, and in the type of what is given."""
    torch.manual_seed(0)
    rounded = [torch.randn(1, heads, 40, width).bfloat16() for heads in (4, 2, 2)]
    layout, weight = [(0, 10, [9, 8]), (27, 0, [13])], torch.randn(1, 4, 40, width)
    found, gradients = [], []
    for dtype in (torch.bfloat16, torch.float32):
        given = [t.to(dtype).requires_grad_() for t in rounded]
        out = prefix_attention(*given, layout, 0.3)
        assert out.dtype == dtype
        found.append(out.detach().float())
        gradients.append(torch.autograd.grad((out * weight.to(dtype)).sum(), given))
    torch.testing.assert_close(*found, atol=2e-2, rtol=2e-2)
    for one, other in zip(*gradients, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() / other.norm() < 0.02


def test_the_padded_way_gives_the_same_as_the_cpus_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on other devices: forced here by a window that is wider than every row."""
    ids, mask, width = table([([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([9], [8, 7, 6, 5])])
    packed = pack(ids, mask, width)
    assert packed is not None
    size = packed.input_ids.shape[1]
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, size, 8), torch.randn(1, 2, size, 8), torch.randn(1, 2, size, 8)
    one = packed.attend(q, k, v, 0.3, 0)
    other = packed.attend(q, k, v, 0.3, 1000)
    assert one.shape == other.shape == (1, size, 4, 8)
    assert torch.allclose(one, other, atol=1e-5)
    narrow = packed.attend(q, k, v, 0.3, 2)
    assert not torch.allclose(one, narrow, atol=1e-2)


def test_with_a_mask_keys_are_repeated_not_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs torch has no kernel for both but the one that holds all scores at once."""
    calls = []

    def attention(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        calls.append((options.get("attn_mask") is not None, options.get("enable_gqa", False)))
        return scaled_dot_product_attention(*tensors, **options)

    monkeypatch.setattr("rl_reasoner.kernels.packing.scaled_dot_product_attention", attention)
    ids, mask, width = table([([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([9], [8, 7, 6, 5])])
    packed = pack(ids, mask, width)
    assert packed is not None
    size = packed.input_ids.shape[1]
    q, k, v = torch.randn(1, 4, size, 8), torch.randn(1, 2, size, 8), torch.randn(1, 2, size, 8)
    for window in (1000, 1):
        packed.attend(q, k, v, 0.3, window)
    assert {*calls} == {(True, False), (False, True)}


def test_the_attention_is_put_back_even_after_an_error() -> None:
    model = open_policy("scratch:dense-tiny", device="cpu").model
    with pytest.raises(ZeroDivisionError), attention_of(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("before", ["sdpa", "eager"])
def test_a_pass_without_a_layout_is_the_models_own(before: str) -> None:
    """With padding, and where its backward pass computes the layers anew."""
    model = open_policy("scratch:dense-tiny", device="cpu").model
    model.config._attn_implementation = before
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ids, mask, width = table([([7, 8, 9], [1, 2]), ([8], [2, 3, 4]), ([8], [5])])
    packed = pack(ids, mask, width)
    assert packed is not None

    def gradients(inside: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with attention_of(model) if inside else nullcontext():
            if inside:
                model.base_model(**arguments(packed))
            logits = model(input_ids=ids, attention_mask=mask).logits
            (logits.logsumexp(-1) * mask).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    model.train()
    for own, found in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(own, found)
    assert model.config._attn_implementation == before
