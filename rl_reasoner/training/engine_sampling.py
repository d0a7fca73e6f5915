"""Sampling of the training step by our engine, where trl would call `generate`.

`EngineSampling` says whether, and as what, the engine draws trl's settings, draws completions whose
randomness follows from their place in the run, and lets trl correct for their log-probs as it does
for vLLM's (`correct_sampling`). What the engine does not do is left to trl, said once in the log.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from transformers.generation import StopStringCriteria
from trl.models.utils import disable_gradient_checkpointing

from rl_reasoner.distributed.sharding import gathered_params
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.rollout.agreement import in_mode
from rl_reasoner.rollout.engine import generate, generates_as_transformers
from rl_reasoner.rollout.sampling_params import SamplingParams, unhandled
from rl_reasoner.rollout.sampling_weights import sampling_dtype
from rl_reasoner.training.packed_forward import is_on, sampled_elsewhere
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.training.trl_internals import put_on

logger = logging.getLogger(__name__)
_NOT_HERE = "fast_rollouts: transformers' generate is used, for %s"


class EngineSampling:
    """The engine's part in a trainer's sampling; see the module's docstring.

    `on`: whether the engine samples at all; `evaluated`: batches of the evaluation at hand that are
    sampled.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.evaluated = 0
        self._elsewhere: set[str] = set()  # for what later `generate` was used, as was said
        self._sampling: SamplingParams | None = None  # as it was drawn last
        self._corrects: bool | None = getattr(trainer.args, "correct_sampling", False)
        self._wanted: str = getattr(trainer.args, "sampling_weights", "own")  # of trl's config
        self._correcting = False  # trl's `use_vllm` is set only so that it corrects
        wanted = is_on(trainer, "fast_rollouts")
        reason = self.obstacle()
        if reason and wanted and reason != trainer.packed_forward.obstacle:  # said already
            logger.warning(_NOT_HERE, reason)
        self.on = reason is None and wanted
        if not self.on and self._corrects:
            logger.warning("correct_sampling: turned off, no log-probs are kept while sampling")

    def obstacle(self) -> str | None:
        """What of the settings the engine does not do, or None."""
        trainer = self.trainer
        if (elsewhere := sampled_elsewhere(trainer)) is not None:
            return elsewhere
        if trainer.args.cache_implementation is not None:
            return "cache_implementation"
        if trainer.packed_forward.engine_obstacle is not None:
            return str(trainer.packed_forward.engine_obstacle)
        settings = trainer.internals.generation_config()
        return unhandled(trainer.args.generation_kwargs or {}, settings)

    def sampling(self) -> SamplingParams | None:
        """What the engine draws by the settings of now, which callbacks may change.

        None where it does not sample: also where a model has a `generate` of its own.
        """
        if not self.on:
            return None
        trainer, settings = self.trainer, self.trainer.internals.generation_config()
        reason = unhandled({}, settings)
        if not generates_as_transformers(base_of(trainer.model)):
            reason = "a model with its own `generate`"
        if reason is not None:
            if reason not in self._elsewhere:
                logger.warning(_NOT_HERE, reason)
            self._elsewhere.add(reason)
            return None
        if self._sampling is None or self._sampling.config != settings:
            stop = settings.stop_strings
            tokenizer = trainer.internals.tokenizer
            self._sampling = SamplingParams(
                max_tokens=settings.max_new_tokens,
                ends=tuple(trainer.eos_token_ids),
                config=settings,
                policy_temperature=trainer.temperature,
                stop=None if stop is None else StopStringCriteria(tokenizer, stop),
                weights=self.weights,
            )
        return self._sampling

    @cached_property
    def weights(self) -> torch.dtype | None:
        """The type that the policy is sampled in, for all of a run; None: that of its weights."""
        trainer = self.trainer
        base = base_of(trainer.model)
        with trainer.accelerator.autocast():
            dtype = sampling_dtype(base, self._wanted)
        # another machine of the run may choose otherwise
        rounds = torch.tensor([int(dtype is not None)], device=trainer.accelerator.device)
        return dtype if bool(trainer.accelerator.gather(rounds).all()) else None

    @property
    def _rounds(self) -> bool:
        """Whether what is sampled from is further from what is trained than by rounding of sums."""
        own = next(self.trainer.model.parameters()).dtype
        return self.weights not in (None, own) and self.trainer.accelerator.mixed_precision == "no"

    def sample(
        self, batch: RolloutBatch, prompt_ids: list[list[int]], size: int, how: SamplingParams
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids of a completion for each row, and the log-probs that they were drawn with.

        A row's randomness follows from (seed, train or eval, step, prompt, index in the group of
        `size`).
        """
        trainer = self.trainer
        train = trainer.model.training
        self.evaluated += not train
        step = trainer.internals.step
        part = step % trainer.args.gradient_accumulation_steps if train else self.evaluated
        key = (trainer.args.seed, int(train), trainer.state.global_step, part)
        first = batch.earlier + trainer.accelerator.process_index * len(prompt_ids)
        rows = range(first, first + len(prompt_ids))
        overlapped = trainer.reward_pass.begin_overlapped(batch)
        base = base_of(trainer.model)
        checkpointing = trainer.args.gradient_checkpointing_kwargs
        with (
            trainer.accelerator.autocast(),
            disable_gradient_checkpointing(trainer.model, checkpointing),
            trainer.router_replay.engine_samples() as routes,
            in_mode(base, training=False),  # dropout is for training
        ):
            completions = generate(
                base,
                prompt_ids,
                [(*key, row // size, row % size) for row in rows],
                how,
                routes,
                None if overlapped is None else overlapped.add,
                self.budgets(batch, len(prompt_ids)),
            )
        batch.policy_logps = [c.policy_logps for c in completions]
        return [c.ids for c in completions], [c.logps for c in completions]

    def budgets(self, batch: RolloutBatch, count: int) -> list[int | None]:
        """The longest completions that the rows at hand allow themselves (column `max_tokens`)."""
        if not self.trainer.use_row_settings or len(batch.rows) != count:
            return [None] * count
        return [row.get("max_tokens") for row in batch.rows]

    def cut(
        self, batch: RolloutBatch, ids: list[list[int]], logps: list[list[float]] | None
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Completions that trl sampled and their log-probs, as long as their rows allow."""
        budgets = self.budgets(batch, len(ids))
        shorter = [row[:budget] for row, budget in zip(ids, budgets, strict=True)]
        return shorter, logps and [row[:b] for row, b in zip(logps, budgets, strict=True)]

    # -------------------------------------------------------------------------- the correction

    @property
    def corrects(self) -> bool:
        """Whether tokens are weighed: as asked for, else where the weights are rounded."""
        if self._corrects is None:
            correction = self.trainer.args.vllm_importance_sampling_correction
            return bool(correction) and self._rounds
        return self._corrects

    @contextmanager
    def corrected(self) -> Iterator[None]:
        """Inside, trl corrects for the engine's log-probs as it does for vLLM's."""
        trainer = self.trainer
        correcting = not trainer.use_vllm and self.sampling() is not None and self.corrects
        with (
            put_on(self, "_correcting", correcting),
            put_on(trainer, "use_vllm", trainer.use_vllm or correcting),
        ):
            yield

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Inside, completions are sampled from whole weights, and it is not vLLM that samples."""
        trainer = self.trainer
        with (
            put_on(trainer, "use_vllm", trainer.use_vllm and not self._correcting),
            nullcontext() if trainer.use_vllm else gathered_params(trainer.model),
        ):
            yield

    def keep_policy_logps(self, batch: RolloutBatch, output: dict[str, Any]) -> None:
        """Have trl compare with the policy that sampled, not with what was cut off of it to sample.

        The weights of `correct_sampling`, which are for that, it has by now.
        """
        drawn, policy = output.get("sampling_per_token_logps"), batch.policy_logps
        lengths = [len(ids) for ids in batch.ids]
        if drawn is None or policy is None or [*map(len, policy)] != lengths:
            return
        table = torch.zeros_like(drawn, device="cpu")
        for row, logps in zip(table, policy, strict=True):
            row[: len(logps)] = torch.tensor(logps)
        output["drawn_per_token_logps"] = drawn
        output["sampling_per_token_logps"] = table.to(drawn.device)
