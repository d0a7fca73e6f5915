"""The LM head on a CPU: log-probabilities of given tokens, without a table of logits.

trl's fused head goes over the vocabulary in wide tiles, with a dozen passes over each tile where
no Triton is. Here a tile stays in the processor's cache and is passed over four times, and the
forward pass also keeps the expected row of the head's weight, E_p[w] (N, H): it gives the entropy,
log Z - h.E_p[w], and in the backward pass the hidden states' gradient, g (w_y - E_p[w]), without a
product of its own. `FusedHead` takes the place of trl's, for fp32 weights on a CPU, under autocast
in fp32 too; anything else (other types, bias, softcap, entropies with a gradient) stays with trl's.

With `kept`, the sets of tokens that sampling was cut off to, all of that is of the distribution
over the set alone: what is not in it has a logit of minus infinity. trl's has no such thing, so
this head is then used for every type and device.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl_reasoner.errors import UserError
from rl_reasoner.kernels.kept_tokens import cut_off, in_sets
from rl_reasoner.kernels.products import product_of

_TILE = 1 << 20  # numbers in a tile of logits: 4 MB
_TOKENS = 4096  # in a tile


class _HeadLogProbs(torch.autograd.Function):
    """Of hidden states (N, H), weight (V, H), targets (N,): log-probs and entropies (N,).

    `kept` (N, V / 8) uint8, or None: the sets that the distributions are over.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, kept: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        parts = [
            _statistics(hidden[rows] * scale, weight, None if kept is None else kept[rows])
            for rows in _rows(len(hidden))
        ]
        log_z, expected = (torch.cat(part) for part in zip(*parts, strict=True))
        chosen = (hidden * weight[targets]).sum(1) * scale
        entropy = log_z - (hidden * expected).sum(1) * scale
        ctx.save_for_backward(hidden, weight, targets, log_z, expected)
        ctx.scale, ctx.kept = scale, kept
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return chosen - log_z, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z, expected = ctx.saved_tensors
        if grads[0] is None:
            return None, None, None, None, None
        grad = (grads[0] * ctx.scale)[:, None]  # of the target's scaled logit
        by_hidden = by_weight = None
        if ctx.needs_input_grad[0]:
            by_hidden = (weight[targets] - expected) * grad
        if ctx.needs_input_grad[1]:
            by_weight = torch.zeros_like(weight).index_add_(0, targets, hidden * grad)
            for rows in _rows(len(hidden)):
                scaled = hidden[rows] * ctx.scale
                for part in _tiles(len(scaled), len(weight)):  # less each word's share of `grad`
                    tile = product_of(scaled, weight[part], "forward")
                    if ctx.kept is not None:
                        cut_off(tile, ctx.kept[rows], part.start)
                    tile.sub_(log_z[rows, None]).exp_().mul_(grad[rows])
                    tile.neg_()
                    product_of(tile.t(), hidden[rows].t(), "weight", by_weight[part])
        return by_hidden, by_weight, None, None, None


def _rows(count: int) -> Iterator[slice]:
    for start in range(0, max(count, 1), _TOKENS):
        yield slice(start, start + _TOKENS)


def _tiles(count: int, vocabulary: int) -> Iterator[slice]:
    width = max(_TILE // max(count, 1), 256) // 8 * 8  # whole bytes of a set
    for start in range(0, vocabulary, width):
        yield slice(start, min(start + width, vocabulary))


def _statistics(hidden: Tensor, weight: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """log Z (n,) of the logits of scaled hidden states (n, H), and E_p[w] (n, H)."""
    # finite: of a row, all of a tile may be cut off
    largest = hidden.new_full((len(hidden), 1), torch.finfo(hidden.dtype).min)
    total, expected = torch.zeros_like(largest), torch.zeros_like(hidden)
    for part in _tiles(len(hidden), len(weight)):
        tile = product_of(hidden, weight[part], "forward")
        if kept is not None:
            cut_off(tile, kept, part.start)
        top = torch.maximum(largest, tile.amax(1, keepdim=True))
        shrunk = (largest - top).exp_()
        tile.sub_(top).exp_()
        total.mul_(shrunk).add_(tile.sum(1, keepdim=True))
        product_of(tile, weight[part].t(), "input", expected.mul_(shrunk))
        largest = top
    return (largest + total.log()).squeeze(1), expected.div_(total)


class FusedHead:
    """Takes the place of trl's function, `theirs`: the same call, ours where it can be.

    `kept` (N, V / 8) uint8: the sets that the next call's distributions are over; None for all.
    """

    def __init__(self, theirs: Any, kept: Tensor | None = None) -> None:
        self.theirs, self.kept = theirs, kept

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
        """As trl's ChunkedLogProbFunction: log-probs, entropies, three outputs not asked for.

        Raises `UserError` for sets and a head that does more than a product.
        """
        plain = bias is None and softcap is None and set(outputs) <= {"log_probs", "entropy"}
        mixed = torch.is_autocast_enabled("cpu")  # hidden states in low precision, weights in fp32
        fp32 = weight.dtype == torch.float32 and (mixed or hidden.dtype == torch.float32)
        if self.kept is not None and not plain:
            raise UserError(
                "keep_sampling_mask: the policy's head has a bias or a soft cap, which is not done "
                "over a set of tokens: set keep_sampling_mask=False, or sample without a cut-off"
            )
        if self.kept is not None and not bool(in_sets(targets.flatten(), self.kept).all()):
            raise UserError(
                "keep_sampling_mask: a token is none of those that it was drawn from: this pass is "
                "over other rows than were sampled; give it those, or set it to False"
            )
        if self.kept is not None or (hidden.device.type == "cpu" and plain and fp32):
            scale = logit_scale / temperature
            with torch.autocast(hidden.device.type, enabled=False):
                given = (hidden.float(), weight.float(), targets, scale, self.kept)
                logps, entropy = _HeadLogProbs.apply(*given)  # type: ignore[no-untyped-call]
            return logps, entropy, None, None, None
        others = (bias, targets, temperature, chunk_size, softcap, logit_scale, outputs)
        return self.theirs.apply(hidden, weight, *others)
