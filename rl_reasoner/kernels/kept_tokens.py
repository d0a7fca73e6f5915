"""The tokens that a cut-off (top-p, top-k, min-p) kept, as bits: one a token of the vocabulary.

Sampling knows which tokens may be drawn at a position: those with a score above minus infinity. The
training pass takes the same set (DeepSeek-V3.2, arXiv 2512.02556, "Keep Sampling Mask"), tile by
tile of the vocabulary. In between a completion's sets lie deflated: V / 8 bytes a token where
sets are large, 130 for ten tokens of 151,936 that lie anywhere. Knows tensors only.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

_EVERY = 0xFF  # a byte of a position at which nothing is cut off


def width(vocabulary: int) -> int:
    """The bytes of one set."""
    return -(-vocabulary // 8)


def packed_bits(kept: Tensor) -> Tensor:
    """(n, `width`) uint8 of `kept` (n, V) bool; bit i of a byte is its i-th token."""
    rows, vocabulary = kept.shape
    bits = kept.new_zeros(rows, width(vocabulary) * 8, dtype=torch.uint8)
    bits[:, :vocabulary] = kept
    places = 1 << torch.arange(8, device=kept.device, dtype=torch.uint8)
    return (bits.view(rows, -1, 8) * places).sum(-1, dtype=torch.uint8)


def cut_off(tile: Tensor, bits: Tensor, start: int) -> None:
    """Set `tile` (n, w), logits from token `start` on, to minus infinity where they are not kept.

    In place. `bits` (n, `width`); `start` is a multiple of 8.
    """
    size = tile.shape[1]
    some = bits[:, start // 8 : width(start + size)]
    places = 1 << torch.arange(8, device=bits.device, dtype=torch.uint8)
    kept = (some[:, :, None] & places).flatten(1)[:, :size]
    tile.masked_fill_(kept == 0, -torch.inf)


def in_sets(tokens: Tensor, bits: Tensor) -> Tensor:
    """(n,) bool: whether each of `tokens` (n,) is in its set."""
    byte = bits.gather(1, (tokens // 8)[:, None]).squeeze(1)
    return (byte.long() >> (tokens % 8)) % 2 == 1


class KeptWriter:
    """Deflates the sets of one completion, token after token."""

    def __init__(self) -> None:
        self._width = 0
        # a small window: sets are like the byte before, not like the set before
        self._deflate = zlib.compressobj(level=1, wbits=10, memLevel=4)
        self._parts: list[bytes] = []

    def add(self, bits: "np.ndarray") -> None:
        """The set of the next token, (`width`,) uint8."""
        self._width = len(bits)
        self._parts.append(self._deflate.compress(bits.tobytes()))

    def given(self, count: int) -> None:
        """The next `count` tokens, behind a drawn one, are not drawn: nothing is cut off there."""
        self._parts.append(self._deflate.compress(bytes([_EVERY]) * self._width * count))

    def deflated(self) -> Tensor:
        """All sets, (m,) uint8; nothing may be added afterwards."""
        self._parts.append(self._deflate.flush())
        whole = np.frombuffer(b"".join(self._parts), dtype=np.uint8)
        return torch.from_numpy(whole.copy())


def inflated(deflated: Tensor, vocabulary: int) -> Tensor:
    """(n, `width`) uint8: the sets that a `KeptWriter` of that vocabulary was given."""
    whole = bytearray(zlib.decompress(deflated.numpy().tobytes()))
    flat = torch.frombuffer(whole, dtype=torch.uint8) if whole else torch.zeros(0).byte()
    return flat.view(-1, width(vocabulary))
