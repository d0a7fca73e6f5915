"""CUDA graphs of the pass over one new token of each row: a step is one launch, not hundreds.

A graph replays fixed shapes at fixed addresses. `StaticRows` is the layout of such a pass: rows
are padded to a bucket, attention reads whole tiles of the cache and masks by the lengths that lie
on the device, and the tables of who shares a prompt are written in place. `Graphs` captures a pass
for each shape that comes by, keeps it while the cache's buffers stay where they are, and replays
it. Without CUDA the same pass runs on the same buffers, uncaptured: so it is tested. Never run on a
GPU so far.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_reasoner.rollout.kv_cache import KVCache, by_prompt, by_row, unseen

_ROWS = (1, 2, 4, 8)  # buckets of rows; then multiples of the last one
_TILE = 64  # tokens of a row's own that a graph is made for at a time
_MOST = 64  # graphs that are kept
RunPass = Callable[[Tensor, "StaticRows"], tuple[Tensor, Tensor | None]]
logger = logging.getLogger(__name__)


def bucket(rows: int, most: int) -> int:
    """The number of rows that a pass over `rows` is padded to; at most `most`."""
    size = next((size for size in _ROWS if size >= rows), -(-rows // _ROWS[-1]) * _ROWS[-1])
    return min(size, most)


class StaticRows:
    """The layout of a padded pass; see the module. For one version of the cache's buffers.

    `rows`: with the padding; `width`: rows that a prompt has place for; `own`, `before`: tokens of
    rows and of prompts that are read.
    """

    def __init__(self, cache: KVCache, rows: int, width: int, own: int, before: int) -> None:
        self.cache = cache
        self.rows, self.width, self.own, self.before = rows, width, own, before
        self.tokens = torch.zeros(rows, dtype=torch.long, device=cache.device)
        self._place = torch.zeros_like(self.tokens)
        self._table = self.tokens.new_zeros(cache.prompt_slots * width)
        self._index = torch.arange(rows, device=cache.device)
        self._columns = torch.arange(max(own, before), device=cache.device)
        self._calls = 0
        self.membership = -1

    def take(self, tokens: Tensor) -> None:
        """Put the tokens of the live rows, and who they are, into the buffers."""
        cache = self.cache
        self.tokens[: cache.rows].copy_(tokens, non_blocking=True)
        if self.membership != cache.membership:
            places, table = cache.table(self.width)
            self._table.zero_()[: len(table)].copy_(table)
            self._place[: cache.rows].copy_(places)
            self.membership = cache.membership
        self._calls = 0

    @property
    def positions(self) -> Tensor:
        """(rows,) positions of the new tokens."""
        prompts = self.cache.prompt_lengths[self.cache.prompt_of[: self.rows]]
        return prompts + self.cache.own_lengths[: self.rows]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """As `KVCache.attend`, on shapes that do not depend on lengths."""
        rows, heads = query.shape[:2]
        cache, shared = self.cache, key.shape[1]
        pair = cache.own[self._calls]
        keys, values = (t[:, :, : self.before] for t in cache.prompt[self._calls])
        self._calls += 1
        own_lengths = cache.own_lengths[:rows]
        for buffer, new in zip(pair, (key, value), strict=True):
            buffer[self._index, :, own_lengths] = new[:, :, 0]
        own_keys, own_values = (t[:rows, :, : self.own] for t in pair)
        query = query.reshape(rows, shared, heads // shared, -1) * scale
        table, places, width = self._table, self._place, self.width
        before = by_row(by_prompt(query, table, width) @ keys.transpose(2, 3), places, width)
        scores = torch.cat((before, query @ own_keys.transpose(2, 3)), dim=-1)
        scores = scores.masked_fill(self._hidden(own_lengths, window), -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        there, here = torch.split(weights, [self.before, self.own], dim=-1)
        out = here @ own_values + by_row(by_prompt(there, table, width) @ values, places, width)
        joined: Tensor = out.reshape(rows, 1, heads, -1)
        return joined

    def _hidden(self, own: Tensor, window: int) -> Tensor:
        """(rows, 1, 1, before + own) bool: what a row does not see."""
        own = own[:, None]
        prompts = self.cache.prompt_lengths[self.cache.prompt_of[: self.rows], None]
        before, behind = self._columns[: self.before], self._columns[: self.own]
        return unseen(before, prompts, behind, own, window)


class Graphs:
    """A pass, `run`, captured once for each shape; see the module."""

    def __init__(self, run: RunPass) -> None:
        self._run = run
        self._made: dict[tuple[int, ...], tuple[StaticRows, Any, tuple[Tensor, Tensor | None]]] = {}
        self._version = -1
        self._captures = True

    def step(self, tokens: Tensor, cache: KVCache) -> tuple[Tensor, Tensor | None]:
        """Run the pass for the live rows: its results, cut to them."""
        cache.make_room()
        if self._version != cache.version or len(self._made) >= _MOST:
            self._made.clear()
            self._version = cache.version
        key = self._key(cache)
        if key not in self._made:
            rows = StaticRows(cache, *key)
            rows.take(tokens)
            self._made[key] = (rows, *self._capture(rows))
        rows, graph, outs = self._made[key]
        rows.take(tokens)
        if graph is None:
            outs = self._run(rows.tokens, rows)
        else:
            graph.replay()
        states, chosen = outs
        return states[: cache.rows].clone(), None if chosen is None else chosen[
            : cache.rows
        ].clone()

    def _key(self, cache: KVCache) -> tuple[int, ...]:
        own = min(-(-(cache.longest + 1) // _TILE) * _TILE, cache.capacity)
        width = bucket(cache.most_rows, cache.rows)
        return bucket(cache.rows, cache.slots), width, own, cache.prompt_capacity

    def _capture(self, rows: StaticRows) -> tuple[Any, tuple[Tensor, Tensor | None]]:
        """A graph of the pass and its results; None and results where it cannot be captured."""
        outs = self._run(rows.tokens, rows)  # writes what the replay writes again
        if rows.tokens.device.type != "cuda" or not self._captures:
            return None, outs
        rows.take(rows.tokens[: rows.cache.rows].clone())
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                outs = self._run(rows.tokens, rows)
        except RuntimeError as error:  # an operation that waits for the host
            logger.warning("sampling goes without CUDA graphs: %s", error)
            self._captures = False
            return None, outs
        return graph, outs
