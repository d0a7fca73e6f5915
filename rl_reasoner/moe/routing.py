"""The expert choices of a mixture's routers: recording them, and replaying given ones.

`Routing` hooks the routers of one model, while it records or replays. While it records, every pass
gives its top-k choices; while it replays, the experts are those given and the gates are computed
anew from the live logits, so that gradients flow through them. How logits become gates is not
written down by family: one of `RULES` has to give the router's own gates, which is tried first.

`Routes` are the choices of rows, a prompt's own and those of its completion, without padding; they
are laid out for a packed pass or a padded one, and read back from either. Knows modules and
tensors; nothing of trainers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rl_reasoner.kernels.packing import Packed
from rl_reasoner.moe.experts import expert_count, routers, silent_hooks

GateRule = Callable[[Tensor, Tensor], Tensor]  # logits (N, experts), choices (N, k) -> gates (N, k)


def _softmax(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.softmax(-1, dtype=torch.float32).gather(1, chosen)


def _sigmoid(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.sigmoid().gather(1, chosen)


def _normalised(rule: GateRule) -> GateRule:
    def gates(logits: Tensor, chosen: Tensor) -> Tensor:
        values = rule(logits, chosen)
        return values / values.sum(-1, keepdim=True)

    return gates


def _softmax_of_chosen(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.gather(1, chosen).softmax(-1, dtype=logits.dtype)


RULES: tuple[GateRule, ...] = (
    _normalised(_softmax),  # Qwen3-MoE, Mixtral
    _softmax,  # Qwen2-MoE, OLMoE, DeepSeek-V2
    _normalised(_sigmoid),  # DeepSeek-V3
    _sigmoid,
    _softmax_of_chosen,  # GPT-OSS
)


def choice_type(experts: int) -> torch.dtype:
    """The type that choices among so many experts are kept in."""
    return torch.uint8 if experts < 256 else torch.int16


class NoReplay(Exception):
    """The model's routers are not of a kind that can be replayed; the message names why."""


def gate_rule(router: nn.Module) -> GateRule:
    """The rule of `RULES` that gives the router's own gates, times its `routed_scaling_factor`.

    Tried on random weights: those of the model may be all alike. Raises `NoReplay` if none does.
    """
    kind = type(router).__name__
    weight: Any = router.weight
    scale = float(getattr(router, "routed_scaling_factor", None) or 1.0)
    random = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, weight.shape[1], generator=random) for n in (32, len(weight)))
    given = {name: t.detach().float() for name, t in router.named_parameters()}
    given["weight"] = w.to(weight.device)
    with torch.no_grad():
        try:
            output = torch.func.functional_call(router, given, (x.to(weight.device),))
        except Exception as error:  # one that takes more than tokens
            raise NoReplay(f"routers of type {kind}") from error
        if not isinstance(output, tuple) or len(output) != 3:
            raise NoReplay(f"routers of type {kind}")
        logits, gates, chosen = output
        if logits.shape != (32, expert_count(router)) or chosen.is_floating_point():
            raise NoReplay(f"routers of type {kind}")
        errors = [float((rule(logits, chosen) * scale - gates).abs().max()) for rule in RULES]
    best = min(range(len(RULES)), key=errors.__getitem__)
    if not errors[best] < 1e-5:
        raise NoReplay(f"gates as {kind} computes them")
    rule = RULES[best]
    return rule if scale == 1.0 else lambda logits, chosen: rule(logits, chosen) * scale


