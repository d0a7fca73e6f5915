"""Tokens from logits: randomness that is counted, draws by inversion, and their log-probabilities.

Randomness is counted, not streamed: token t of a row is drawn with the t-th number of a generator
that is keyed by the row's own key (Philox). Nothing here makes the host wait for a device. A row
of V scores is read twice, for its softmax and for sums over blocks of that; the token is looked for
in one block. Models that the engine cannot run draw so, too, within transformers' `generate`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.decoding import DTYPES, operations
from rl_reasoner.rollout.completions import OnToken, SampledCompletion
from rl_reasoner.rollout.sampling_params import SamplingParams

_AT_ONCE = 1 << 20  # scores that a processor has at hand: what is made of them stays in its cache


def uniforms(keys: Sequence[Sequence[int]], count: int) -> Tensor:
    """(len(keys), count) float32 in [0, 1): each row's numbers follow from its key alone."""
    rows = [keyed_generator(key).random(count, dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows))


def keyed_generator(key: Sequence[int]) -> np.random.Generator:
    """Random numbers that follow from `key` (integers >= 0) alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))


def tokens_at(
    logits: Tensor, temperature: float, uniform: Tensor | None, end: int
) -> tuple[Tensor, Tensor]:
    """As `tokens_from` the scores logits / `temperature`; by one compiled operation where it is."""
    compiled = operations() if logits.device.type == "cpu" else None
    if compiled is None or logits.dtype not in DTYPES:
        return tokens_from(logits.float() / temperature, uniform, end)
    numbers = None if uniform is None else uniform.contiguous()
    return compiled.draw(logits.contiguous(), temperature, numbers, end)


def tokens_from(scores: Tensor, uniform: Tensor | None, end: int) -> tuple[Tensor, Tensor]:
    """(n,) tokens and their log-probabilities, from (n, V) scores and `uniform` (n,) in [0, 1).

    The likeliest tokens where `uniform` is None. A row whose scores are no distribution gets the
    token `end` and the log-probability NaN.
    """
    rows = max(1, _AT_ONCE // scores.shape[1])
    if scores.device.type == "cpu" and len(scores) > rows:
        parts = (
            tokens_from(part, None if uniform is None else uniform[first : first + rows], end)
            for first, part in zip(
                range(0, len(scores), rows), torch.split(scores, rows), strict=True
            )
        )
        drawn, logps = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return drawn, logps
    probabilities = scores.softmax(-1)  # NaN as a whole, where a score is NaN or infinite
    drawn = _likeliest(scores) if uniform is None else draw(probabilities, uniform)
    drawn = drawn.clamp(max=scores.shape[1] - 1)  # of a row without a distribution it may be any
    logps = probabilities.gather(1, drawn[:, None]).squeeze(1).log()
    return drawn.masked_fill(logps.isnan(), end), logps


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(n,) indices from (n, V) probabilities by inversion: the first whose cumulated share is more.

    `uniform` (n,) in [0, 1). Never one with probability 0.
    """
    rising = _rising(_blocks(probabilities, torch.sum))
    found, left = _first_above(rising, uniform * rising[:, -1])
    block, start = _block(probabilities, found, 0.0)
    return start + _first_above(_rising(block), left)[0]


def _likeliest(scores: Tensor) -> Tensor:
    """(n,) indices of the highest of (n, V) scores; torch's own search for them is slower."""
    found = _blocks(scores, torch.amax).argmax(-1)
    block, start = _block(scores, found, -torch.inf)
    return start + block.argmax(-1)


def _width(size: int) -> int:
    """How many values a block has."""
    return 1 << size.bit_length() // 2


def _blocks(values: Tensor, reduced: Callable[..., Tensor]) -> Tensor:
    """(n, blocks) from (n, V): each block reduced to one value."""
    whole = values.shape[1] // (width := _width(values.shape[1])) * width
    blocks = reduced(values[:, :whole].unflatten(1, (-1, width)), dim=-1)  # type: ignore[no-untyped-call]
    if whole == values.shape[1]:
        return blocks
    return torch.cat((blocks, reduced(values[:, whole:], dim=-1, keepdim=True)), dim=1)


