"""All that this room takes from the inside of trl: one place to look when trl changes.

`Internals` gives the private names of trl's trainer public ones; the methods that trl calls on the
way of a step, which `GRPOTrainer` overrides and a user's subclass may override, stand here by name;
`fused_head` has the only change to trl's own code. tests/training/test_trainer_contract.py holds
all of them against the trl that is installed. Knows trl; nothing of our trainer's parts.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import GenerationConfig, TrainerCallback
from trl.trainer import utils as trl_utils

from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.kernels.lm_head import FusedHead
from rl_reasoner.rollout.decode_pass import forwards_as_its_class
from rl_reasoner.rollout.vllm_server.worker.rl_reasoner_weights import reload
from rl_reasoner.tools.tool import Tool

# What of trl's trainer makes the loss, and what hands it its batches. Where a trainer of the user's
# own overrides one of them, it finds there what it finds in trl's.
LOSS = (
    "compute_loss",
    "_compute_loss",
    "get_off_policy_mask",
    "get_high_entropy_mask",
    "get_gamma_weights",
)
PASS = "_get_per_token_logps_and_entropies"
STEP = "training_step"  # of a micro-batch
BATCHES = ("_generate_and_score_completions", "_prepare_inputs")
SCORING = "_calculate_rewards"
OLD_LOGPS = "old_per_token_logps"  # a column of a batch
# figures that each process has of its own rows
_OF_EACH = ("rows/not_finite", "router_replay/flips", "router_sequence_loss")
_ours = FusedHead(trl_utils._ChunkedLogProbFunction)


def _has_fused_head(model: nn.Module) -> bool:
    """Whether a model's forward is trl's, over that of its class: another one for a fused head."""
    forward = getattr(vars(model).get("forward"), "__func__", None)
    if forward is None or forward.__globals__ is not vars(trl_utils):
        return False
    before = inspect.getclosurevars(forward).nonlocals.get("original_forward")
    return getattr(before, "__func__", None) is type(model).forward


class Internals:
    """What trl's trainer keeps for itself; `standard`: its methods as this package has them."""

    def __init__(self, trainer: Any, standard: Mapping[str, Any]) -> None:
        self.trainer = trainer
        self.standard = standard
        if _has_fused_head(model := base_of(trainer.model)):
            forwards_as_its_class.add(model)
        if trainer.accelerator.num_processes > 1:
            trainer.add_callback(GatheredFigures(trainer))

    def overridden(self, *names: str) -> list[str]:
        """Which of these methods are the user's own: of a subclass, or put on the trainer."""
        kind = type(self.trainer)
        return [
            name
            for name in names
            if name in vars(self.trainer) or getattr(kind, name) is not self.standard[name]
        ]

    @property
    def metrics(self) -> dict[str, list[float]]:
        """The figures of the next line in the log, of training or of evaluation."""
        mode = "train" if self.trainer.model.training else "eval"
        return self.trainer._metrics[mode]  # type: ignore[no-any-return]

    @property
    def training_metrics(self) -> dict[str, list[float]]:
        """The figures of the training's next line."""
        return training_metrics(self.trainer)

    def gather_figures(self) -> None:
        """Give the training's next line the figures of all processes, where each has its own."""
        own = self.training_metrics
        found: list[dict[str, list[float]]] = gather_object([{n: own.get(n, []) for n in _OF_EACH}])
        for name in _OF_EACH:
            if values := [value for figures in found for value in figures[name]]:
                own[name] = values

    @property
    def step(self) -> int:
        """Micro-batches that were trained on since the start."""
        return self.trainer._step  # type: ignore[no-any-return]

    @step.setter
    def step(self, value: int) -> None:
        self.trainer._step = value

    @property
    def buffer(self) -> list[dict[str, Any]] | None:
        """The micro-batches of the last generation, which the iterations to come find again."""
        return self.trainer._buffered_inputs  # type: ignore[no-any-return]

    @buffer.setter
    def buffer(self, batches: list[dict[str, Any]] | None) -> None:
        self.trainer._buffered_inputs = batches

    @property
    def tokenizer(self) -> Any:
        return self.trainer._tokenizer

    def generation_config(self) -> GenerationConfig:
        """trl's settings of `generate`, with the model's own where trl says nothing."""
        model: Any = base_of(self.trainer.model)
        settings: GenerationConfig
        settings, _ = model._prepare_generation_config(self.trainer.generation_config)
        return settings

    @property
    def entropy_bonus(self) -> bool:
        """Whether the loss has a term of the entropy."""
        return self.trainer._entropy_bonus_enabled  # type: ignore[no-any-return]

    @property
    def extra_columns(self) -> dict[str, list[Any]]:
        """What rewards have logged of the rows that are being scored, by column."""
        return self.trainer._pending_extra_logs  # type: ignore[no-any-return]

    def token_counts(self, prompts: list[Any]) -> list[int]:
        """How many tokens trl makes of each prompt, text or chat."""
        return [len(ids) for ids in self.prompt_ids(prompts)]

    def prompt_ids(self, prompts: list[Any]) -> list[list[int]]:
        """The tokens that trl makes of each prompt, text or chat."""
        return self.trainer._tokenize_prompts(prompts)[0]  # type: ignore[no-any-return]

    def completed(
        self, prompts: list[Any]
    ) -> tuple[list[list[int]], list[list[int]], list[list[float]] | None]:
        """Prompts, a completion for each and its log-probs, in tokens, as trl has them made."""
        trainer = self.trainer
        prompt_ids, images, fields = trainer._tokenize_prompts(prompts)
        train = trainer.model.training
        size = trainer.num_generations if train else trainer.num_generations_eval
        return prompt_ids, *trainer._generate_single_turn(prompt_ids, images, fields, size)

    @property
    def own_tools(self) -> list[Any]:
        """What trl was given as `tools=`; methods of environments are not among them."""
        return self.trainer._standalone_tools  # type: ignore[no-any-return]

    def tell_of_tools_by_schema(self) -> None:
        """Give chat templates the schemas of our tools: of others than functions they take those.

        trl calls what `own_tools` has.
        """
        told = [one.schema if isinstance(one, Tool) else one for one in self.trainer.tools]
        self.trainer.tools = told

    @property
    def sees_images(self) -> bool:
        """Whether the policy is one of images and text."""
        return self.trainer._is_vlm  # type: ignore[no-any-return]

    @contextmanager
    def tools_through(self, way: Callable[[int, Any], Any]) -> Iterator[None]:
        """Inside, trl's loop calls `way(row, tool)` in the place of each row's tools."""
        trainer = self.trainer

        def changed(tables: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            return [
                {name: way(row, tool) for name, tool in table.items()}
                for row, table in enumerate(tables)
            ]

        with (
            put_on(trainer, "_sync_tool_dicts", changed(trainer._sync_tool_dicts)),
            put_on(trainer, "_async_tool_dicts", changed(trainer._async_tool_dicts)),
        ):
            yield

    def reload_colocated(self) -> None:
        """On a CPU, give vLLM beside the policy its weights by vLLM's own reload.

        trl loads one parameter after the other into layers that vLLM has packed for the processor.
        """
        generation = getattr(self.trainer, "vllm_generation", None)
        if self.trainer.accelerator.device.type != "cpu" or generation is None:
            return
        if generation.mode != "colocate":
            return

        def sync_weights() -> None:
            worker = generation.llm.llm_engine.model_executor.driver_worker
            reload(worker, weights_iterator=generation._iter_named_params())
            generation.llm.reset_prefix_cache()

        generation.sync_weights = sync_weights

    def for_rewards(self) -> dict[str, Any]:
        """What trl hands every reward beside the columns of the data."""
        return {
            "trainer_state": self.trainer.state,
            "log_extra": self.trainer._log_completion_extra,
            "log_metric": self.trainer._log_metric,
        }

    def replace_logged_advantages(self, advantages: Sequence[float]) -> None:
        """Show these in the table of completions instead of the last ones.

        The table has room for a generation; a batch of an evaluation may be larger.
        """
        logged = self.trainer._logs["advantages"]
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages)


