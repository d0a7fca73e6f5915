"""The training pass: trl's loss and gradients, without the work that changes neither.

`PackedForward` stands in for the one method of trl's trainer that runs the model on completions,
and leaves every loss to trl. Four speed-ups, each a field of the config:

- `share_prompts`: rows are packed without padding, each prompt computed once
  (rl_reasoner.kernels.packing), the LM head on completion positions only;
- `skip_zero_advantage`: rows that cannot move the policy are not computed; only where that is exact
  (no KL, router or entropy term, no entropy quantile);
- `regroup_rows`: within one optimizer step, the micro-batches are refilled so that rows of a group
  lie together; only for losses that do not depend on how a step is split;
- `balance_processes`: before that, several processes exchange groups, so that each has the same
  number of tokens (rl_reasoner.training.token_balance).

What cannot be packed exactly goes trl's own way, said once in the log. Metrics are trl's; `entropy`
is the mean over the trained tokens of the rows that were computed, and the micro-batches it is a
mean of are ours.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from math import gcd
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn

from rl_reasoner.distributed.sharding import any_rank, forward_is_collective
from rl_reasoner.kernels import packing
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.fused_modules import fused_modules, kept_as_it_is
from rl_reasoner.provenance import untested
from rl_reasoner.rollout.agreement import (
    fused_head_agrees,
    fusing_obstacle,
    in_mode,
    packing_obstacle,
    sampling_obstacle,
)
from rl_reasoner.rollout.decode_pass import decode_obstacle, is_proved
from rl_reasoner.training.micro_batches import moves, regrouped, take_out
from rl_reasoner.training.objective import trained_tokens
from rl_reasoner.training.token_balance import exchanged
from rl_reasoner.training.trl_internals import LOSS, OLD_LOGPS, PASS, STEP, fused_head, put_on

logger = logging.getLogger(__name__)

# Losses in which a row's weight in the step does not depend on the rows beside it.
MEANS_OF_ROWS = ("grpo", "sapo", "dr_grpo", "luspo")
SUMS_OF_ROWS = ("dapo", "cispo", "vespo")
Pass = tuple[Tensor, Tensor | None, Tensor | None]
"""Log-probs (B, T), entropies (B, T) and the router's loss, the last two where they are asked."""
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


