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
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationMixin

from rl_reasoner.kernels.packed_linear import packed_linears
from rl_reasoner.kernels.packing import attention_of
from rl_reasoner.moe.routing import SampledRoutes
from rl_reasoner.rollout.decode_pass import DecodePass, decode_pass
from rl_reasoner.rollout.kv_cache import KVCache, Part, Prefill
from rl_reasoner.rollout.sampling_params import SamplingParams, is_the_policy, looks_back

_PREFILL = 8192  # prompt tokens of one pass
_GENERATE = GenerationMixin.generate
OnFinished = Callable[[list[tuple[int, list[int]]]], None]
OnToken = Callable[[int, int], None]


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
    on_token: OnToken | None = None,
) -> list[SampledCompletion]:
    """Sample one completion for each of `prompts`; equal prompts are run once.

    `model` is a causal language model that `agreement.sampling_obstacle` has nothing against.
    `keys`: one for each row, any sequence of numbers >= 0. Greedy where the temperature is 0.
    `routes` gets the experts chosen. `on_finished` is called with (row, token ids) of the rows that
    finished at a step, `on_token` with (row, token id) of every token. `budgets` are the rows'
    longest completions, where these are shorter than `sampling.max_tokens`.
    """
    with torch.no_grad():
        decoding = decode_pass(model, sampling.weights) if sampling.max_tokens > 1 else None
        packed = decoding is None or sampling.weights is not None
        linears = packed_linears(model, sampling.weights) if packed else nullcontext()
        with attention_of(model), linears:
            batch = _Batch(model, prompts, keys, sampling, routes, on_finished, budgets, on_token)
            batch.decode_by(decoding)
            return batch.run()


def generates_as_transformers(model: nn.Module) -> bool:
    """Whether `model.generate` is transformers' own, which `generate` here stands in for."""
    own = getattr(model, "generate", None)
    if isinstance(model, FSDPModule):  # transformers' trainer has torch gather weights before it
        own = getattr(own, "__wrapped__", own)
    return getattr(own, "__func__", None) is _GENERATE


