"""`GRPOTrainer` and `GRPOConfig`: drop-ins for trl's, same arguments, same gradients.

A subclass that calls `super()` and adds what a run needs: a reward that faults takes out its row
instead of the run, every score is kept with its reason, the time of a step is split, expert load is
counted. The internals of trl that it leans on are named in tests/training/test_trainer_contract.py.
Knows nothing of recipes.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import GenerationConfig
from transformers.generation import StopStringCriteria
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import get_config_model_id

from rl_reasoner.distributed.sharding import Sharding, gathered_params
from rl_reasoner.errors import UserError
from rl_reasoner.moe.experts import ExpertLoad
from rl_reasoner.rollout.agreement import in_mode
from rl_reasoner.rollout.engine import generate, generates_as_transformers
from rl_reasoner.rollout.long_prompts import LongPromptsConfig
from rl_reasoner.rollout.sampling_params import SamplingParams, unhandled
from rl_reasoner.scoring.outcome import outcome_json, usable
from rl_reasoner.training.checkpointing.exact_resume import ExactResume
from rl_reasoner.training.checkpointing.faults import SkipBadSteps
from rl_reasoner.training.expert_balance import balance_figures
from rl_reasoner.training.objective import Objective, ObjectiveConfig, row_means, trained_tokens
from rl_reasoner.training.old_logprobs import OldLogProbs, OldLogProbsConfig
from rl_reasoner.training.out_of_memory import SmallerPieces
from rl_reasoner.training.packed_forward import BATCHES, LOSS, PASS, base_of
from rl_reasoner.training.prompt_selection import Kept, PromptChoice
from rl_reasoner.training.reward_pass import Rewarding, RewardingConfig
from rl_reasoner.types import text_of

logger = logging.getLogger(__name__)
RolloutSink = Callable[[list[dict[str, Any]]], None]
_PARTS = ("generation", "reward", "training")  # of a step's time
_NOT_HERE = "fast_rollouts: transformers' generate is used, for %s"


@dataclass
class GRPOConfig(ObjectiveConfig, RewardingConfig, LongPromptsConfig, OldLogProbsConfig):
    """trl's `GRPOConfig`, with algorithms by name, and defaults that also run on a CPU.

    Where trl would turn bf16 on (nothing said about precision) and the machine has no accelerator,
    this stays in fp32, because trl's own default does not start there. The fields below turn one
    speed-up off each: none changes a gradient, and the rollouts keep their distribution, not their
    random numbers (docs/trainer.md).
    """

    share_prompts: bool = field(
        default=True,
        metadata={"help": "Compute a group's prompt once, and no padding, in the training pass."},
    )
    skip_zero_advantage: bool = field(
        default=True,
        metadata={"help": "Do not compute rows without advantage where they add exactly nothing."},
    )
    regroup_rows: bool = field(
        default=True,
        metadata={
            "help": "Keep a group's rows together in the micro-batches of an optimizer step."
        },
    )
    balance_processes: bool = field(
        default=True,
        metadata={"help": "Several processes: exchange groups, so that all have as many tokens."},
    )

    fast_rollouts: bool = field(
        default=True,
        metadata={
            "help": "Sample with rl_reasoner.rollout.engine where trl would call `generate`."
        },
    )

    correct_sampling: bool = field(
        default=False,
        metadata={
            "help": "Weigh tokens by their probability in training over that in sampling, where "
            "the engine samples: trl's vllm_importance_sampling_mode and _clip_* say how."
        },
    )

    def __post_init__(self) -> None:
        accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
        if getattr(self, "bf16", None) is None and not accelerated:
            self.bf16 = False
        if self.correct_sampling and not self.vllm_importance_sampling_correction:
            raise UserError(
                "correct_sampling=True corrects by trl's code for vLLM, and "
                "vllm_importance_sampling_correction=False turns that off: use only one of them"
            )
        super().__post_init__()


class GRPOTrainer(
    SmallerPieces, PromptChoice, Objective, Rewarding, OldLogProbs, ExactResume, Sharding
):
    """trl's `GRPOTrainer` with rewards that cannot end the run by themselves.

    `rollout_sink`, when set, is called once a generation batch, on the main process, with one dict
    a completion: step, group, prompt, completion, answer, reward, scores (value, reason, outcome by
    reward), advantage, truncated; where the reward is None, `left_out_by`: the rewards that took it
    out of its group (`reward_rule`). Metric names are trl's; added are `timing/generation`,
    `timing/reward`, `timing/training` (seconds a step), `overlapped_time/reward` (seconds that
    rewards ran beside the sampling, in none of these), `rewards/<name>/faults` and
    `experts/max_over_mean`, `/entropy`, `/dead` (rl_reasoner.training.expert_balance).
    """

    rollout_sink: RolloutSink | None = None
    use_vllm: bool
    _correcting = False  # `use_vllm` is set only so that trl corrects

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *others: Any, **named: Any
    ) -> None:
        if args is None:  # trl would make its own config, which does not start on a CPU
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GRPOConfig(f"{name.split('/')[-1]}-GRPO")
        super().__init__(model, reward_funcs, args, *others, **named)
        self._sampled: list[tuple[str, list[int]]] = []  # text and token ids of each completion
        self._spent = dict.fromkeys(_PARTS, 0.0)  # seconds, this step
        self._counted = 0.0  # of generation and reward, already taken out of the training time
        self._evaluated = 0  # batches of the evaluation at hand that are sampled
        reason = self._no_engine()
        if reason and self._on("fast_rollouts") and reason != self._obstacle:  # said already
            logger.warning(_NOT_HERE, reason)
        self._fast = reason is None and self._on("fast_rollouts")
        self._elsewhere: set[str] = set()  # for what later `generate` was used, as was said
        self._sampling: SamplingParams | None = None  # as it was drawn last
        self._policy_logps: list[list[float]] | None = None  # of the rows drawn last
        if not self._fast and self._corrects:
            logger.warning("correct_sampling: turned off, no log-probs are kept while sampling")
        self.expert_load: ExpertLoad | None = None  # while it trains
        self.last_expert_load: list[list[float]] = []
        self.add_callback(SkipBadSteps(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As trl's; afterwards, also after an error, nothing that it put on the model is left."""
        self._say_what_is_left_out()
        self.expert_load = ExpertLoad(self.model)
        try:
            return super().train(*args, **kwargs)
        finally:
            self.expert_load.remove()

    def _say_what_is_left_out(self) -> None:
        """One warning where methods of the user's own are to find what they find in trl's."""
        loss = self._own(*LOSS, PASS)
        left = {
            "regroup_rows": loss,
            "skip_zero_advantage": self._own(PASS),
            "reuse_log_probs": self._own(*LOSS, PASS, *BATCHES) if self._moves_on else [],
        }
        left = {name: own for name, own in left.items() if own and self._packs and self._on(name)}
        if loss:
            left["smaller pieces where memory runs out"] = loss
        if left:
            logger.warning(
                "%s has its own %s, which gets rows and batches as in trl; turned off: %s",
                type(self).__name__,
                ", ".join(dict.fromkeys(name for own in left.values() for name in own)),
                ", ".join(left),
            )

    # ------------------------------------------------------------------------------- rewards

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        if self._replay is not None:  # scored before
            self._sampled = list(zip(map(text_of, completions), completion_ids_list, strict=True))
            return self._kept_rewards(self._kept_scores(self._replay))
        started = time.perf_counter()
        self._sampled = list(zip(map(text_of, completions), completion_ids_list, strict=True))
        rewards = self._rewarded(inputs, prompts, completions, completion_ids_list)
        self._spend("reward", started)
        return self._kept_rewards(rewards)

    @contextmanager
    def _scored_once(self) -> Iterator[None]:
        """Inside, rewards are what a `_calculate_rewards` of the user's own makes of them, once."""
        own, ours = self._calculate_rewards, partial(GRPOTrainer._calculate_rewards, self)
        held = self.__dict__
        before = {name: held[name] for name in ("_calculate_rewards",) if name in held}

        def scored(*given: Any, **named: Any) -> torch.Tensor:
            self._rewards = (own if self._replay is None else ours)(*given, **named)
            return self._rewards

        held["_calculate_rewards"] = scored
        try:
            yield
        finally:
            del held["_calculate_rewards"]
            held.update(before)

    def _sample(self, rows: list[dict[str, Any]]) -> Kept:
        self._at_hand = rows
        return super()._sample(rows)

    # --------------------------------------------------------------------------- the rollouts

    def _no_engine(self) -> str | None:
        """What of the settings the sampling engine does not do, or None."""
        if (elsewhere := self._sampled_elsewhere()) is not None:
            return elsewhere
        if self.args.cache_implementation is not None:
            return "cache_implementation"
        if self._unsampled is not None:
            return self._unsampled
        return unhandled(self.args.generation_kwargs or {}, self._settings())

    def _settings(self) -> GenerationConfig:
        """trl's settings of `generate`, with the model's own where trl says nothing."""
        model: Any = base_of(self.model)
        settings: GenerationConfig = model._prepare_generation_config(self.generation_config)[0]
        return settings

    def _how(self) -> SamplingParams | None:
        """What the engine draws by the settings of now, which callbacks may change.

        None where it does not sample: also where a model has a `generate` of its own.
        """
        if not self._fast:
            return None
        settings = self._settings()
        reason = unhandled({}, settings)
        if not generates_as_transformers(base_of(self.model)):
            reason = "a model with its own `generate`"
        if reason is not None:
            if reason not in self._elsewhere:
                logger.warning(_NOT_HERE, reason)
            self._elsewhere.add(reason)
            return None
        if self._sampling is None or self._sampling.config != settings:
            stop = settings.stop_strings
            self._sampling = SamplingParams(
                max_tokens=settings.max_new_tokens,
                ends=tuple(self.eos_token_ids),
                config=settings,
                policy_temperature=self.temperature,
                stop=None if stop is None else StopStringCriteria(self._tokenizer, stop),
            )
        return self._sampling

    @property
    def _corrects(self) -> bool:
        return bool(getattr(self.args, "correct_sampling", False))

    @contextmanager
    def _corrected(self) -> Iterator[None]:
        """While it lasts, trl corrects for the engine's log-probs as it does for vLLM's."""
        self._correcting = not self.use_vllm and self._corrects and self._how() is not None
        self.use_vllm = self.use_vllm or self._correcting
        try:
            yield
        finally:
            self.use_vllm = self.use_vllm and not self._correcting
            self._correcting = False

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with self._corrected():
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        return loss

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids of a completion for each row, and the log-probs that they were drawn with.

        A row's randomness follows from (seed, train or eval, step, prompt, index in the group).
        """
        if self._replay is not None:  # sampled before
            return self._kept_completions(self._replay)
        self._policy_logps = None
        how = self._how()
        if how is None or images is not None or multimodal_fields:
            found: tuple[list[list[int]], list[list[float]] | None] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, has_tool_images
            )
            return _cut(*found, self._budgets(len(prompt_ids)))
        train = self.model.training
        self._evaluated += not train
        part = self._step % self.args.gradient_accumulation_steps if train else self._evaluated
        batch = (self.args.seed, int(train), self.state.global_step, part)
        first = self._drawn + self.accelerator.process_index * len(prompt_ids)
        rows = range(first, first + len(prompt_ids))
        early = self._begin_early()
        base = base_of(self.model)
        with (
            self.accelerator.autocast(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            self._sampled_routes() as routes,
            in_mode(base, training=False),  # dropout is for training
        ):
            completions = generate(
                base,
                prompt_ids,
                [(*batch, row // num_generations, row % num_generations) for row in rows],
                how,
                routes,
                None if early is None else early.add,
                self._budgets(len(prompt_ids)),
            )
        self._policy_logps = [c.policy_logps for c in completions]
        return [c.ids for c in completions], [c.logps for c in completions]

    def _budgets(self, count: int) -> list[int | None]:
        """The longest completions that the rows at hand allow themselves (column `max_tokens`)."""
        if not self.use_row_settings or len(self._at_hand) != count:
            return [None] * count
        return [row.get("max_tokens") for row in self._at_hand]

    def _generate(self, prompts: list[Any]) -> Any:
        started = time.perf_counter()
        correcting, self._correcting = self._correcting, False
        self.use_vllm = self.use_vllm and not correcting  # it is we who sample
        try:
            with nullcontext() if self.use_vllm else gathered_params(self.model):
                out = super()._generate(prompts)
        finally:
            self.use_vllm = self.use_vllm or correcting
            self._correcting = correcting
        self._spend("generation", started)
        return out

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self._corrected(), self._scored_once():
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._keep_policy_logps(output)
        if self.rollout_sink is not None and self.model.training and self._scores:
            rows = gather_object(self._rollout_rows(inputs, output))
            if self.accelerator.is_main_process:
                self.rollout_sink(rows)
        return output

    def _keep_policy_logps(self, output: dict[str, Any]) -> None:
        """Have trl compare with the policy that sampled, not with what was cut off of it to sample.

        The weights of `correct_sampling`, which are for that, it has by now.
        """
        drawn, policy = output.get("sampling_per_token_logps"), self._policy_logps
        lengths = [len(ids) for _, ids in self._sampled]
        if drawn is None or policy is None or [*map(len, policy)] != lengths:
            return
        table = torch.zeros_like(drawn, device="cpu")
        for row, logps in zip(table, policy, strict=True):
            row[: len(logps)] = torch.tensor(logps)
        output["drawn_per_token_logps"] = drawn
        output["sampling_per_token_logps"] = table.to(drawn.device)

    def _rollout_rows(
        self, inputs: list[dict[str, Any]], output: dict[str, Any]
    ) -> list[dict[str, Any]]:
        advantages = row_means(output["advantages"], trained_tokens(output)).tolist()
        weights = self.reward_weights.tolist()
        first = len(inputs) * self.accelerator.process_index
        table = self._rewards[first:].tolist()
        rows = []
        for i, (row, (text, ids)) in enumerate(zip(inputs, self._sampled, strict=True)):
            scores = [scores[i] for scores in self._scores]
            values = [usable(s) if v == v else v for s, v in zip(scores, table[i], strict=True)]
            known = [w * v for w, v in zip(weights, values, strict=True) if v == v]
            rows.append(
                {
                    "step": self.state.global_step + 1,
                    "group": (first + i) // self.num_generations,
                    "prompt": text_of(row["prompt"]),
                    "completion": text,
                    "answer": row.get("answer"),
                    "reward": sum(known) if known else None,
                    "scores": {
                        name: outcome_json(score)
                        for name, score in zip(self.reward_func_names, scores, strict=True)
                    },
                    "seconds": {
                        name: score.seconds
                        for name, score in zip(self.reward_func_names, scores, strict=True)
                    },
                    "advantage": advantages[i],
                    "truncated": not ids or ids[-1] not in self.eos_token_ids,
                    **({} if known else {"left_out_by": self._took_out(scores)}),
                }
            )
        return rows

    # ---------------------------------------------------------------------------- the metrics

    def _spend(self, part: str, started: float) -> None:
        """Count the time since `started`; also in a trainer that was not initialised, as trl's."""
        spent = self.__dict__.setdefault("_spent", dict.fromkeys(_PARTS, 0.0))
        spent[part] += time.perf_counter() - started

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        started = time.perf_counter()
        output = super().training_step(model, inputs, num_items_in_batch)
        spent = self._spent
        elsewhere = spent["generation"] + spent["reward"] - self._counted
        spent["training"] += time.perf_counter() - started - elsewhere
        self._counted += elsewhere
        if self._step % self.current_gradient_accumulation_steps == 0:  # the step is complete
            for part, seconds in spent.items():
                self._metrics["train"][f"timing/{part}"].append(seconds)
                spent[part] = 0.0
            self._metrics["train"]["overlapped_time/reward"].append(self._beside)
            self._beside = 0.0
            self._counted = 0.0
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As trl's, without a trace in the training's random states and times."""
        spent = dict(self._spent)
        found = super().evaluate(*args, **kwargs)
        self._spent = spent
        return found

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; what is sampled follows from the step, not from what was before."""
        self._evaluated = 0
        return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        load = self.expert_load.take() if self.expert_load and self.model.training else []
        if load:
            self.last_expert_load = load
            for name, value in balance_figures(load).items():
                self._metrics["train"][name].append(value)
        super().log(logs, start_time)


GRPOTrainer.standard = {name: getattr(GRPOTrainer, name) for name in (*LOSS, PASS, *BATCHES)}


def _cut(
    ids: list[list[int]], logps: list[list[float]] | None, budgets: list[int | None]
) -> tuple[list[list[int]], list[list[float]] | None]:
    """Completions and their log-probs, at most as long as their rows allow."""
    shorter = [row[:budget] for row, budget in zip(ids, budgets, strict=True)]
    return shorter, logps and [row[:b] for row, b in zip(logps, budgets, strict=True)]
