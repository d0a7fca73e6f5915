"""Log-probabilities of the policy that sampled, without a pass of their own where they are known.

Where completions are trained on after the policy has moved (several iterations, or a generation
for several optimizer steps), trl computes every row's log-probabilities once more when it samples.
Here micro-batches that are trained on before the policy moves take theirs from that first training
pass, as trl does where nothing is off policy; for the others one pass is made, over the rows that
can move the policy. The policy is the same, so are the numbers, but for the rounding of another
batch.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rl_reasoner.distributed.sharding import forward_is_collective
from rl_reasoner.training.micro_batches import moves
from rl_reasoner.training.objective import trained_tokens
from rl_reasoner.training.packed_forward import Pass, is_on
from rl_reasoner.training.trl_internals import BATCHES, LOSS, OLD_LOGPS, PASS

RATIO = "importance_sampling_ratio"  # a column of a batch
_LITTLE = 0.5  # a mean weight that takes the gradient away; evaluation.learning_alarms has it, too
logger = logging.getLogger(__name__)


class OldLogProbs:
    """Which passes of a trainer give old log-probs for nothing; see the module's docstring."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._leaves_out = False  # the next pass is the one that is left out
        self._fresh: Tensor | None = None  # log-probs of the last pass
        self._done = 0  # micro-batches of the current optimizer step that are trained on

    @property
    def moves_on(self) -> bool:
        """Whether the policy moves while completions are trained on."""
        args = self.trainer.args
        every = args.steps_per_generation * self.trainer.num_iterations
        return bool(args.gradient_accumulation_steps % every)

    @property
    def defers(self) -> bool:
        """Whether trl would make the pass, and nobody needs it at once."""
        trainer = self.trainer
        return bool(
            trainer.packed_forward.packs
            and is_on(trainer, "reuse_log_probs")
            and self.moves_on
            and not trainer.internals.overridden(*LOSS, PASS, *BATCHES)
            and not (trainer.use_vllm and trainer.vllm_importance_sampling_correction)
            and not trainer.objective.kl_in_reward
        )

    def begin(self) -> None:
        """A batch is sampled and scored: trl's first pass after sampling may be left out."""
        self._leaves_out = self.defers

    def defer(self, batch: dict[str, Any]) -> None:
        """What stood in for that pass leaves the batch again."""
        if self.defers:
            del batch[OLD_LOGPS]

    def instead_of_pass(self, input_ids: Tensor) -> Pass | None:
        """What stands in for the pass that is asked for now, if it is the one left out."""
        if not self._leaves_out:
            return None
        self._leaves_out = False
        return input_ids.new_zeros((len(input_ids), 1), dtype=torch.float32), None, None

    def saw(self, logps: Tensor) -> None:
        """The log-probs (B, T) of a pass."""
        self._fresh = logps

    def complete(self, buffer: list[dict[str, Any]], log_probs: Callable[..., Pass]) -> None:
        """Give those micro-batches their old log-probs that are trained on when it is too late."""
        if not self.defers:
            return
        on_policy = self.trainer.current_gradient_accumulation_steps - self._done
        for batch in buffer[on_policy:]:
            if OLD_LOGPS not in batch:
                batch[OLD_LOGPS] = self._now(batch, log_probs)

    def _now(self, batch: dict[str, Any], log_probs: Callable[..., Pass]) -> Tensor:
        """(B, T) log-probs of a micro-batch under the policy as it is; 0 where a row is skipped."""
        trainer = self.trainer
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].shape[1]
        logps = torch.zeros(ids.shape[0], width, device=ids.device)
        skips = trainer.packed_forward.skips
        rows = moves(batch["advantages"]) if skips else torch.ones_like(ids[:, 0]).bool()
        if forward_is_collective(trainer):  # as many passes as the other processes make
            rows[0] = True
        if rows.any():
            moving = rows.nonzero().flatten().tolist()
            with (
                torch.no_grad(),
                trainer.router_replay.routes_of(batch, moving),
                trainer.sampling_mask.of(batch, moving),
            ):
                now, _, _ = log_probs(trainer.model, ids[rows], mask[rows], width)
            logps[rows] = now.to(logps.dtype)
        return logps

    def keep(self, inputs: dict[str, Any]) -> None:
        """Keep the log-probs of the loss's pass with its rows, for the iterations to come."""
        trainer = self.trainer
        if trainer.model.training and self.defers and OLD_LOGPS not in inputs:
            assert self._fresh is not None
            # in the buffer, where the iterations find it; rows without numbers stay so
            lost = trainer.packed_forward.lost[:, None]
            inputs[OLD_LOGPS] = self._fresh.detach().masked_fill(lost, torch.nan)
        self._fresh = None

    def micro_batch_done(self) -> None:
        """A micro-batch was trained on."""
        self._done = 0 if self.trainer.accelerator.sync_gradients else self._done + 1


