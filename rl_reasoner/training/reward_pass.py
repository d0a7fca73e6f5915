"""The trainer's rewards: every kind of them scored row by row, faults counted, a breaker behind.

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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import trl
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor, nn
from trl.data_utils import is_conversational
from trl.trainer.utils import nanstd

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.foreign import printable
from rl_reasoner.scoring.batch import APPLIES, applies, own_rows, score_batch, score_own_rows
from rl_reasoner.scoring.circuit_breaker import Breaker
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.outcome import NOT_ITS_ROW, failed, outcome_json, usable
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.scoring.rule import Rule, rule_of, total
from rl_reasoner.scoring.runner import SEEDS
from rl_reasoner.scoring.trl_form import OF_TRL, call_mistake, form_mistake, needs_column
from rl_reasoner.training.advantages import total_rewards
from rl_reasoner.training.overlapped_rewards import EarlyRewards
from rl_reasoner.types import Completion, Fault, Outcome, Score

logger = logging.getLogger(__name__)
_SHOWN = 5  # faults told when a run stops
_TASKS = 24  # with more, each step would log more figures of tasks than anyone reads


@dataclass
class RewardingConfig(trl.GRPOConfig):  # type: ignore[misc]
    """trl's config with the limits of rewards."""

    isolate_rewards: bool = field(
        default=True,
        metadata={"help": "Run reward functions in killable processes of their own."},
    )
    overlap_rewards: bool = field(
        default=True,
        metadata={"help": "Score completions while others are being sampled (@reward functions)."},
    )
    rewards_on: str = field(
        default="here",
        metadata={"help": "Where @reward functions run: here, or on a cluster of Ray (ray)."},
    )
    reward_timeout_s: float = field(
        default=60.0, metadata={"help": "Seconds for a reward's call on one completion."}
    )
    reward_batch_timeout_s: float = field(
        default=600.0, metadata={"help": "Seconds for all calls of a reward on one batch."}
    )
    reward_memory_mb: int = field(
        default=8192, metadata={"help": "Memory that a reward's process may take, in MiB."}
    )

    def __post_init__(self) -> None:
        if self.rewards_on not in ("here", "ray"):
            raise unknown("rewards_on", str(self.rewards_on), ("here", "ray"))
        for name in ("reward_timeout_s", "reward_batch_timeout_s", "reward_memory_mb"):
            if not (value := getattr(self, name)) > 0:
                raise UserError(f"{name} is {value}; it has to be more than 0")
        super().__post_init__()


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


