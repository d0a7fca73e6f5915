"""Router replay: the training pass takes the experts that a completion was sampled with.

In low precision the choices of a cached, token-by-token pass and of a pass over whole rows differ
for some tokens, and their log-probabilities with them. Here the choices are kept while sampling,
beside the rollouts, and every later pass over the rows takes them: training, old and reference
log-probabilities. Rows whose choices are not known (vLLM samples, or tools add tokens) get those of
the first pass of the policy over them; later passes replay these.

The rows' choices are two lists beside the other columns of a batch, so they are shuffled, split,
regrouped and kept in checkpoints with their rows.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rl_reasoner.kernels import packing
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.moe.experts import routers
from rl_reasoner.moe.routing import (
    NoReplay,
    Routes,
    Routing,
    SampledRoutes,
    from_packed,
    from_padded,
    join_routes,
)
from rl_reasoner.training.packed_forward import sampled_elsewhere

logger = logging.getLogger(__name__)
_PROMPTS, _COMPLETIONS = "prompt_experts", "completion_experts"  # columns of a batch
_MISSING = (
    "router_replay: no choices come from sampling, for %s: the first pass over the rows gives them"
)


class RouterReplay:
    """The experts of a trainer's passes, recorded or replayed; see the module's docstring.

    `routes`: of the rows that passes are made over now, where they are known.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.routes: Routes | None = None
        self._policy: Routing | None = None
        self._reference: Routing | None = None
        self._unrecorded: str | None = None  # why sampling gives no choices
        self._chunk: Routes | None = None  # of the part of the rows that is in a pass
        self._taken = Routes([], [])  # of that part, where its pass gives them
        self._cursor = 0  # rows that had their pass
        self._recorded: list[Routes] = []  # of those, where the pass gives them
        policy = base_of(trainer.model)
        wanted = getattr(trainer.args, "router_replay", False)
        if not wanted or not any(True for _ in routers(policy)):
            return
        try:
            config: Any = policy.config
            if config.get_text_config() is not config:
                raise NoReplay("a multimodal model")
            routing = Routing(policy)
            if trainer.ref_model is not None:
                self._reference = Routing(base_of(trainer.ref_model))
        except NoReplay as reason:
            logger.warning("router_replay: off, for %s", reason)
            return
        self._policy = routing
        if why := sampled_elsewhere(trainer) or ("tools" if trainer.tools else None):
            self.not_recorded(why)

    def not_recorded(self, why: str) -> None:
        """Sampling gives no choices from now on: the first passes over the rows do."""
        if self._policy is not None and self._unrecorded is None:
            logger.warning(_MISSING, why)
        self._unrecorded = why

    # ---------------------------------------------------------------------------- the sampling

    @property
    def _recording(self) -> Routing | None:
        """The routers to record while completions are sampled, or None."""
        train = self._policy is not None and self.trainer.model.training
        return self._policy if train and self._unrecorded is None else None

    @property
    def records(self) -> bool:
        """Whether the engine's choices are wanted while it samples."""
        return self._recording is not None

    @contextmanager
    def engine_samples(self) -> Iterator[SampledRoutes | None]:
        """Inside, the engine samples, and fills what this gives with the experts it chooses."""
        if self._recording is None:
            yield None
            return
        with self._recording.record() as passes:
            sampled = SampledRoutes(passes)
            yield sampled
        self.routes = sampled.routes()

    @contextmanager
    def trl_samples(
        self, prompt_ids: Sequence[Sequence[int]], completion_ids: list[list[int]]
    ) -> Iterator[None]:
        """Inside, trl samples completions of the prompts, and puts them into `completion_ids`."""
        if self._recording is None:
            yield
            return
        with self._recording.record() as passes:
            yield
        rows = len(prompt_ids)
        prompts = [len(prompt) for prompt in prompt_ids]
        sizes = [len(choices) for choices in passes]
        # what transformers' generate does: all prompts, padded, then a token of every row
        if sizes[0] == rows * max(prompts) and set(sizes[1:]) <= {rows}:
            table = torch.cat([choices.unflatten(0, (rows, -1)) for choices in passes], 1)  # type: ignore[no-untyped-call]
            self.routes = from_padded(table, prompts, [len(ids) for ids in completion_ids])

    def keep(self, batch: dict[str, Any]) -> None:
        """Put the choices that are known by now beside the other columns of the rows."""
        if self.routes is not None and self.trainer.model.training:
            batch[_PROMPTS] = self.routes.prompts
            batch[_COMPLETIONS] = self.routes.completions
            megabytes = self.routes.size / 2**20
            self.trainer.internals.metrics["router_replay/megabytes"].append(megabytes)

    # ------------------------------------------------------------------------------ the passes

    @contextmanager
    def routes_of(self, batch: dict[str, Any], rows: Sequence[int] | None = None) -> Iterator[None]:
        """Passes inside are made over the rows of `batch`, or `rows` of it alone.

        The choices are replayed where they are known; else the first pass adds them to the batch.
        """
        known = _COMPLETIONS in batch
        self.routes = None  # of other rows that a pass of the user's own was made over
        if known:
            routes = Routes(batch[_PROMPTS], batch[_COMPLETIONS])
            self.routes = routes if rows is None else routes.rows(rows)
        try:
            yield
            if not known:
                if self.routes is not None and rows is not None:
                    self.routes = self.routes.spread(rows, len(batch["prompt_ids"]))
                self.keep(batch)
        finally:
            self.routes = None

    def routing_of(self, model: nn.Module) -> Routing | None:
        """The routers of `model`, if its passes are replayed or recorded now."""
        if self._policy is None or not self.trainer.model.training:
            return None
        if base_of(model) is base_of(self.trainer.model):
            known = self.routes is not None
            return self._policy if known or not _is_reference(model) else None
        return self._reference if self.routes is not None else None

    @contextmanager
    def passes(self, model: nn.Module) -> Iterator[None]:
        """Inside, all rows have their passes, a part of them after the other."""
        active = self.routing_of(model) is not None
        self._cursor, self._recorded = 0, []
        yield
        if active and self.routes is None:
            self.routes = join_routes(self._recorded)

    def _next_rows(self, count: int) -> Routes | None:
        """The routes of the next `count` rows, where they are known."""
        first, self._cursor = self._cursor, self._cursor + count
        return self.routes.rows(range(first, self._cursor)) if self.routes is not None else None

    @contextmanager
    def padded(self, model: nn.Module, mask: Tensor, width: int) -> Iterator[None]:
        """Inside, one pass is made over padded rows with this mask, the next ones."""
        routing = self.routing_of(model)
        assert routing is not None
        if (known := self._next_rows(len(mask))) is not None:
            with self._replayed(routing, known.padded(mask, width, routing)):
                yield
            return
        with routing.record() as passes:
            yield
        prompts, lengths = mask[:, :-width].sum(1).tolist(), mask[:, -width:].sum(1).tolist()
        table = passes[0].unflatten(0, tuple(mask.shape))  # type: ignore[no-untyped-call]
        edge = mask.shape[1] - width
        start = edge - max(prompts)  # padding that all rows have
        self._recorded.append(from_padded(table[:, start:], prompts, lengths))

    @contextmanager
    def packed(self, model: nn.Module, count: int) -> Iterator[None]:
        """Inside, the next `count` rows have their pass, packed; a row may be left out of it."""
        active = self.routing_of(model) is not None
        self._chunk = self._next_rows(count) if active else None
        nothing = torch.zeros(0, 1, 1, dtype=torch.uint8)
        self._taken = Routes([nothing] * count, [nothing] * count)
        yield
        if active and self._chunk is None:
            self._recorded.append(self._taken)

    def idle(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, passes are made over no row: the choices of an earlier try are not theirs."""
        routing = self.routing_of(model)
        return nullcontext() if routing is None else self._replayed(routing, None)

    def _replayed(self, routing: Routing, choices: Tensor | None) -> AbstractContextManager[None]:
        held: AbstractContextManager[None]
        held = self.trainer.packed_forward.until_backward(routing.replay(choices))
        return held

    @contextmanager
    def forward(self, model: nn.Module, packed: packing.Packed) -> Iterator[None]:
        """Inside, the model runs once on packed rows."""
        routing = self.routing_of(model)
        if routing is None:
            yield
            return
        if self._chunk is not None:
            with self._replayed(routing, self._chunk.packed(packed, routing)):
                yield
            return
        with routing.record() as passes:
            yield
        self._taken = from_packed(passes[0], packed, len(self._taken.prompts))

    def log(self) -> None:
        """Add the share of choices that replay has changed to the training's figures."""
        if self._policy is not None and self.trainer.model.training:
            flips = self._policy.take_flips()
            if flips is not None:
                self.trainer.internals.metrics["router_replay/flips"].append(flips)


def _is_reference(model: nn.Module) -> bool:
    """Whether a policy with an adapter is its own reference now: without it, or by trl's copy."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    layer = next(layers, None)
    return layer is not None and (layer.disable_adapters or layer.active_adapters == ["ref"])
