"""Keep Sampling Mask: the training pass takes the set of tokens that each token was drawn from.

Under top_p < 1, top_k, min_p and the like a token is drawn from pi_K(a) = pi(a) / sum_K pi, where K
is the set that the cut-off left at its position. trl's loss trains pi(a): its gradient lacks that
of -log sum_K pi, and its ratio to what was drawn is off by that sum (trl's issue 6789). Here K is
kept while sampling, and every later pass over the rows gives log pi_K with the same K: training,
old and reference log-probabilities (DeepSeek-V3.2, arXiv 2512.02556, section 3.1). On policy the
ratio to what was drawn is 1, and the KL is that of the two distributions on K. Entropies are those
of pi_K, too.

The rows' sets are a list beside the other columns of a batch, deflated
(rl_reasoner.kernels.kept_tokens), so they are shuffled, split, regrouped, exchanged between
processes and kept in checkpoints with their rows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rl_reasoner.errors import UserError
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.kept_tokens import inflated
from rl_reasoner.kernels.packing import Packed
from rl_reasoner.rollout.sampling_params import is_the_policy
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.training.trl_internals import PASS, put_on

_COLUMN = "kept_tokens"  # of a batch


class SamplingMask:
    """The sets of a trainer's rows, kept and taken; see the module. `on`: whether they are."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.on: bool = getattr(trainer.args, "keep_sampling_mask", False)
        self._batch: RolloutBatch | None = None  # that is sampled and scored now
        self._known: list[Tensor] | None = None  # of the rows that passes are made over now
        self._taken = False  # by a pass

    def check(self) -> None:
        """Raise `UserError` for what the sets are not known in, or not taken by, when it begins."""
        if self.on and (why := self._obstacle()):
            raise UserError(
                f"keep_sampling_mask: {why}; set it to False (sampling.keep_mask: false in a "
                "recipe), or sample without a cut-off (top_p=1.0, top_k=0, min_p=None)"
            )

    def _obstacle(self) -> str | None:
        trainer = self.trainer
        served = trainer.use_vllm and not trainer.engine_sampling.correcting
        if served or trainer.vllm_rollouts is not None:
            return "vLLM does not tell which tokens its cut-off left"
        if trainer.tools:
            return "trl's loop of tools joins completions of several turns (`tool_use` has no loop)"
        if not trainer.engine_sampling.on or trainer.engine_sampling.sampling() is None:
            why = trainer.engine_sampling.obstacle() or "fast_rollouts=False, or its own `generate`"
            return f"only our engine tells which tokens a cut-off left, not used for {why}"
        if not trainer.packed_forward.packs:
            why = trainer.packed_forward.obstacle or "share_prompts=False"
            return f"only our training pass (share_prompts) takes such tokens, not used for {why}"
        if trainer.internals.entropy_bonus:
            return "a bonus for entropy (entropy_coef) is not computed over a set of tokens"
        base: Any = base_of(trainer.model)
        if getattr(base.get_output_embeddings(), "bias", None) is not None or getattr(
            base.config.get_text_config(), "final_logit_softcapping", None
        ):
            return "the policy's head has a bias or a soft cap, which is not done over such tokens"
        return None

    # ---------------------------------------------------------------------------- the batches

    def keep(self, batch: RolloutBatch, output: dict[str, Any]) -> None:
        """Put the sets beside the other columns of the rows.

        Raises `UserError` where there are none for rows of a training that cuts off.
        """
        if batch.kept is None:  # nothing is cut off, or settings have changed
            self.check()
            if self.on and self.trainer.model.training and self._cuts():
                raise UserError(
                    "keep_sampling_mask: completions came without the tokens that a cut-off left: "
                    f"call super() in {type(self.trainer).__name__}._generate_single_turn, or set "
                    "it to False"
                )
            return
        output[_COLUMN] = batch.kept
        megabytes = sum(map(len, batch.kept)) / 2**20
        self.trainer.internals.metrics["sampling_mask/megabytes"].append(megabytes)

    def _cuts(self) -> bool:
        """Whether what is drawn now is not the whole policy."""
        sampling = self.trainer.engine_sampling.sampling()
        processors = sampling.processors(base_of(self.trainer.model), 1)
        return not is_the_policy(processors, self.trainer.temperature)

    @contextmanager
    def of_batch(self, batch: RolloutBatch) -> Iterator[None]:
        """Inside, passes are made over the rows of `batch`, once they are sampled."""
        with put_on(self, "_batch", batch):
            yield

    @contextmanager
    def of(self, columns: dict[str, Any], rows: Sequence[int] | None = None) -> Iterator[None]:
        """Inside, passes are made over the rows of a batch of trl's, or `rows` of it alone.

        Raises `UserError` where they were made by a method that is not ours.
        """
        known = columns.get(_COLUMN)
        if known is not None and rows is not None:
            known = [known[row] for row in rows]
        with put_on(self, "_known", known), put_on(self, "_taken", False):
            yield
            if known is not None and not self._taken:
                kind = type(self.trainer).__name__
                raise UserError(
                    f"keep_sampling_mask is applied in GRPOTrainer.{PASS}: call super() in "
                    f"{kind}'s, or set it to False"
                )

    # ----------------------------------------------------------------------------- the passes

    def sets_of(self, rows: int) -> list[Tensor] | None:
        """The sets of the `rows` rows that passes are made over now, where they are known."""
        known = self._known
        if known is None and self._batch is not None:
            known = self._batch.kept
        if known is None or len(known) != rows:  # of other rows: a pass of the user's own
            return None
        self._taken = True
        return known

    def packed(self, sets: Sequence[Tensor], packed: Packed, width: int) -> Tensor:
        """(M, V / 8) uint8: the sets of the scored tokens of rows that are `width` columns wide."""
        base: Any = base_of(self.trainer.model)
        vocabulary = base.get_output_embeddings().weight.shape[0]
        scored = Counter((packed.places // width).tolist())
        members = [row for group in packed.groups for row in group.members]
        parts = [inflated(sets[row], vocabulary)[: scored[row]] for row in members]
        return torch.cat(parts).to(packed.places.device)
