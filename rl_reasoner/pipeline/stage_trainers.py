"""The trainers of a run's stages, made from their recipes: trl's SFTTrainer, our GRPOTrainer.

A `Job` is one stage at work: its rows, its policy, its folder. This module knows recipes, the
trainers do not. What the trainers report is written by `recorder`; which stage comes when is
decided by `session`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from rl_reasoner.dataset.code_rows import as_dataset, continuing
from rl_reasoner.dataset.templates import prompt_of, target_completion
from rl_reasoner.distributed import processes
from rl_reasoner.environments.environment import PLAYED
from rl_reasoner.files import append_rows
from rl_reasoner.hacking.meter import HackingMeter
from rl_reasoner.moe.autocast import autocast_experts
from rl_reasoner.moe.balance import BiasUpdate
from rl_reasoner.moe.experts import check_auxiliary_loss, check_experts, without_router_logits
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.trl_configs import config, vllm_rollouts_of
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import DistillStage, GrpoStage, SftStage, TrainedStage
from rl_reasoner.rollout.episodes.environment_turns import EnvironmentUse
from rl_reasoner.rollout.sampler import prompt_ids, without_long
from rl_reasoner.rollout.tool_turns import ToolUse, given_tokens
from rl_reasoner.scoring.ledger import Ledger, scores_of
from rl_reasoner.scoring.rule import rule_of
from rl_reasoner.tools.formats import CallFormat
from rl_reasoner.training.checkpointing.faults import SkipBadSteps
from rl_reasoner.training.grpo_trainer import GRPOTrainer
from rl_reasoner.training.other_trainers import (
    DistillationTrainer,
    SFTTrainer,
    check_vocabulary,
    teacher_of,
)
from rl_reasoner.training.rollout_report import RowNumbers
from rl_reasoner.types import Row

_NO_LOSS = -100  # trl's label of a token that is not trained on


@dataclass
class Job:
    """One stage at work: what its trainer is made of; `teacher` is for distillation.

    `answer_s`: seconds that a completion took in the run's last evaluation, where one was made;
    `is_control`: it is a control arm, of which nobody asks whether it will learn. `meter`: judges
    the best-paid completions again, in the main process. `until`: the step after which it stops, as
    if it were asked to; `on_trainer` gets the trainer before it trains.
    """

    recipe: Recipe
    stage: TrainedStage
    placement: Placement
    rows: list[Row]
    rewards: Mapping[str, Callable[..., Any]]
    policy: Policy
    folder: Path
    teacher: Policy | None = None
    answer_s: float | None = None
    is_control: bool = False
    meter: HackingMeter | None = None
    until: int | None = None
    on_trainer: Callable[[Any], None] | None = None

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder)


def trainer_of(job: Job) -> Any:
    """The trainer of a stage, ready to train."""
    if isinstance(job.stage, GrpoStage):
        return _grpo(job, job.stage)
    trainer = _sft(job, job.stage) if isinstance(job.stage, SftStage) else _distill(job, job.stage)
    if job.stage.router_bias:
        trainer.add_callback(BiasUpdate(job.policy.model, job.stage.router_bias))
    trainer.add_callback(SkipBadSteps(trainer))
    return trainer


def _distill(job: Job, stage: DistillStage) -> DistillationTrainer:
    """Raises `UserError` for a teacher of another vocabulary than the student's."""
    policy, teacher = job.policy, job.teacher
    assert teacher is not None
    check_vocabulary(policy, teacher)
    prompts = [
        {"prompt": prompt_of(row, job.recipe.template, policy.tokenizer)} for row in job.rows
    ]
    return DistillationTrainer(
        policy.model,
        teacher_of(teacher),
        args=config(job.recipe, stage, job.folder, job.placement),
        train_dataset=Dataset.from_list(prompts),
        processing_class=policy.tokenizer,
    )


def _sft(job: Job, stage: SftStage) -> SFTTrainer:
    policy = job.policy
    form = ToolUse.format_of(job.recipe.tools, policy.tokenizer)
    rows = _supervised_rows(job, form.schemas if form else None)
    check_auxiliary_loss(policy.model, stage.router_aux)
    check_experts(policy.model)
    autocast_experts(policy.model)
    trainer = SFTTrainer(
        policy.model,
        args=config(job.recipe, stage, job.folder, job.placement),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )
    without_router_logits(policy.model)  # trl asks for them pass by pass
    if form is not None:
        own = [
            _own_labels(row["input_ids"], row["labels"], form, policy.tokenizer)
            for row in trainer.train_dataset
        ]
        kept = trainer.train_dataset.remove_columns("labels")
        trainer.train_dataset = kept.add_column("labels", own)
    return trainer


