"""Passes over many tokens of a sequence: prompts, and what follows a row that comes back.

`Prefill` is the layout of rl_reasoner.kernels.packing in a pass over parts of them, whose keys and
values it stores: a prompt's in the cache, a row's in its `CachedRow`. Knows tensors only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl_reasoner.kernels.packing import prompt_attention
from rl_reasoner.rollout.kv_cache import Buffers, CachedPrompt, CachedRow, KVCache, on_device


@dataclass(frozen=True)
class PromptPart:
    """Tokens `start` ... `start` + `length` - 1 of a prompt."""

    prompt: CachedPrompt
    start: int
    length: int

    @property
    def position(self) -> int:
        """Of its first token."""
        return self.start

    def store(self, cache: KVCache, call: int, key: Tensor, value: Tensor) -> Buffers:
        """Keep (kv heads, n, d) of its tokens; (1, kv heads, n, d) of all that they see."""
        whole = cache.store_prompt(call, self.prompt.slot, self.start, key, value)
        return whole if self.start else (key[None], value[None])


@dataclass(frozen=True)
class RowPart:
    """Own tokens `start` ... `start` + `length` - 1 of a row without a slot."""

    row: CachedRow
    start: int
    length: int

    @property
    def position(self) -> int:
        """Of its first token."""
        return self.row.prompt.length + self.start

    def store(self, cache: KVCache, call: int, key: Tensor, value: Tensor) -> Buffers:
        """Keep (kv heads, n, d) of its tokens; (1, kv heads, n, d) of all that they see."""
        prompt, pairs = self.row.prompt, self.row.pairs
        own: list[Tensor] = []
        whole: list[Tensor] = []
        for i, new in enumerate((key, value)):
            before = cache.prompt[call][i][prompt.slot, :, : prompt.length]
            kept = new.to(before.dtype)
            if self.start:
                kept = torch.cat((pairs[call][i][:, : self.start], kept), dim=1)
            own.append(kept)
            whole.append(torch.cat((before, kept), dim=1)[None].to(new.dtype))
        pairs[call : call + 1] = [(own[0], own[1])]
        return whole[0], whole[1]


class Prefill:
    """The layout of parts of prompts and rows packed into one row; `cache` gets what they store.

    What comes before a part is in the cache already, or in a part before it.
    """

    def __init__(self, parts: Sequence[PromptPart | RowPart], cache: KVCache) -> None:
        self.parts = parts
        self.cache = cache
        self._calls = 0  # of the attention in this pass

    @property
    def positions(self) -> Tensor:
        """(tokens,) positions of the parts' tokens."""
        ranges = [np.arange(p.position, p.position + p.length) for p in self.parts]
        return on_device(np.concatenate(ranges), self.cache.device)

    @property
    def reach(self) -> int:
        """The number of positions that the parts reach."""
        return max(part.position + part.length for part in self.parts)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Causal attention within each prompt, and of each row to its prompt and itself."""
        outs = []
        lengths = [part.length for part in self.parts]
        tables = (torch.split(t, lengths, dim=2) for t in (query, key, value))
        for part, q, k, v in zip(self.parts, *tables, strict=True):
            seen = part.store(self.cache, self._calls, k[0], v[0])
            outs.append(prompt_attention((q, *seen), scale, window))
        self._calls += 1
        return torch.cat(outs, dim=2).transpose(1, 2)
