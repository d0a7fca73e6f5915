"""Sampling of many completions, for training, evaluation and chat: a continuous batch.

`generate` runs each distinct prompt once, whatever the number of its rows. Rows then advance
together, one token a pass, each with a length of its own: a row that ends leaves the batch at once,
and waiting rows enter when there is room (`rl_reasoner.rollout.admission`), so that a few long rows
do not run alone. What is sampled is distributed as by transformers' `generate` with the same
settings (its own logits processors are used), and the log-probability of each token under that
distribution is kept. A row whose logits are not numbers ends there, with an end token and the
log-probability NaN.

Token t of a row is drawn with the t-th number of its own key, so a completion does not depend on
the rows beside it, beyond the rounding of its logits. The global generators are not touched.

A completion may have several turns (rl_reasoner.rollout.turns): a row then leaves the batch for an
answer, while others go on, and comes back behind it (rl_reasoner.rollout.parking).

On a GPU the host never waits for the token of a pass before it has started the next one: tokens
stay on the device, and a copy of them is read one pass late. So a row that ends is run once too
often; what comes of that is dropped. Knows models of transformers and the attention of
rl_reasoner.kernels.packing; nothing of trainers.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationMixin, LogitsProcessorList

from rl_reasoner.errors import UserError
from rl_reasoner.kernels.kept_tokens import packed_bits
from rl_reasoner.kernels.packed_linear import packed_linears
from rl_reasoner.kernels.packing import attention_of
from rl_reasoner.moe.autocast import kept_casts
from rl_reasoner.moe.routing import SampledRoutes
from rl_reasoner.rollout.admission import Admission, WaitingPrompt, WaitingRow, shared_beginning
from rl_reasoner.rollout.completions import (
    Completions,
    Drawn,
    OnFinished,
    OnToken,
    SampledCompletion,
)
from rl_reasoner.rollout.decode_pass import DecodePass, decode_pass
from rl_reasoner.rollout.drawing import tokens_at, tokens_from, uniforms
from rl_reasoner.rollout.kv_cache import KVCache
from rl_reasoner.rollout.parking import Parking
from rl_reasoner.rollout.prefill import Prefill
from rl_reasoner.rollout.sampling_params import (
    SamplingParams,
    is_the_policy,
    looks_back,
    not_a_cut_off,
    only_temperature,
    temperature_of,
)
from rl_reasoner.rollout.turns import TurnTaker

_CACHE_BYTES = 4 << 30  # keys and values of one batch on a CPU, and no more than
_CACHE_SHARE = 4  # one part in so many of the memory
_GENERATE = GenerationMixin.generate


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    sampling: SamplingParams,
    routes: SampledRoutes | None = None,
    on_finished: OnFinished | None = None,
    budgets: Sequence[int | None] | None = None,
    on_token: OnToken | None = None,
    turns: TurnTaker | None = None,
) -> list[SampledCompletion]:
    """Sample one completion for each of `prompts`; equal prompts are run once.

    There may be any number of rows: as many as `cache_budget` has room for are in the batch.
    `model` is a causal language model that `agreement.sampling_obstacle` has nothing against.
    `keys`: one for each row, any sequence of numbers >= 0. Greedy where the temperature is 0.
    `routes` gets the experts chosen. `on_finished` is called with (row, token ids) of rows that
    have finished, `on_token` with (row, token id) of every sampled token. `budgets` are the rows'
    longest completions, where these are shorter than `sampling.max_tokens`. `turns` answers rows
    that stop for it; what they are given counts in their budgets. Raises `UserError` for a prompt
    without tokens.
    """
    empty = next((row for row, prompt in enumerate(prompts) if not len(prompt)), None)
    if empty is not None:
        raise UserError(f"prompt {empty} (from 0) has no tokens: it takes at least one")
    with torch.no_grad():
        decoding = decode_pass(model, sampling.weights) if sampling.max_tokens > 1 else None
        # the pass has copies of the weights of its own
        linears = nullcontext() if decoding else packed_linears(model, sampling.weights)
        with attention_of(model), linears, kept_casts():
            known = Completions(
                len(prompts), sampling, budgets, routes, on_finished, on_token, turns
            )
            batch = _Batch(model, prompts, keys, sampling, known)
            batch.decode_by(decoding)
            return batch.run()


def generates_as_transformers(model: nn.Module) -> bool:
    """Whether `model.generate` is transformers' own, which `generate` here stands in for."""
    own = getattr(model, "generate", None)
    if isinstance(model, FSDPModule):  # transformers' trainer has torch gather weights before it
        own = getattr(own, "__wrapped__", own)
    return getattr(own, "__func__", None) is _GENERATE


