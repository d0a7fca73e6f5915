"""A training pass that ran out of memory is made again in smaller pieces.

The rows of a micro-batch are split in half, and in half again, until they fit; later micro-batches
begin with that size. The gradient is that of the whole: a loss that averages over rows is weighted
with each piece's share of them, one that is a sum is added up; a loss of the user's own may be
neither. Where a backward pass broke off on top of gradients of earlier micro-batches, the step's
gradient is not known any more: it is made "not finite", and `faults.SkipBadSteps` leaves the step
out. For one process; with several, each would make another number of collective calls.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from rl_reasoner.training.packed_forward import MEANS_OF_ROWS, SUMS_OF_ROWS
from rl_reasoner.training.trl_internals import LOSS, PASS, put_on

logger = logging.getLogger(__name__)
_IN_BACKWARD = ("lomo", "layerwise")  # the backward pass changes weights: once, by trl's trainer


class SmallerPieces:
    """A trainer's way out of running out of memory; see the module's docstring.

    `pieces` of each micro-batch; `active` in a training step whose backward pass is made here.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.pieces = 1
        self.active = False

    def training_step(self) -> AbstractContextManager[None]:
        """Inside, losses are computed for a training step."""
        return put_on(self, "active", self.splits)

    @property
    def splits(self) -> bool:
        """Whether the gradient of a micro-batch is the sum of its pieces' gradients."""
        trainer = self.trainer
        return bool(
            trainer.accelerator.distributed_type == DistributedType.NO
            and not any(kind in trainer.args.optim for kind in _IN_BACKWARD)
            and trainer.loss_type in (*MEANS_OF_ROWS, *SUMS_OF_ROWS)
            and trainer.packed_forward.rows_alone
            and not trainer.internals.overridden(*LOSS, PASS)
            and not getattr(trainer.args, "router_sequence_loss_coef", 0.0)
        )

    def loss_and_backward(
        self, compute_loss: Callable[..., Tensor], model: nn.Module, inputs: dict[str, Any]
    ) -> Tensor:
        """The loss; its backward pass is done, and what comes back is a leaf."""
        rows = len(inputs["prompt_ids"])
        clean = all(p.grad is None for p in model.parameters())
        while True:
            begun = [False]
            try:
                pieces = min(self.pieces, rows)
                return self._in_pieces(compute_loss, model, inputs, pieces, begun)
            except torch.OutOfMemoryError:
                if self.pieces >= rows:
                    raise
                self.pieces *= 2
            logger.warning(
                "out of memory with %d rows: continuing with %d pieces", rows, self.pieces
            )
            metrics = self.trainer.internals.training_metrics
            metrics["memory/pieces"].append(float(self.pieces))
            if begun[0]:
                _drop_gradients(model, clean)

    def _in_pieces(
        self,
        compute_loss: Callable[..., Tensor],
        model: nn.Module,
        inputs: dict[str, Any],
        count: int,
        begun: list[bool],
    ) -> Tensor:
        """Loss and gradient of `inputs` in so many pieces; `begun`: whether gradients change."""
        accelerator = self.trainer.accelerator
        pieces = _split(inputs, count)
        total = torch.zeros((), device=accelerator.device)
        for piece in pieces:
            share = len(piece["prompt_ids"]) / len(inputs["prompt_ids"])
            loss = compute_loss(model, piece)
            if count > 1 and self.trainer.loss_type in MEANS_OF_ROWS:
                loss = loss * share
            begun[0] = True
            accelerator.backward(loss)
            total += loss.detach()
        if count > 1:
            _take_over(inputs, pieces)
        return total.requires_grad_()


def _drop_gradients(model: nn.Module, clean: bool) -> None:
    """Drop the partial gradients of an interrupted backward pass.

    If earlier micro-batches had already added to them (not `clean`), they are set to NaN so that
    the step is skipped.
    """
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = None if clean else torch.full_like(parameter.grad, torch.nan)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _split(inputs: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The rows of a micro-batch in `count` parts; what has no rows is the same in each."""
    if count == 1:
        return [inputs]
    rows = len(inputs["prompt_ids"])
    bounds = [rows * i // count for i in range(count + 1)]
    return [
        {name: value[a:b] if _by_row(value, rows) else value for name, value in inputs.items()}
        for a, b in pairwise(bounds)
    ]


def _by_row(value: Any, rows: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == rows
    return isinstance(value, list) and len(value) == rows


def _take_over(inputs: dict[str, Any], pieces: list[dict[str, Any]]) -> None:
    """What the passes added to the pieces (old log-probs) is added to the whole."""
    for name in pieces[0].keys() - inputs.keys():
        values = [piece[name] for piece in pieces]
        if isinstance(values[0], Tensor):
            inputs[name] = torch.cat(values)
        else:
            inputs[name] = [entry for value in values for entry in value]