class Routing:
    """The routers of `model`, to record and to replay; one object a model. Raises `NoReplay`.

    Choices of a pass over N tokens are a tensor (N, layers, k) of `dtype`; `unknown` in it stands
    for "as the router itself chooses".
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [router for _, router in routers(model)]
        if not modules:
            raise NoReplay("a model without experts")
        rules = [gate_rule(router) for router in modules]
        self.dtype = choice_type(max(map(expert_count, modules)))
        self.unknown = torch.iinfo(self.dtype).max
        self.layers = len(modules)
        self._passes: list[Tensor] | None = None  # recorded ones
        self._layers: list[Tensor] = []  # of the pass that is being recorded
        self._given: Tensor | None = None
        self._flips: Tensor | None = None  # (2,): flipped, known
        self._hooks = [
            (router, self._hook(layer, rule))
            for layer, (router, rule) in enumerate(zip(modules, rules, strict=True))
        ]
        self._handles: list[Any] = []
        self._uses = 0  # that need the hooks now

    def _hook(self, layer: int, rule: GateRule) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> Any:
            logits, gates, chosen = output
            if self._given is not None and len(self._given) == len(chosen):  # else another pass
                given = self._given[:, layer]
                known = given[:, :1] != self.unknown
                wanted = torch.where(known, given.long(), chosen)
                self._count(chosen, wanted, known)
                return logits, rule(logits, wanted).to(gates.dtype), wanted
            if self._passes is not None:
                self._layers.append(chosen.detach().to(self.dtype))
                if layer == self.layers - 1:
                    self._passes.append(torch.stack(self._layers, 1))
                    self._layers = []
            return output

        silent_hooks.add(look)
        return look

    def _count(self, chosen: Tensor, wanted: Tensor, known: Tensor) -> None:
        """Count flips: tokens for which the router would have chosen another set of experts."""
        with torch.no_grad():
            other = (chosen.sort(-1).values != wanted.sort(-1).values).any(-1)
            counts = torch.stack((other.sum(), known.sum()))
            self._flips = counts if self._flips is None else self._flips + counts

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        """Register the hooks inside, before all others: those see the experts that are taken."""
        if not self._uses:
            self._handles = [
                router.register_forward_hook(hook, prepend=True) for router, hook in self._hooks
            ]
        self._uses += 1
        try:
            yield
        finally:
            self._uses -= 1
            if not self._uses:
                for handle in self._handles:
                    handle.remove()

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Record inside: the choices of every pass are appended to the list that is yielded."""
        before = self._passes
        self._passes, self._layers = [], []
        try:
            with self._hooked():
                yield self._passes
        finally:
            self._passes = before

    @contextmanager
    def replay(self, choices: Tensor | None) -> Iterator[None]:
        """Replay inside: a pass over N tokens takes `choices` (N, layers, k), or its own if None.

        Backward passes that recompute (gradient checkpointing) belong inside too.
        """
        before = self._given
        self._given = choices
        try:
            with self._hooked():
                yield
        finally:
            self._given = before

    def take_flips(self) -> float | None:
        """The share of replayed choices that flipped since the last call."""
        if self._flips is None:
            return None
        flipped, known = self._flips.tolist()
        self._flips = None
        return float(flipped / max(known, 1))


# -------------------------------------------------------------------------------------- the rows


@dataclass(frozen=True)
class Routes:
    """The choices of rows.

    Of row i, `prompts[i]` (P - 1, layers, k) are those of its prompt without the last token,
    `completions[i]` (n, layers, k) those of that last token and of the completion without its own
    last: the positions that predict the completion. Rows of a group may share one prompt's tensor.
    What is missing at the end of either is as the router chooses.
    """

    prompts: list[Tensor]
    completions: list[Tensor]

    def rows(self, index: Sequence[int]) -> "Routes":
        """The routes of some rows, in the order of `index`."""
        return Routes([self.prompts[i] for i in index], [self.completions[i] for i in index])

    def spread(self, index: Sequence[int], count: int) -> "Routes":
        """These routes as those of the rows `index` of `count`; the others' are not known."""
        nothing = self.completions[0][:0].clone()
        prompts, completions = [nothing] * count, [nothing] * count
        for row, prompt, completion in zip(index, self.prompts, self.completions, strict=True):
            prompts[row], completions[row] = prompt, completion
        return Routes(prompts, completions)

    @property
    def size(self) -> int:
        """Bytes in memory; what rows share counts once."""
        tensors = {t.data_ptr(): t.nbytes for t in (*self.prompts, *self.completions)}
        return sum(tensors.values())

    def packed(self, packed: Packed, routing: Routing) -> Tensor:
        """(N, layers, k) for a packed pass over these rows."""
        parts: list[Tensor] = []
        for group in packed.groups:
            parts.append(_fitted(self.prompts[group.members[0]], group.prompt, routing))
            for row, length in zip(group.members, group.rows, strict=True):
                parts.append(_fitted(self.completions[row], length, routing))
        return torch.cat(parts).to(packed.input_ids.device)

    def padded(self, mask: Tensor, width: int, routing: Routing) -> Tensor:
        """(B * S, layers, k) for a pass over left-padded prompts and `width` right-padded columns.

        `mask` (B, S) is 0 at padding, whose choices are the router's.
        """
        edge = mask.shape[1] - width
        parts: list[Tensor] = []
        for row, prompt in enumerate(mask[:, :edge].sum(1).tolist()):
            own = self.prompts[row]
            parts.append(_fitted(own[:0], edge - prompt, routing))
            parts.append(_fitted(own, prompt - 1, routing))
            parts.append(_fitted(self.completions[row], width + 1, routing))
        return torch.cat(parts).to(mask.device)


def join_routes(parts: Sequence[Routes]) -> Routes:
    """Concatenate the rows of all `parts`."""
    return Routes(
        [tensor for part in parts for tensor in part.prompts],
        [tensor for part in parts for tensor in part.completions],
    )


