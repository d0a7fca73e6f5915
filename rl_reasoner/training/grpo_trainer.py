"""`GRPOTrainer`: a drop-in for trl's, same arguments, same gradients.

Each of trl's methods that a run needs more of is overridden here, once, in the order of a step;
what is done about it stands in parts, objects made in `__init__`, each in its file:

- `prompt_selection`: which prompts a batch is made of;
- `engine_sampling`: their completions;
  `router_replay`: the experts that they were sampled with; `sampling_mask`: the tokens that a
  cut-off left to draw from;
- `reward_pass`: their scores, in processes of their own; faults take out a row, not the run;
- `objective`: the advantages and the KL of algorithms that trl lacks;
- `packed_forward`: passes over them, a prompt once and no padding; `old_logprobs`: passes that need
  not be made; `expert_balance`: the loss that keeps experts in balance;
- `out_of_memory`: a loss in smaller pieces where memory runs out.

Beside trl's own batch travels one value, `rollout_batch`. The internals of trl that all this leans
on are in rl_reasoner.training.trl_internals. Knows nothing of recipes.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import trl
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl.trainer.utils import get_config_model_id

from rl_reasoner.distributed.sharding import Sharding
from rl_reasoner.errors import OldName, UserError
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.own_code import without_new_gradient_hooks
from rl_reasoner.moe.experts import check_auxiliary_loss
from rl_reasoner.rollout.episodes.environment_turns import EnvironmentUse
from rl_reasoner.rollout.long_prompts import fit_prompts
from rl_reasoner.rollout.tool_turns import ToolUse, TrlTools
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from rl_reasoner.scoring.rule import Rule
from rl_reasoner.training.checkpointing.data_place import (
    check_columns,
    check_rows,
    check_trained,
)
from rl_reasoner.training.checkpointing.exact_resume import ExactResume, same_random_states
from rl_reasoner.training.checkpointing.faults import SkipBadSteps
from rl_reasoner.training.config import GRPOConfig
from rl_reasoner.training.engine_sampling import EngineSampling
from rl_reasoner.training.expert_balance import ExpertBalance
from rl_reasoner.training.micro_batches import take_out
from rl_reasoner.training.objective import Objective, with_punishment
from rl_reasoner.training.old_logprobs import OldLogProbs, SamplingCorrection
from rl_reasoner.training.out_of_memory import SmallerPieces
from rl_reasoner.training.packed_forward import PackedForward, Pass, is_on
from rl_reasoner.training.prompt_selection import PromptSelection
from rl_reasoner.training.reward_pass import RewardPass
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.training.rollout_report import RowNumbers, rollout_rows
from rl_reasoner.training.router_replay import RouterReplay
from rl_reasoner.training.sampling_mask import SamplingMask
from rl_reasoner.training.step_times import StepTimes
from rl_reasoner.training.trl_internals import (
    BATCHES,
    LOSS,
    PASS,
    SCORING,
    STEP,
    Internals,
    put_on,
)
from rl_reasoner.types import text_of

logger = logging.getLogger(__name__)
RolloutSink = Callable[[list[dict[str, Any]]], None]


class GRPOTrainer(ExactResume, trl.GRPOTrainer, Sharding):  # type: ignore[misc]
    """trl's `GRPOTrainer` with rewards that cannot end the run by themselves.

    `rollout_sink`, when set, is called once a generation batch, on the main process, with one dict
    a completion: step, group, prompt, completion, answer, reward, scores (value, reason, outcome by
    reward), advantage, truncated; where the reward is None, `left_out_by`: the rewards that took it
    out of its group (`reward_rules`); with `row_numbers`, `row`: which of the data's rows it is of.
    Metric names are trl's; added are `timing/generation`, `timing/reward`, `timing/training`
    (seconds a step), `overlapped_time/reward` (seconds that rewards ran beside the sampling, in
    none of these), `rewards/<name>/faults` and `experts/max_over_mean`, `/entropy`, `/dead`
    (rl_reasoner.moe.balance).

    `use_row_settings`, set before training: the columns `rewards`, `max_tokens` and `task` say
    which rewards a row gets, how long its completion may be, and what its figures are logged under.
    Left out they are columns like any other, as in trl.
    """

    rollout_sink: RolloutSink | None = None
    row_numbers: RowNumbers | None = None
    tool_use: ToolUse | None = None
    """What the policy may call in the middle of a completion, in the engine. Set before training;
    for trl's `tools=` trl's own loop is used, with the engine and `trl_tools`."""
    environment_use: EnvironmentUse | None = None
    """What answers the policy's turns, in the engine; its rewards see the column `episode`. Set
    before training; for trl's `environment_factory=` trl's own loop is used."""
    vllm_rollouts: VllmRollouts | None = None
    """A vLLM server that samples, and gets the weights by files. Set before training."""
    use_row_settings: bool = False
    reward_rules: Sequence[Rule] | None = None
    """What faults and abstentions of each reward do; None: as the rewards themselves say."""
    use_vllm: bool
    beta: float
    rollout_batch: RolloutBatch
    """The last batch that was sampled and scored, or the one that is."""
    _complete = False  # trl's own tests call methods of trainers that were never initialised

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, *others: Any, **named: Any
    ) -> None:
        if args is None:  # trl would make its own config, which does not start on a CPU
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = GRPOConfig(f"{name.split('/')[-1]}-GRPO")
        if isinstance(model, str):  # transformers would fetch code from a hub for it, unasked
            args.model_init_kwargs = {"use_kernels": False, **(args.model_init_kwargs or {})}
        if isinstance(model, nn.Module):  # before trl's own, less clear error
            check_auxiliary_loss(base_of(model), getattr(args, "router_aux_loss_coef", None))
        reward_funcs, args, named = with_punishment(reward_funcs, args, named)
        super().__init__(model, reward_funcs, args, *others, **named)
        self.internals = Internals(self, _STANDARD)
        self.internals.tell_of_tools_by_schema()
        self.internals.reload_colocated()
        self.step_times = StepTimes()
        self.rollout_batch = RolloutBatch([])
        self.packed_forward = PackedForward(self)
        self.router_replay = RouterReplay(self)
        self.expert_balance = ExpertBalance(self)
        self.old_logprobs = OldLogProbs(self)
        self.reward_pass = RewardPass(self)
        self.objective = Objective(self)
        self.prompt_selection = PromptSelection(self, self._scored, self._sample)
        self.engine_sampling = EngineSampling(self)
        self.trl_tools = TrlTools(self.internals.own_tools)
        self.sampling_mask = SamplingMask(self)
        self.sampling_correction = SamplingCorrection(self)
        self.out_of_memory = SmallerPieces(self)
        self.add_callback(SkipBadSteps(self))
        self._complete = True

    @property
    def last_expert_load(self) -> list[list[float]]:
        """The shares of the experts' load in the last line of the log, a list a layer."""
        return self.expert_balance.last_load

    @property
    def heeds_rows(self) -> bool:
        """The old name of `use_row_settings`."""
        return self.use_row_settings

    @heeds_rows.setter
    def heeds_rows(self, value: bool) -> None:
        warnings.warn("heeds_rows is now called use_row_settings", OldName, stacklevel=2)
        self.use_row_settings = value

    # --------------------------------------------------------------------------- the training

    @contextmanager
    def while_training(self) -> Iterator[None]:
        """Prompts fit, data fill a step; afterwards nothing that was put on the model is left."""
        self._check_parts()
        if self.model_wrapped is self.model:
            self.packed_forward.prove()
        self._warn_of_own_methods()
        with ExitStack() as stack:
            stack.enter_context(without_new_gradient_hooks(self.model))
            stack.enter_context(self.expert_balance.while_training())
            self.sampling_mask.check()
            stack.enter_context(self.engine_sampling.while_training())
            stack.enter_context(self.trl_tools.running())
            if self.tool_use is not None:
                stack.enter_context(self.tool_use.running())
            # a `training_step` of the user's own may have backward passes beside ours
            whole = self.packed_forward.micro_batch()(self.training_step)
            stack.enter_context(put_on(self, "training_step", whole))
            check_columns(self)
            fit_prompts(self, self.internals.token_counts)
            check_rows(self)
            yield
            check_trained(self)

    def _check_parts(self) -> None:
        """Raise `UserError` where a subclass has an attribute under the name of a part."""
        for name, kind in _PARTS.items():
            if not isinstance(value := getattr(self, name), kind):
                raise UserError(
                    f"{type(self).__name__}.{name} is {value!r:.40}, but GRPOTrainer has its "
                    f"{kind.__name__} there: give your attribute another name"
                )

    def _warn_of_own_methods(self) -> None:
        """One warning where methods of the user's own are to find what they find in trl's."""
        overridden, moves_on = self.internals.overridden, self.old_logprobs.moves_on
        loss = overridden(*LOSS, PASS)
        left = {
            "regroup_rows": [*loss, *overridden(STEP)],
            "skip_zero_advantage": overridden(PASS),
            "reuse_log_probs": overridden(*LOSS, PASS, *BATCHES) if moves_on else [],
        }
        packs = self.packed_forward.packs
        left = {name: own for name, own in left.items() if own and packs and is_on(self, name)}
        if loss:
            left["smaller pieces where memory runs out"] = loss
        if left:
            logger.warning(
                "%s has its own %s, which gets rows and batches as in trl; turned off: %s",
                type(self).__name__,
                ", ".join(dict.fromkeys(name for own in left.values() for name in own)),
                ", ".join(left),
            )

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """A micro-batch: `_prepare_inputs`, `compute_loss`, and the backward pass."""
        with (
            self.step_times.of("training"),
            self.out_of_memory.training_step(),
            self.packed_forward.micro_batch(),
        ):
            output = super().training_step(model, inputs, num_items_in_batch)
        if self.internals.step % self.current_gradient_accumulation_steps == 0:  # a whole step
            metrics = self.internals.training_metrics
            for part, seconds in self.step_times.take().items():
                metrics[f"timing/{part}"].append(seconds)
            metrics["overlapped_time/reward"].append(self.reward_pass.overlapped_s)
            self.reward_pass.overlapped_s = 0.0
        return output

    # --------------------------------------------------------------- prompts become a batch

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """The micro-batch that is trained on now: of the buffer, or of a new generation."""
        before = self.internals.buffer
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        take_out(inputs)
        if self.internals.buffer is not None and self.internals.buffer is not before:  # a new one
            inputs = self.packed_forward.regrouped(inputs)
            self.old_logprobs.complete(self.internals.buffer, self._log_probs)
        return inputs

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Prompts are chosen, completed and scored; what comes out has advantages."""
        with self.engine_sampling.corrected(), self._rewards_kept():
            output = self.prompt_selection.batch(inputs)
        batch = self.rollout_batch
        if self.rollout_sink is not None and self.model.training and batch.outcomes:
            rows = gather_object(rollout_rows(self, batch, output))
            if self.accelerator.is_main_process:
                self.rollout_sink(rows)
        return output

    def _scored(self, batch: RolloutBatch) -> dict[str, Any]:
        """trl's path from the batch's rows to advantages, and what is put around it."""
        self.rollout_batch = batch
        self.old_logprobs.begin()
        self.router_replay.routes = None  # sampling gives them
        try:
            with self.sampling_mask.of_batch(batch):
                output: dict[str, Any] = super()._generate_and_score_completions(batch.rows)
        finally:
            batch.scored = False
        self.engine_sampling.mask_cut(batch, output)
        self.sampling_mask.keep(batch, output)
        self.router_replay.keep(output)
        self.router_replay.routes = None
        self.old_logprobs.defer(output)
        self.reward_pass.log(batch, output)
        self.objective.replace_advantages(output, batch.rewards)
        return output

    def _sample(self, batch: RolloutBatch) -> RolloutBatch:
        """The first half of that path alone: the batch's rows are sampled and scored."""
        self.rollout_batch = batch
        prompts = [row["prompt"] for row in batch.rows]
        _, batch.ids, _, completions, batch.logps, *_ = self._generate(prompts)
        batch.texts = [*map(text_of, completions)]
        batch.rewards = self._calculate_rewards(batch.rows, prompts, completions, batch.ids)
        logged = self.internals.extra_columns
        batch.logged = {name: v for name, v in logged.items() if len(v) == len(batch.rows)}
        logged.clear()
        return batch

    @contextmanager
    def _rewards_kept(self) -> Iterator[None]:
        """Inside, a batch's rewards are what a method of the user's own makes of them, once.

        Those that ran beside a sampling that broke off end with it.
        """
        own, ours = getattr(self, SCORING), partial(getattr(GRPOTrainer, SCORING), self)

        def scored(*given: Any, **named: Any) -> Tensor:
            batch = self.rollout_batch
            batch.rewards = (ours if batch.scored else own)(*given, **named)
            return batch.rewards

        try:
            with put_on(self, SCORING, scored):
                yield
        finally:
            if self.rollout_batch.overlapped:
                self.rollout_batch.overlapped.close()

    # ----------------------------------------------------------------------------- sampling

    def _generate(self, prompts: list[Any]) -> Any:
        if not self._complete:
            return super()._generate(prompts)
        with (
            self.step_times.of("generation"),
            self.engine_sampling.generating(),
            self.engine_sampling.several_turns(),
        ):
            found = super()._generate(prompts)
        self.engine_sampling.got(found[4])
        return found

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        schemas = self.tool_use.schemas if self.tool_use else None
        with put_on(self, "tools", schemas or self.tools):  # what its chat template tells
            return super()._tokenize_prompts(prompts)

    def _tool_call_loop(
        self, prompts: Any, prompt_ids: Any, completion_ids: Any, completions: Any, *others: Any
    ) -> Any:
        """trl's loop: calls of its `tools=`, turns behind their results."""
        given = (prompts, prompt_ids, completion_ids, completions, *others)
        if not self._complete:
            return super()._tool_call_loop(*given)
        with (
            self.trl_tools.recorded(len(completions)) as calls,
            self.internals.tools_through(calls.through),
            self.engine_sampling.turns_of_trl(),
        ):
            found = super()._tool_call_loop(*given)
        self.rollout_batch.turns = calls.events(found[1], found[0])
        return found

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Token ids of a completion for each row, and the log-probs that they were drawn with."""
        given = (prompt_ids, images, multimodal_fields, num_generations, has_tool_images)
        if not self._complete:
            return super()._generate_single_turn(*given)  # type: ignore[no-any-return]
        batch, replay = self.rollout_batch, self.router_replay
        if batch.scored:  # sampled before
            replay.routes = batch.routes
            return batch.ids, batch.logps
        how = self.engine_sampling.sampling()
        if how is None or images is not None or multimodal_fields:
            ids: list[list[int]] = []
            with replay.trl_samples(prompt_ids, ids):
                sampled, logps = super()._generate_single_turn(*given)
                ids += sampled
            ids, logps = self.engine_sampling.cut(batch, ids, logps)
        else:
            ids, logps = self.engine_sampling.sample(batch, prompt_ids, num_generations, how)
        batch.routes = replay.routes
        return ids, logps

    # ------------------------------------------------------------------------------ scoring

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        """(rows of all processes, reward functions); NaN where a row has none."""
        given = (inputs, prompts, completions, completion_ids_list)
        plain = super()._calculate_rewards
        if not self._complete:
            return plain(*given)  # type: ignore[no-any-return]
        batch = self.rollout_batch
        batch.ids, batch.texts = completion_ids_list, [*map(text_of, completions)]
        if batch.scored:  # scored before
            self.internals.extra_columns.update(batch.logged)
            return self.objective.not_by_length_alone(batch.rewards)
        with self.step_times.of("reward"):
            rewards = self.reward_pass.score(batch, partial(plain, *given), *given)
        batch.rewards = self.objective.not_by_length_alone(rewards)
        return batch.rewards

    # ----------------------------------------------------------------------------- the loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The loss; in a training step its backward pass may be done, in pieces that fit."""
        if self.out_of_memory.active:
            return self.out_of_memory.loss_and_backward(super().compute_loss, model, inputs)
        loss: Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        with self.engine_sampling.corrected(inputs):
            with (
                self.objective.without_trls_kl(),
                self.expert_balance.loss_of(inputs),
                self.router_replay.routes_of(inputs),
                self.sampling_mask.of(inputs),
                self.sampling_correction.loss_of(inputs if self.engine_sampling.correcting else {}),
                self.packed_forward.loss_of(inputs),
            ):
                loss: Tensor = super()._compute_loss(model, inputs)
            loss = self.expert_balance.added(loss)
            self.old_logprobs.keep(inputs)
            return self.objective.added(loss, inputs)

    def _get_per_token_logps_and_entropies(
        self, model: nn.Module, input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> Pass:
        """Log-probs and entropies (B, T), and the router's loss, of a pass over completions."""
        if not self._complete:
            return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)  # type: ignore[no-any-return]
        instead = self.old_logprobs.instead_of_pass(input_ids)
        if instead is None:
            instead = self._log_probs(model, input_ids, *args, **kwargs)
            self.old_logprobs.saw(instead[0])
            self.sampling_correction.saw(instead[0])
        self.objective.saw(instead[0])
        return instead

    def _log_probs(self, *args: Any, **kwargs: Any) -> Pass:
        plain = super()._get_per_token_logps_and_entropies
        return self.packed_forward.log_probs(plain, *args, **kwargs)

    # --------------------------------------------------------------- evaluation, log, checkpoints

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As trl's, without a trace in the training's random states and times."""
        with self.step_times.untouched(), same_random_states():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; what is sampled follows from the step, not from what was before."""
        self.engine_sampling.evaluated = 0
        return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As trl's, with the experts' load and the share of choices that replay has changed."""
        self.expert_balance.log()
        self.router_replay.log()
        self.sampling_correction.tell()
        super().log(logs, start_time)

    def own_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside trl's: micro-batches done, completions not trained on."""
        every = self.args.steps_per_generation * self.num_iterations
        step = self.internals.step
        schedule = self.prompt_selection.schedule
        return {
            "step": step,
            "buffered": self.internals.buffer if step % every else None,
            **({"schedule": schedule.state()} if schedule else {}),
        }

    def restore_own_state(self, state: dict[str, Any]) -> None:
        """Go on from what `own_state` gave, on whichever device it was put."""
        self.internals.step, self.internals.buffer = state["step"], state.get("buffered")
        if self.prompt_selection.schedule and "schedule" in state:
            self.prompt_selection.schedule.restore(state["schedule"])


_PARTS = {
    "internals": Internals,
    "step_times": StepTimes,
    "rollout_batch": RolloutBatch,
    "packed_forward": PackedForward,
    "router_replay": RouterReplay,
    "expert_balance": ExpertBalance,
    "old_logprobs": OldLogProbs,
    "reward_pass": RewardPass,
    "objective": Objective,
    "prompt_selection": PromptSelection,
    "engine_sampling": EngineSampling,
    "trl_tools": TrlTools,
    "sampling_mask": SamplingMask,
    "sampling_correction": SamplingCorrection,
    "out_of_memory": SmallerPieces,
}
_STANDARD = {name: getattr(GRPOTrainer, name) for name in (*LOSS, PASS, STEP, *BATCHES)}
