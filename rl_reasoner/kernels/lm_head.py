"""The LM head on a CPU: log-probabilities of given tokens, without a table of logits.

trl's fused head goes over the vocabulary in wide tiles, with a dozen passes over each tile where
no Triton is. Here a tile stays in the processor's cache and is passed over four times, and the
forward pass also keeps the expected row of the head's weight, E_p[w] (N, H): it gives the entropy,
log Z - h.E_p[w], and in the backward pass the hidden states' gradient, g (w_y - E_p[w]), without a
product of its own. `FusedHead` takes the place of trl's, for fp32 weights on a CPU, under autocast
in fp32 too; anything else (other types, bias, softcap, entropies with a gradient) stays with trl's.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_reasoner.kernels.products import product_of

_TILE = 1 << 20  # numbers in a tile of logits: 4 MB
_TOKENS = 4096  # in a tile


class _HeadLogProbs(torch.autograd.Function):
    """Of hidden states (N, H), weight (V, H), targets (N,): log-probs and entropies (N,)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        parts = [_statistics(rows * scale, weight) for rows in torch.split(hidden, _TOKENS)]
        log_z, expected = (torch.cat(part) for part in zip(*parts, strict=True))
        chosen = (hidden * weight[targets]).sum(1) * scale
        entropy = log_z - (hidden * expected).sum(1) * scale
        ctx.save_for_backward(hidden, weight, targets, log_z, expected)
        ctx.scale = scale
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return chosen - log_z, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z, expected = ctx.saved_tensors
        if grads[0] is None:
            return None, None, None, None
        grad = (grads[0] * ctx.scale)[:, None]  # of the target's scaled logit
        by_hidden = by_weight = None
        if ctx.needs_input_grad[0]:
            by_hidden = (weight[targets] - expected) * grad
        if ctx.needs_input_grad[1]:
            by_weight = torch.zeros_like(weight).index_add_(0, targets, hidden * grad)
            for at in range(0, len(hidden), _TOKENS):
                rows = slice(at, at + _TOKENS)
                scaled = hidden[rows] * ctx.scale
                for part in _tiles(len(scaled), len(weight)):  # less each word's share of `grad`
                    tile = product_of(scaled, weight[part], "forward")
                    tile.sub_(log_z[rows, None]).exp_().mul_(grad[rows])
                    tile.neg_()
                    product_of(tile.t(), hidden[rows].t(), "weight", by_weight[part])
        return by_hidden, by_weight, None, None


def _tiles(count: int, vocabulary: int) -> Iterator[slice]:
    width = max(_TILE // max(count, 1), 256)
    for start in range(0, vocabulary, width):
        yield slice(start, min(start + width, vocabulary))


def _statistics(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """log Z (n,) of the logits of scaled hidden states (n, H), and E_p[w] (n, H)."""
    largest = hidden.new_full((len(hidden), 1), -torch.inf)
    total, expected = torch.zeros_like(largest), torch.zeros_like(hidden)
    for part in _tiles(len(hidden), len(weight)):
        tile = product_of(hidden, weight[part], "forward")
        top = torch.maximum(largest, tile.amax(1, keepdim=True))
        shrunk = (largest - top).exp_()
        tile.sub_(top).exp_()
        total.mul_(shrunk).add_(tile.sum(1, keepdim=True))
        product_of(tile, weight[part].t(), "input", expected.mul_(shrunk))
        largest = top
    return (largest + total.log()).squeeze(1), expected.div_(total)


class FusedHead:
    """Takes the place of trl's function, `theirs`: the same call, ours where it can be."""

    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> Any:
        """As trl's ChunkedLogProbFunction: log-probs, entropies, three outputs not asked for."""
        plain = bias is None and softcap is None and set(outputs) <= {"log_probs", "entropy"}
        mixed = torch.is_autocast_enabled("cpu")  # hidden states in low precision, weights in fp32
        fp32 = weight.dtype == torch.float32 and (mixed or hidden.dtype == torch.float32)
        if hidden.device.type == "cpu" and plain and fp32:
            scale = logit_scale / temperature
            with torch.autocast("cpu", enabled=False):
                given = (hidden.float(), weight, targets, scale)
                logps, entropy = _HeadLogProbs.apply(*given)  # type: ignore[no-untyped-call]
            return logps, entropy, None, None, None
        others = (bias, targets, temperature, chunk_size, softcap, logit_scale, outputs)
        return self.theirs.apply(hidden, weight, *others)
