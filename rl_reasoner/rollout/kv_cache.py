"""Keys and values while completions are sampled: a prompt's once, whatever the number of its rows.

Both classes are layouts of rl_reasoner.kernels.packing: `Prefill` attends in a pass over whole
prompts and stores them, `KVCache` in a pass over one new token of each row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rl_reasoner.kernels.packing import prompt_attention


class KVCache:
    """Keys and values of every attention call: of the prompts, and of the rows that are alive.

    The layout of a pass over one new token of each row: (rows, heads, 1, d). Calls are told apart
    by their order in a pass, not by their layer: a layer may attend twice, or be run again.
    """

    def __init__(
        self, lengths: Sequence[int], groups: Tensor, capacity: int, device: torch.device
    ) -> None:
        self.lengths = torch.tensor(lengths)
        self.capacity = capacity
        self.device = device
        self.rows = len(groups)  # rows that buffers were made for
        self.prompt: list[tuple[Tensor, Tensor]] = []  # of a call: (prompts, kv heads, P, d)
        self.own: list[tuple[Tensor, Tensor]] = []  # of a call: (rows, kv heads, capacity, d)
        self.time = 0  # tokens in `own`
        self.calls = 0  # of the attention in this pass
        self._far: dict[int, Tensor] = {}  # window -> what of the prompts is outside in this pass
        self._place(groups)

    def _place(self, groups: Tensor) -> None:
        """Give each row a slot beside the other rows of its prompt; `groups` (rows,)."""
        counts = torch.bincount(groups, minlength=len(self.lengths))
        order = groups.argsort(stable=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(groups)) - (counts.cumsum(0) - counts)[groups[order]]
        self.slots = int(counts.max())
        place = groups * self.slots + rank
        row = torch.zeros(len(self.lengths) * self.slots, dtype=torch.long)
        row[place] = torch.arange(len(groups))
        short = torch.arange(int(self.lengths.max())) >= self.lengths[:, None]
        # on the model's device from here on: every layer of every pass uses them
        self.place, self.row = place.to(self.device), row.to(self.device)  # row -> slot, and back
        self.padding = short[:, None, None, :].to(self.device) if short.any() else None
        self._far.clear()

    def advance(self) -> None:
        """Count the tokens of the pass that is done."""
        self.time += 1
        self.calls = 0
        self._far.clear()

    def store_prompt(self, call: int, number: int, key: Tensor, value: Tensor) -> None:
        """Keep (kv heads, length, d) of one prompt, padded on the right to the longest."""
        if call == len(self.prompt):
            shape = (len(self.lengths), key.shape[0], int(self.lengths.max()))
            self.prompt.append(
                (key.new_zeros(*shape, key.shape[-1]), value.new_zeros(*shape, value.shape[-1]))
            )
        for buffer, tensor in zip(self.prompt[call], (key, value), strict=True):
            buffer[number, :, : tensor.shape[1]] = tensor

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Each row attends to its prompt and to its own tokens, with the new one."""
        rows, heads = query.shape[:2]
        shared = key.shape[1]
        if self.calls == len(self.own):
            shape = (self.rows, shared, self.capacity)
            self.own.append(
                (key.new_empty(*shape, key.shape[-1]), value.new_empty(*shape, value.shape[-1]))
            )
        own_keys, own_values = self.own[self.calls]
        prompt_keys, prompt_values = self.prompt[self.calls]
        self.calls += 1
        own_keys[:rows, :, self.time] = key[:, :, 0]
        own_values[:rows, :, self.time] = value[:, :, 0]
        first = max(0, self.time + 1 - window) if window else 0
        keys, values = (
            t.view(-1, *t.shape[2:])[: rows * shared, first : self.time + 1]
            for t in (own_keys, own_values)
        )
        query = query.reshape(rows, shared, heads // shared, -1) * scale
        before = self._scores(prompt_keys, query, window)  # (rows, kv heads, queries, P)
        own = torch.bmm(query.flatten(0, 1), keys.transpose(1, 2)).view(*before.shape[:3], -1)
        scores = torch.cat((before, own), dim=-1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        there, here = torch.split(weights, [before.shape[-1], own.shape[-1]], dim=-1)
        out = torch.bmm(here.flatten(0, 1), values).view(*before.shape[:3], -1)
        out = out + self._by_row(self._by_prompt(there) @ prompt_values)
        return out.reshape(rows, 1, heads, -1)

    def _scores(self, keys: Tensor, query: Tensor, window: int) -> Tensor:
        scores = self._by_prompt(query) @ keys.transpose(2, 3)
        if self.padding is not None:
            scores = scores.masked_fill(self.padding, -torch.inf)
        if window:
            scores = scores.masked_fill(self._outside(window), -torch.inf)
        return self._by_row(scores)

    def _outside(self, window: int) -> Tensor:
        """(prompts, 1, 1, P) bool: prompt tokens outside the new tokens' attention window."""
        if window not in self._far:
            columns = torch.arange(int(self.lengths.max()))
            far = columns <= (self.lengths + self.time - window)[:, None]
            self._far[window] = far[:, None, None, :].to(self.device)
        return self._far[window]

    def _by_prompt(self, tensor: Tensor) -> Tensor:
        """(rows, kv heads, queries, x) -> (prompts, kv heads, slots * queries, x)."""
        table = tensor[self.row].unflatten(0, (-1, self.slots))  # type: ignore[no-untyped-call]
        return table.transpose(1, 2).flatten(2, 3)  # type: ignore[no-any-return]

    def _by_row(self, tensor: Tensor) -> Tensor:
        """The inverse of `_by_prompt`."""
        table = tensor.unflatten(2, (self.slots, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return table.flatten(0, 1)[self.place]  # type: ignore[no-any-return]

    def evict(self, holes: Tensor, movers: Tensor, groups: Tensor) -> Tensor:
        """Move rows `movers` to the places `holes` and drop prompts without a row.

        `groups` (rows left,) are the rows' prompts; they are returned by their new numbers.
        """
        renumbered: Tensor
        if len(holes):
            there, here = holes.to(self.device), movers.to(self.device)
            for buffers in self.own:
                for buffer in buffers:
                    buffer[there, :, : self.time] = buffer[here, :, : self.time]
        kept, renumbered = torch.unique(groups, return_inverse=True)
        if len(kept) < len(self.lengths):
            self.lengths = self.lengths[kept]
            longest, at = int(self.lengths.max()), kept.to(self.device)
            for call, (key, value) in enumerate(self.prompt):  # one after the other, for the memory
                self.prompt[call] = (key[at][:, :, :longest], value[at][:, :, :longest])
        self._place(renumbered)
        return renumbered


class Prefill:
    """The layout of prompts packed into one row; `caches` gets their keys and values."""

    def __init__(self, lengths: Sequence[int], first: int, caches: KVCache) -> None:
        self.lengths = lengths
        self.first = first
        self.caches = caches
        self.calls = 0  # of the attention in this pass

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Causal attention within each prompt."""
        outs = []
        parts = (torch.split(t, list(self.lengths), dim=2) for t in (query, key, value))
        for number, (q, k, v) in enumerate(zip(*parts, strict=True), self.first):
            self.caches.store_prompt(self.calls, number, k[0], v[0])
            outs.append(prompt_attention((q, k, v), scale, window))
        self.calls += 1
        return torch.cat(outs, dim=2).transpose(1, 2)
