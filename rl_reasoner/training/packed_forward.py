"""The training pass: trl's loss and gradients, without the work that changes neither.

`TrainingPass` overrides the one method of trl's trainer that runs the model on completions and
leaves every loss to trl. Four speed-ups, each a field of the config:

- `share_prompts`: rows are packed without padding, each prompt computed once
  (rl_reasoner.kernels.packing), the LM head on completion positions only;
- `skip_zero_advantage`: rows that cannot move the policy are not computed; only where that is exact
  (no KL, router or entropy term, no entropy quantile);
- `regroup_rows`: within one optimizer step, the micro-batches are refilled so that rows of a group
  lie together; only for losses that do not depend on how a step is split;
- `balance_processes`: before that, several processes exchange groups, so that each has the same
  number of tokens (rl_reasoner.training.token_balance).

What cannot be packed exactly goes trl's own way, said once in the log. Metrics are trl's; `entropy`
is the mean over the rows that were computed, and the micro-batches it is a mean of are ours.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
import trl
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn

from rl_reasoner.distributed.sharding import any_rank, forward_is_collective
from rl_reasoner.kernels import packing
from rl_reasoner.kernels.lm_head import fused_head
from rl_reasoner.rollout.agreement import (
    fused_head_agrees,
    in_mode,
    packing_obstacle,
    sampling_obstacle,
)
from rl_reasoner.training.micro_batches import moves, regrouped, take_out
from rl_reasoner.training.token_balance import exchanged

logger = logging.getLogger(__name__)

# Losses in which a row's weight in the step does not depend on the rows beside it.
MEANS_OF_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")
SUMS_OF_ROWS = ("dapo", "cispo", "vespo")
# What of trl's trainer makes the loss, and what hands it its batches. Where a trainer of the user's
# own overrides one of them, it finds there what it finds in trl's.
LOSS = (
    "compute_loss",
    "_compute_loss",
    "get_off_policy_mask",
    "get_high_entropy_mask",
    "get_gamma_weights",
)
PASS = "_get_per_token_logps_and_entropies"
BATCHES = ("_generate_and_score_completions", "_prepare_inputs")
_TOGETHER = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)
_DROPOUT = (
    ": it takes 4 to 7 times as long (docs/trainer.md, Speed). Ours is used without dropout: "
    "lora_dropout=0 (policy.lora.dropout in a recipe), disable_dropout=True, or "
    "attention_dropout=0 in the model's config"
)


def base_of(model: nn.Module) -> nn.Module:
    """The causal language model inside wrappers of accelerate and adapters of peft."""
    inner = getattr(model, "module", model)
    base: nn.Module = inner.get_base_model() if isinstance(inner, PeftModel) else inner
    return base


class TrainingPass(trl.GRPOTrainer):  # type: ignore[misc]
    """trl's trainer with a packed pass over completions; see the module's docstring."""

    _buffered_inputs: list[dict[str, Any]] | None
    standard: Mapping[str, Any] = {}  # the methods as this package has them

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open: ExitStack | None = None  # in a training step: what its backward pass needs
        self._inputs: dict[str, Any] | None = None  # of the loss that is being computed
        self._moved = False  # whether a row of this optimizer step was computed
        self._obstacle: str | None = None  # to packing
        self._unsampled: str | None = None  # why the engine does not sample from the policy
        settings = self._settings_obstacle()
        if self._on("share_prompts"):
            self._obstacle = settings or self._packing_obstacle()
        if self._on("fast_rollouts") and self._sampled_elsewhere() is None:
            self._unsampled = settings or self._engine_obstacle()
        if self._obstacle:
            used = "share_prompts: trl's own training pass is"
            if self._unsampled == self._obstacle:
                used = "share_prompts and fast_rollouts: trl's own training pass and sampling are"
            mend = _DROPOUT if "dropout" in self._obstacle else ""
            logger.warning("%s used, for %s%s", used, self._obstacle, mend)
        self._packs = self._on("share_prompts") and self._obstacle is None
        if settings is None:  # weights are whole, and a pass is made by this process alone
            self._check_head()

    def _on(self, name: str) -> bool:
        """Whether a speed-up is on; a config of trl's own has none of the fields: all are."""
        return bool(getattr(self.args, name, True))

    def _own(self, *names: str) -> list[str]:
        """Which of these methods are the user's own: of a subclass, or put on the trainer."""
        kind = type(self)
        return [
            name
            for name in names
            if name in vars(self)
            or getattr(kind, name) is not self.standard.get(name, getattr(kind, name))
        ]

    def _check_head(self) -> None:
        """Say so where trl scores completions otherwise than the policy samples them."""
        base: Any = base_of(self.model)
        if base.config.get_text_config() is not base.config:
            return
        with suppress(Exception):  # code of any model's own, which fails in its first step
            if not fused_head_agrees(base, self.temperature):
                logger.warning(
                    "trl scores completions by the output matrix alone, and the head of %s does "
                    "more: the distribution that is trained differs from the one that is sampled",
                    type(base).__name__,
                )

    def _settings_obstacle(self) -> str | None:
        """What of the settings keeps every model from our layouts, or None."""
        args = self.args
        if self.accelerator.distributed_type not in _TOGETHER:
            return f"training under {self.accelerator.distributed_type.value}"
        if forward_is_collective(self) and not self.accelerator.is_fsdp2:
            return "the first version of FSDP"
        if args.torch_compile:
            return "torch_compile"
        if args.parallelism_config is not None and args.parallelism_config.tp_enabled:
            return "tensor parallelism"
        if args.neftune_noise_alpha is not None:
            return "the noise of NEFTune, which depends on the length of the padded row"
        if args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get(
            "use_reentrant"
        ):
            return "reentrant gradient checkpointing"
        if isinstance(self.model, PeftModel) and self.model.active_peft_config.is_prompt_learning:
            return "prompt-learning adapters"
        return None

    def _packing_obstacle(self) -> str | None:
        """What the models cannot be packed for, or None."""
        for model in filter(None, (self.model, self.ref_model)):
            base = base_of(model)
            with in_mode(base, training=model is self.model):
                if found := packing_obstacle(base):
                    return found
        return None

    def _engine_obstacle(self) -> str | None:
        """What the engine cannot sample from the policy for, or None: the policy rests then."""
        base = base_of(self.model)
        with in_mode(base, training=False):
            return sampling_obstacle(base)

    def _sampled_elsewhere(self) -> str | None:
        """What samples in the place of a plain batch of prompts, or None."""
        if self.use_vllm:
            return "vLLM"
        if self.use_transformers_continuous_batching:
            return "continuous batching"
        if self.tools or self.rollout_func is not None or self.environment_factories is not None:
            return "tools, environments or a rollout function"
        return None

    # ------------------------------------------------------------------------------ the pass

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
        """Log-probs and entropies (B, logits_to_keep), zero behind the end of a row; router loss.

        As trl's, with the prompts shared.
        """
        if not self._packs or any(value is not None for value in multimodal.values()):
            plain: tuple[Tensor, Tensor | None, Tensor | None] = (
                super()._get_per_token_logps_and_entropies(
                    model,
                    input_ids,
                    attention_mask,
                    logits_to_keep,
                    batch_size,
                    compute_entropy,
                    compute_aux_loss,
                    **multimodal,
                )
            )
            return plain
        rows = input_ids.shape[0]
        size = batch_size or rows
        parts = [
            self._packed_pass(
                model,
                input_ids[start : start + size],
                attention_mask[start : start + size],
                logits_to_keep,
                compute_aux_loss,
            )
            for start in range(0, rows, size)
        ]
        return joined_passes(parts, compute_entropy, compute_aux_loss)

    def _packed_pass(
        self, model: nn.Module, ids: Tensor, mask: Tensor, width: int, aux: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log-probs, entropies (B, width), None from a head that gives none; router loss or zero.

        A row with a log-prob that is not finite is left out, and the pass is done without it: its
        ratio is 1, it gives no gradient, and the weights stay finite. Without gradients, where its
        log-probs are to be compared with later ones, they are NaN: `take_out` sees to the row.
        """
        keep = self._kept(mask, width)
        self._lost = torch.zeros_like(ids[:, 0], dtype=torch.bool)
        shape = (ids.shape[0], width)
        while (packed := packing.pack(ids, mask, width, keep=keep, whole=aux)) is not None:
            out = self._forward(model, packed, aux)
            broken = packed.places[~out.log_probs[0].isfinite()] // width
            if not self._again(bool(len(broken))):
                break
            if not len(broken):
                continue  # with a process that has rows to leave out
            keep = torch.ones_like(ids[:, 0], dtype=torch.bool) if keep is None else keep
            keep[broken] = False
            self._lost[broken] = True
            count = len(torch.unique(broken))
            self._metrics["train"]["rows/not_finite"].append(float(count))
            logger.warning("%d rows left out: log-probabilities that are not finite", count)
        if packed is None:
            logps = torch.zeros(shape, device=ids.device, requires_grad=torch.is_grad_enabled())
            if forward_is_collective(self):
                logps = logps + self._idle(model, ids, mask, width)
            elif self.accelerator.num_processes > 1:  # the others wait for every gradient of ours
                logps = logps + sum(p.flatten()[0] * 0.0 for p in model.parameters())
            if not torch.is_grad_enabled():
                logps[self._lost] = torch.nan
            entropies = torch.full(shape, torch.nan if self._skips else 0.0, device=ids.device)
            return self._filled(logps, keep), entropies, logps.new_zeros(())
        logps = self._filled(_table(out.log_probs, packed, shape), keep)
        if not torch.is_grad_enabled():
            logps[self._lost] = torch.nan
        router = out.aux_loss if aux else logps.new_zeros(())
        if out.entropy is None:
            return logps, None, router
        entropies = _table(out.entropy, packed, shape)
        if keep is not None:
            entropies = torch.where(keep[:, None], entropies, out.entropy.detach().mean())
        return logps, entropies, router

    def _again(self, broken: bool) -> bool:
        """Whether a pass is made again: where passes are collective calls, by all or by none."""
        return any_rank(self, broken) if forward_is_collective(self) else broken

    def _idle(self, model: nn.Module, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        """Zero, by a pass of its own over one token: a process without rows keeps step."""
        first = torch.zeros_like(mask[:1])
        first[:, -width - 1 : mask.shape[1] - width + 1] = 1  # the prompt's last, and one after it
        while True:
            packed = packing.pack(ids[:1], first, width)
            assert packed is not None
            log_probs: Tensor = TrainingPass._forward(self, model, packed, aux=False).log_probs
            if not self._again(False):
                return log_probs.sum() * 0.0

    def _forward(self, model: nn.Module, packed: packing.Packed, aux: bool) -> Any:
        """trl's fused head on a packed row: `log_probs` and `entropy` (1, M), `aux_loss`."""
        with ExitStack() as stack:
            # a pass with gradients may be recomputed in its backward: attention stays as it is
            held = self._open if torch.is_grad_enabled() and self._open else stack
            held.enter_context(packing.attention_of(base_of(model)))
            stack.enter_context(self.accelerator.autocast())
            if not self._entropy_bonus_enabled:
                stack.enter_context(fused_head())
            return model(
                **packing.arguments(packed),
                shift_labels=packed.labels,
                fused_lm_head=True,
                **({"output_router_logits": True} if aux else {}),
            )

    def _filled(self, logps: Tensor, keep: Tensor | None) -> Tensor:
        """Rows that were not computed get their old log-probs: a ratio of 1, no gradient."""
        old = None if self._inputs is None else self._inputs.get("old_per_token_logps")
        return logps if keep is None or old is None else torch.where(keep[:, None], logps, old)

    # ---------------------------------------------------------------------------- the skipping

    @property
    def _kl_in_loss(self) -> bool:
        """Whether a row without advantage has a loss all the same."""
        return bool(self.beta != 0.0)

    @property
    def _rows_alone(self) -> bool:
        """Whether trl's loss has no term that looks at several rows: of the router, of entropy."""
        return bool(
            not self.aux_loss_enabled
            and not self._entropy_bonus_enabled
            and self.top_entropy_quantile == 1.0
        )

    @property
    def _skips(self) -> bool:
        """Whether a row without advantage adds exactly nothing to the loss."""
        return bool(
            self._packs
            and self._on("skip_zero_advantage")
            and not self._own(PASS)  # who looks at log-probs looks at all of them
            and not self._kl_in_loss
            and self._rows_alone
        )

    def _kept(self, mask: Tensor, width: int) -> Tensor | None:
        """(B,) bool: the rows of the current loss that have to be computed; None for all.

        Where a whole optimizer step has none, its shortest row is computed all the same, so that
        every parameter gets the zero gradient that trl gives it.
        """
        if self._inputs is None or not (self._skips and torch.is_grad_enabled()):
            return None
        keep = moves(self._inputs["advantages"])
        if keep.all():
            self._moved = True
            return None
        alone = self.accelerator.num_processes == 1
        if not keep.any() and not (alone and (self._moved or not self.accelerator.sync_gradients)):
            lengths = mask[:, -width:].sum(1)
            keep[lengths.masked_fill(lengths == 0, mask.shape[1] + 1).argmin()] = True
        self._moved = self._moved or bool(keep.any())
        return keep

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._inputs = inputs if self.model.training else None
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._inputs = None
        return loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        with self._micro_batch():
            return super().training_step(model, inputs, num_items_in_batch)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As trl's; a `training_step` of the user's own may have backward passes beside ours."""
        step, held = self.training_step, self.__dict__
        own = {name: held[name] for name in ("training_step",) if name in held}

        def whole_step(*given: Any, **named: Any) -> Any:
            with self._micro_batch():
                return step(*given, **named)

        held["training_step"] = whole_step
        try:
            return super().train(*args, **kwargs)
        finally:
            del held["training_step"]
            held.update(own)

    @contextmanager
    def _micro_batch(self) -> Iterator[None]:
        """Inside, a micro-batch is trained on: what its passes need stays for the backward ones."""
        if self._open is not None:  # inside already
            yield
            return
        with ExitStack() as stack:
            self._open = stack
            try:
                yield
            finally:
                self._open = None
        self._micro_batch_done()

    def _micro_batch_done(self) -> None:
        if self.accelerator.sync_gradients:
            self._moved = False

    # --------------------------------------------------------------------------- the regrouping

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        take_out(inputs)
        if self._buffered_inputs is None or self._buffered_inputs is before or not self._regroups:
            return inputs
        size = self._window
        self._buffered_inputs = [
            batch
            for start in range(0, len(self._buffered_inputs), size)
            for batch in regrouped(
                self._balanced(self._buffered_inputs[start : start + size]), self._skips
            )
        ]
        current: dict[str, Any] = self._buffered_inputs[self._step % self.args.steps_per_generation]
        take_out(current)
        return current

    def _balanced(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of an optimizer step, with as many tokens as the other processes."""
        if self.accelerator.num_processes == 1 or not self._on("balance_processes"):
            return batches
        if any(isinstance(v, Tensor) and v.dim() > 2 for v in batches[0].values()):
            return batches  # images
        process, padding = self.accelerator.process_index, self._tokenizer.pad_token_id
        found, before, after = exchanged(batches, self._skips, process, padding)
        self._metrics["train"]["processes/tokens_spread_sampled"].append(before)
        self._metrics["train"]["processes/tokens_spread"].append(after)
        return found

    @property
    def _window(self) -> int:
        """How many buffered micro-batches belong to one optimizer step; 1 where it varies."""
        steps, accumulated = self.args.steps_per_generation, self.args.gradient_accumulation_steps
        if steps % accumulated == 0:
            return int(accumulated)
        return int(steps) if accumulated % steps == 0 else 1

    @property
    def _regroups(self) -> bool:
        """Whether the step's gradient is the same however its rows are split."""
        return bool(
            self._packs
            and self._on("regroup_rows")
            and self.loss_type in (*MEANS_OF_ROWS, *SUMS_OF_ROWS)
            and self._rows_alone
            and not self._own(*LOSS, PASS)
        )


def joined_passes(
    parts: Sequence[tuple[Tensor, Tensor | None, Tensor | None]], entropy: bool, aux: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Log-probs, entropies and router losses of passes over parts of a batch, as of one pass."""
    logps: tuple[Tensor, ...]
    entropies: Any
    losses: Any
    logps, entropies, losses = zip(*parts, strict=True)
    return (
        torch.cat(logps),
        torch.cat(entropies) if entropy else None,
        torch.stack(losses).mean() if aux else None,
    )


def _table(values: Tensor, packed: packing.Packed, shape: tuple[int, int]) -> Tensor:
    """(1, M) values of scored positions as the (B, T) table they came from, zero elsewhere."""
    table = values.new_zeros(shape[0] * shape[1])
    return table.index_copy(0, packed.places, values.flatten()).view(shape)