def training_metrics(trainer: Any) -> dict[str, list[float]]:
    """The figures of the next line in the log of any trainer of trl's."""
    return trainer._metrics["train"]  # type: ignore[no-any-return]


def first_step(trainer: Any) -> int:
    """The optimizer steps that were done when this training began: those of a checkpoint."""
    return trainer._initial_global_step  # type: ignore[no-any-return]


@contextmanager
def put_on(holder: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, `holder` has `value` by this name, whatever it or its class has there."""
    held = vars(holder)
    before = {name: held[name]} if name in held else {}
    held[name] = value
    try:
        yield
    finally:
        del held[name]
        held.update(before)


def fused_head(kept: Tensor | None = None) -> AbstractContextManager[None]:
    """Inside, models with trl's fused head are scored by ours; entropies have no gradient.

    With `kept`, (N, V / 8) uint8 bits for the N tokens of one pass, each over its set of tokens.
    """
    head = _ours if kept is None else FusedHead(_ours.theirs, kept)
    return put_on(trl_utils, "_ChunkedLogProbFunction", head)


class GatheredFigures(TrainerCallback):  # type: ignore[misc]
    """Has each line of the log tell of all processes, as trl's own figures do.

    Not `log` itself: one process alone may call that.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gather what each process has, where the step ends with a line of the log."""
        if control.should_log:
            self.trainer.expert_balance.gather()
            self.trainer.router_replay.log()
            self.trainer.internals.gather_figures()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As at the end of a step."""
        self.on_step_end(args, state, control)
