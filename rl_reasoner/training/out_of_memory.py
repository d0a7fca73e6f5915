"""A training pass that ran out of memory is made again in smaller pieces.

The rows of a micro-batch are split in half, and in half again, until they fit; later micro-batches
begin with that size. The gradient is that of the whole: a loss that averages over rows is weighted
with each piece's share of them, one that is a sum is added up; a loss of the user's own may be
neither. Where a backward pass broke off on top of gradients of earlier micro-batches, the step's
gradient is not known any more: it is made "not finite", and `faults.SkipBadSteps` leaves the step
out. For one process; with several, each would make another number of collective calls.
"""

import logging
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from rl_reasoner.training.packed_forward import (
    LOSS,
    MEANS_OF_ROWS,
    PASS,
    SUMS_OF_ROWS,
    TrainingPass,
)

logger = logging.getLogger(__name__)
_IN_BACKWARD = (
    "lomo",
    "layerwise",
)  # the backward pass changes the weights: once, by trl's trainer


class SmallerPieces(TrainingPass):
    """trl's trainer with a way out of running out of memory; see the module's docstring."""

    _pieces = 1  # of each micro-batch
    _stepping = False  # in a training step: the backward pass is made here

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self._stepping = self._splits
        try:
            return super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._stepping = False

    @property
    def _splits(self) -> bool:
        """Whether the gradient of a micro-batch is the sum of its pieces' gradients."""
        return bool(
            self.accelerator.distributed_type == DistributedType.NO
            and not any(kind in self.args.optim for kind in _IN_BACKWARD)
            and self.loss_type in (*MEANS_OF_ROWS, *SUMS_OF_ROWS)
            and self._rows_alone
            and not self._own(*LOSS, PASS)
            and not getattr(self.args, "router_sequence_loss_coef", 0.0)
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The loss; in a training step its backward pass is done, and what comes back is a leaf."""
        if not self._stepping:
            plain: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return plain
        rows = len(inputs["prompt_ids"])
        clean = all(p.grad is None for p in model.parameters())
        while True:
            begun = [False]
            try:
                return self._in_pieces(model, inputs, min(self._pieces, rows), begun)
            except torch.OutOfMemoryError:
                if self._pieces >= rows:
                    raise
                self._pieces *= 2
            said = f"out of memory with {rows} rows: continuing with {self._pieces} pieces"
            logger.warning(said)
            self._metrics["train"]["memory/pieces"].append(float(self._pieces))
            if begun[0]:
                self._begin_again(model, clean)

    def _begin_again(self, model: nn.Module, clean: bool) -> None:
        """Take back what a backward pass that broke off has added, or say that it is not known."""
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = None if clean else torch.full_like(parameter.grad, torch.nan)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _in_pieces(
        self, model: nn.Module, inputs: dict[str, Any], count: int, begun: list[bool]
    ) -> Tensor:
        """Loss and gradient of `inputs` in so many pieces; `begun`: whether gradients change."""
        pieces = _split(inputs, count)
        total = torch.zeros((), device=self.accelerator.device)
        for piece in pieces:
            share = len(piece["prompt_ids"]) / len(inputs["prompt_ids"])
            loss = super().compute_loss(model, piece)
            if count > 1 and self.loss_type in MEANS_OF_ROWS:
                loss = loss * share
            begun[0] = True
            self.accelerator.backward(loss)
            total += loss.detach()
        if count > 1:
            _take_over(inputs, pieces)
        return total.requires_grad_()


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
