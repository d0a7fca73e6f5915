"""Sampling ahead: a batch is sampled while the one before it is trained on (`overlap: one_step`).

The completions of batch k come from the weights that batch k - 1 began to train: one step
off-policy, which the correction for the log-probs that they were drawn with takes care of
(`correct_sampling`, on by itself). The first batch is sampled on the spot. Which weights sample
which batch follows from the steps alone. What is being sampled is in the checkpoints, as
completions: a checkpoint waits for them.

A process of its own samples (rl_reasoner.rollout.sampling_process), with half of the threads; the
other half trains. Prompts of the batch to come are read from a second sampler of trl's, or drawn by
the schedule as its counts are when sampling begins.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from rl_reasoner.errors import UserError
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.moe.routing import Routes
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.sampling_order import GivenTurns, Sampled
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.sampling_process import SamplingProcess
from rl_reasoner.training.checkpointing.data_place import wind_on
from rl_reasoner.training.rollout_batch import RolloutBatch

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Ahead:
    """A batch that is sampled ahead: `prompts` are its rows' token ids, `weights_of` the optimizer
    steps that its policy has had, `chosen` the schedule's prompts. `sampled`, once it is known."""

    prompts: list[list[int]]
    weights_of: int
    chosen: list[int] | None
    sampled: Sampled | None = None

    def __deepcopy__(self, memo: Any) -> "Ahead":
        return self  # it is never changed, but for what comes of it

    def state(self) -> dict[str, Any]:
        """As a checkpoint keeps it."""
        assert self.sampled is not None
        drawn, routes = self.sampled.completions, self.sampled.routes
        return {
            "prompts": self.prompts,
            "weights_of": self.weights_of,
            "chosen": self.chosen,
            "ids": [torch.tensor(c.ids) for c in drawn],
            "logps": [torch.tensor(c.logps) for c in drawn],
            "policy_logps": [torch.tensor(c.policy_logps) for c in drawn],
            "kept": None if drawn[0].kept is None else [c.kept for c in drawn],
            "masks": [torch.tensor(c.tool_mask) for c in drawn],
            "ended": [c.ended for c in drawn],
            "given": None if self.sampled.given is None else self.sampled.given.state(),
            "routes": None if routes is None else (routes.prompts, routes.completions),
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Ahead":
        """What `state` gave."""
        columns = zip(state["ids"], state["logps"], state["policy_logps"], strict=True)
        drawn = [SampledCompletion(*(t.tolist() for t in row)) for row in columns]
        for completion, kept in zip(drawn, state.get("kept") or (), strict=False):
            completion.kept = kept
        if (given := state.get("given")) is not None:
            for completion, mask, ended in zip(drawn, state["masks"], state["ended"], strict=True):
                completion.tool_mask, completion.ended = mask.tolist(), ended
        routes = None if state["routes"] is None else Routes(*state["routes"])
        sampled = Sampled(drawn, routes, given=given and GivenTurns.of(given))
        return cls(state["prompts"], state["weights_of"], state["chosen"], sampled)


class SamplingAhead:
    """The batch to come of a trainer; see the module. `on`: whether it is sampled ahead at all.

    `next`: that batch, where it is begun; `taken`: the one at hand, if it was sampled ahead.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.on = getattr(trainer.args, "overlap", "off") == "one_step"
        self.next: Ahead | None = None
        self.taken: Ahead | None = None
        self._process: SamplingProcess | None = None
        self._threads = 1
        self._prompts: Iterator[list[int]] | None = None  # rows of the generations to come
        self._generation = -1  # the last one read from there
        if self.on:
            self._check()

    def _check(self) -> None:
        """Raises `UserError` for what cannot be sampled ahead."""
        trainer = self.trainer
        where = "overlap='one_step' samples in a process of its own"
        if trainer.accelerator.num_processes > 1:
            raise UserError(f"{where}, beside one that trains: it cannot be used with several")
        if isinstance(trainer.train_dataset, IterableDataset):
            raise UserError(f"{where}, rows by number: the data set must not be iterable")
        if trainer.tools:
            raise UserError(f"{where}, and trl's loop runs its `tools=` here: not with those")
        if not trainer.engine_sampling.on:
            reason = trainer.engine_sampling.obstacle() or "fast_rollouts=False"
            raise UserError(f"{where}, with the engine, which does not sample here: {reason}")

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Inside, half of torch's threads train; the process that samples ends with it."""
        if not self.on:
            yield
            return
        threads = torch.get_num_threads()
        self._threads = max(1, threads // 2)
        self.next = self.taken = self._prompts = None
        self._generation = -1
        self._end()
        try:
            if threads > 1:
                torch.set_num_threads(threads - self._threads)
            yield
        finally:
            if threads > 1:
                torch.set_num_threads(threads)
        self._end()  # after an error a checkpoint may still wait for its completions

    def _end(self) -> None:
        """End the process that samples."""
        if self._process is not None:
            self._process.close()
            self._process = None

    # -------------------------------------------------------------------------- a batch at hand

    def completed(
        self, batch: RolloutBatch, prompt_ids: list[list[int]], size: int, how: SamplingParams
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """The engine's completions of the batch at hand, sampled ahead or now, and log-probs.

        As `EngineSampling.sample`; the batch to come is begun.
        """
        trainer = self.trainer
        sample = trainer.engine_sampling.sample
        if not (self.on and trainer.model.training) or batch.earlier:
            return sample(batch, prompt_ids, size, how)  # type: ignore[no-any-return]
        if (done := self.take(prompt_ids)) is None:
            found = sample(batch, prompt_ids, size, how)
        else:
            trainer.router_replay.routes = done.routes
            batch.take(done.completions)
            batch.take_turns(done.completions, done.given)
            found = [c.ids for c in done.completions], [c.logps for c in done.completions]
        self.begin()
        return found  # type: ignore[no-any-return]

    def take(self, prompts: list[list[int]]) -> Sampled | None:
        """The completions of the batch at hand, if they were sampled ahead; waits for them."""
        ahead, self.next = self.next, None
        if ahead is not None and ahead.prompts != prompts:
            logger.warning("overlap: other prompts came than were sampled ahead; sampled again")
            self._settle(ahead)
            ahead = None
        self.taken = ahead
        return None if ahead is None else self._settle(ahead)

    def log(self) -> None:
        """Log how many optimizer steps ago the batch's weights were the policy, and its seconds."""
        if not self.on:
            return
        metrics, ahead = self.trainer.internals.training_metrics, self.taken
        stale = 0 if ahead is None else self.trainer.state.global_step - ahead.weights_of
        metrics["overlap/staleness"].append(float(stale))
        beside = ahead.sampled.seconds if ahead is not None and ahead.sampled is not None else 0.0
        metrics["overlapped_time/generation"].append(beside)

    def _settle(self, ahead: Ahead) -> Sampled:
        """Wait for the completions of the batch that is being sampled."""
        if ahead.sampled is None:
            assert self._process is not None
            ahead.sampled = self._process.finish()
        return ahead.sampled

    @property
    def chosen(self) -> list[int] | None:
        """The prompts that the schedule drew for the batch at hand, when its sampling began."""
        return None if self.next is None else self.next.chosen

    # -------------------------------------------------------------------------- the one to come

    def begin(self) -> None:
        """Begin to sample the batch after the one at hand, with the weights of now."""
        trainer = self.trainer
        every = trainer.args.steps_per_generation * trainer.num_iterations
        at = trainer.internals.step // every * every + every  # the micro-batch that it begins with
        if at >= trainer.state.max_steps * trainer.args.gradient_accumulation_steps:
            return
        chosen, rows = self._rows_at(at, every)
        how = trainer.engine_sampling.sampling()
        if how is None:
            raise UserError("overlap='one_step': the engine does not sample this policy any more")
        prompts = trainer.internals.prompt_ids([row["prompt"] for row in rows])
        order = trainer.engine_sampling.order(rows, prompts, trainer.num_generations, how, at)
        self.next = Ahead(prompts, trainer.state.global_step, chosen)
        if self._process is None:
            answering = trainer.engine_sampling.answering
            self._process = SamplingProcess(base_of(trainer.model), self._threads, answering)
        self._process.begin(order)

    def _rows_at(self, at: int, every: int) -> tuple[list[int] | None, list[dict[str, Any]]]:
        """The schedule's prompts of the generation that begins `at` a micro-batch, and its rows."""
        trainer, size = self.trainer, self.trainer.num_generations
        chosen: list[int] | None = trainer.prompt_selection.drawn(at)
        numbers = chosen if chosen is not None else self._numbers(at // every, every)
        rows = [trainer.train_dataset[number] for number in numbers]
        return chosen, [row for row in rows for _ in range(size)]

    def _numbers(self, generation: int, every: int) -> list[int]:
        """The rows of the data, by number, that trl's sampler gives that generation."""
        trainer = self.trainer
        count = trainer.args.generation_batch_size // trainer.num_generations
        each = len(trainer.train_dataset) // count  # generations of a pass over the data
        if self._prompts is None:
            sampler = trainer.like_sampler()
            wind_on(sampler, generation // each)
            self._prompts = _generations(sampler, count, trainer.num_generations, every)
            self._generation = generation // each * each - 1
        numbers: list[int] = []
        while self._generation < generation:
            numbers = next(self._prompts)
            self._generation += 1
        return numbers

    # --------------------------------------------------------------------------- checkpoints

    def settled(self, ahead: Ahead | None) -> dict[str, Any] | None:
        """A batch sampled ahead as a checkpoint keeps it; waits for its completions."""
        if ahead is None:
            return None
        self._settle(ahead)
        return ahead.state()

    def restore(self, kept: "Ahead | dict[str, Any] | None") -> None:
        """Go on with what was sampled ahead when the checkpoint was made."""
        self.next = Ahead.of(kept) if isinstance(kept, dict) else kept


def _generations(sampler: Any, count: int, size: int, every: int) -> Iterator[list[int]]:
    """The rows of each generation in turn, `count` of them, pass after pass over the data.

    A sampler of trl's gives each row `size` times, and a generation's rows `every` times over.
    """
    while True:
        rows = iter(sampler)
        while numbers := list(islice(rows, count * size * every))[: count * size : size]:
            yield numbers
