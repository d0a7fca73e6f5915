"""Attention of rows that share prefixes, on a CPU: no padding, no mask, each prefix read in place.

A row's attention is two parts, one to its prefix and one to itself, each by torch's own fused
kernel; the parts are put together by their log-sum-exps, as ring attention does (arXiv 2310.01889).
The backward of each part needs only the output and the log-sum-exp of the whole. Against one call
a group with padded rows and a mask, this computes a third of the products on typical batches. Where
the machine has compiled `cpp/`, a row's attention is one function of its own: no call for
each of the parts, no copies of keys for the query heads that share them. Knows tensors only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_reasoner.kernels import native

# (start, prefix length, row lengths) each
PrefixSegments = Sequence[tuple[int, int, Sequence[int]]]

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: PrefixSegments, scale: float
) -> Tensor:
    """(1, heads, N, d) queries, (1, kv heads, N, d) keys and values -> (1, heads, N, d).

    A segment is a prefix at `start` with its rows behind it, without gaps between segments: the
    prefix attends to itself, each row to the prefix and itself, causally.
    """
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # as torch's attention: norms give fp32 beside bf16
        query, key, value = (t.to(torch.get_autocast_dtype(kind)) for t in (query, key, value))
    if _fits(query, key, value):  # in bf16, of rounded numbers: torch's kernel is slower for it
        wide = (t.float() for t in (query, key, value))
        own: Tensor = _CompiledAttention.apply(*wide, segments, scale)  # type: ignore[no-untyped-call]
        return own.to(query.dtype)
    times = query.shape[1] // key.shape[1]
    if times > 1:
        key, value = (t.repeat_interleave(times, dim=1) for t in (key, value))
    out: Tensor = _PrefixAttention.apply(query, key, value, segments, scale)  # type: ignore[no-untyped-call]
    return out


def _parts(start: int, prefix: int, lengths: Sequence[int]) -> Iterator[slice]:
    """The prefix, where there is one, and the rows behind it."""
    for length in (prefix, *lengths) if prefix else lengths:
        yield slice(start, start + length)
        start += length


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: PrefixSegments, scale: float
    ) -> Tensor:
        _, heads, length, width = query.shape
        # tokens before heads in memory: what the layer does next is to join the heads
        out = query.new_empty(1, length, heads, width).transpose(1, 2)
        sums = query.new_empty(1, heads, length, dtype=torch.float32)

        def attend(q: slice, k: slice, causal: bool) -> tuple[Tensor, Tensor]:
            parts = query[:, :, q], key[:, :, k], value[:, :, k]
            result: tuple[Tensor, Tensor] = _forward(*parts, 0.0, causal, scale=scale)
            return result

        for start, prefix, lengths in segments:
            first = slice(start, start + prefix)
            for at in _parts(start, prefix, lengths):
                out[:, :, at], sums[:, :, at] = attend(at, at, True)
            if prefix:
                rest = slice(first.stop, first.stop + sum(lengths))
                there, total = attend(rest, first, False)
                total_sums = torch.logaddexp(total, sums[:, :, rest])
                share = (total - total_sums).exp().unsqueeze(-1)
                out[:, :, rest].lerp_(there, share.to(out.dtype).expand_as(there))
                sums[:, :, rest] = total_sums
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        [grad] = grads
        results = [torch.empty_like(t) for t in (query, key, value)]

        def gradients(q: slice, k: slice, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            parts = grad[:, :, q], query[:, :, q], key[:, :, k], value[:, :, k], out[:, :, q]
            result: tuple[Tensor, Tensor, Tensor]
            result = _backward(*parts, sums[:, :, q], 0.0, causal, scale=ctx.scale)
            return result

        for start, prefix, lengths in ctx.segments:
            first = slice(start, start + prefix)
            for at in _parts(start, prefix, lengths):
                for gradient, part in zip(results, gradients(at, at, True), strict=True):
                    gradient[:, :, at] = part
            if prefix:
                rest = slice(first.stop, first.stop + sum(lengths))
                parts = gradients(rest, first, False)
                for gradient, part, at in zip(results, parts, (rest, first, first), strict=True):
                    gradient[:, :, at] += part
        return (*results, None, None)


# -------------------------------------------------------------------------- the compiled function


def _fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the compiled function takes them, as fp32: heads of a width that fills registers."""
    known = all(
        t.dtype in (torch.float32, torch.bfloat16) and t.stride(-1) == 1
        for t in (query, key, value)
    )
    return (
        known and query.shape[-1] % 16 == 0 == query.shape[1] % key.shape[1] and native.available()
    )


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: PrefixSegments, scale: float
    ) -> Tensor:
        _, heads, length, width = query.shape
        out = query.new_empty(1, length, heads, width).transpose(1, 2)
        sums = query.new_empty(heads, length)
        told = [(start, prefix, len(rows), *rows) for start, prefix, rows in segments]
        ctx.told = torch.tensor([number for segment in told for number in segment])
        ctx.sizes = (length, heads, heads // key.shape[1], width, scale, ctx.told, len(told))
        native.run_compiled("attention_forward", *_placed(query, key, value, out), sums, *ctx.sizes)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *given, sums = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        results = [  # tokens before heads in memory, as the layers gave them
            t.new_empty(1, t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2) for t in given[:3]
        ]
        placed = (*_placed(*given), sums, *_placed(grad), *results)
        native.run_compiled("attention_backward", *placed, *ctx.sizes)
        return (*results, None, None)


def _placed(*tensors: Tensor) -> Iterator[Tensor | int]:
    """Each tensor with its strides between tokens and between heads."""
    for tensor in tensors:
        yield from (tensor, tensor.stride(2), tensor.stride(1))
