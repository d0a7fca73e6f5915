"""Log-probabilities of the policy that sampled, without a pass of their own where they are known.

Where completions are trained on after the policy has moved (several iterations, or a generation
for several optimizer steps), trl computes every row's log-probabilities once more when it samples.
Here micro-batches that are trained on before the policy moves take theirs from that first training
pass, as trl does where nothing is off policy; for the others one pass is made, over the rows that
can move the policy. The policy is the same, so are the numbers, but for the rounding of another
batch.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rl_reasoner.distributed.sharding import forward_is_collective
from rl_reasoner.training.expert_balance import ExpertBalance, ExpertBalanceConfig
from rl_reasoner.training.micro_batches import moves
from rl_reasoner.training.packed_forward import BATCHES, LOSS, PASS

_OLD = "old_per_token_logps"


@dataclass
class OldLogProbsConfig(ExpertBalanceConfig):
    """A config with a switch more."""

    reuse_log_probs: bool = field(
        default=True,
        metadata={"help": "Take old log-probs from the first training pass where it gives them."},
    )


class OldLogProbs(ExpertBalance):
    """The training pass with old log-probs where they cost nothing; see the module's docstring."""

    _penalises: bool  # whether the rewards need the log-probs of the sampled rows

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked = False  # the next pass is the one that is left out
        self._fresh: Tensor | None = None  # log-probs of the last pass
        self._done = 0  # micro-batches of the current optimizer step that are trained on

    @property
    def _moves_on(self) -> bool:
        """Whether the policy moves while completions are trained on."""
        every = self.args.steps_per_generation * self.num_iterations
        return bool(self.args.gradient_accumulation_steps % every)

    @property
    def _defers(self) -> bool:
        """Whether trl would make the pass, and nobody needs it at once."""
        return bool(
            self._packs
            and self._on("reuse_log_probs")
            and self._moves_on
            and not self._own(*LOSS, PASS, *BATCHES)
            and not (self.use_vllm and self.vllm_importance_sampling_correction)
            and not self._penalises
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = self._defers
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._defers:
            del output[_OLD]
        return output

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._asked:  # trl's first pass after sampling
            self._asked = False
            return input_ids.new_zeros((len(input_ids), 1), dtype=torch.float32), None, None
        found = super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)
        self._fresh = found[0]
        return found

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before and self._defers:
            assert self._buffered_inputs is not None
            on_policy = self.current_gradient_accumulation_steps - self._done
            for batch in self._buffered_inputs[on_policy:]:
                if _OLD not in batch:
                    batch[_OLD] = self._now(batch)
        return inputs

    def _now(self, batch: dict[str, Any]) -> Tensor:
        """(B, T) log-probs of a micro-batch under the policy as it is; 0 where a row is skipped."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        width = batch["completion_ids"].shape[1]
        logps = torch.zeros(ids.shape[0], width, device=ids.device)
        rows = moves(batch["advantages"]) if self._skips else torch.ones_like(ids[:, 0]).bool()
        if forward_is_collective(self):  # as many passes as the other processes make
            rows[0] = True
        if rows.any():
            moving = rows.nonzero().flatten().tolist()
            with torch.no_grad(), self._routes_of(batch, moving):
                found, _, _ = super()._get_per_token_logps_and_entropies(
                    self.model, ids[rows], mask[rows], width
                )
            logps[rows] = found.to(logps.dtype)
        return logps

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if self.model.training and self._defers and _OLD not in inputs:
            assert self._fresh is not None
            # in the buffer, where the iterations to come find it; rows without numbers stay so
            inputs[_OLD] = self._fresh.detach().masked_fill(self._lost[:, None], torch.nan)
        self._fresh = None
        return loss

    def _micro_batch_done(self) -> None:
        super()._micro_batch_done()
        self._done = 0 if self.accelerator.sync_gradients else self._done + 1
