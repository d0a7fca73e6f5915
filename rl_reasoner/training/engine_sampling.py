"""Sampling of the training step by our engine, where trl would call `generate`.

`EngineSampling` says whether, and as what, the engine draws trl's settings, draws completions whose
randomness follows from their place in the run, and lets trl correct for their log-probs as it does
for vLLM's (`correct_sampling`). What the engine does not do is left to trl, said once in the log.
A vLLM server that a trainer has (`vllm_rollouts`) stands in the engine's place.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.generation import StopStringCriteria
from trl.models.utils import disable_gradient_checkpointing

from rl_reasoner.distributed.sharding import gathered_params
from rl_reasoner.errors import UserError
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.own_code import without_new_gradient_hooks
from rl_reasoner.kernels.packed_linear import ROUNDED
from rl_reasoner.rollout.agreement import in_mode
from rl_reasoner.rollout.answering import Answering, given_by, turn_taker
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.engine import generate, generates_as_transformers
from rl_reasoner.rollout.episodes.environment_turns import EpisodeRecord
from rl_reasoner.rollout.sampling_params import SamplingParams, unhandled
from rl_reasoner.rollout.sampling_weights import sampling_dtype
from rl_reasoner.rollout.vllm_server.agreement import ASKED_PROMPTS, check_server
from rl_reasoner.rollout.vllm_server.completion_requests import unsent
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from rl_reasoner.training.packed_forward import is_on, sampled_elsewhere
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.training.trl_internals import put_on

logger = logging.getLogger(__name__)
_CODES = [None, torch.bfloat16, torch.int8]  # of what is sampled from, as processes compare it
_NOT_HERE = "fast_rollouts: transformers' generate is used, for %s"


class EngineSampling:
    """The engine's part in a trainer's sampling; see the module's docstring.

    `on`: whether the engine samples at all; `correcting`: whether trl corrects for it now;
    `evaluated`: batches of the evaluation at hand that are sampled.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.evaluated = 0
        self._elsewhere: set[str] = set()  # for what later `generate` was used, as was said
        self._sampling: SamplingParams | None = None  # as it was drawn last
        self.turn = 0  # of the loop in which trl runs its `tools=`
        self._corrects: bool | None = getattr(trainer.args, "correct_sampling", False)
        self._wanted: str = getattr(trainer.args, "sampling_weights", "own")  # of trl's config
        self.correcting = False  # trl's `use_vllm` is set only so that it corrects
        wanted = is_on(trainer, "fast_rollouts")
        reason = self.obstacle()
        if reason and wanted and reason != trainer.packed_forward.obstacle:  # said already
            logger.warning(_NOT_HERE, reason)
        self.on = reason is None and wanted
        if not self.on and self._corrects:
            logger.warning("correct_sampling: turned off, no log-probs are kept while sampling")
        if not self.on and self._wanted in ROUNDED:
            logger.warning("sampling_weights: left out, our engine does not sample here")

    def obstacle(self) -> str | None:
        """What of the settings the engine does not do, or None."""
        trainer = self.trainer
        if (elsewhere := sampled_elsewhere(trainer)) is not None:
            return elsewhere
        if trainer.tools and trainer.internals.sees_images:
            return "tools with images"
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
        trainer, served = self.trainer, self.trainer.vllm_rollouts is not None
        if not (self.on or served):
            return None
        settings = trainer.internals.generation_config()
        if served and (name := unsent(settings)) is not None:
            raise UserError(f"generation_kwargs ({name}) is for our engine: it is not sent to vLLM")
        reason = unhandled((served and trainer.args.generation_kwargs) or {}, settings)
        if served and reason is not None:
            raise UserError(f"a vLLM server does not sample with {reason}")
        if not served and trainer.packed_forward.engine_obstacle is not None:
            reason = trainer.packed_forward.engine_obstacle  # found when training started
        if not served and not generates_as_transformers(base_of(trainer.model)):
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
                keep_mask=trainer.sampling_mask.on,
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
        code = torch.tensor([_CODES.index(dtype)], device=trainer.accelerator.device)
        return dtype if len(trainer.accelerator.gather(code).unique()) == 1 else None

    @property
    def _rounds(self) -> bool:
        """Whether what is sampled from is further from what is trained than by rounding of sums."""
        own = next(self.trainer.model.parameters()).dtype
        return self.weights not in (None, own) and self.trainer.accelerator.mixed_precision == "no"

    def sample(
        self, batch: RolloutBatch, prompt_ids: list[list[int]], size: int, how: SamplingParams
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids of a completion for each row, and their log-probs under what sampled.

        A row's randomness follows from (seed, train or eval, step, prompt, index in the group of
        `size`); behind results of trl's `tools=` from (…, turn, process, row).
        """
        trainer = self.trainer
        train = trainer.model.training
        self.evaluated += not train and not self.turn
        step = trainer.internals.step
        part = step % trainer.args.gradient_accumulation_steps if train else self.evaluated
        key: tuple[int, ...] = (trainer.args.seed, int(train), trainer.state.global_step, part)
        first = batch.earlier + trainer.accelerator.process_index * len(prompt_ids)
        keys = _keys(key, first, len(prompt_ids), size)
        if self.turn:
            key = (*key, self.turn, trainer.accelerator.process_index)
            keys = [(*key, row) for row in range(len(prompt_ids))]
            self.turn += 1
        # a turn is no completion yet
        overlapped = None if trainer.tools else trainer.reward_pass.begin_overlapped(batch)
        if trainer.vllm_rollouts is not None:
            completions = self._served(trainer.vllm_rollouts, batch, prompt_ids, keys, how)
            if overlapped is not None:
                overlapped.add([(row, done.ids) for row, done in enumerate(completions)])
            return [c.ids for c in completions], [c.logps for c in completions]
        base = base_of(trainer.model)
        checkpointing = trainer.args.gradient_checkpointing_kwargs
        with (
            turn_taker(self.answering, batch.rows, len(prompt_ids), how.ends) as turns,
            trainer.accelerator.autocast(),
            without_new_gradient_hooks(base),
            disable_gradient_checkpointing(trainer.model, checkpointing),
            trainer.router_replay.engine_samples() as routes,
            in_mode(base, training=False),  # dropout is for training
        ):
            completions = generate(
                base,
                prompt_ids,
                keys,
                how,
                routes,
                None if overlapped is None else overlapped.add,
                self.budgets(batch.rows, len(prompt_ids)),
                turns=turns,
            )
            given = given_by(turns, completions)
        if not trainer.tools:
            batch.take(completions)
        batch.take_turns(completions, given)
        # before what was cut off: weights of what was left of each token, multiplied over a
        # completion, are next to nothing; over a set of tokens the policy is what they came from
        return [c.ids for c in completions], [
            c.logps if c.kept is not None or len(c.policy_logps) != len(c.ids) else c.policy_logps
            for c in completions
        ]

    def _served(
        self,
        rollouts: VllmRollouts,
        batch: RolloutBatch,
        prompt_ids: list[list[int]],
        keys: list[tuple[int, ...]],
        how: SamplingParams,
    ) -> list[SampledCompletion]:
        """The server's completions, by the weights of now."""
        trainer = self.trainer
        rollouts.load(trainer.model, trainer.state.global_step)
        budgets = self.budgets(batch.rows, len(prompt_ids))
        marks = trainer.tool_use.format.marks() if trainer.tool_use is not None else ()
        with turn_taker(self.answering, batch.rows, len(prompt_ids), how.ends) as turns:
            found = rollouts.generate(prompt_ids, keys, how, budgets, turns, marks)
            batch.take_turns(found, given_by(turns, found))
        return found

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Inside, a vLLM server that the trainer has was found to compute its policy.

        Raises `UserError` for what it cannot be combined with, `ServerFailed` where it cannot be
        used.
        """
        trainer, rollouts = self.trainer, self.trainer.vllm_rollouts
        if rollouts is None:
            yield
            return
        if refused := self._not_served():
            raise UserError(f"a vLLM server that loads files samples for one process: {refused}")
        how = self.sampling()
        assert how is not None
        rows = list(islice(iter(trainer.train_dataset), ASKED_PROMPTS))
        prompts = trainer.internals.prompt_ids([row["prompt"] for row in rows])
        trainer.router_replay.not_recorded("vLLM")
        with rollouts.own():
            found = check_server(rollouts, trainer.model, prompts, how.ends, how.max_tokens)
            logger.info("%s: %s", rollouts.connection, found)
            yield

    def _not_served(self) -> str | None:
        """What a vLLM server's rollouts are not combined with, or None."""
        trainer = self.trainer
        if trainer.accelerator.num_processes > 1:
            return "not for several yet"
        if trainer.tools:
            return "not with trl's `tools=`"
        if trainer.internals.sees_images:
            return "not with images"
        return sampled_elsewhere(trainer)

    @property
    def answering(self) -> Answering | None:
        """What answers completions in the middle."""
        trainer = self.trainer
        return trainer.tool_use if trainer.environment_use is None else trainer.environment_use  # type: ignore[no-any-return]

    def budgets(self, rows: Sequence[Mapping[str, Any]], count: int) -> list[int | None]:
        """The longest completions that `count` rows allow themselves (column `max_tokens`)."""
        if not self.trainer.use_row_settings or len(rows) != count:
            return [None] * count
        return [row.get("max_tokens") for row in rows]

    def cut(
        self, batch: RolloutBatch, ids: list[list[int]], logps: list[list[float]] | None
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Completions that trl sampled and their log-probs, as long as their rows allow."""
        budgets = self.budgets(batch.rows, len(ids))
        shorter = [row[:budget] for row, budget in zip(ids, budgets, strict=True)]
        return shorter, logps and [row[:b] for row, b in zip(logps, budgets, strict=True)]

    # -------------------------------------------------------------------------- the correction

    @property
    def corrects(self) -> bool:
        """Whether tokens are weighed: as asked for, else where other weights sample."""
        if self._corrects is None:
            correction = self.trainer.args.vllm_importance_sampling_correction
            return bool(correction) and (self._rounds or self.trainer.vllm_rollouts is not None)
        return self._corrects

    @contextmanager
    def corrected(self, inputs: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Inside, trl corrects for the engine's log-probs as it does for vLLM's.

        In the loss of `inputs`, if they have any. While a batch is sampled (None), only if the
        training's own pass does not do it.
        """
        trainer = self.trainer
        correcting = not trainer.use_vllm and self.sampling() is not None and self.corrects
        if inputs is not None:
            correcting = correcting and inputs.get("sampling_per_token_logps") is not None
        elif trainer.model.training and trainer.sampling_correction.in_the_loss:
            correcting = False
        with (
            put_on(self, "correcting", correcting),
            put_on(trainer, "use_vllm", trainer.use_vllm or correcting),
        ):
            yield

    def got(self, logps: list[list[float]] | None) -> None:
        """A batch was sampled, with these log-probs: by a method of the user's own without any."""
        if logps is not None or self.sampling() is None or not self.corrects:
            return
        if "log-probs" not in self._elsewhere:
            logger.warning("correct_sampling: left out where completions come without log-probs")
        self._elsewhere.add("log-probs")
        if self.correcting:
            self.correcting = self.trainer.use_vllm = False

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Inside, completions are sampled from whole weights, and it is not vLLM that samples."""
        trainer = self.trainer
        with (
            put_on(trainer, "use_vllm", trainer.use_vllm and not self.correcting),
            nullcontext() if trainer.use_vllm else gathered_params(trainer.model),
        ):
            yield

    @contextmanager
    def turns_of_trl(self) -> Iterator[None]:
        """Inside, what is sampled goes on behind results of trl's `tools=`."""
        with put_on(self, "turn", 1):
            yield

    @contextmanager
    def several_turns(self) -> Iterator[None]:
        """Inside, a trainer with `tool_use` or `environment_use` hands trl completions in which
        tools or an environment gave tokens.

        By trl's own way for these, a `rollout_func` with a mask. Raises `UserError` where the
        engine does not sample.
        """
        trainer = self.trainer
        if (trainer.tool_use, trainer.environment_use) == (None, None):
            yield
            return
        if trainer.tool_use is not None and trainer.environment_use is not None:
            raise UserError("tool_use and environment_use: one of them answers, not both yet")
        what = "tools are" if trainer.tool_use is not None else "an environment is"
        why = self.obstacle()
        if not why and not self.on:
            why = "fast_rollouts=False"
        if why or self.sampling() is None:
            why = why or "a model with its own `generate`"
            raise UserError(
                f"{what} for policies that our engine samples: not with {why}"
                + (" (but with a server that gets files: vllm.folder)" if why == "vLLM" else "")
            )
        with put_on(trainer, "rollout_func", self._completed):
            yield
        self._log_turns()

    def _completed(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """What trl expects of a `rollout_func`."""
        prompt_ids, ids, logps = trainer.internals.completed(prompts)
        masks = trainer.rollout_batch.tool_masks
        sampled = {"completion_ids": ids, "logprobs": logps, "env_mask": masks}
        return {"prompt_ids": prompt_ids, **sampled}

    def _log_turns(self) -> None:
        """trl's figures of tools, or an environment's, over the rows of all processes."""
        if (episodes := self.trainer.rollout_batch.episodes) is not None:
            self._log_episodes(episodes)
            return
        own = self.trainer.rollout_batch.turns or []
        rows = gather_object([[event.kind for event in row] for row in own])
        kinds = [kind for row in rows for kind in row]
        failed = sum(kind not in ("ok", "cut") for kind in kinds)
        metrics = self.trainer.internals.metrics
        metrics["tools/call_frequency"].append(len(kinds) / max(len(rows), 1))
        metrics["tools/failure_frequency"].append(failed / max(len(kinds), 1))
        metrics["tools/completions_with_calls"].append(sum(map(bool, rows)) / max(len(rows), 1))

    def _log_episodes(self, own: list[EpisodeRecord]) -> None:
        """Turns of a completion, the shares that are done, and that the environment failed on.

        trl's figures of what is cut off are made again: it looks at the last token, and an episode
        that a limit has cut may end with a whole turn.
        """
        masks = self.trainer.rollout_batch.tool_masks
        assert masks is not None
        found = gather_object([(len(record.turns), record.ended) for record in own])
        metrics, count = self.trainer.internals.metrics, max(len(found), 1)
        rows = zip(own, masks, strict=True)
        lengths = gather_object([None if one.truncated else sum(mask) for one, mask in rows])
        whole = [length for length in lengths if length is not None] or [0]
        metrics["completions/clipped_ratio"][-1] = lengths.count(None) / count
        for name, length in (
            ("mean", sum(whole) / len(whole)),
            ("min", min(whole)),
            ("max", max(whole)),
        ):
            metrics[f"completions/{name}_terminated_length"][-1] = float(length)
        metrics["environment/turns"].append(sum(turns for turns, _ in found) / count)
        for name, ended in (("done", "done"), ("failures", "failed")):
            share = sum(how == ended for _, how in found) / count
            metrics[f"environment/{name}"].append(share)

    def mask_cut(self, batch: RolloutBatch, output: dict[str, Any]) -> None:
        """`mask_truncated_completions` for episodes that a limit has cut at the end of a turn."""
        trainer = self.trainer
        if not trainer.mask_truncated_completions or batch.episodes is None:
            return
        cut = [record.truncated for record in batch.episodes]
        for name in ("completion_mask", "tool_mask"):
            output[name][torch.tensor(cut, device=output[name].device)] = 0
        count = (output["completion_mask"] * output["tool_mask"]).sum()
        output["num_items_in_batch"] = trainer.accelerator.gather(count).sum()


def _keys(key: tuple[int, ...], first: int, count: int, size: int) -> list[tuple[int, ...]]:
    """A key for each of `count` rows from `first` on, in groups of `size`."""
    return [(*key, row // size, row % size) for row in range(first, first + count)]
