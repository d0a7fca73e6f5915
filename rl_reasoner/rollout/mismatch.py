"""The train-inference mismatch: log-probabilities and experts in sampling and in training.

The same completions are sampled token by token, with a cache, and then passed over as whole rows;
both by the same weights, but for rounded copies where sampling uses these (`sampling_weights`), so
every difference is one of arithmetic. In a mixture of experts a
difference of rounding can flip a token's choice of experts, and then its log-probability moves by
tenths of a nat: `measure` gives both without and with router replay. Knows models; nothing of
trainers.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rl_reasoner.moe.autocast import autocast_experts
from rl_reasoner.moe.experts import routers
from rl_reasoner.moe.routing import NoReplay, Routes, Routing, SampledRoutes, from_padded
from rl_reasoner.rollout.agreement import engine_runs
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.drawing import generate_by_transformers
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.sampling_weights import sampling_dtype

_ROWS = 16  # of one pass
_BEARABLE = 0.2  # nats; PPO's usual clip range is about that
_ROUNDED, _FAR = 0.1, 2.0  # nats in the mean and at most, where importance corrects for them


@dataclass(frozen=True)
class Gap:
    """|log-prob in training - log-prob in sampling| over the tokens of the completions, in nats.

    `flips`: the share of tokens of which a layer took other experts than in sampling; None for a
    model without experts. `router_gradient`: the norm of the routers' gradient of the mean
    log-prob; None where it was not asked for.
    """

    largest: float
    mean: float
    flips: float | None
    router_gradient: float | None


@dataclass(frozen=True)
class Mismatch:
    """The gap over `tokens` sampled tokens, without and, where possible, with router replay.

    `rounded`: they were sampled from copies that training corrects for.
    """

    tokens: int
    plain: Gap
    replayed: Gap | None
    rounded: bool = False


_Row = tuple[list[int], SampledCompletion]  # a prompt, and what was sampled


def measure(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    max_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    weights: str = "own",
    router_gradients: bool = False,
) -> Mismatch:
    """Sample a completion for each of `prompts`, run the training pass over them, and compare.

    `autocast`: the type in which a model that is kept in fp32 computes; `weights`: those it is
    sampled with (`sampling_weights`). `router_gradients` also measures those, with the memory of a
    training pass. Weights and gradients are left as they were.
    """
    autocast_experts(model)  # as a trainer does
    routing: Routing | None
    try:
        routing = Routing(model)
    except NoReplay:
        routing = None
    device = next(model.parameters()).device.type
    cast = torch.autocast(device, autocast) if autocast is not None else nullcontext()
    sampling = SamplingParams(max_tokens=max_tokens, ends=tuple(ends), temperature=temperature)
    with cast:
        sampling = replace(sampling, weights=sampling_dtype(model, weights, "sampling.weights"))
        rows, routes = _sample(model, prompts, sampling, seed, routing)
    with torch.set_grad_enabled(router_gradients):
        plain = _gap(model, rows, temperature, routing, routes, False, cast)
        replayed = None
        if routing is not None:
            replayed = _gap(model, rows, temperature, routing, routes, True, cast)
    rounded = sampling.weights is not None and autocast is None and engine_runs(model)
    return Mismatch(sum(len(sampled.ids) for _, sampled in rows), plain, replayed, rounded)


def diagnose(mismatch: Mismatch, replay: bool) -> tuple[Literal["passed", "warned"], str, str]:
    """Describe a mismatch: whether it needs a change, the figures, and what to set.

    `replay`: whether the run is to replay experts.
    """
    summary = _in_words(mismatch.plain)
    if mismatch.replayed is not None:
        summary += f"; with router replay {_in_words(mismatch.replayed)}"
    used = mismatch.replayed if replay and mismatch.replayed is not None else mismatch.plain
    if _bearable(used, mismatch.rounded):
        return "passed", summary, ""
    if (
        used is mismatch.plain
        and mismatch.replayed
        and _bearable(mismatch.replayed, mismatch.rounded)
    ):
        return "warned", summary, "the ratios compare two different models; set router_replay: true"
    exact = "sampling.weights: own" if mismatch.rounded else "run.precision: fp32"
    return "warned", summary, f"the ratios compare two different models; set {exact}"


def _bearable(gap: Gap, rounded: bool) -> bool:
    """Whether it is of rounding: of sums, or, where importance corrects for them, of weights."""
    if rounded and not gap.flips:
        return gap.mean <= _ROUNDED and gap.largest <= _FAR
    return gap.largest <= _BEARABLE


def _in_words(gap: Gap) -> str:
    flips = "" if gap.flips is None else f", {gap.flips:.2%} of the tokens change experts"
    return (
        f"log-probs of sampling and training differ by {gap.mean:.2g} nats on average, "
        f"{gap.largest:.2g} at most{flips}"
    )


# ------------------------------------------------------------------------------------- sampling


def _sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    seed: int,
    routing: Routing | None,
) -> tuple[list[_Row], Routes | None]:
    """Sample with the engine, as the trainer does, or with transformers where it cannot run."""
    keys = [(seed, row) for row in range(len(prompts))]
    routes: Routes | None = None
    recorded: AbstractContextManager[list[Tensor]] = nullcontext([])
    if routing is not None:
        recorded = routing.record()
    by_engine = engine_runs(model)  # which may try the model: no pass of the rows
    with recorded as passes:
        if by_engine:
            sampled = SampledRoutes(passes) if routing is not None else None
            completions = generate(model, prompts, keys, sampling, sampled)
            routes = sampled.routes() if sampled is not None else None
        else:
            pad = sampling.ends[0]
            completions = generate_by_transformers(model, prompts, keys, sampling, pad)
            if routing is not None:
                parts = [choices.unflatten(0, (len(prompts), -1)) for choices in passes]  # type: ignore[no-untyped-call]
                lengths = [len(completion.ids) for completion in completions]
                routes = from_padded(torch.cat(parts, 1), [*map(len, prompts)], lengths)
    return list(zip(map(list, prompts), completions, strict=True)), routes


# -------------------------------------------------------------------------------------- the pass


def _gap(
    model: nn.Module,
    rows: list[_Row],
    temperature: float,
    routing: Routing | None,
    routes: Routes | None,
    replay: bool,
    cast: AbstractContextManager[Any],
) -> Gap:
    """Run the training pass over `rows`, right-padded, a few at a time."""
    asked = torch.is_grad_enabled()
    weights: list[Any] = [r.weight for _, r in routers(model)] if routing is not None else []
    apart, flipped = [], []
    gradient = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    total = sum(len(sampled.ids) for _, sampled in rows)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        ids, mask = _table(part, next(model.parameters()).device)
        known = None
        if routing is not None and routes is not None:
            own = routes.rows(range(start, start + len(part)))
            known = _laid_out(own, mask, routing)
        replayed = routing.replay(known) if routing is not None and replay else nullcontext()
        with _watched(model) as chosen, cast, replayed:
            logps = _log_probs(model, ids, mask, part, temperature)
        sampled = torch.tensor([value for _, row in part for value in row.logps])
        apart.append((logps.detach().float().cpu() - sampled).abs())
        if routing is not None and known is not None:
            flipped.append(_flipped(torch.stack(chosen, 1), known, routing.unknown))
            if logps.requires_grad:
                grads = torch.autograd.grad(logps.sum() / total, weights)
                gradient = [a + b.float() for a, b in zip(gradient, grads, strict=True)]
    gaps = torch.cat(apart)
    return Gap(
        float(gaps.max()),
        float(gaps.mean()),
        float(torch.cat(flipped).float().mean()) if flipped else None,
        float(torch.cat([g.flatten() for g in gradient]).norm()) if asked and gradient else None,
    )


def _table(rows: list[_Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, S) of rows, right-padded; the last token of a row predicts nothing."""
    whole = [prompt + sampled.ids[:-1] for prompt, sampled in rows]
    longest = max(map(len, whole))
    ids = [row + [0] * (longest - len(row)) for row in whole]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in whole]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _laid_out(routes: Routes, mask: Tensor, routing: Routing) -> Tensor:
    """(B * S, layers, k) for right-padded rows."""
    layers = [torch.cat(pair) for pair in zip(routes.prompts, routes.completions, strict=True)]
    width = mask.shape[1]
    rows = [
        torch.cat((row, row.new_full((width - len(row), *row.shape[1:]), routing.unknown)))
        for row in layers
    ]
    return torch.cat(rows).to(mask.device)


def _log_probs(
    model: Any, ids: Tensor, mask: Tensor, rows: list[_Row], temperature: float
) -> Tensor:
    """(tokens,) of all rows' completions, one row after the other."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logps = []
    for (prompt, sampled), own in zip(rows, logits, strict=True):
        start = len(prompt) - 1
        scores = own[start : start + len(sampled.ids)].float() / temperature
        targets = torch.tensor(sampled.ids, device=scores.device)
        logps.append(scores.log_softmax(-1).gather(1, targets[:, None]).squeeze(1))
    return torch.cat(logps)


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the choices (N, k) of every layer inside, as the experts get them."""
    chosen: list[Tensor] = []
    handles = [
        router.register_forward_hook(lambda m, i, output: chosen.append(output[2]))
        for _, router in routers(model)
    ]
    try:
        yield chosen
    finally:
        for handle in handles:
            handle.remove()


def _flipped(chosen: Tensor, sampled: Tensor, unknown: int) -> Tensor:
    """(tokens,) bool: whether a layer took another set of experts, where the set is known."""
    other = chosen.sort(-1).values != sampled.long().sort(-1).values
    return other.any(-1).any(-1)[sampled[:, 0, 0] != unknown]
