"""Sampling of many completions at once, for the training step.

`generate` runs each distinct prompt once, whatever the number of its rows; rows then advance
together, one token a pass. Keys and values of a prompt are kept once and shared by its rows; those
of the rows lie in buffers made at the start, so that a step copies nothing; a row that ends leaves
the batch at once, the last row takes its place. What is sampled is distributed as by transformers'
`generate` with the same settings (its own logits processors are used), and the log-probability of
each token under that distribution is kept. A row whose logits are not numbers ends there, with an
end token and the log-probability NaN.

Randomness is counted, not streamed: token t of a row is drawn with the t-th number of a generator
that is keyed by the row's own key (Philox), so a completion does not depend on the rows beside it,
beyond the rounding of its logits. The global generators are not touched. Knows models of
transformers and the attention of rl_reasoner.kernels.packing; nothing of trainers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationMixin

from rl_reasoner.kernels.packed_linear import packed_linears
from rl_reasoner.kernels.packing import attention_of, prompt_attention
from rl_reasoner.moe.routing import SampledRoutes
from rl_reasoner.rollout.sampling_params import SamplingParams, is_the_policy, looks_back

_PREFILL = 8192  # prompt tokens of one pass
_GENERATE = GenerationMixin.generate
OnFinished = Callable[[list[tuple[int, list[int]]]], None]


@dataclass
class SampledCompletion:
    """Token ids up to and with the end token, and the log-probability each was drawn with.

    `policy_logps`: those under the policy at `SamplingParams.policy_temperature`, whatever cut-offs
    and penalties sampling had; empty where no temperature is given.
    """

    ids: list[int]
    logps: list[float]
    policy_logps: list[float] = field(default_factory=list)


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    sampling: SamplingParams,
    routes: SampledRoutes | None = None,
    on_finished: OnFinished | None = None,
    budgets: Sequence[int | None] | None = None,
) -> list[SampledCompletion]:
    """One completion for each of `prompts`, of which equal ones are run once; a key for each.

    `model` is a causal language model that `packing.obstacle` finds nothing against. A key is any
    sequence of numbers >= 0. Greedy where the temperature is 0. `routes` gets the experts chosen.
    `on_finished` is called with (row, token ids) of the
    rows that finished at this step. `budgets` are the
    rows' longest completions, where these are shorter than `sampling.max_tokens`.
    """
    with torch.no_grad(), attention_of(model), packed_linears(model):
        return _Batch(model, prompts, keys, sampling, routes, on_finished, budgets).run()


def generates_as_transformers(model: nn.Module) -> bool:
    """Whether `model.generate` is transformers' own, which `generate` here stands in for."""
    own = getattr(model, "generate", None)
    if isinstance(model, FSDPModule):  # transformers' trainer has torch gather weights before it
        own = getattr(own, "__wrapped__", own)
    return getattr(own, "__func__", None) is _GENERATE