def cache_budget(model: nn.Module) -> int:
    """The tokens whose keys and values the batch may hold: a share of the device's memory."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        size = torch.cuda.get_device_properties(device).total_memory // _CACHE_SHARE
    else:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _CACHE_SHARE
        size = min(size, _CACHE_BYTES)
    return size // token_bytes(model)


def token_bytes(model: Any) -> int:
    """Bytes of one token's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * shared * width * model.dtype.itemsize)


class _Batch:
    """The state of one call of `generate`."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        sampling: SamplingParams,
        known: Completions,
    ) -> None:
        self.model, self.sampling, self.keys, self.known = model, sampling, keys, known
        self.routes: SampledRoutes | None = known.routes
        self.decoding: DecodePass | None = None
        self.device = next(model.parameters()).device
        self.late = _lateness(self.device)
        longest = sampling.max_tokens
        waiting: dict[tuple[int, ...], WaitingPrompt] = {}
        for row, ids in enumerate(map(tuple, prompts)):
            waiting.setdefault(ids, WaitingPrompt(len(waiting), ids, deque())).rows.append(row)
        self.prompts = [tuple(ids) for ids in prompts]  # of the rows
        tokens = cache_budget(model)
        # replayed experts are those of each prompt's own pass
        shared = shared_beginning([*waiting]) if self.routes is None else 0
        self.cache = KVCache(self.device, longest, tokens - shared)
        waits = [*waiting.values()]
        self.admission = Admission(waits, self.cache, longest, tokens, shared=shared)
        turns = known.turns
        self.parking: Parking | None = None
        if turns is not None:
            self.parking = Parking(turns, known, self.admission, self.cache)
        if self.routes is not None:
            self.routes.start([waiting[ids].number for ids in self.prompts], longest)
        self.lengths = np.array([len(ids) for ids in self.prompts])
        self.order = np.zeros(0, dtype=np.int64)  # live row (slot) -> row
        self.drawn: deque[Drawn] = deque()  # not read yet
        self.tokens = torch.zeros(0, dtype=torch.long, device=self.device)  # of the live rows
        self.uniforms = torch.zeros(0, longest, device=self.device)
        self.seen: Tensor | None = None  # (slots, prompt and completion), where it is looked at
        self._read_settings(sorted({*self.lengths.tolist()}))

    def _read_settings(self, lengths: list[int]) -> None:
        sampling = self.sampling
        self.sampled = bool(sampling.settings.do_sample)
        self.processors = {length: sampling.processors(self.model, length) for length in lengths}
        if (temperature := sampling.policy_temperature) is not None and not all(
            is_the_policy(processors, temperature) for processors in self.processors.values()
        ):
            self.known.policy_logps = np.empty_like(self.known.logps)
            if sampling.keep_mask and self.sampled:
                self._check_cuts(temperature)
                self.known.keep_sets()
        some: LogitsProcessorList = self.processors[lengths[0]]
        self.looks = looks_back(some)
        self.temperature = only_temperature(some) if self.known.policy_logps is None else None
        if self.looks or sampling.stop is not None:
            width = lengths[-1] + sampling.max_tokens
            self.seen = torch.zeros(0, width, dtype=torch.long, device=self.device)

    def _check_cuts(self, temperature: float) -> None:
        """Raise `UserError` where what is drawn is more than the policy on a set of tokens."""
        for processors in self.processors.values():
            found = not_a_cut_off(processors)
            if found is None and temperature_of(processors) != temperature:
                found = f"another temperature than {temperature:g}"
            if found is not None:
                raise UserError(
                    f"keep_sampling_mask: sampling uses {found}, so what is drawn is not the "
                    "policy on a set of tokens: use cut-offs alone (top_p, top_k, min_p, "
                    "suppressed tokens), or set it to False (sampling.keep_mask: false in a recipe)"
                )

    def decode_by(self, decoding: DecodePass | None) -> None:
        """Run new tokens by `decoding` where it is given, not by the model's modules."""
        self.decoding = decoding
        if decoding is not None:
            self.cache.dtype = decoding.dtype

    def run(self) -> list[SampledCompletion]:
        """Token by token until no row is left, live, waiting or away."""
        while self.admission.left or self.cache.rows or self.admission.away:
            self._enter()
            if self.cache.rows:
                self._step()
            self._read(self.late)
            self._leave()
            self._hear()
        self._read(0)
        return self.known.all(self.sampling.policy_temperature is not None)

    # ------------------------------------------------------------------------------- the passes

    def _enter(self) -> None:
        """Run prompts that are due, and let the rows behind them enter with their first token."""
        self.admission.take()
        while parts := self.admission.parts():
            prompts = [prompt for prompt, _ in parts]
            layout = [part for _, part in parts]
            ids = [p.ids[part.start : part.start + part.length] for p, part in parts]
            ends = np.cumsum([part.length for part in layout]) - 1
            tokens = self._numbers([token for some in ids for token in some])
            logits = self._prefill(tokens, Prefill(layout, self.cache), self._numbers(ends))
            for prompt, row in zip(prompts, logits, strict=True):
                prompt.logits = row if prompt.stored == len(prompt.ids) else None
            if self.routes is not None:
                chosen = torch.split(self.routes.take(), [part.length for part in layout])
                for prompt, part, own in zip(prompts, layout, chosen, strict=True):
                    if isinstance(prompt, WaitingPrompt):
                        self.routes.prompt(own, prompt.number)
                    else:
                        again = max(prompt.known - part.start, 0)  # run and recorded before
                        self.routes.given(own[again:], prompt.row, part.start + again + 1)
        if ready := self.admission.ready():
            self._start(ready)

    def _start(self, ready: Sequence[WaitingPrompt | WaitingRow]) -> None:
        """Sample the next token of the rows that are due, and let those enter that go on."""
        rows = np.array([row for waiting in ready for row in waiting.due])
        of_row = [waiting for waiting in ready for _ in waiting.due]
        own = [waiting.own for waiting in of_row]
        times = np.array([len(ids) for ids in own])
        if times.any():
            self._read(0)  # what was run once too often does not count, but what comes now does
            self.known.done[rows] = False
        logits = torch.stack([p.logits for p in of_row if p.logits is not None])
        uniform, now = self.uniforms[:0], self.uniforms[:0]
        if self.sampled:
            uniform = self._moved(uniforms([self.keys[r] for r in rows], self.sampling.max_tokens))
            now = uniform.gather(1, self._numbers(times)[:, None]).squeeze(1)
        seen = None
        if self.seen is not None:
            table = np.zeros((len(rows), self.seen.shape[1]), dtype=np.int64)
            for line, row, ids in zip(table, rows, own, strict=True):
                before = (*self.prompts[row], *ids)
                line[: len(before)] = before
            seen = self._moved(torch.from_numpy(table))
        tokens = self._sample(logits, rows, times, now, seen, None)
        self._read(self.late)
        cached = [row for waiting in ready for row in waiting.enter()]
        goes_on = ~self.known.done[rows] & (times + 1 < self.known.budgets[rows])
        for index in np.flatnonzero(~goes_on).tolist():
            self.admission.taken -= 1
            if self.parking is None or not self.parking.park(int(rows[index]), cached[index]):
                self.cache.let_go(cached[index])
        on = np.flatnonzero(goes_on)
        places, _, _ = self.cache.change([], [cached[index] for index in on])
        self.order = np.append(self.order, rows[on])
        at, kept = self._numbers(places), self._numbers(on)
        self.tokens = _put(self.tokens, at, tokens[kept], self.cache.slots)
        if self.sampled:
            self.uniforms = _put(self.uniforms, at, uniform[kept], self.cache.slots)
        if seen is not None and self.seen is not None:
            self.seen = _put(self.seen, at, seen[kept], self.cache.slots)

    def _step(self) -> None:
        """One more token of each live row."""
        cache, rows = self.cache, self.cache.rows
        logits = self._decode(self.tokens[:rows])
        cache.advance()
        self.admission.worked(rows)
        choices = None if self.routes is None else self.routes.take()
        uniform = self.uniforms[:rows]
        if self.sampled:
            uniform = uniform.gather(1, cache.own_lengths[:rows, None]).squeeze(1)
        seen = None if self.seen is None else self.seen[:rows]
        times = cache.lengths.copy()
        self.tokens[:rows] = self._sample(logits, self.order.copy(), times, uniform, seen, choices)

    def _prefill(self, tokens: Tensor, layout: Prefill, kept: Tensor) -> Tensor:
        """Logits (m, V) behind the tokens at `kept` (m,) of a pass over parts of prompts."""
        if self.decoding is None:
            positions = layout.positions
            return self._logits(tokens[None], positions[None], packed=layout, logits_to_keep=kept)[
                0
            ]
        logits = self.decoding.prefill(tokens, layout, kept)
        self._tell_routes(self.decoding)
        return logits

    def _tell_routes(self, decoding: DecodePass) -> None:
        if self.routes is not None and decoding.chosen is not None:
            self.routes.told(decoding.chosen)

    def _decode(self, tokens: Tensor) -> Tensor:
        """Logits (rows, V) of a pass over one new token of each live row."""
        if self.decoding is None:
            positions = self.cache.positions
            return self._logits(tokens[:, None], positions[:, None], packed=self.cache)[:, -1]
        logits: Tensor = self.decoding.step(tokens, self.cache)
        self._tell_routes(self.decoding)
        return logits

    def _logits(self, ids: Tensor, positions: Tensor, **layout: Any) -> Tensor:
        logits: Tensor = self.model(
            input_ids=ids, position_ids=positions, use_cache=False, **layout
        ).logits
        return logits

    # ------------------------------------------------------------------------------- the tokens

    def _sample(
        self,
        logits: Tensor,
        rows: "np.ndarray",
        times: "np.ndarray",
        uniform: Tensor,
        seen: Tensor | None,
        choices: Tensor | None,
    ) -> Tensor:
        """Draw (n,) tokens of `rows`, their `times`-th; the host will read them later."""
        sampling, numbers = self.sampling, uniform if self.sampled else None
        if sampling.begin_suppress and not times.all():
            first = self._numbers(np.flatnonzero(times == 0))[:, None]
            logits[first, self._numbers(sampling.begin_suppress)] = -torch.inf
        policy_logps = stopped = kept = None
        if self.temperature is not None:
            tokens, logps = tokens_at(logits, self.temperature, numbers, sampling.ends[0])
        else:
            logits = logits.float()
            scores = self._processed(logits, rows, times, seen)
            tokens, logps = tokens_from(scores, numbers, sampling.ends[0])
            if self.known.kept is not None:
                kept = packed_bits(scores != -torch.inf)
        if self.known.policy_logps is not None:
            scaled = logits / (sampling.policy_temperature or 1.0)
            policy_logps = scaled.gather(1, tokens[:, None]).squeeze(1) - scaled.logsumexp(-1)
            policy_logps = policy_logps.masked_fill(logps.isnan(), torch.nan)
        if seen is not None:
            seen.scatter_(1, self._numbers(self.lengths[rows] + times)[:, None], tokens[:, None])
            if sampling.stop is not None:
                stopped = torch.zeros_like(tokens, dtype=torch.bool)
                for _, some, ids in self._alike(rows, times + 1, seen):
                    stopped[some] = sampling.stop(ids, None)
        copies = [self._copied(t) for t in (tokens, logps, policy_logps, stopped, choices, kept)]
        self.drawn.append(Drawn(rows, times, copies, self._event()))
        return tokens

    def _processed(
        self, logits: Tensor, rows: "np.ndarray", times: "np.ndarray", seen: Tensor | None
    ) -> Tensor:
        """(n, V) logits after transformers' processors, each row as if it were alone."""
        if not self.looks or seen is None:
            by_logits: Tensor = next(iter(self.processors.values()))(None, logits)
            return by_logits
        scores = torch.empty_like(logits)
        for length, some, ids in self._alike(rows, times, seen):
            scores[some] = self.processors[length](ids, logits[some])
        return scores

    def _alike(
        self, rows: "np.ndarray", times: "np.ndarray", seen: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield rows of equal lengths together: of the prompt, their places, their ids so far."""
        lengths = self.lengths[rows]
        for length, time in sorted({*zip(lengths.tolist(), times.tolist(), strict=True)}):
            places = self._numbers(np.flatnonzero((lengths == length) & (times == time)))
            yield length, places, seen[places, : length + time]

    # ---------------------------------------------------------------------- what the host learns

    def _read(self, late: int) -> None:
        """Learn what was drawn, but for the last `late` passes; waits for what is not there yet."""
        while len(self.drawn) > late:
            self.known.learn(self.drawn.popleft())

    def _leave(self) -> None:
        """Let the rows leave that have ended or stopped, as far as the host knows, or are full."""
        full = self.cache.lengths + 1 >= self.known.budgets[self.order]
        gone = np.flatnonzero(self.known.done[self.order] | full).tolist()
        if not gone:
            return
        if self.parking is not None:
            self.parking.take_out(gone, self.order[gone].tolist())
        _, to, source = self.cache.change(gone, [])
        self.admission.taken -= len(gone)
        self.order[to] = self.order[source]
        self.order = self.order[: self.cache.rows].copy()
        if to:
            there, here = self._numbers(to), self._numbers(source)
            tables = (self.tokens, self.uniforms if self.sampled else None, self.seen)
            for table in tables:
                if table is not None:
                    table[there] = table[here]

    def _hear(self) -> None:
        """Let rows come back whose answers are there; wait for one where no row can be sampled."""
        if self.parking is None or not self.admission.away:
            return
        self.admission.take()
        idle = not self.cache.rows and not self.admission.started
        if idle:
            self._read(0)
        self.parking.hear(wait=idle)

    # ------------------------------------------------------------------------------ the device

    def _numbers(self, values: "Sequence[int] | np.ndarray") -> Tensor:
        return self._moved(torch.as_tensor(values, dtype=torch.long))

    def _moved(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device; the host does not wait for it to get there."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def _event(self) -> Any:
        """What is recorded behind all that the device has been given; None where nothing waits."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _copied(self, tensor: Tensor | None) -> Tensor | None:
        """A copy for the host, in pinned memory; the host does not wait for it."""
        return None if tensor is None else tensor.to("cpu", non_blocking=self.device.type == "cuda")


def _lateness(device: torch.device) -> int:
    """The passes that the host may start before it has to know what the last one drew."""
    return 1 if device.type == "cuda" else 0


def _put(table: Tensor, at: Tensor, values: Tensor, slots: int) -> Tensor:
    """`table` (slots, ...), made longer where it has to be, with `values` in the slots `at`."""
    if len(table) < slots:
        longer = table.new_zeros(slots, *table.shape[1:])
        longer[: len(table)] = table
        table = longer
    table[at] = values
    return table
