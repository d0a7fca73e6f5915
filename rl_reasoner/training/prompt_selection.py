"""Which prompts a batch is made of: dynamic sampling and the prompt schedule.

`PromptSelection` stands before trl's sampling and scoring. With `prompt_schedule` or `level_band`,
a batch's prompts are drawn by rl_reasoner.training.curriculum instead of taken from the data
loader. With `dynamic_sampling`, groups of equal rewards are replaced by groups of other prompts
(DAPO, arXiv 2503.14476, equation 11): the batch is sampled and scored, then flat groups again and
again, up to the cap; what is kept goes through trl's own path as if it had been sampled at once.
The shape of the batch stays. Evaluation is left alone.

Nothing is streamed: which prompts come next follows from the seed, the micro-batch and the
schedule's counts, so a resumed run draws the same. All decisions are made on rewards gathered from
all processes: each makes the same number of collective calls.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from math import gcd
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rl_reasoner.dataset.levels import levels_of
from rl_reasoner.errors import UserError
from rl_reasoner.rollout.drawing import keyed_generator
from rl_reasoner.training.advantages import total_rewards, varied
from rl_reasoner.training.curriculum import LevelSchedule, PromptSchedule, Schedule
from rl_reasoner.training.rollout_batch import RolloutBatch, RolloutRow

_SETTINGS = ("prompt_schedule", "level_band", "dynamic_sampling")  # each draws rows by number


@dataclass
class _Varied:
    """A batch whose flat groups are replaced: its rows here, the rewards and prompts of all groups.

    `sampled`: prompts and rewards of all that was sampled for it, round by round.
    """

    rows: list[RolloutRow]
    rewards: Tensor
    prompts: list[int]
    sampled: list[tuple[list[int], Tensor]] = field(default_factory=list)


class PromptSelection:
    """Which prompts a trainer's batches are made of; see the module's docstring.

    `scored` takes a batch through trl's path, `sample` only samples and scores one. `schedule`: the
    counts that prompts are drawn by, None without a schedule.
    """

    def __init__(
        self,
        trainer: Any,
        scored: Callable[[RolloutBatch], dict[str, Any]],
        sample: Callable[[RolloutBatch], RolloutBatch],
    ) -> None:
        self.trainer = trainer
        self._scored = scored
        self._sample = sample
        self._rounds: int = getattr(trainer.args, "dynamic_sampling", 0)
        used = [name for name in _SETTINGS if getattr(trainer.args, name, None)]
        if used:
            self._check(used[0])
        self.schedule = self._schedule()

    def _check(self, name: str) -> None:
        """Raises `UserError` for what other prompts cannot be drawn with."""
        trainer = self.trainer
        if isinstance(trainer.train_dataset, torch.utils.data.IterableDataset):
            raise UserError(f"{name} draws rows by number: the data set must not be iterable")
        tools = trainer.tools or trainer.rollout_func is not None
        if tools or trainer.environment_factories is not None:
            raise UserError(f"{name} cannot be used with tools, environments or a rollout function")
        if {"image", "images"} & set(trainer.train_dataset.column_names):
            raise UserError(f"{name} cannot be used with images")

    def _schedule(self) -> Schedule | None:
        """What prompts are drawn by; None without it. Raises `UserError` for rows of no levels."""
        args, rows = self.trainer.args, self.trainer.train_dataset
        if getattr(args, "prompt_schedule", False):
            return PromptSchedule(len(rows))
        if not (band := getattr(args, "level_band", None)):
            return None
        columns = [name for name in rows.column_names if name in ("level", "task")]
        known = rows.select_columns(columns).to_list() if "level" in columns else [rows[0]]
        return LevelSchedule(levels_of(known), (band[0], band[1]))

    # ------------------------------------------------------------------------------ the batch

    def batch(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """trl's output for a batch of chosen prompts; `inputs` become its rows."""
        if not self.trainer.model.training or not (self._rounds or self.schedule):
            return self._scored(RolloutBatch(inputs))
        order = self._order(self.trainer.internals.step)
        prompts: list[int] = []
        if self.schedule:
            rows = len(inputs) * self.trainer.accelerator.num_processes
            prompts = list(islice(order, rows // self.trainer.num_generations))
            order = (number for number in order if number not in prompts)
            inputs[:] = self._rows(prompts, inputs[0])  # in place: callers look at it afterwards
        if self._rounds:
            output, prompts = self._varied_batch(inputs, prompts, order)
        else:
            batch = RolloutBatch(inputs)
            output = self._scored(batch)
            self._learn(prompts, batch.rewards)
        if isinstance(self.schedule, LevelSchedule):
            for name, value in self.schedule.metrics(prompts).items():
                self.trainer.internals.training_metrics[name].append(value)
        return output

    def _order(self, step: int) -> Iterator[int]:
        """The numbers of the data's rows as the batch of `step` wants them, each once."""
        # 0 and 1 as the second: completions
        key = (self.trainer.args.seed, 2, step)
        if self.schedule:
            yield from self.schedule.order(key)
        else:
            yield from keyed_generator(key).permutation(len(self.trainer.train_dataset)).tolist()

    def _rows(self, prompts: list[int], like: dict[str, Any]) -> list[dict[str, Any]]:
        """This process's rows of the groups of `prompts`, with the columns of `like`."""
        trainer = self.trainer
        size = trainer.num_generations
        count = len(prompts) * size // trainer.accelerator.num_processes
        first = trainer.accelerator.process_index * count
        rows = [trainer.train_dataset[prompts[i // size]] for i in range(first, first + count)]
        return [{name: row[name] for name in like} for row in rows]

    def _learn(self, prompts: list[int], rewards: Tensor) -> None:
        if self.schedule:
            totals = self._values(rewards, summed=True)
            self.schedule.update(prompts, totals.view(len(prompts), -1))

    def _values(self, rewards: Tensor, summed: bool) -> Tensor:
        """(N, 1) the sums of the rewards, or (N, F) each; without the punishment for length."""
        weights = self.trainer.reward_weights.to(rewards.device)
        if self.trainer.objective.punishes:
            rewards, weights = rewards[:, :-1], weights[:-1]
        return total_rewards(rewards, weights)[:, None] if summed else rewards

    def _varied(self, rewards: Tensor) -> Tensor:
        """(groups,) bool: the groups that teach."""
        summed = self.trainer.multi_objective_aggregation == "sum_then_normalize"
        return varied(self._values(rewards, summed), self.trainer.num_generations)

    # ------------------------------------------------------------------------ dynamic sampling

    def _varied_batch(
        self, inputs: list[dict[str, Any]], prompts: list[int], order: Iterator[int]
    ) -> tuple[dict[str, Any], list[int]]:
        """trl's output for a batch whose flat groups were replaced, and the prompts of the groups
        in it; those are known where `prompts` are."""
        trainer, metrics = self.trainer, self.trainer.internals.training_metrics
        if not self.schedule:
            tried = gather_object([row["prompt"] for row in inputs])
            order = (i for i in order if trainer.train_dataset[i]["prompt"] not in tried)
        before = {name: list(values) for name, values in metrics.items()}
        first = self._sample(RolloutBatch(inputs))
        varied = _Varied(first.split(), first.rewards, [*prompts])
        varied.sampled.append((prompts, first.rewards.clone()))
        refills, drawn = self._refill(varied, order)
        tried, totals = zip(*varied.sampled, strict=True)
        self._learn([*chain(*tried)], torch.cat(totals))  # once a batch, as without refills
        metrics.clear()
        metrics.update(before)  # those of the kept batch are to come
        seen = trainer.state.num_input_tokens_seen  # with the tokens thrown away
        output = self._scored(RolloutBatch.of(inputs, varied.rows, varied.rewards))
        trainer.state.num_input_tokens_seen = seen
        metrics["num_tokens"] = [seen]
        metrics["dynamic_sampling/refills"].append(float(refills))
        kept = self._varied(varied.rewards).float().mean().item()
        metrics["dynamic_sampling/kept"].append(kept)
        metrics["dynamic_sampling/thrown_away"].append(1 - len(varied.rewards) / drawn)
        return output, varied.prompts

    def _refill(self, varied: _Varied, order: Iterator[int]) -> tuple[int, int]:
        """Put groups of other prompts in the place of flat ones.

        Gives the number of rounds it took, and of rows sampled by all processes. Flat groups that
        are left at the cap, or when there is no other prompt, stay.
        """
        accelerator = self.trainer.accelerator
        size, processes = self.trainer.num_generations, accelerator.num_processes
        kept, rewards = varied.rows, varied.rewards
        local, drawn = len(kept), len(rewards)
        together = processes // gcd(processes, size)  # groups that divide among the processes
        for done in range(self._rounds):
            flat = self._varied(rewards).logical_not().nonzero().flatten().tolist()
            prompts = list(islice(order, -(-len(flat) // together) * together))
            prompts = prompts[: len(prompts) // together * together]
            if not prompts:
                return done, drawn
            batch = self._sample(RolloutBatch(self._rows(prompts, kept[0].row), earlier=drawn))
            drawn += len(batch.rewards)
            varied.sampled.append((prompts, batch.rewards))
            everywhere: list[RolloutRow] = gather_object(batch.split())
            good = self._varied(batch.rewards).nonzero().flatten().tolist()
            for slot, source in zip(flat, good, strict=False):
                if varied.prompts:
                    varied.prompts[slot] = prompts[source]
                for place in range(size):
                    to, at = slot * size + place, source * size + place
                    rewards[to] = batch.rewards[at]
                    if to // local == accelerator.process_index:
                        kept[to % local] = everywhere[at]
        return self._rounds, drawn