def uniforms(keys: Sequence[Sequence[int]], count: int) -> Tensor:
    """(len(keys), count) float32 in [0, 1): each row's numbers follow from its key alone."""
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key)))).random(
            count, dtype=np.float32
        )
        for key in keys
    ]
    return torch.from_numpy(np.stack(rows))


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(n,) indices from (n, V) probabilities by inversion: the first whose cumulated share is more.

    `uniform` (n,) in [0, 1). Never one with probability 0.
    """
    cumulated = probabilities.cumsum(-1)
    drawn = _first_above(cumulated, uniform * cumulated[:, -1])
    wrong = probabilities.gather(1, drawn[:, None]).squeeze(1) == 0
    if wrong.any():  # sums of a parallel scan are rounded each in its way: one may rise by nothing
        rising = (
            cumulated[wrong].masked_fill(probabilities[wrong] == 0, -torch.inf).cummax(-1).values
        )
        drawn[wrong] = _first_above(rising, uniform[wrong] * rising[:, -1])
    return drawn


def _first_above(cumulated: Tensor, wanted: Tensor) -> Tensor:
    """(n,) of each row of (n, V) the first index that is above `wanted` (n,), or has the total."""
    total = cumulated[:, -1]
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, wanted[:, None], right=True).squeeze(1)


# ------------------------------------------------------------------------------------- the keys


class _Prefill:
    """The layout of prompts packed into one row; `caches` gets their keys and values."""

    def __init__(self, lengths: Sequence[int], first: int, caches: "_Caches") -> None:
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


class _Caches:
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
        """A pass is done: its tokens are behind the next one's."""
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
            self.own.append(
                (
                    key.new_empty(self.rows, shared, self.capacity, key.shape[-1]),
                    value.new_empty(self.rows, shared, self.capacity, value.shape[-1]),
                )
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
        """(prompts, 1, 1, P) bool: the prompts' tokens that the new ones do not see any more."""
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
        """The way back."""
        table = tensor.unflatten(2, (self.slots, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return table.flatten(0, 1)[self.place]  # type: ignore[no-any-return]

    def evict(self, holes: Tensor, movers: Tensor, groups: Tensor) -> Tensor:
        """Rows `movers` take the places `holes`; prompts without a row are dropped.

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


# ------------------------------------------------------------------------------------ the batch


class _Batch:
    """The rows of one call, from their prompts to their last tokens."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        sampling: SamplingParams,
        routes: SampledRoutes | None,
        on_finished: OnFinished | None,
        budgets: Sequence[int | None] | None,
    ) -> None:
        self.model = model
        self.on_finished = on_finished
        self.sampling = sampling
        self.routes = routes
        self.device = next(model.parameters()).device
        numbers: dict[tuple[int, ...], int] = {}
        members = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        self.prompts = list(numbers)
        self.groups = torch.tensor(members)  # of the live rows
        self.order = torch.arange(len(prompts))  # live row -> row
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.caches = _Caches(
            [len(p) for p in self.prompts], self.groups, sampling.max_tokens, self.device
        )
        self.ids = torch.zeros(len(prompts), sampling.max_tokens, dtype=torch.long)
        self.logps = torch.zeros(len(prompts), sampling.max_tokens)
        self.policy_logps: Tensor | None = None  # where they are asked for and others
        sampled = sampling.settings.do_sample
        self.uniforms = uniforms(keys, sampling.max_tokens) if sampled else None
        lengths = sorted(set(self.lengths.tolist()))
        self.processors = {length: sampling.processors(model, length) for length in lengths}
        if (temperature := sampling.policy_temperature) is not None and not all(
            is_the_policy(processors, temperature) for processors in self.processors.values()
        ):
            self.policy_logps = torch.zeros_like(self.logps)
        self.ends = torch.tensor(sampling.ends)
        self.counts = torch.zeros(len(prompts), dtype=torch.long)
        longest = sampling.max_tokens
        self.budgets = torch.tensor([b or longest for b in budgets or [None] * len(prompts)])
        looks = looks_back(self.processors[lengths[0]])
        self.seen = self._padded(prompts) if looks or sampling.stop else None

    def run(self) -> list[SampledCompletion]:
        """Prompts, then token by token until no row is left."""
        logits = torch.cat(list(self._prefill()))[self.groups.to(self.device)]
        if self.routes is not None:
            self.routes.start(self.groups, self.sampling.max_tokens)
        while True:
            tokens = self._sample(logits.float())
            tokens = self._leave(tokens)
            if not len(tokens):
                break
            logits = self._step(tokens)
        wanted = self.sampling.policy_temperature is not None
        own = self.logps if self.policy_logps is None else self.policy_logps
        table = zip(*(t.tolist() for t in (self.ids, self.logps, own, self.counts)), strict=True)
        return [
            SampledCompletion(ids[:count], logps[:count], policy[:count] if wanted else [])
            for ids, logps, policy, count in table
        ]

    def _prefill(self) -> Iterator[Tensor]:
        """Logits (prompts, V) behind each prompt, in passes of at most `_PREFILL` tokens."""
        first = 0
        while first < len(self.prompts):
            last, size = first + 1, len(self.prompts[first])
            while last < len(self.prompts) and size + len(self.prompts[last]) <= _PREFILL:
                size += len(self.prompts[last])
                last += 1
            chunk = self.prompts[first:last]
            lengths = [len(prompt) for prompt in chunk]
            positions = [position for length in lengths for position in range(length)]
            ends = torch.tensor(lengths).cumsum(0) - 1
            yield self._logits(
                [[token for prompt in chunk for token in prompt]],
                [positions],
                packed=_Prefill(lengths, first, self.caches),
                logits_to_keep=ends.to(self.device),
            )[0]
            if self.routes is not None:
                self.routes.prompts(lengths)
            first = last

    def _step(self, tokens: Tensor) -> Tensor:
        positions = self.lengths[self.order] + self.caches.time
        logits = self._logits(tokens[:, None], positions[:, None], packed=self.caches)
        self.caches.advance()
        if self.routes is not None:
            self.routes.step(self.order, self.caches.time)
        return logits[:, -1]

    def _logits(self, ids: Any, positions: Any, **layout: Any) -> Tensor:
        logits: Tensor = self.model(
            input_ids=torch.as_tensor(ids, device=self.device),
            position_ids=torch.as_tensor(positions, device=self.device),
            use_cache=False,
            **layout,
        ).logits
        return logits

    def _sample(self, logits: Tensor) -> Tensor:
        """Draw (rows,) tokens, and write them down."""
        tokens: Tensor
        step = self.caches.time
        if not step and self.sampling.begin_suppress:
            logits[:, list(self.sampling.begin_suppress)] = -torch.inf
        scores = self._processed(logits)
        logps = scores.log_softmax(-1)
        broken = logps.isnan().any(-1)  # a row without a distribution: it ends here
        logps[broken] = -torch.inf
        logps[broken, self.sampling.ends[0]] = 0.0
        if self.uniforms is None:
            tokens = logps.argmax(-1)
        else:
            uniform = self.uniforms[self.order, step].to(self.device)
            tokens = draw(logps.exp(), uniform)
        chosen = logps.gather(1, tokens[:, None]).squeeze(1).masked_fill(broken, torch.nan).cpu()
        if self.policy_logps is not None:
            scaled = logits / (self.sampling.policy_temperature or 1.0)
            own = scaled.gather(1, tokens[:, None]).squeeze(1) - scaled.logsumexp(-1)
            self.policy_logps[self.order, step] = own.masked_fill(broken, torch.nan).cpu()
        tokens = tokens.cpu()
        self.ids[self.order, step] = tokens
        self.logps[self.order, step] = chosen
        self.counts[self.order] = step + 1
        if self.seen is not None:
            self.seen[self.order, self.seen.shape[1] - self.sampling.max_tokens + step] = tokens
        return tokens

    def _processed(self, logits: Tensor) -> Tensor:
        """(rows, V) the logits behind transformers' processors, each row's as if it were alone."""
        if self.seen is None:
            by_logits: Tensor = next(iter(self.processors.values()))(None, logits)
            return by_logits
        scores = torch.empty_like(logits)
        for length, rows, ids in self._rows_seen(self.caches.time):
            rows = rows.to(self.device)
            scores[rows] = self.processors[length](ids, logits[rows])
        return scores

    def _rows_seen(self, step: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Live rows by the length of their prompts: length, places, ids with `step` drawn ones."""
        assert self.seen is not None
        longest = self.seen.shape[1] - self.sampling.max_tokens
        lengths = self.lengths[self.order]
        for length in sorted(set(lengths.tolist())):
            rows = (lengths == length).nonzero().flatten()
            ids = self.seen[self.order[rows], longest - length : longest + step]
            yield length, rows, ids.to(self.device)

    def _stopped(self, tokens: Tensor) -> Tensor:
        """(rows,) bool: the rows that end with `tokens`."""
        found = torch.isin(tokens, self.ends)
        if self.sampling.stop is not None:
            for _, rows, ids in self._rows_seen(self.caches.time + 1):
                found[rows] |= self.sampling.stop(ids, None).cpu()
        return found

    def _leave(self, tokens: Tensor) -> Tensor:
        """Take the rows that ended out of the batch; the tokens of those left, in their order."""
        count = self.caches.time + 1
        last = count == self.sampling.max_tokens
        alive = torch.zeros_like(tokens).bool() if last else ~self._stopped(tokens)
        alive &= self.budgets[self.order] > count
        if self.on_finished is not None and not alive.all():
            gone = self.order[~alive].tolist()
            self.on_finished([(row, self.ids[row, : self.counts[row]].tolist()) for row in gone])
        left = int(alive.sum())
        if left in (0, len(tokens)):
            return tokens[:left]
        rows = torch.arange(len(tokens))
        holes = rows[:left][~alive[:left]]
        movers = rows[left:][alive[left:]]
        for row in (tokens, self.order, self.groups):
            row[holes] = row[movers]
        self.order = self.order[:left]
        self.groups = self.caches.evict(holes, movers, self.groups[:left])
        return tokens[:left]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(rows, longest prompt + max_tokens): the prompts end in the same column."""
        longest = max(map(len, prompts))
        rows = [
            [*[p[0]] * (longest - len(p)), *p, *[0] * self.sampling.max_tokens] for p in prompts
        ]
        return torch.tensor(rows)