class Rewarding(trl.GRPOTrainer):  # type: ignore[misc]
    """trl's trainer with rewards that cannot end the run by themselves.

    `use_row_settings`, set before training: the columns `rewards`, `max_tokens` and `task` say
    which rewards a row gets, how long its completion may be, and what its figures are logged under.
    Left out they are columns like any other, as in trl.
    """

    use_row_settings: bool = False
    reward_rules: Sequence[Rule] | None = None
    """What faults and abstentions of each reward do; None: as the rewards themselves say."""
    _step: int
    _drawn: int  # rows scored for this batch before those at hand
    _rewards: Tensor  # (rows of all processes, reward functions) of the last rows scored
    _punishes: bool = False  # whether the last reward is the one for length
    reward_weights: Tensor
    _scores: list[list[Outcome]]  # by reward, of the last rows scored
    # trl's own tests score with trainers that were never initialised
    _limits = Limits()
    _breaker: Breaker | None = None
    _tally: Tally | None = None
    _at_hand: list[dict[str, Any]] = []  # noqa: RUF012 (never changed in place)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._check_rewards()
        self._scores = []
        self._at_hand: list[dict[str, Any]] = []  # that are sampled and scored
        self._early: EarlyRewards | None = None
        self._beside = 0.0  # seconds of this step that rewards ran beside the sampling
        self._breaker = Breaker()
        self._tally = Tally()
        given = {
            name: getattr(self.args, f"reward_{name}")
            for name in ("timeout_s", "batch_timeout_s", "memory_mb")
            if hasattr(self.args, f"reward_{name}")  # a config of trl's own has none
        }
        on = getattr(self.args, "rewards_on", "here")
        self._limits = Limits(**given, apart=getattr(self.args, "isolate_rewards", True), on=on)

    def _check_rewards(self) -> None:
        """Raises `UserError` for rewards that fit no call, or ask for columns that are lacking."""
        if self.environment_factories is not None or self.rollout_func is not None:
            return  # they add columns, and rewards of their own
        rows = self.train_dataset
        # rows that name their rewards need the columns of those only
        known = isinstance(rows, Dataset) and APPLIES not in rows.column_names
        columns = {*rows.column_names} - {"prompt", "completion"} if known else set()
        handed = {*columns, *OF_TRL}
        for fn, name in zip(self.reward_funcs, self.reward_func_names, strict=True):
            mistake = ""
            if isinstance(fn, Reward):
                lacking = [c for c in fn.columns if known and c not in {*handed, "prompt"}]
                mistake = needs_column(name, lacking[0], columns) if lacking else ""
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
        score = score_own_rows if self.use_row_settings else score_batch
        return score(fn, completions, columns, self._limits)

    def _rewarded(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        """Rewards of shape (rows of all processes, reward functions); NaN where a row has none."""
        if self.environments is not None:
            self._scores = []
            of_trl: Tensor = super()._calculate_rewards(
                inputs, prompts, completions, completion_ids_list
            )
            return of_trl
        columns = {
            **self._columns(inputs, prompts, completion_ids_list),
            **self._seeds(len(inputs)),
            "trainer_state": self.state,
            "log_extra": self._log_completion_extra,
            "log_metric": self._log_metric,
        }
        found = self._of_models(inputs, prompts, completions, completion_ids_list)
        early, self._early = self._early, None
        begun = early.rewards if early else {}
        for i, f in enumerate(self.reward_funcs):
            if i not in found and i not in begun:
                found[i] = self._score(f, completions, columns)
        if early:
            found |= early.collect(completions)
            self._beside += early.seconds if self.model.training else 0.0
        self._scores = [
            found[i] if i in found else self._score(f, completions, columns)
            for i, f in enumerate(self.reward_funcs)
        ]
        self._warn_of_unscored(columns, prompts, completions)
        return self._gathered()

    @staticmethod
    def _columns(
        inputs: list[dict[str, Any]], prompts: list[Any], completion_ids: list[list[int]]
    ) -> dict[str, list[Any]]:
        """The columns that rewards see, a value for each row."""
        skipped = ("prompt", "completion", "completion_ids")
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key not in skipped}
        return {**columns, "prompts": prompts, "completion_ids": completion_ids}

    def _seeds(self, count: int) -> dict[str, list[Any]]:
        """A seed for each row, from its place in the run: rewards that draw do so again alike."""
        if self._breaker is None:
            return {}
        train = self.model.training
        batch = (self.args.seed, train, self.state.global_step, self._step, self._drawn)
        place = "/".join(map(str, (*batch, self.accelerator.process_index)))
        return {SEEDS: [zlib.crc32(f"{place}/{row}".encode()) for row in range(count)]}

    # ------------------------------------------------------------------- beside the sampling

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._at_hand = inputs
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            if self._early:  # sampling or scoring broke off
                self._early.close()
                self._early = None
        if self._scores:
            self._tell_rewards()
        if self._tells_tasks:
            self._tell_tasks(inputs, output)
        return output

    def _tell_rewards(self) -> None:
        """Log the rows that are out of their groups; trl's figures of each reward, of all rows."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        out = self._rewards.isnan().all(dim=1)
        metrics["rows/left_out"].append(float(out.sum()))
        if not out.any():  # trl has had all scores
            return
        values = [[usable(score) for score in scores] for scores in self._scores]
        device = self.accelerator.device
        table = torch.tensor(values, dtype=torch.float32, device=device).T.contiguous()
        for name, scores in zip(
            self.reward_func_names, self.accelerator.gather(table).T, strict=True
        ):
            metrics[f"rewards/{name}/mean"][-1] = scores.nanmean().item()
            metrics[f"rewards/{name}/std"][-1] = nanstd(scores).item()

    @cached_property
    def _tells_tasks(self) -> bool:
        """Whether the rows are of several tasks, and of few enough to log each."""
        rows = self.train_dataset
        if (
            not self.use_row_settings
            or not isinstance(rows, Dataset)
            or "task" not in rows.column_names
        ):
            return False
        return 1 < len(rows.unique("task")) <= _TASKS

    def _tell_tasks(self, inputs: list[dict[str, Any]], output: dict[str, Any]) -> None:
        """Log each task's `reward`, `mean_length` (tokens) and `rows` under `task/NAME/`."""
        lengths = output["completion_mask"].sum(1).tolist()
        here = [(row.get("task"), length) for row, length in zip(inputs, lengths, strict=True)]
        rows: list[tuple[str | None, int]] = gather_object(here)
        totals = total_rewards(self._rewards, self.reward_weights.to(self._rewards.device))
        found: dict[str, list[tuple[float, int]]] = {}
        for (task, length), value in zip(rows, totals.tolist(), strict=True):
            if task is not None:
                found.setdefault(str(task), []).append((value, length))
        metrics = self._metrics["train" if self.model.training else "eval"]
        for task, values in found.items():
            known = [total for total, _ in values if total == total]
            if known:
                metrics[f"task/{task}/reward"].append(sum(known) / len(known))
            metrics[f"task/{task}/mean_length"].append(sum(n for _, n in values) / len(values))
            metrics[f"task/{task}/rows"].append(float(len(values)))

    def _begin_early(self) -> EarlyRewards | None:
        """Rewards for the rows that are about to be sampled; None where they have to wait."""
        ours = {i: f for i, f in enumerate(self.reward_funcs) if isinstance(f, Reward)}
        if not ours or not getattr(self.args, "overlap_rewards", True):
            return None
        prompts = [row["prompt"] for row in self._at_hand]
        chats = is_conversational({"prompt": prompts[0]})
        templates = ("response_template", "response_schema")
        if chats and any(getattr(self._tokenizer, name, None) is not None for name in templates):
            return None  # trl reads these completions by a template

        def read(ids: list[list[int]]) -> list[Any]:
            texts: list[str] = self.processing_class.batch_decode(ids, skip_special_tokens=True)
            return [[{"role": "assistant", "content": t}] for t in texts] if chats else texts

        columns = self._columns(self._at_hand, prompts, [[] for _ in prompts])
        columns |= self._seeds(len(prompts))
        self._early = EarlyRewards(ours, columns, read, self._score)
        return self._early

    # ------------------------------------------------------------------------ what comes of it

    def _warn_of_unscored(
        self, columns: dict[str, Any], prompts: list[Any], completions: list[Any]
    ) -> None:
        """trl's warning for rows that no reward gave a number, at their first and at powers of ten.

        A fault is told otherwise.
        """
        none = [
            i
            for i, scores in enumerate(zip(*self._scores, strict=True))
            if all(isinstance(s, Score) and s.value is None for s in scores)
        ]
        if not none or (self._tally is not None and not self._tally.due("", len(none))):
            return
        hidden = (SEEDS, "completion_ids")  # thousands of numbers
        i = none[0]
        row = {k: v[i] for k, v in columns.items() if isinstance(v, list) and k not in hidden}
        row |= {"prompt": prompts[i], "completion": completions[i]}
        logger.warning("All reward functions returned None for the following kwargs:\n%s", row)

    def _of_models(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> dict[int, list[Outcome]]:
        """The scores of the reward models, by their place among the rewards, through trl."""
        places = [i for i, f in enumerate(self.reward_funcs) if isinstance(f, nn.Module)]
        if not places:
            return {}
        names = ("reward_funcs", "reward_processing_classes", "reward_func_names")
        whole = {name: getattr(self, name) for name in names}
        try:
            for name, values in whole.items():
                setattr(self, name, [values[i] for i in places])
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            for name, values in whole.items():
                setattr(self, name, values)
        first = self.accelerator.process_index * len(prompts)
        rows = rewards[first : first + len(prompts)].T.tolist()
        heeds = self.use_row_settings
        return {
            i: [
                Score(value) if not heeds or applies(name, row.get(APPLIES)) else NOT_ITS_ROW
                for value, row in zip(values, inputs, strict=True)
            ]
            for i, name, values in zip(
                places, (whole["reward_func_names"][i] for i in places), rows, strict=True
            )
        }

    def _gathered(self) -> Tensor:
        """The rewards of all processes, NaN on rows that are out of their groups (`reward_rule`).

        Each process counts the same faults, and stops at the same step.
        """
        device = self.accelerator.device
        values = [[usable(score) for score in scores] for scores in self._scores]
        nan = float("nan")
        faults = [  # NaN where there was no call
            [
                float(failed(score)) if called else nan
                for score, called in zip(scores, own_rows(scores), strict=True)
            ]
            for scores in self._scores
        ]
        for name, scores in zip(self.reward_func_names, self._scores, strict=True):
            self._log_metric(
                f"rewards/{name}/faults", sum(isinstance(score, Fault) for score in scores)
            )
        out = self._taken_out()
        table = torch.tensor([*values, *faults, out], dtype=torch.float32, device=device).T
        gathered: Tensor = self.accelerator.gather(table.contiguous())
        rewards, flags = gathered[:, :-1].chunk(2, dim=1)
        rewards = rewards.masked_fill(gathered[:, -1:] > 0, nan)
        told = ([flag == 1.0 for flag in c.tolist() if flag == flag] for c in flags.T)
        counted = dict(zip(self.reward_func_names, told, strict=True))
        self._warn_of_faults(counted)
        if self._breaker is not None and self.model.training and not self._drawn:
            step = self.state.global_step + 1
            judged = not bool(rewards.isnan().all())
            self._breaker.add(step, counted, self._told(), judged=judged)
            last = step - 1 + self.args.steps_per_generation >= self.state.max_steps
            if last:
                self._breaker.end(self._told(), strict=self.use_row_settings)
        return rewards.contiguous()

    def _rules(self) -> list[tuple[str, float, Rule]]:
        """(name, weight, rule) of each reward; no row is scored by its length alone."""
        weights = self.reward_weights.tolist()
        if self._punishes:
            weights[-1] = 0.0
        rules = [*(self.reward_rules or [])]
        rules += map(rule_of, self.reward_funcs[len(rules) :])
        return list(zip(self.reward_func_names, weights, rules, strict=True))

    def _taken_out(self) -> list[float]:
        """1.0 for each row of this process that is out of its group, by `reward_rule`."""
        _, weights, rules = zip(*self._rules(), strict=True)
        rows = zip(*self._scores, strict=True)
        return [float(math.isnan(total(row, weights, rules))) for row in rows]

    def _took_out(self, scores: Sequence[Outcome]) -> list[str]:
        """The names of the rewards that take a row with these scores out of its group."""
        judged = zip(self._rules(), scores, strict=True)
        return [name for (name, weight, rule), s in judged if rule.takes_out(s, weight)]

    def _warn_of_faults(self, failed_rows: Mapping[str, Sequence[bool]]) -> None:
        """Say the first failure of each reward, and again at every power of ten."""
        if self._tally is None:
            return
        for place, (name, flags) in enumerate(failed_rows.items()):
            self._tally.calls[name] += len(flags)
            if not self._tally.due(name, sum(flags)):  # the same in all processes
                continue
            mine = [outcome_json(s)["reason"] for s in self._scores[place] if failed(s)]
            found = [why for why in gather_object([mine[0] if mine else None]) if why]
            if self.accelerator.is_main_process:
                count, calls = self._tally.failed[name], self._tally.calls[name]
                why = printable(found[0].removeprefix(f"reward {name!r}: "))
                told = "reward %r has failed on %d of %d rows so far: %s"
                logger.warning(told, name, count, calls, why)

    def _told(self) -> Iterator[str]:
        """The first faults of the rows at hand, for whoever has to fix the reward."""
        found = (
            f"row {i + 1} of the batch: {score.message}"
            for scores in self._scores
            for i, score in enumerate(scores)
            if isinstance(score, Fault)
        )
        yield from (message for message, _ in zip(found, range(_SHOWN), strict=False))
