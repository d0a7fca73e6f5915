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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import trl
from torch import Tensor, nn

from rl_reasoner.kernels import packing
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
from rl_reasoner.training.packed_forward import TrainingPass, base_of, joined_passes

logger = logging.getLogger(__name__)
_PROMPTS, _COMPLETIONS = "prompt_experts", "completion_experts"  # columns of a batch
_MISSING = (
    "router_replay: no choices come from sampling, for %s: the first pass over the rows gives them"
)


@dataclass
class RouterReplayConfig(trl.GRPOConfig):  # type: ignore[misc]
    """trl's config with a switch; off, because replay gives other numbers than trl.

    Recipes turn it on (`router_replay` of a grpo stage).
    """

    router_replay: bool = field(
        default=False,
        metadata={"help": "Mixtures of experts: train with the experts that sampling chose."},
    )


class RouterReplay(TrainingPass):
    """The training pass with replayed experts; see the module's docstring."""

    # trl's own tests generate with trainers that were never initialised
    _routing: Routing | None = None  # of the policy
    _routes: Routes | None = None  # of the rows that passes are made over now

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unrecorded: str | None = None  # why sampling gives no choices
        self._chunk: Routes | None = None  # of the part of the rows that is in a pass
        self._taken = Routes([], [])  # of that part, where its pass gives them
        self._cursor = 0  # rows that had their pass
        self._found: list[Routes] = []  # of those, where the pass gives them
        self._reference: Routing | None = None
        policy = base_of(self.model)
        if not getattr(self.args, "router_replay", False) or not any(True for _ in routers(policy)):
            return
        try:
            config: Any = policy.config
            if config.get_text_config() is not config:
                raise NoReplay("a multimodal model")
            routing = Routing(policy)
            if self.ref_model is not None:
                self._reference = Routing(base_of(self.ref_model))
        except NoReplay as reason:
            logger.warning("router_replay: off, for %s", reason)
            return
        self._routing = routing
        self._unrecorded = self._sampled_elsewhere()
        if self._unrecorded is not None:
            logger.warning(_MISSING, self._unrecorded)

    # ---------------------------------------------------------------------------- the sampling

    @property
    def _recording(self) -> Routing | None:
        """The routers to record while completions are sampled, or None."""
        train = self._routing is not None and self.model.training
        return self._routing if train and self._unrecorded is None else None

    @contextmanager
    def _sampled_routes(self) -> Iterator[SampledRoutes | None]:
        """Inside, the engine samples, and fills what this gives with the experts it chooses."""
        if self._recording is None:
            yield None
            return
        with self._recording.record() as passes:
            sampled = SampledRoutes(passes)
            yield sampled
        self._routes = sampled.routes()

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        routing = self._recording
        if routing is None:
            unseen: Any = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            return unseen  # type: ignore[no-any-return]
        with routing.record() as passes:
            ids, logps = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        rows = len(prompt_ids)
        prompts = [len(prompt) for prompt in prompt_ids]
        sizes = [len(choices) for choices in passes]
        # what transformers' generate does: all prompts, padded, then a token of every row
        if sizes[0] == rows * max(prompts) and set(sizes[1:]) <= {rows}:
            table = torch.cat([choices.unflatten(0, (rows, -1)) for choices in passes], 1)  # type: ignore[no-untyped-call]
            self._routes = from_padded(table, prompts, [len(completion) for completion in ids])
        return ids, logps

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._routes = None  # sampling gives them
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._keep(output)
        self._routes = None
        return output

    def _keep(self, batch: dict[str, Any]) -> None:
        if self._routes is not None and self.model.training:
            batch[_PROMPTS] = self._routes.prompts
            batch[_COMPLETIONS] = self._routes.completions
            self._metrics["train"]["router_replay/megabytes"].append(self._routes.size / 2**20)

    # ------------------------------------------------------------------------------ the passes

    @contextmanager
    def _routes_of(
        self, batch: dict[str, Any], rows: Sequence[int] | None = None
    ) -> Iterator[None]:
        """Passes inside are made over the rows of `batch`, or `rows` of it alone.

        The choices are replayed where they are known; else the first pass adds them to the batch.
        """
        known = _COMPLETIONS in batch
        self._routes = None  # of other rows that a pass of the user's own was made over
        if known:
            found = Routes(batch[_PROMPTS], batch[_COMPLETIONS])
            self._routes = found if rows is None else found.rows(rows)
        try:
            yield
            if not known and rows is None:
                self._keep(batch)
        finally:
            self._routes = None

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self._routes_of(inputs):
            loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _active(self, model: nn.Module) -> Routing | None:
        """The routers of `model`, if this pass replays them or is to record them."""
        if self._routing is None or not self.model.training:
            return None
        if base_of(model) is base_of(self.model):
            return self._routing
        return self._reference if self._routes is not None else None

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        options = (compute_entropy, compute_aux_loss)
        pass_over = super()._get_per_token_logps_and_entropies
        routing = self._active(model)
        if routing is None:
            plain: tuple[Tensor, Tensor | None, Tensor | None] = pass_over(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                *options,
                **multimodal,
            )
            return plain
        self._cursor, self._found = 0, []
        size = len(input_ids) if self._packs else batch_size or len(input_ids)
        parts = []
        for start in range(0, len(input_ids), size):
            ids, mask = input_ids[start : start + size], attention_mask[start : start + size]
            with ExitStack() as stack:
                if not self._packs:
                    self._padded_pass(routing, mask, logits_to_keep, stack)
                parts.append(pass_over(model, ids, mask, logits_to_keep, batch_size, *options))
        if self._routes is None:
            self._routes = join_routes(self._found)
        return joined_passes(parts, compute_entropy, compute_aux_loss)

    def _next_rows(self, count: int) -> Routes | None:
        """The routes of the next `count` rows, where they are known."""
        first, self._cursor = self._cursor, self._cursor + count
        return self._routes.rows(range(first, self._cursor)) if self._routes is not None else None

    def _held(self, stack: ExitStack) -> ExitStack:
        """Until when a pass's choices stay: its backward pass may compute it anew."""
        return self._open if torch.is_grad_enabled() and self._open else stack

    def _padded_pass(self, routing: Routing, mask: Tensor, width: int, stack: ExitStack) -> None:
        """Replay or record the one pass to come, over padded rows, until `stack` is closed."""
        known = self._next_rows(len(mask))
        if known is not None:
            self._held(stack).enter_context(routing.replay(known.padded(mask, width, routing)))
            return
        passes = stack.enter_context(routing.record())
        prompts, lengths = mask[:, :-width].sum(1).tolist(), mask[:, -width:].sum(1).tolist()

        def keep() -> None:
            table = passes[0].unflatten(0, tuple(mask.shape))  # type: ignore[no-untyped-call]
            edge = mask.shape[1] - width
            start = edge - max(prompts)  # padding that all rows have
            self._found.append(from_padded(table[:, start:], prompts, lengths))

        stack.callback(keep)

    def _packed_pass(
        self, model: nn.Module, ids: Tensor, mask: Tensor, width: int, aux: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        active = self._active(model) is not None
        self._chunk = self._next_rows(len(ids)) if active else None
        nothing = torch.zeros(0, 1, 1, dtype=torch.uint8)
        self._taken = Routes([nothing] * len(ids), [nothing] * len(ids))
        found = super()._packed_pass(model, ids, mask, width, aux)
        if active and self._chunk is None:
            self._found.append(self._taken)
        return found

    def _idle(self, model: nn.Module, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        routing = self._active(model)
        with ExitStack() as stack:
            if routing is not None:  # the choices of an earlier try are not this token's
                self._held(stack).enter_context(routing.replay(None))
            return super()._idle(model, ids, mask, width)

    def _forward(self, model: nn.Module, packed: packing.Packed, aux: bool) -> Any:
        routing = self._active(model)
        if routing is None:
            return super()._forward(model, packed, aux)
        with ExitStack() as stack:
            if self._chunk is not None:
                choices = self._chunk.packed(packed, routing)
                self._held(stack).enter_context(routing.replay(choices))
                return super()._forward(model, packed, aux)
            passes = stack.enter_context(routing.record())
            out = super()._forward(model, packed, aux)
            self._taken = from_packed(passes[0], packed, len(self._taken.prompts))
        return out

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As trl's, with the share of choices that replay has changed."""
        if self._routing is not None and self.model.training:
            flips = self._routing.take_flips()
            if flips is not None:
                self._metrics["train"]["router_replay/flips"].append(flips)
        super().log(logs, start_time)
