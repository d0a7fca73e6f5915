"""Scores completions while training: calls each reward row by row, counts faults, and stops the run
through the circuit breaker.

Functions, asynchronous ones and our own go through `score_batch`: in processes of their own, under
limits. With `use_row_settings`, rows may name the rewards they get (column `rewards`): the others
abstain there, and are not called. Reward models are called as trl calls them, on every row. Only
rewards of environments are left to trl altogether. Knows nothing of recipes.
"""

import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import chain, islice
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from trl.data_utils import is_conversational
from trl.trainer.utils import nanstd

from rl_reasoner.environments.environment import EPISODE
from rl_reasoner.errors import UserError
from rl_reasoner.foreign import printable
from rl_reasoner.rollout.turns import policy_ids, policy_text
from rl_reasoner.scoring.batch import (
    APPLIES,
    POLICY_IDS,
    POLICY_TEXT,
    applies,
    own_rows,
    reads_own,
    score_batch,
    score_own_rows,
)
from rl_reasoner.scoring.circuit_breaker import Breaker
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.outcome import NOT_ITS_ROW, failed, outcome_json, usable
from rl_reasoner.scoring.reward import GROUPS, Reward
from rl_reasoner.scoring.rule import Rule, rule_of, total
from rl_reasoner.scoring.runner import SEEDS
from rl_reasoner.scoring.trl_form import OF_TRL, call_mistake, form_mistake, needs_column
from rl_reasoner.training.advantages import total_rewards, varied
from rl_reasoner.training.overlapped_rewards import OverlappedRewards
from rl_reasoner.training.packed_forward import is_on
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.training.trl_internals import put_on
from rl_reasoner.types import Completion, Outcome, Score

logger = logging.getLogger(__name__)
_NOT_OF_DATA = frozenset({"prompt", "completion", POLICY_TEXT, POLICY_IDS})
_SHOWN = 5  # faults told when a run stops
_TASKS = 24  # with more, each step would log more figures of tasks than anyone reads