def _block(values: Tensor, number: Tensor, rest: float) -> tuple[Tensor, Tensor]:
    """(n, width) one block of each row, and (n,) where it starts; `rest` fills up the last one."""
    size, width = values.shape[1], _width(values.shape[1])
    start = number * width
    columns = start[:, None] + torch.arange(width, device=values.device)
    block = values.gather(1, columns.clamp(max=size - 1))
    return (block.masked_fill(columns >= size, rest) if size % width else block), start


def _rising(weights: Tensor) -> Tensor:
    """(n, m) cumulated sums that rise at no weight of 0.

    Sums of a parallel scan are rounded each in its way: one may rise by nothing.
    """
    return weights.cumsum(-1).masked_fill(weights == 0, -torch.inf).cummax(-1).values


def _first_above(rising: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) of each row of (n, m) the first index that is above `wanted` (n,), or has the total.

    And what `wanted` is above the sum before that index.
    """
    total = rising[:, -1]
    wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(rising, wanted[:, None].contiguous(), right=True)
    found = found.clamp(max=rising.shape[1] - 1)  # rows of NaN
    before = rising.gather(1, (found - 1).clamp(min=0)).masked_fill(found == 0, 0.0).clamp(min=0.0)
    return found.squeeze(1), (wanted - before.squeeze(1)).clamp(min=0.0)


# ------------------------------------------------------------------------ models beside the engine


def generate_by_transformers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[Sequence[int]],
    sampling: SamplingParams,
    pad: int,
    on_token: OnToken | None = None,
) -> list[SampledCompletion]:
    """`engine.generate` for a model that the engine cannot run: by its own `generate`.

    Draws with the same keys, so the same completions, up to the rounding of logits. Of `sampling`
    `stop`, `policy_temperature`, `weights` and `keep_mask` do not count.
    """
    width = max(map(len, prompts))
    padded = [[pad] * (width - len(row)) + [*row] for row in prompts]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    settings = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        eos_token_id=list(sampling.ends),
        pad_token_id=pad,
        begin_suppress_tokens=list(sampling.begin_suppress) or None,
    )
    processors = sampling.processors(base_of(model), width)
    draws = _KeyedDraws(keys, sampling, processors, on_token)
    with _generation_config(model, settings), torch.no_grad():
        model.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            logits_processor=LogitsProcessorList([draws]),
        )
    return draws.completions


class _KeyedDraws(LogitsProcessor):  # type: ignore[misc]
    """Leaves each row the one token that its own key draws, as the engine does it.

    So a completion does not depend on which others are in its batch.
    """

    def __init__(
        self,
        keys: Sequence[Sequence[int]],
        sampling: SamplingParams,
        processors: LogitsProcessorList,
        on_token: OnToken | None,
    ) -> None:
        self.sampling = sampling
        self.processors = processors
        self.on_token = on_token
        drawn = sampling.temperature > 0
        self.uniforms = uniforms(keys, sampling.max_tokens) if drawn else None
        self.completions = [SampledCompletion([], []) for _ in keys]
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, V) scores -> 0 for the token that is drawn, else -inf."""
        scaled = self.processors(input_ids, scores.float())
        uniform = None if self.uniforms is None else self.uniforms[:, self.step].to(scores.device)
        chosen, values = tokens_from(scaled, uniform, self.sampling.ends[0])
        drawn = zip(chosen.tolist(), values.tolist(), strict=True)
        for row, (token, value) in enumerate(drawn):
            completion = self.completions[row]
            if completion.ids and completion.ids[-1] in self.sampling.ends:
                continue  # `generate` fills a finished row with padding
            completion.ids.append(token)
            completion.logps.append(value)
            if self.on_token is not None:
                self.on_token(row, token)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


@contextmanager
def _generation_config(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace a model's generation_config inside: `generate` takes unset arguments from it."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own