def uniforms(keys: Sequence[Sequence[int]], count: int) -> Tensor:
    """(len(keys), count) float32 in [0, 1): each row's numbers follow from its key alone."""
    rows = [keyed_generator(key).random(count, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def keyed_generator(key: Sequence[int]) -> np.random.Generator:
    """Random numbers that follow from `key` (integers >= 0) alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(n,) indices from (n, V) probabilities by inversion: the first whose cumulated share is more.

    `uniform` (n,) in [0, 1). Never one with probability 0.
    """
    cumulated = probabilities.cumsum(-1)
    drawn = _first_above(cumulated, uniform * cumulated[:, -1])
    wrong = probabilities.gather(1, drawn[:, None]).squeeze(1) == 0
    if wrong.any():  # sums of a parallel scan are rounded each in its way: one may rise by nothing
        possible = cumulated[wrong].masked_fill(probabilities[wrong] == 0, -torch.inf)
        rising = possible.cummax(-1).values
        drawn[wrong] = _first_above(rising, uniform[wrong] * rising[:, -1])
    return drawn


def _first_above(cumulated: Tensor, wanted: Tensor) -> Tensor:
    """(n,) of each row of (n, V) the first index that is above `wanted` (n,), or has the total."""
    total = cumulated[:, -1]
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, wanted[:, None], right=True).squeeze(1)


class _Batch:
    """The state of one call of `generate`."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        sampling: SamplingParams,
        routes: SampledRoutes | None,
        on_finished: OnFinished | None,
        budgets: Sequence[int | None] | None,
        on_token: OnToken | None,
    ) -> None:
        self.model = model
        self.on_finished = on_finished
        self.on_token = on_token
        self.sampling = sampling
        self.routes = routes
        self.decoding: DecodePass | None = None
        self.device = next(model.parameters()).device
        numbers: dict[tuple[int, ...], int] = {}
        members = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
        self.prompts = list(numbers)
        self.groups = torch.tensor(members)  # of the live rows
        self.order = torch.arange(len(prompts))  # live row -> row
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        self.caches = KVCache(self.device, sampling.max_tokens)
        self.time = 0  # tokens that each live row has in the cache
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

    def decode_by(self, decoding: DecodePass | None) -> None:
        """Run new tokens by `decoding` where it is given, not by the model's modules."""
        self.decoding = decoding
        if decoding is not None:
            self.caches.dtype = decoding.dtype

    def run(self) -> list[SampledCompletion]:
        """Run the prompts, then token by token until no row is left."""
        logits = torch.cat(list(self._prefill()))[self.groups.to(self.device)]
        if self.routes is not None:
            self.routes.start(self.groups, self.sampling.max_tokens)
        while True:
            tokens = self._sample(logits.float())
            if self.on_token is not None:
                for row, token in zip(self.order.tolist(), tokens.tolist(), strict=True):
                    self.on_token(row, token)
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
        """Yield logits (prompts, V) after each prompt, in passes of at most `_PREFILL` tokens."""
        counts = torch.bincount(self.groups).tolist()
        cached = self.caches.add_prompts([len(prompt) for prompt in self.prompts], counts)
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
                packed=Prefill([Part(p, 0, p.length) for p in cached[first:last]], self.caches),
                logits_to_keep=ends.to(self.device),
            )[0]
            if self.routes is not None:
                self.routes.prompts(lengths)
            first = last
        self.caches.change([], [cached[group] for group in self.groups.tolist()])

    def _step(self, tokens: Tensor) -> Tensor:
        if self.decoding is not None:
            logits = self.decoding.step(tokens, self.caches)[:, None]
            if self.routes is not None and self.decoding.chosen is not None:
                self.routes.told(self.decoding.chosen)
        else:
            positions = self.caches.positions
            logits = self._logits(tokens[:, None], positions[:, None], packed=self.caches)
        self.caches.advance()
        self.time += 1
        if self.routes is not None:
            self.routes.step(self.order, self.time)
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
        """Draw and record (rows,) tokens."""
        tokens: Tensor
        step = self.time
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
        """(rows, V) logits after transformers' processors, each row as if it were alone."""
        if self.seen is None:
            by_logits: Tensor = next(iter(self.processors.values()))(None, logits)
            return by_logits
        scores = torch.empty_like(logits)
        for length, rows, ids in self._rows_seen(self.time):
            rows = rows.to(self.device)
            scores[rows] = self.processors[length](ids, logits[rows])
        return scores

    def _rows_seen(self, step: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield live rows by prompt length: length, places, ids with their first `step` samples."""
        assert self.seen is not None
        longest = self.seen.shape[1] - self.sampling.max_tokens
        lengths = self.lengths[self.order]
        for length in sorted(set(lengths.tolist())):
            rows = (lengths == length).nonzero().flatten()
            ids = self.seen[self.order[rows], longest - length : longest + step]
            yield length, rows, ids.to(self.device)

    def _stopped(self, tokens: Tensor) -> Tensor:
        """(rows,) bool: the rows that end with `tokens`."""
        stopped = torch.isin(tokens, self.ends)
        if self.sampling.stop is not None:
            for _, rows, ids in self._rows_seen(self.time + 1):
                stopped[rows] |= self.sampling.stop(ids, None).cpu()
        return stopped

    def _leave(self, tokens: Tensor) -> Tensor:
        """Remove finished rows from the batch; return the tokens of the others, in their order."""
        count = self.time + 1
        last = count == self.sampling.max_tokens
        alive = torch.zeros_like(tokens).bool() if last else ~self._stopped(tokens)
        alive &= self.budgets[self.order] > count
        if self.on_finished is not None and not alive.all():
            gone = self.order[~alive].tolist()
            self.on_finished([(row, self.ids[row, : self.counts[row]].tolist()) for row in gone])
        left = int(alive.sum())
        if left in (0, len(tokens)):
            return tokens[:left]
        broken = self.logps[self.order, count - 1].isnan()
        self.caches.broke(broken.nonzero().flatten().tolist())
        _, holes, movers = self.caches.change((~alive).nonzero().flatten().tolist(), [])
        for row in (tokens, self.order):
            row[holes] = row[movers]
        self.order = self.order[:left]
        return tokens[:left]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(rows, longest prompt + max_tokens): the prompts end in the same column."""
        longest = max(map(len, prompts))
        rows = [
            [*[p[0]] * (longest - len(p)), *p, *[0] * self.sampling.max_tokens] for p in prompts
        ]
        return torch.tensor(rows)