class PackedForward:
    """The passes of a trainer over completions; see the module's docstring.

    `packs`: whether rows are packed; `obstacle`: what keeps them from it, `engine_obstacle` what
    keeps the engine from sampling the policy, or None; `lost` (B,) bool: the rows of the last pass
    that had no finite log-probability.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.obstacle: str | None = None
        self.engine_obstacle: str | None = None
        self.lost = torch.zeros(0, dtype=torch.bool)
        self._open: ExitStack | None = None  # in a training step: what its backward pass needs
        self._inputs: dict[str, Any] | None = None  # of the loss that is being computed
        self._sets: list[Tensor] | None = None  # of the rows of a pass; see `SamplingMask`
        self._told: set[str] = set()  # why modules are not fused, as was said
        self._moved = False  # whether a row of this optimizer step was computed
        self.prove()
        if settings_obstacle(trainer) is None:  # weights are whole, this process makes the pass
            self._check_head()

    def prove(self) -> None:
        """Find out what the models can be packed, sampled and fused for, as they are now.

        Again when training starts: they may have been patched, hooked or wrapped since.
        """
        trainer, said = self.trainer, (self.obstacle, self.engine_obstacle)
        settings = settings_obstacle(trainer)
        self.obstacle = self.engine_obstacle = None
        if is_on(trainer, "share_prompts"):
            self.obstacle = settings or self._packing_obstacle()
        if is_on(trainer, "fast_rollouts") and sampled_elsewhere(trainer) is None:
            self.engine_obstacle = settings or self._engine_obstacle()
        if self.obstacle and said != (self.obstacle, self.engine_obstacle):
            used = "share_prompts: trl's own training pass is"
            if self.engine_obstacle == self.obstacle:
                used = "share_prompts and fast_rollouts: trl's own training pass and sampling are"
            fix = _DROPOUT if "dropout" in self.obstacle else ""
            if moved := untested():
                fix += f"; packages are not as tested: {moved}"
            logger.warning("%s used, for %s%s", used, self.obstacle, fix)
        self.packs = is_on(trainer, "share_prompts") and self.obstacle is None
        self._own_step = bool(trainer.internals.overridden(STEP))  # looked at before ours is put on
        self.fuses = self.packs and self._may_fuse()

    def _check_head(self) -> None:
        """Say so where trl scores completions otherwise than the policy samples them."""
        base: Any = base_of(self.trainer.model)
        if base.config.get_text_config() is not base.config:
            return
        with suppress(Exception):  # code of any model's own, which fails in its first step
            if not fused_head_agrees(base, self.trainer.temperature):
                logger.warning(
                    "trl scores completions by the output matrix alone, and the head of %s does "
                    "more: the distribution that is trained differs from the one that is sampled",
                    type(base).__name__,
                )

    def _packing_obstacle(self) -> str | None:
        """What the models cannot be packed for, or None."""
        for model in filter(None, (self.trainer.model, self.trainer.ref_model)):
            base = base_of(model)
            with in_mode(base, training=model is self.trainer.model):
                if found := packing_obstacle(base):
                    return found
        return None

    def _may_fuse(self) -> bool:
        """Whether the models are the same with fused modules; on a CPU, where those are for."""
        models = [base_of(m) for m in (self.trainer.model, self.trainer.ref_model) if m is not None]
        if self.trainer.accelerator.device.type != "cpu":
            return False
        refused = [reason for model in models if (reason := fusing_obstacle(model))]
        for reason in refused or filter(None, map(kept_as_it_is, models)):
            if reason not in self._told:
                logger.warning("faster modules: the model's own are used, for %s", reason)
            self._told.add(reason)
        return not refused

    def _engine_obstacle(self) -> str | None:
        """What the engine cannot sample from the policy for, or None: the policy rests then."""
        base = base_of(self.trainer.model)
        with in_mode(base, training=False):
            reason = sampling_obstacle(base)
        slower = decode_obstacle(base) or (not is_proved(base) and "what they compute otherwise")
        if reason is None and slower and slower not in self._told:
            self._told.add(slower)
            logger.warning("faster sampling: transformers' modules make each token, for %s", slower)
        return reason

    # ------------------------------------------------------------------------------ the pass

    def log_probs(
        self,
        plain: Callable[..., Pass],
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> Pass:
        """Log-probs and entropies (B, logits_to_keep), zero behind the end of a row; router loss.

        As `plain`, trl's own, with the prompts shared. `batch_size` rows are in a pass at a time.
        """
        options = (compute_entropy, compute_aux_loss)
        packs = self.packs and all(value is None for value in multimodal.values())
        replay = self.trainer.router_replay
        if not packs and replay.routing_of(model) is None:
            given = (input_ids, attention_mask, logits_to_keep, batch_size, *options)
            return plain(model, *given, **multimodal)
        rows = input_ids.shape[0]
        size = batch_size or rows
        parts: list[Pass] = []
        sets = self.trainer.sampling_mask.sets_of(rows)
        with replay.passes(model):
            for start in range(0, rows, size):
                ids, mask = input_ids[start : start + size], attention_mask[start : start + size]
                if packs:
                    own = None if sets is None else sets[start : start + size]
                    with replay.packed(model, len(ids)), put_on(self, "_sets", own):
                        parts.append(
                            self.packed(model, ids, mask, logits_to_keep, compute_aux_loss)
                        )
                else:
                    with replay.padded(model, mask, logits_to_keep):
                        parts.append(plain(model, ids, mask, logits_to_keep, batch_size, *options))
        return joined_passes(parts, *options)

    def packed(self, model: nn.Module, ids: Tensor, mask: Tensor, width: int, aux: bool) -> Pass:
        """Log-probs, entropies (B, width), None from a head that gives none; router loss or zero.

        Rows of one pass, packed. A row with a log-prob that is not finite is left out, and the pass
        is done without it: its ratio is 1, it gives no gradient, and the weights stay finite.
        Without gradients, where its log-probs are to be compared with later ones, they are NaN:
        `take_out` sees to the row.
        """
        keep = self._kept(mask, width)
        self.lost = torch.zeros_like(ids[:, 0], dtype=torch.bool)
        shape = (ids.shape[0], width)
        whole = aux or self.trainer.expert_balance.of_all_rows
        while (packed := packing.pack(ids, mask, width, keep=keep, whole=whole)) is not None:
            out = self._forward(model, packed, width, aux)
            broken = packed.places[~out.log_probs[0].isfinite()] // width
            if not self._again(bool(len(broken))):
                break
            if not len(broken):
                continue  # with a process that has rows to leave out
            keep = torch.ones_like(ids[:, 0], dtype=torch.bool) if keep is None else keep
            keep[broken] = False
            self.lost[broken] = True
            count = len(torch.unique(broken))
            self.trainer.internals.training_metrics["rows/not_finite"].append(float(count))
            logger.warning("%d rows left out: log-probabilities that are not finite", count)
        if packed is None:
            logps = torch.zeros(shape, device=ids.device, requires_grad=torch.is_grad_enabled())
            if forward_is_collective(self.trainer):
                logps = logps + self._idle(model, ids, mask, width)
            elif self._owes_gradients:
                logps = logps + sum(p.flatten()[0] * 0.0 for p in model.parameters())
            if not torch.is_grad_enabled():
                logps[self.lost] = torch.nan
            entropies = torch.full(shape, torch.nan if self.skips else 0.0, device=ids.device)
            return self._filled(logps, keep), entropies, logps.new_zeros(())
        self._moved = self._moved or torch.is_grad_enabled()
        logps = self._filled(_table(out.log_probs, packed, shape), keep)
        if not torch.is_grad_enabled():
            logps[self.lost] = torch.nan
        router = out.aux_loss if aux else logps.new_zeros(())
        if out.entropy is None:
            return logps, None, router
        entropies = _table(out.entropy, packed, shape)
        if keep is not None:
            entropies = torch.where(keep[:, None], entropies, self._mean(entropies, keep))
        return logps, entropies, router

    def _mean(self, entropies: Tensor, keep: Tensor) -> Tensor:
        """The mean over the trained tokens of the rows that were computed."""
        values = entropies.detach()[keep]
        mask = torch.ones_like(values)
        if self._inputs is not None:
            mask = trained_tokens(self._inputs)[keep]
        return (values * mask).sum() / mask.sum().clamp(min=1.0)

    @property
    def _owes_gradients(self) -> bool:
        """Whether a pass without rows gives zeros: others wait for them, or trl has them."""
        accelerator = self.trainer.accelerator
        return accelerator.num_processes > 1 or (accelerator.sync_gradients and not self._moved)

    def _again(self, broken: bool) -> bool:
        """Whether a pass is made again: where passes are collective calls, by all or by none."""
        return any_rank(self.trainer, broken) if forward_is_collective(self.trainer) else broken

    def _idle(self, model: nn.Module, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        """Zero, by a pass of its own over one token: a process without rows keeps step."""
        first = torch.zeros_like(mask[:1])
        first[:, -width - 1 : mask.shape[1] - width + 1] = 1  # the prompt's last, and one after it
        with self.trainer.router_replay.idle(model):
            while True:
                packed = packing.pack(ids[:1], first, width)
                assert packed is not None
                log_probs: Tensor = self._run(model, packed, aux=False).log_probs
                if not self._again(False):
                    return log_probs.sum() * 0.0

    def _forward(self, model: nn.Module, packed: packing.Packed, width: int, aux: bool) -> Any:
        """trl's fused head on a packed row: `log_probs` and `entropy` (1, M), `aux_loss`."""
        trainer = self.trainer
        sets = self._sets
        kept = None if sets is None else trainer.sampling_mask.packed(sets, packed, width)
        with trainer.expert_balance.packed(packed), trainer.router_replay.forward(model, packed):
            return self._run(model, packed, aux, kept)

    def _run(
        self, model: nn.Module, packed: packing.Packed, aux: bool, kept: Tensor | None = None
    ) -> Any:
        ours = not self.trainer.internals.entropy_bonus
        with (
            # a pass with gradients may be recomputed in its backward: attention stays as it is
            self.until_backward(packing.attention_of(base_of(model))),
            self.until_backward(self._fused(model)),
            self.trainer.accelerator.autocast(),
            fused_head(kept) if ours else nullcontext(),
        ):
            return model(
                **packing.arguments(packed),
                shift_labels=packed.labels,
                fused_lm_head=True,
                **({"output_router_logits": True} if aux else {}),
            )

    def _fused(self, model: nn.Module) -> AbstractContextManager[None]:
        return fused_modules(base_of(model)) if self.fuses else nullcontext()

    @contextmanager
    def until_backward(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """Inside `context`, which lasts until the backward pass that may compute this pass anew."""
        with ExitStack() as stack:
            held = self._open if torch.is_grad_enabled() and self._open else stack
            held.enter_context(context)
            yield

    def _filled(self, logps: Tensor, keep: Tensor | None) -> Tensor:
        """Rows that were not computed get their old log-probs: a ratio of 1, no gradient.

        So does one that is computed for its zero gradient alone: its old ones may be none of it.
        """
        old = None if self._inputs is None else self._inputs.get(OLD_LOGPS)
        if keep is None or old is None or self._inputs is None:
            return logps
        moving = keep & moves(self._inputs["advantages"]) if self.skips else keep
        zeros = torch.where(keep[:, None], logps - logps.detach(), 0.0)
        return torch.where(moving[:, None], logps, old + zeros)

    # ---------------------------------------------------------------------------- the skipping

    @property
    def rows_alone(self) -> bool:
        """Whether trl's loss has no term that looks at several rows: of the router, of entropy."""
        return bool(
            not self.trainer.aux_loss_enabled
            and not self.trainer.internals.entropy_bonus
            and self.trainer.top_entropy_quantile == 1.0
        )

    @property
    def skips(self) -> bool:
        """Whether a row without advantage adds exactly nothing to the loss."""
        return bool(
            self.packs
            and is_on(self.trainer, "skip_zero_advantage")
            and not self.trainer.internals.overridden(PASS)  # who looks at log-probs looks at all
            and not self.trainer.objective.kl_in_loss
            and self.rows_alone
            and not self.trainer.expert_balance.of_all_rows
        )

    def _kept(self, mask: Tensor, width: int) -> Tensor | None:
        """(B,) bool: the rows of the current loss that have to be computed; None for all.

        Where a whole optimizer step has none, its shortest row is computed all the same, so that
        every parameter gets the zero gradient that trl gives it.
        """
        if self._inputs is None or not (self.skips and torch.is_grad_enabled()):
            return None
        keep = moves(self._inputs["advantages"])
        if keep.all():
            return None
        accelerator = self.trainer.accelerator
        alone = accelerator.num_processes == 1
        if not keep.any() and not (alone and (self._moved or not accelerator.sync_gradients)):
            lengths = mask[:, -width:].sum(1)
            keep[lengths.masked_fill(lengths == 0, mask.shape[1] + 1).argmin()] = True
        return keep

    def loss_of(self, inputs: dict[str, Any]) -> AbstractContextManager[None]:
        """Inside, passes are those of the loss of this micro-batch."""
        return put_on(self, "_inputs", inputs if self.trainer.model.training else None)

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
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
        if self.trainer.accelerator.sync_gradients:
            self._moved = False
        self.trainer.old_logprobs.micro_batch_done()

    # --------------------------------------------------------------------------- the regrouping

    def regrouped(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The micro-batch to train on now: of the generation just buffered, whose rows move."""
        internals, buffer = self.trainer.internals, self.trainer.internals.buffer
        if not self._regroups:
            return inputs
        args = self.trainer.args
        steps, accumulated = args.steps_per_generation, args.gradient_accumulation_steps
        size = gcd(steps, accumulated)  # of one optimizer step, or 1 where that varies
        size = size if size in (steps, accumulated) else 1
        internals.buffer = [
            batch
            for start in range(0, len(buffer), size)
            for batch in regrouped(self._balanced(buffer[start : start + size]), self.skips)
        ]
        current: dict[str, Any] = internals.buffer[internals.step % steps]
        take_out(current)
        return current

    def _balanced(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of an optimizer step, with as many tokens as the other processes."""
        accelerator, internals = self.trainer.accelerator, self.trainer.internals
        if accelerator.num_processes == 1 or not is_on(self.trainer, "balance_processes"):
            return batches
        if any(isinstance(v, Tensor) and v.dim() > 2 for v in batches[0].values()):
            return batches  # images
        process, padding = accelerator.process_index, internals.tokenizer.pad_token_id
        balanced, before, after = exchanged(batches, self.skips, process, padding)
        internals.training_metrics["processes/tokens_spread_sampled"].append(before)
        internals.training_metrics["processes/tokens_spread"].append(after)
        return balanced

    @property
    def _regroups(self) -> bool:
        """Whether the step's gradient is the same however its rows are split."""
        return bool(
            self.packs
            and is_on(self.trainer, "regroup_rows")
            and self.trainer.loss_type in (*MEANS_OF_ROWS, *SUMS_OF_ROWS)
            and self.rows_alone
            and not self._own_step
            and not self.trainer.internals.overridden(*LOSS, PASS)
        )


def is_on(trainer: Any, name: str) -> bool:
    """Whether a speed-up is on; a config of trl's own has none of the fields: all are."""
    return bool(getattr(trainer.args, name, True))


def settings_obstacle(trainer: Any) -> str | None:
    """What of the settings keeps every model from our layouts, or None."""
    args = trainer.args
    if trainer.accelerator.distributed_type not in _TOGETHER:
        return f"training under {trainer.accelerator.distributed_type.value}"
    if forward_is_collective(trainer) and not trainer.accelerator.is_fsdp2:
        return "the first version of FSDP"
    if args.torch_compile:
        return "torch_compile"
    if args.parallelism_config is not None and args.parallelism_config.tp_enabled:
        return "tensor parallelism"
    if args.neftune_noise_alpha is not None:
        return "the noise of NEFTune, which depends on the length of the padded row"
    checkpointing = args.gradient_checkpointing_kwargs or {}
    if args.gradient_checkpointing and checkpointing.get("use_reentrant"):
        return "reentrant gradient checkpointing"
    if isinstance(trainer.model, PeftModel) and trainer.model.active_peft_config.is_prompt_learning:
        return "prompt-learning adapters"
    return None


def sampled_elsewhere(trainer: Any) -> str | None:
    """What samples in the place of a plain batch of prompts, or None."""
    if trainer.use_vllm:
        return "vLLM"
    if trainer.use_transformers_continuous_batching:
        return "continuous batching"
    if (trainer.rollout_func, trainer.environment_factories) != (None, None):
        return "tools, environments or a rollout function"
    return None


def joined_passes(parts: Sequence[Pass], entropy: bool, aux: bool) -> Pass:
    """Log-probs, entropies and router losses of passes over parts of a batch, as of one pass."""
    columns: Any = zip(*parts, strict=True)
    logps, entropies, losses = columns
    return (
        torch.cat(logps),
        torch.cat(entropies) if entropy else None,
        torch.stack(losses).mean() if aux else None,
    )


def _table(values: Tensor, packed: packing.Packed, shape: tuple[int, int]) -> Tensor:
    """(1, M) values of scored positions as the (B, T) table they came from, zero elsewhere."""
    table = values.new_zeros(shape[0] * shape[1])
    return table.index_copy(0, packed.places, values.flatten()).view(shape)
