"""Balance of experts in the trainer: DeepSeek's bias update and sequence-wise loss, load, guards.

`ExpertBalance` looks at the routers while passes of a loss are made, and adds the loss of
rl_reasoner.moe.balance to trl's. `balanced` is for any trainer.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from rl_reasoner.errors import UserError
from rl_reasoner.kernels import packing
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.moe.autocast import autocast_experts
from rl_reasoner.moe.balance import (
    BiasUpdate,
    Segments,
    affinities_of,
    balance_figures,
    packed_segments,
    padded_segments,
    sequence_loss,
)
from rl_reasoner.moe.experts import (
    ExpertLoad,
    check_auxiliary_loss,
    check_experts,
    frozen_routers,
    routers,
    without_router_logits,
)
from rl_reasoner.training.trl_internals import put_on


@contextmanager
def balanced(trainer: Any, freeze: bool) -> Iterator[None]:
    """Inside, a trainer trains, its routers frozen or not; what that put on the model comes off."""
    with frozen_routers(base_of(trainer.model)) if freeze else nullcontext():
        try:
            yield
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, BiasUpdate):
                    callback.remove()


class ExpertBalance:
    """The routers of a trainer's policy, kept in balance; nothing happens to a dense one.

    `last_load`: the shares of the experts' load in the last line of the log, a list a layer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        args = trainer.args
        self.last_load: list[list[float]] = []
        self._load: ExpertLoad | None = None  # while it trains
        self._coefficient: float = getattr(args, "router_sequence_loss_coef", 0.0)
        self._collects = False  # a loss with the sequences' balance is being computed
        self._seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None  # of the pass at hand
        self._losses: list[Tensor] = []  # of the last pass, a layer's each
        base = base_of(trainer.model)
        check_auxiliary_loss(base, getattr(args, "router_aux_loss_coef", None))
        check_experts(base)
        autocast_experts(base)
        without_router_logits(base)
        rate: float = getattr(args, "router_bias_update", 0.0)
        if rate:
            trainer.add_callback(BiasUpdate(trainer.model, rate))
        self.of_all_rows = bool(self._coefficient or rate)
        """Whether the balance is that of the whole batch: rows without advantage count, too."""
        if self._coefficient:
            self._check_sequences(base)

    def _check_sequences(self, base: nn.Module) -> None:
        """Raises `UserError` for a policy that the sequence-wise loss is not for."""
        args = self.trainer.args
        if not any(True for _ in routers(base)):
            raise UserError(
                "router_sequence_loss_coef (router_sequence in a recipe) is for mixtures of "
                f"experts, which {type(base).__name__} is not"
            )
        again = args.gradient_checkpointing_kwargs or {}
        if args.gradient_checkpointing and again.get("use_reentrant"):
            raise UserError(
                "router_sequence_loss_coef (router_sequence in a recipe) has no gradient under "
                "reentrant checkpointing: set gradient_checkpointing_kwargs={'use_reentrant': "
                "False}"
            )

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Inside, the policy trains, its load is counted; what that puts on the model comes off."""
        trainer = self.trainer
        base = base_of(trainer.model)
        with ExitStack() as stack:
            self._load = ExpertLoad(trainer.model)
            stack.callback(self._load.remove)
            stack.enter_context(balanced(trainer, getattr(trainer.args, "freeze_router", False)))
            for _, router in routers(base) if self._coefficient else ():
                stack.callback(router.register_forward_hook(self._collect).remove)
            yield

    def _collect(self, router: nn.Module, inputs: Any, output: Any) -> None:
        """Only looks: what it added to the graph here, checkpointing would have to compute anew."""
        if self._seen is not None and torch.is_grad_enabled():
            self._seen.append((router, output[0], output[2]))

    def packed(self, packed: packing.Packed) -> AbstractContextManager[None]:
        """Inside, the model runs once on packed rows."""
        return self._looking(packed_segments(packed)) if self._collects else nullcontext()

    @contextmanager
    def _looking(self, segments: Segments) -> Iterator[None]:
        """Inside, one pass with gradients over `segments`, which leaves its `_losses`."""
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []
        self._seen = seen
        try:
            yield
        finally:
            self._seen = None
        self._losses = [
            sequence_loss(affinities_of(router, logits), chosen, segments)
            for router, logits, chosen in seen
        ]

    @contextmanager
    def loss_of(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Inside, passes are those of the loss of this micro-batch."""
        collects = bool(self._coefficient and self.trainer.model.training)
        self._losses = []
        with ExitStack() as stack:
            stack.enter_context(put_on(self, "_collects", collects))
            if collects and not self.trainer.packed_forward.packs:
                mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
                stack.enter_context(self._looking(padded_segments(mask)))
            yield

    def added(self, loss: Tensor) -> Tensor:
        """The loss with that of the sequences' balance in the pass behind it; logged."""
        losses, self._losses = self._losses, []
        if not losses:  # no balance, or no row was computed
            return loss
        balance = torch.stack(losses).sum()
        self.trainer.internals.metrics["router_sequence_loss"].append(balance.item())
        steps = self.trainer.current_gradient_accumulation_steps
        return loss.add(balance * (self._coefficient / steps))

    def gather(self) -> None:
        """Take in the experts' load of the other processes; all of them call it."""
        if self._load:
            for counts in gather_object([self._load.take_counts()]):
                self._load.add(counts)

    def log(self) -> None:
        """Add the experts' load since the last line to the training's figures."""
        load = self._load.take() if self._load and self.trainer.model.training else []
        if load:
            self.last_load = load
            for name, value in balance_figures(load).items():
                self.trainer.internals.metrics[name].append(value)