def _fitted(choices: Tensor, length: int, routing: Routing) -> Tensor:
    """`choices` (n, layers, k) cut or filled to `length` tokens."""
    if len(choices) >= length:
        return choices[:length]
    shape = (length - len(choices), *choices.shape[1:])
    return torch.cat((choices, choices.new_full(shape, routing.unknown)))


def from_packed(choices: Tensor, packed: Packed, rows: int) -> Routes:
    """The routes of `rows` rows from the choices of a packed pass; empty where a row is not in it.

    On the CPU, where they wait for the passes to come.
    """
    choices = choices.cpu()
    none = choices[:0]
    routes = Routes([none] * rows, [none] * rows)
    for group in packed.groups:
        end = group.start + group.prompt
        prompt = choices[group.start : end].clone()
        for row, length in zip(group.members, group.rows, strict=True):
            routes.prompts[row] = prompt
            routes.completions[row] = choices[end : end + length].clone()
            end += length
    return routes


def from_padded(choices: Tensor, prompts: Sequence[int], lengths: Sequence[int]) -> Routes:
    """The routes of rows from choices (B, S, layers, k) of left-padded prompts and completions.

    `prompts`, `lengths`: tokens of each row's prompt and completion; S may lack the last column.
    """
    choices = choices.cpu()
    edge = max(prompts)
    rows = list(zip(choices, prompts, lengths, strict=True))
    return Routes(
        [row[edge - prompt : edge - 1].clone() for row, prompt, _ in rows],
        [row[edge - 1 : edge - 1 + length].clone() for row, _, length in rows],
    )


class SampledRoutes:
    """The routes of rows while they are sampled: passes over parts of prompts, and over new tokens.

    Prompts are run once for all their rows; rows are numbered as they were given.
    """

    def __init__(self, passes: list[Tensor]) -> None:
        self._passes = passes  # of `Routing.record`; emptied here
        self._groups: list[int] = []
        self._prompts: dict[int, list[Tensor]] = {}  # of each prompt, its parts
        self._tokens = 0
        self._own = torch.empty(0)  # (rows, tokens, layers, k), without those of the prompts
        self._given: list[tuple[int, int, Tensor]] = []  # a row, the time of the first, choices
        self._counts: list[int] = []

    def start(self, groups: Sequence[int], tokens: int) -> None:
        """Start: `groups` are the rows' prompts, by number; `tokens` the longest completion."""
        self._groups, self._tokens = [*groups], tokens
        self._counts = [1] * len(groups)

    def told(self, chosen: Tensor) -> None:
        """Take choices (N, layers, k) of a pass that called no routers, in their type."""
        self._passes.append(chosen)

    def take(self) -> Tensor:
        """The choices (N, layers, k) of the last pass, for `prompts` or `step`."""
        return self._passes.pop()

    def prompt(self, choices: Tensor, number: int) -> None:
        """Keep the choices (n, layers, k) for n more tokens of the prompt `number`."""
        self._prompts.setdefault(number, []).append(choices.clone())

    def given(self, choices: Tensor, row: int, time: int) -> None:
        """Keep the choices (n, layers, k) for n tokens that `row` was given, from `time` on.

        As in `step`, that is one more than the first token's place in the completion.
        """
        if len(choices):
            self._given.append((row, time, choices.clone()))
            self._counts[row] = time + len(choices)

    def step(self, choices: Tensor, rows: Sequence[int], times: Sequence[int]) -> None:
        """Keep the choices, on the CPU, of a pass over tokens of `rows`, at `times` from 1 on."""
        self._make_room(choices)
        self._own[rows, times] = choices
        for row, time in zip(rows, times, strict=True):
            self._counts[row] = time + 1

    def _make_room(self, choices: Tensor) -> None:
        if not len(self._own):
            shape = (len(self._groups), self._tokens, *choices.shape[1:])
            self._own = choices.new_empty(shape, device="cpu")

    def routes(self) -> Routes:
        """The routes of all rows."""
        for row, time, choices in self._given:
            self._make_room(choices)
            self._own[row, time : time + len(choices)] = choices
        whole = {number: torch.cat(parts).cpu() for number, parts in self._prompts.items()}
        before = {number: prompt[:-1].clone() for number, prompt in whole.items()}
        own = []
        for row, (group, count) in enumerate(zip(self._groups, self._counts, strict=True)):
            parts = [whole[group][-1:], self._own[row, 1:count] if count > 1 else whole[group][:0]]
            own.append(torch.cat(parts))
        return Routes([before[group] for group in self._groups], own)