def _own_labels(ids: list[int], labels: list[int], form: CallFormat, tokenizer: Any) -> list[int]:
    """The labels of a row without those of tokens that tools gave: they have no loss."""
    first = next((at for at, label in enumerate(labels) if label != _NO_LOSS), len(ids))
    own = [*labels]
    for given in given_tokens(ids[first:], form, tokenizer):
        for at in given:
            own[first + at] = _NO_LOSS
    return own


def _supervised_rows(job: Job, schemas: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Rows as trl takes them; those with a played episode as token ids, as it was played."""
    recipe, policy = job.recipe, job.policy
    if recipe.environment is None or not any(row.get(PLAYED) for row in job.rows):
        return [_supervised(row, recipe.template, policy, schemas) for row in job.rows]
    use = EnvironmentUse.of(recipe.environment, policy.tokenizer, recipe.template)
    rows = []
    for row in job.rows:
        prompt = prompt_ids(policy, prompt_of(row, recipe.template, policy.tokenizer))
        ids, mask = use.written(row.get(PLAYED) or [(target_completion(row), "")])
        labels = [token if own else _NO_LOSS for token, own in zip(ids, mask, strict=True)]
        rows.append({"input_ids": prompt + ids, "labels": [_NO_LOSS] * len(prompt) + labels})
    use.close()
    return rows


def _supervised(
    row: Row, template: str, policy: Policy, schemas: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """A row as trl takes it; a chat tells of tools as the prompts of other stages do."""
    prompt = prompt_of(row, template, policy.tokenizer)
    completion = target_completion(row)
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": completion}
    told = {"tools": json.dumps(schemas)} if schemas else {}
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": completion}], **told}


def _grpo(job: Job, stage: GrpoStage) -> GRPOTrainer:
    recipe, policy = job.recipe, job.policy
    rows = [
        {
            **{key: value for key, value in row.items() if key not in ("completion", PLAYED)},
            "prompt": prompt_of(row, recipe.template, policy.tokenizer),
        }
        for row in job.rows
    ]
    trained = rows  # those left out keep their numbers
    if stage.long_prompts == "skip":
        prompts = [row["prompt"] for row in rows]
        trained = without_long(prompts, rows, stage.sampling.longest, policy, recipe.tools)
    if stage.loss.beta and not recipe.policy.lora:
        # trl loads the reference from where the model says it came from: that must be the
        # policy as it enters this stage, not the one that the first stage opened
        if processes.is_main():
            policy.save(job.folder / "reference")
        processes.wait()
        policy.model.config.name_or_path = str(job.folder / "reference")
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=[continuing(reward, rows) for reward in job.rewards.values()],
        args=config(recipe, stage, job.folder, job.placement),
        train_dataset=as_dataset(trained),
        processing_class=policy.tokenizer,
    )
    trainer.use_row_settings = True
    trainer.vllm_rollouts = vllm_rollouts_of(stage.vllm, job.folder)
    if recipe.tools:
        told = trainer.chat_template_kwargs
        trainer.tool_use = ToolUse.of(recipe.tools, policy.tokenizer, told)
    if recipe.environment:
        environment = EnvironmentUse.of(recipe.environment, policy.tokenizer, recipe.template)
        trainer.environment_use = environment
    trainer.reward_rules = [
        rule_of(function, spec.optional, spec.on_abstain)
        for function, spec in zip(job.rewards.values(), recipe.rewards.values(), strict=True)
    ]
    trainer.row_numbers = RowNumbers(rows)
    trainer.rollout_sink = partial(_write_rollouts, job)
    return trainer


def _write_rollouts(job: Job, rollouts: list[dict[str, Any]]) -> None:
    """Write a batch's rollouts and their scores.

    Seconds are left to the ledger: rollouts are the same in a run that was resumed.
    """
    job.ledger.append([*scores_of(rollouts, job.recipe.run.seed)])
    for row in rollouts:
        row.pop("seconds", None)
        row.pop("call_seconds", None)
    append_rows(job.folder / "rollouts.jsonl", rollouts)
    if job.meter is not None:
        job.meter.add(rollouts)
