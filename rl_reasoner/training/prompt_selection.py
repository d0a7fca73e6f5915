"""Which prompts a batch is made of: dynamic sampling and the prompt schedule.

`PromptChoice` stands before trl's sampling and scoring. With `prompt_schedule`, the batch's prompts
are drawn by rl_reasoner.training.curriculum instead of taken from the data loader. With
`dynamic_sampling`, groups of equal rewards are replaced by groups of other prompts (DAPO, arXiv
2503.14476, equation 11): the batch is sampled and scored, then flat groups again and again, up to
the cap; what is kept goes through trl's own path as if it had been sampled at once. The shape of
the batch stays. Evaluation is left alone.

Nothing is streamed: which prompts come next follows from the seed, the micro-batch and the
schedule's counts, so a resumed run draws the same. All decisions are made on rewards gathered from
all processes: each makes the same number of collective calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import gcd
from typing import Any

import numpy as np
import torch
import trl
from accelerate.utils import gather_object
from torch import Tensor

from rl_reasoner.errors import UserError
from rl_reasoner.moe.routing import Routes, join_routes
from rl_reasoner.training.advantages import total_rewards, varied
from rl_reasoner.training.curriculum import PromptSchedule
from rl_reasoner.types import Fault, Score


@dataclass
class Sampled:
    """One completion with all that is known of it, so that it can change places."""

    row: dict[str, Any]
    ids: list[int]
    logps: list[float] | None
    scores: list[Score | Fault] = field(default_factory=list)
    logged: dict[str, Any] = field(default_factory=dict)  # what rewards logged about it
    routes: Routes | None = None  # the experts that it was sampled with
    policy_logps: list[float] | None = None


@dataclass
class Kept:
    """A batch that is sampled and scored: this process's rows, and all processes' rewards."""

    rows: list[Sampled]
    rewards: Tensor  # (rows of all processes, reward functions)


class PromptChoice(trl.GRPOTrainer):  # type: ignore[misc]
    """trl's trainer with a say in its prompts; see the module's docstring."""

    _scores: list[list[Score | Fault]]  # by reward, of the last rows scored
    _rewards: Tensor  # of the last rows scored, on all processes
    _routes: Routes | None  # the experts of the last rows sampled
    _policy_logps: list[list[float]] | None  # of the last rows sampled
    _punishes: bool  # whether the last reward is the one for length

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rounds: int = getattr(self.args, "dynamic_sampling", 0)
        self._schedule: PromptSchedule | None = None
        self._replay: Kept | None = None  # what stands in for sampling and scoring, once
        self._drawn = 0  # rows of all processes sampled for this batch before those at hand
        scheduled = getattr(self.args, "prompt_schedule", False)
        if scheduled or self._rounds:
            self._check_choice("prompt_schedule" if scheduled else "dynamic_sampling")
        if scheduled:
            self._schedule = PromptSchedule(len(self.train_dataset))

    def _check_choice(self, name: str) -> None:
        """Raises `UserError` for what other prompts cannot be drawn with."""
        if isinstance(self.train_dataset, torch.utils.data.IterableDataset):
            raise UserError(f"{name} draws rows by number: the data set must not be iterable")
        tools = self.tools or self.rollout_func is not None
        if tools or self.environment_factories is not None:
            raise UserError(f"{name} cannot be used with tools, environments or a rollout function")
        if {"image", "images"} & set(self.train_dataset.column_names):
            raise UserError(f"{name} cannot be used with images")

    # ------------------------------------------------------------------------------ the batch

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training or not (self._rounds or self._schedule):
            plain: dict[str, Any] = super()._generate_and_score_completions(inputs)
            return plain
        order = self._order()
        prompts: list[int] = []
        if self._schedule:
            rows = len(inputs) * self.accelerator.num_processes
            prompts = list(islice(order, rows // self.num_generations))
            inputs[:] = self._rows(prompts, inputs[0])  # in place: callers look at it afterwards
        if self._rounds:
            return self._varied_batch(inputs, prompts, order)
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._learn(prompts, self._rewards)
        return output

    def _order(self) -> Iterator[int]:
        """The numbers of the data's rows as this batch wants them, each once."""
        key = (self.args.seed, 2, self._step)  # 0 and 1 as the second: completions
        if self._schedule:
            yield from self._schedule.order(key)
        else:
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
            yield from random.permutation(len(self.train_dataset)).tolist()

    def _rows(self, prompts: list[int], like: dict[str, Any]) -> list[dict[str, Any]]:
        """This process's rows of the groups of `prompts`, with the columns of `like`."""
        size = self.num_generations
        count = len(prompts) * size // self.accelerator.num_processes
        first = self.accelerator.process_index * count
        found = [self.train_dataset[prompts[i // size]] for i in range(first, first + count)]
        return [{name: row[name] for name in like} for row in found]

    def _learn(self, prompts: list[int], rewards: Tensor) -> None:
        if self._schedule:
            totals = self._values(rewards, summed=True)
            self._schedule.update(prompts, totals.view(len(prompts), -1))

    def _values(self, rewards: Tensor, summed: bool) -> Tensor:
        """(N, 1) the sums of the rewards, or (N, F) each; without the punishment for length."""
        weights = self.reward_weights.to(rewards.device)
        if self._punishes:
            rewards, weights = rewards[:, :-1], weights[:-1]
        return total_rewards(rewards, weights)[:, None] if summed else rewards

    def _varied(self, rewards: Tensor) -> Tensor:
        """(groups,) bool: the groups that teach."""
        summed = self.multi_objective_aggregation == "sum_then_normalize"
        return varied(self._values(rewards, summed), self.num_generations)

    # ------------------------------------------------------------------------ dynamic sampling

    def _varied_batch(
        self, inputs: list[dict[str, Any]], prompts: list[int], order: Iterator[int]
    ) -> dict[str, Any]:
        """trl's output for a batch whose flat groups were replaced; `inputs` become its rows."""
        if not self._schedule:
            tried = gather_object([row["prompt"] for row in inputs])
            order = (i for i in order if self.train_dataset[i]["prompt"] not in tried)
        metrics = self._metrics["train"]
        before = {name: list(values) for name, values in metrics.items()}
        kept = self._sample(inputs)
        self._learn(prompts, kept.rewards)
        refills = self._refill(kept, order)
        metrics.clear()
        metrics.update(before)  # those of the kept batch are to come
        seen = self.state.num_input_tokens_seen  # with the tokens thrown away
        inputs[:] = [sampled.row for sampled in kept.rows]
        self._replay = kept
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._replay = None
        self.state.num_input_tokens_seen = seen
        metrics["num_tokens"] = [seen]
        metrics["dynamic_sampling/refills"].append(float(refills))
        metrics["dynamic_sampling/kept"].append(self._varied(kept.rewards).float().mean().item())
        metrics["dynamic_sampling/thrown_away"].append(1 - len(kept.rewards) / self._drawn)
        self._drawn = 0
        return output

    def _refill(self, kept: Kept, order: Iterator[int]) -> int:
        """Put groups of other prompts in the place of flat ones; the number of rounds it took.

        Flat groups that are left at the cap, or when there is no other prompt, stay.
        """
        size, processes = self.num_generations, self.accelerator.num_processes
        local = len(kept.rows)
        together = processes // gcd(processes, size)  # groups that divide among the processes
        for done in range(self._rounds):
            flat = self._varied(kept.rewards).logical_not().nonzero().flatten().tolist()
            prompts = list(islice(order, -(-len(flat) // together) * together))
            prompts = prompts[: len(prompts) // together * together]
            if not prompts:
                return done
            found = self._sample(self._rows(prompts, kept.rows[0].row))
            self._learn(prompts, found.rewards)
            everywhere: list[Sampled] = gather_object(found.rows)
            good = self._varied(found.rewards).nonzero().flatten().tolist()
            for slot, source in zip(flat, good, strict=False):
                for place in range(size):
                    to, at = slot * size + place, source * size + place
                    kept.rewards[to] = found.rewards[at]
                    if to // local == self.accelerator.process_index:
                        kept.rows[to % local] = everywhere[at]
        return self._rounds

    def _sample(self, rows: list[dict[str, Any]]) -> Kept:
        """Sample and score a completion for each of this process's `rows`."""
        prompts = [row["prompt"] for row in rows]
        _, ids, _, completions, logps, *_ = self._generate(prompts)
        rewards = self._calculate_rewards(rows, prompts, completions, ids)
        self._drawn += len(rewards)
        logged = self._pending_extra_logs
        found = [
            Sampled(
                row,
                ids[i],
                logps[i] if logps else None,
                [scores[i] for scores in self._scores],
                {name: values[i] for name, values in logged.items() if len(values) == len(rows)},
                self._routes.rows([i]) if self._routes is not None else None,
                self._policy_logps[i] if self._policy_logps is not None else None,
            )
            for i, row in enumerate(rows)
        ]
        logged.clear()
        return Kept(found, rewards)

    def _kept_completions(self, kept: Kept) -> tuple[list[list[int]], list[list[float]] | None]:
        """What sampling gives for the batch that was kept."""
        routes = [sampled.routes for sampled in kept.rows if sampled.routes is not None]
        self._routes = join_routes(routes) if routes else None
        policy = [s.policy_logps for s in kept.rows if s.policy_logps is not None]
        self._policy_logps = policy or None
        logps = [sampled.logps for sampled in kept.rows if sampled.logps is not None]
        return [sampled.ids for sampled in kept.rows], logps or None

    def _kept_scores(self, kept: Kept) -> Tensor:
        """What scoring gives for the batch that was kept."""
        self._scores = [list(scores) for scores in zip(*(s.scores for s in kept.rows), strict=True)]
        for name in {name for sampled in kept.rows for name in sampled.logged}:
            self._pending_extra_logs[name] = [s.logged.get(name) for s in kept.rows]
        return kept.rewards

    # ------------------------------------------------------------------------------ the resume

    def _own_state(self) -> dict[str, Any]:
        return {"schedule": self._schedule.state()} if self._schedule else {}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        if self._schedule and "schedule" in state:
            self._schedule.restore(state["schedule"])