class Tally:
    """Counts failures by reward; `due` at the first and whenever a power of ten is reached."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def due(self, name: str, more: int) -> bool:
        """Count `more` failures of `name`; whether they are to be told."""
        before = self.failed[name]
        self.failed[name] += more
        return len(str(self.failed[name])) > len(str(before)) or (more > 0 and not before)


def split_groups(fn: Reward, rows: int, size: int) -> str:
    """What is wrong where a reward would see parts of groups of `size`; empty if nothing.

    `rows` are those that one process has of a batch.
    """
    if not fn.group or rows % size == 0:
        return ""
    return (
        f"reward {fn.name!r} judges whole groups: each process has {rows} rows of a batch, "
        f"not a multiple of the {size} completions of a prompt"
    )


def reads_turns(fn: Reward) -> bool:
    """Whether a reward asks what tools or an environment have answered, and what they have not."""
    return fn.policy_text or reads_own(fn) or EPISODE in (*fn.columns, *fn.missing)


class RewardPass:
    """The rewards of a trainer, which cannot end the run by themselves; see the module's docstring.

    `overlapped_s`: seconds of this step that rewards ran beside the sampling.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.overlapped_s = 0.0
        self._breaker = Breaker()
        self._tally = Tally()
        self._faults: Counter[str] = Counter()  # of this process, in all rounds of a batch
        self._check_rewards()
        args = trainer.args
        given = {
            name: getattr(args, f"reward_{name}")
            for name in ("timeout_s", "batch_timeout_s", "memory_mb")
            if hasattr(args, f"reward_{name}")  # a config of trl's own has none
        }
        on = getattr(args, "rewards_on", "here")
        self.limits = Limits(**given, apart=getattr(args, "isolate_rewards", True), on=on)

    def _check_rewards(self) -> None:
        """Raises `UserError` for rewards that fit no call, or ask for columns that are lacking."""
        trainer = self.trainer
        if trainer.environment_factories is not None or trainer.rollout_func is not None:
            return  # they add columns, and rewards of their own
        rows = trainer.train_dataset
        # rows that name their rewards need the columns of those only
        known = isinstance(rows, Dataset) and APPLIES not in rows.column_names
        columns = {*rows.column_names} - _NOT_OF_DATA if known else set()
        handed = {*columns, *OF_TRL}
        there = {*handed, EPISODE, POLICY_TEXT, "prompt"}
        rows_here = trainer.args.generation_batch_size // trainer.accelerator.num_processes
        for fn, name in zip(trainer.reward_funcs, trainer.reward_func_names, strict=True):
            mistake = ""
            if isinstance(fn, Reward):
                lacking = [c for c in fn.columns if known and c not in there]
                mistake = needs_column(name, lacking[0], columns) if lacking else ""
                if known and POLICY_TEXT in rows.column_names and reads_own(fn):
                    mistake = (
                        f"reward {name!r} has a parameter {POLICY_TEXT!r}, which is what the "
                        "policy wrote; the data have a column of that name: rename it"
                    )
                mistake = mistake or split_groups(fn, rows_here, trainer.num_generations)
            elif not isinstance(fn, nn.Module):
                mistake = call_mistake(fn, name, handed) if known else form_mistake(fn, name)
            if mistake:
                raise UserError(mistake)

    def _score(
        self,
        fn: Callable[..., Any],
        completions: Sequence[Completion],
        columns: Mapping[str, Any],
    ) -> list[Outcome]:
        """The outcomes of one reward, row by row."""
        score = score_own_rows if self.trainer.use_row_settings else score_batch
        return score(fn, completions, columns, self.limits)

    def score(
        self,
        batch: RolloutBatch,
        plain: Callable[[], Tensor],
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        ids: list[list[int]],
    ) -> Tensor:
        """Rewards of shape (rows of all processes, reward functions); NaN where a row has none.

        `plain` is trl's own way for the same rows, `batch` gets each row's outcomes.
        """
        trainer = self.trainer
        if trainer.environments is not None:
            batch.outcomes = []
            return plain()
        columns = {
            **self._columns(inputs, prompts, ids),
            **self._seeds(batch, len(inputs)),
            **self._groups(len(inputs)),
            **trainer.internals.for_rewards(),
            **self._given(batch),
        }
        outcomes = self._of_models(plain, inputs)
        overlapped, batch.overlapped = batch.overlapped, None
        begun = overlapped.rewards if overlapped else {}
        for i, f in enumerate(trainer.reward_funcs):
            if i not in outcomes and i not in begun:
                outcomes[i] = self._score(f, completions, columns)
        if overlapped:
            outcomes |= overlapped.collect(completions)
            self.overlapped_s += overlapped.seconds if trainer.model.training else 0.0
        batch.outcomes = [
            outcomes[i] if i in outcomes else self._score(f, completions, columns)
            for i, f in enumerate(trainer.reward_funcs)
        ]
        self._warn_of_unscored(batch, columns, completions)
        return self._gathered(batch)

    def judge(self, fn: Callable[..., Any], batch: RolloutBatch) -> list[Outcome]:
        """What `fn`, a reward that need not be the trainer's, says of a batch that is sampled."""
        prompts = [row["prompt"] for row in batch.rows]
        chats = is_conversational({"prompt": prompts[0]})
        columns = {
            **self._columns(batch.rows, prompts, batch.ids),
            **self._seeds(batch, len(batch.rows)),
            **self._groups(len(batch.rows)),
            **self.trainer.internals.for_rewards(),
            **self._given(batch),
        }
        given: list[Any] = [
            [{"role": "assistant", "content": text}] if chats else text for text in batch.texts
        ]
        return self._score(fn, given, columns)

    @staticmethod
    def _columns(
        inputs: list[dict[str, Any]], prompts: list[Any], completion_ids: list[list[int]]
    ) -> dict[str, list[Any]]:
        """The columns that rewards see, a value for each row."""
        names = (name for name in inputs[0] if name not in {*_NOT_OF_DATA, "completion_ids"})
        columns = {name: [row[name] for row in inputs] for name in names}
        return {**columns, "prompts": prompts, "completion_ids": completion_ids}

    def _given(self, batch: RolloutBatch) -> dict[str, list[Any]]:
        """What tools or an environment have made of each row, where they answered."""
        if batch.turns is None:
            return {}
        tokenizer = self.trainer.internals.tokenizer
        rows = [*zip(batch.ids, batch.turns, strict=True)]
        return {
            POLICY_TEXT: [policy_text(tokenizer, ids, turns) for ids, turns in rows],
            POLICY_IDS: [[*chain(*policy_ids(ids, turns))] for ids, turns in rows],
            **({EPISODE: [e.told() for e in batch.episodes]} if batch.episodes else {}),
        }

    def _seeds(self, batch: RolloutBatch, count: int) -> dict[str, list[Any]]:
        """A seed for each row, from its place in the run: rewards that draw do so again alike."""
        trainer = self.trainer
        step = trainer.internals.step
        at = (trainer.args.seed, trainer.model.training, trainer.state.global_step, step)
        place = *at, batch.earlier, trainer.accelerator.process_index
        return {SEEDS: seeds_of_rows(place, count)}

    def _groups(self, count: int) -> dict[str, list[int]]:
        """The number of each row's group: its advantage is relative to that."""
        trainer = self.trainer
        train = trainer.model.training
        size = trainer.num_generations if train else trainer.num_generations_eval
        first = trainer.accelerator.process_index * count
        return {GROUPS: [i // size for i in range(first, first + count)]}

    # ------------------------------------------------------------------- beside the sampling

    def begin_overlapped(self, batch: RolloutBatch) -> OverlappedRewards | None:
        """Rewards for the rows that are about to be sampled; None where they have to wait."""
        trainer = self.trainer
        answered = trainer.tool_use is not None or trainer.environment_use is not None
        ours = {
            i: f
            for i, f in enumerate(trainer.reward_funcs)
            # a group waits for its last row; what turns have given is known at the end of all
            if isinstance(f, Reward) and not f.group and not (answered and reads_turns(f))
        }
        if not ours or not is_on(trainer, "overlap_rewards"):
            return None
        prompts = [row["prompt"] for row in batch.rows]
        chats = is_conversational({"prompt": prompts[0]})
        tokenizer = trainer.internals.tokenizer
        templates = ("response_template", "response_schema")
        if chats and any(getattr(tokenizer, name, None) is not None for name in templates):
            return None  # trl reads these completions by a template

        def read(ids: list[list[int]]) -> list[Any]:
            texts: list[str] = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
            return [[{"role": "assistant", "content": t}] for t in texts] if chats else texts

        columns = self._columns(batch.rows, prompts, [[] for _ in prompts])
        columns |= self._seeds(batch, len(prompts))
        batch.overlapped = OverlappedRewards(ours, columns, read, self._score)
        return batch.overlapped

    # -------------------------------------------------------------------------- the figures

    def log(self, batch: RolloutBatch, output: dict[str, Any]) -> None:
        """Log what trl does not: rows left out of their groups, flat groups where trl looks at the
        whole batch, and figures of each task."""
        self._log_flat_groups(batch)
        if batch.outcomes:
            self._log_rewards(batch)
        if self._logs_tasks:
            self._log_tasks(batch, output)

    def _log_flat_groups(self, batch: RolloutBatch) -> None:
        """Log the share of groups of equal rewards.

        trl takes the deviation that it divides by, which may be that of the batch.
        """
        trainer = self.trainer
        apart = trainer.multi_objective_aggregation != "sum_then_normalize"
        if trainer.scale_rewards != "batch" and not apart:
            return
        size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        weights = trainer.reward_weights.to(batch.rewards.device)
        values = batch.rewards if apart else total_rewards(batch.rewards, weights)[:, None]
        flat = ~varied(values, size)
        trainer.internals.metrics["frac_reward_zero_std"][-1] = flat.float().mean().item()

    def _log_rewards(self, batch: RolloutBatch) -> None:
        """Log faults, and the rows that are out of their groups; trl's figures of each reward, of
        all rows."""
        metrics, accelerator = self.trainer.internals.metrics, self.trainer.accelerator
        names = self.trainer.reward_func_names
        faults = [float(self._faults[name]) for name in names]
        counts = accelerator.reduce(torch.tensor(faults, device=accelerator.device))
        for name, count in zip(names, counts.tolist(), strict=True):
            metrics[f"rewards/{name}/faults"].append(count)
        out = batch.rewards.isnan().all(dim=1)
        metrics["rows/left_out"].append(float(out.sum()))
        if not out.any():  # trl has had all scores
            return
        values = [[usable(score) for score in scores] for scores in batch.outcomes]
        table = torch.tensor(values, dtype=torch.float32, device=accelerator.device).T.contiguous()
        for name, scores in zip(names, accelerator.gather(table).T, strict=True):
            metrics[f"rewards/{name}/mean"][-1] = scores.nanmean().item()
            metrics[f"rewards/{name}/std"][-1] = nanstd(scores).item()

    @cached_property
    def _logs_tasks(self) -> bool:
        """Whether the rows are of several tasks, and of few enough to log each."""
        rows = self.trainer.train_dataset
        named = isinstance(rows, Dataset) and "task" in rows.column_names
        if not (self.trainer.use_row_settings and named):
            return False
        return 1 < len(rows.unique("task")) <= _TASKS

    def _log_tasks(self, batch: RolloutBatch, output: dict[str, Any]) -> None:
        """Log each task's `reward`, `mean_length` (tokens) and `rows` under `task/NAME/`."""
        lengths = batch.sampled_tokens(output)
        here = [(row.get("task"), length) for row, length in zip(batch.rows, lengths, strict=True)]
        rows: list[tuple[str | None, float]] = gather_object(here)
        weights = self.trainer.reward_weights.to(batch.rewards.device)
        totals = total_rewards(batch.rewards, weights)
        of_task: dict[str, list[tuple[float, float]]] = {}
        for (task, length), value in zip(rows, totals.tolist(), strict=True):
            if task is not None:
                of_task.setdefault(str(task), []).append((value, length))
        metrics = self.trainer.internals.metrics
        for task, values in of_task.items():
            known = [total for total, _ in values if total == total]
            if known:
                metrics[f"task/{task}/reward"].append(sum(known) / len(known))
            metrics[f"task/{task}/mean_length"].append(sum(n for _, n in values) / len(values))
            metrics[f"task/{task}/rows"].append(float(len(values)))

    # ------------------------------------------------------------------------ what comes of it

    def _warn_of_unscored(
        self, batch: RolloutBatch, columns: dict[str, Any], completions: list[Any]
    ) -> None:
        """trl's warning for rows that no reward gave a number, at their first and at powers of ten.

        A fault is told otherwise.
        """
        none = [
            i
            for i, scores in enumerate(zip(*batch.outcomes, strict=True))
            if all(isinstance(s, Score) and s.value is None for s in scores)
        ]
        if not none or not self._tally.due("", len(none)):
            return
        hidden = (SEEDS, GROUPS, "completion_ids", POLICY_IDS)  # thousands of numbers
        i = none[0]
        row = {k: v[i] for k, v in columns.items() if isinstance(v, list) and k not in hidden}
        row |= {"prompt": columns["prompts"][i], "completion": completions[i]}
        logger.warning("All reward functions returned None for the following kwargs:\n%s", row)

    def _of_models(
        self, plain: Callable[[], Tensor], inputs: list[dict[str, Any]]
    ) -> dict[int, list[Outcome]]:
        """The scores of the reward models, by their place among the rewards, through trl."""
        trainer = self.trainer
        places = [i for i, f in enumerate(trainer.reward_funcs) if isinstance(f, nn.Module)]
        if not places:
            return {}
        names = ("reward_funcs", "reward_processing_classes", "reward_func_names")
        whole = {name: getattr(trainer, name) for name in names}
        with ExitStack() as stack:
            for name, values in whole.items():
                stack.enter_context(put_on(trainer, name, [values[i] for i in places]))
            rewards = plain()
        first = trainer.accelerator.process_index * len(inputs)
        rows = rewards[first : first + len(inputs)].T.tolist()
        heeds = trainer.use_row_settings
        return {
            i: [
                Score(value) if not heeds or applies(name, row.get(APPLIES)) else NOT_ITS_ROW
                for value, row in zip(values, inputs, strict=True)
            ]
            for i, name, values in zip(
                places, (whole["reward_func_names"][i] for i in places), rows, strict=True
            )
        }

    def _gathered(self, batch: RolloutBatch) -> Tensor:
        """The rewards of all processes, NaN on rows that are out of their groups (`reward_rules`).

        Each process counts the same faults, and stops at the same step.
        """
        trainer, outcomes = self.trainer, batch.outcomes
        names, device = trainer.reward_func_names, trainer.accelerator.device
        values = [[usable(score) for score in scores] for scores in outcomes]
        nan = float("nan")
        faults = [  # NaN where there was no call
            [
                float(failed(score)) if called else nan
                for score, called in zip(scores, own_rows(scores), strict=True)
            ]
            for scores in outcomes
        ]
        if not batch.earlier:
            self._faults.clear()
        for name, scores in zip(names, outcomes, strict=True):
            self._faults[name] += sum(map(failed, scores))
        out = self._taken_out(outcomes)
        table = torch.tensor([*values, *faults, out], dtype=torch.float32, device=device).T
        gathered: Tensor = trainer.accelerator.gather(table.contiguous())
        rewards, flags = gathered[:, :-1].chunk(2, dim=1)
        rewards = rewards.masked_fill(gathered[:, -1:] > 0, nan)
        failures = ([flag == 1.0 for flag in c.tolist() if flag == flag] for c in flags.T)
        counted = dict(zip(names, failures, strict=True))
        self._warn_of_faults(outcomes, counted)
        if trainer.model.training and not batch.earlier:
            step = trainer.state.global_step + 1
            judged = not bool(rewards.isnan().all())
            self._breaker.add(step, counted, _first_faults(outcomes), judged=judged)
            last = step - 1 + trainer.args.steps_per_generation >= trainer.state.max_steps
            if last:
                self._breaker.end(_first_faults(outcomes), strict=trainer.use_row_settings)
        return rewards.contiguous()

    def _rules(self) -> list[tuple[str, float, Rule]]:
        """(name, weight, rule) of each reward; no row is scored by its length alone."""
        trainer = self.trainer
        weights = trainer.reward_weights.tolist()
        if trainer.objective.punishes:
            weights[-1] = 0.0
        rules = [*(trainer.reward_rules or [])]
        rules += map(rule_of, trainer.reward_funcs[len(rules) :])
        return list(zip(trainer.reward_func_names, weights, rules, strict=True))

    def _taken_out(self, outcomes: list[list[Outcome]]) -> list[float]:
        """1.0 for each row of this process that is out of its group, by `reward_rules`."""
        _, weights, rules = zip(*self._rules(), strict=True)
        rows = zip(*outcomes, strict=True)
        return [float(math.isnan(total(row, weights, rules))) for row in rows]

    def took_out(self, scores: Sequence[Outcome]) -> list[str]:
        """The names of the rewards that take a row with these scores out of its group."""
        judged = zip(self._rules(), scores, strict=True)
        return [name for (name, weight, rule), s in judged if rule.takes_out(s, weight)]

    def _warn_of_faults(
        self, outcomes: list[list[Outcome]], failed_rows: Mapping[str, Sequence[bool]]
    ) -> None:
        """Say the first failure of each reward, and again at every power of ten."""
        for place, (name, flags) in enumerate(failed_rows.items()):
            self._tally.calls[name] += len(flags)
            if not self._tally.due(name, sum(flags)):  # the same in all processes
                continue
            mine = [outcome_json(s)["reason"] for s in outcomes[place] if failed(s)]
            reasons = [why for why in gather_object([mine[0] if mine else None]) if why]
            if self.trainer.accelerator.is_main_process:
                count, calls = self._tally.failed[name], self._tally.calls[name]
                why = printable(reasons[0].removeprefix(f"reward {name!r}: "))
                text = "reward %r has failed on %d of %d rows so far: %s"
                logger.warning(text, name, count, calls, why)


def seeds_of_rows(place: Sequence[object], count: int) -> list[int]:
    """The seeds of a batch's `count` rows, from its `place` in the run.

    That is the run's seed, whether it trains, optimizer steps and micro-batches done, rows sampled
    earlier for the same batch, and the process.
    """
    at = "/".join(map(str, place))
    return [zlib.crc32(f"{at}/{row}".encode()) for row in range(count)]


def _first_faults(outcomes: Sequence[Sequence[Outcome]]) -> Iterator[str]:
    """The first faults of the rows at hand, for whoever has to fix the reward."""
    faults = (
        f"row {i + 1} of the batch: {outcome_json(score)['reason']}"
        for scores in outcomes
        for i, score in enumerate(scores)
        if failed(score)
    )
    yield from islice(faults, _SHOWN)