class SamplingCorrection:
    """trl's weights of tokens for the log-probs they were drawn with, made in the training pass.

    trl computes the policy's log-probs for them in a pass before (`vllm_importance_sampling_*`).
    Where the policy does not move between that pass and the training's, the training's own has the
    same: the weights, by trl's formulas and settings, are made of those, in the middle of the loss.
    Figures of them are over the rows that are computed.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._told = False
        self._inputs: dict[str, Any] | None = None  # the micro-batch whose loss is computed

    @property
    def in_the_loss(self) -> bool:
        """Whether the training pass gives what the pass before it would."""
        trainer = self.trainer
        return bool(
            trainer.packed_forward.packs
            and is_on(trainer, "reuse_log_probs")
            and trainer.accelerator.num_processes == 1
            and trainer.loss_type != "vespo"  # which has the weights in its own
            and trainer.off_policy_mask_threshold is None
            and not trainer.old_logprobs.moves_on
            and not trainer.objective.kl_in_reward
            and not trainer.internals.overridden(*LOSS, PASS, *BATCHES)
        )

    @contextmanager
    def loss_of(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Inside, the loss of `inputs` is computed, and corrected for."""
        before, self._inputs = self._inputs, inputs
        try:
            yield
        finally:
            self._inputs = before

    def saw(self, logps: Tensor) -> None:
        """The (B, T) log-probs of the pass that is made now: the weights of its tokens follow."""
        inputs, trainer = self._inputs, self.trainer
        if not inputs or not trainer.model.training or not self.in_the_loss:
            return
        drawn = inputs.get("sampling_per_token_logps")
        if drawn is None:
            return
        mask = trained_tokens(inputs) * self._computed(inputs)  # a weight of 1 where there is none
        apart = ((logps.detach() - drawn) * mask).nan_to_num(nan=0.0)
        inputs[RATIO] = weights(
            apart,
            trainer.vllm_importance_sampling_mode,
            trainer.vllm_importance_sampling_clip_min,
            trainer.vllm_importance_sampling_clip_max,
        )
        self._log(apart, inputs, mask.bool())

    def tell(self) -> None:
        """Say once that what is trained on now weighs little."""
        means = self.trainer.internals.training_metrics.get(f"sampling/{RATIO}/mean")
        if not self._told and means and (mean := sum(means) / len(means)) < _LITTLE:
            self._told = True
            logger.warning(
                "the weights that correct for sampling (sampling/importance_sampling_ratio) are "
                "%.2g on average: completions are trained on with next to no gradient. Their "
                "log-probs are not the policy's: look at cut-offs (top_p, top_k, min_p), at "
                "sampling_weights and at the server that samples",
                mean,
            )

    def _computed(self, inputs: dict[str, Any]) -> Tensor:
        """(B, 1) bool: the rows of the loss that have log-probs of this pass."""
        forward, moving = self.trainer.packed_forward, moves(inputs["advantages"])
        computed = moving if forward.skips else torch.ones_like(moving)
        rows: Tensor = computed & ~forward.lost
        return rows[:, None]

    def _log(self, apart: Tensor, inputs: dict[str, Any], mask: Tensor) -> None:
        """trl's figures, of the rows that have log-probs."""
        if not mask.any():
            return
        ratio = inputs[RATIO]
        ratio = ratio[mask] if ratio.shape == mask.shape else ratio[mask.any(1)]
        metrics, apart = self.trainer.internals.training_metrics, apart[mask].abs()
        for name, figures in {
            "importance_sampling_ratio": {"min": ratio.min(), "mean": ratio.mean()},
            "sampling_logp_difference": {"mean": apart.mean(), "max": apart.max()},
        }.items():
            for kind, value in figures.items():
                metrics[f"sampling/{name}/{kind}"].append(value.item())
        metrics["sampling/importance_sampling_ratio/max"].append(ratio.max().item())


def weights(apart: Tensor, mode: str, least: float | None, most: float | None) -> Tensor:
    """(B, T) weights of tokens, or (B, 1) of rows, from `apart` (B, T): log policy - log drawn.

    `mode` is trl's `vllm_importance_sampling_mode`: of a token or of the whole sequence; what is
    out of bounds is set to the bound (truncate) or to 0 (mask).
    """
    level, _, bound = mode.partition("_")
    ratio = (apart.sum(-1, keepdim=True) if level == "sequence" else apart).exp()
    if bound == "truncate":
        return ratio if least is None and most is None else torch.clamp(ratio, least, most)
    low, high = -torch.inf if least is None else least, torch.inf if most is None else most
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)
