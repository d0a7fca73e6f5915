"""The place in the data: a run that is continued goes on with the row after the last one it saw.

transformers counts the steps of an epoch and passes over the rows before; two things it forgets.
The generator of trl's sampler draws one permutation an epoch, from the first epoch on. And of a
stream, whose length nobody knows, transformers takes all steps for steps of the first pass: a run
that had come to the second would start that one over.

Data that fill no step are an error: transformers would train nothing, and end as if all were well.
So are columns of settings that say nothing.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.scoring.batch import APPLIES, row_settings
from rl_reasoner.training.trl_internals import first_step


def steps_done(trainer: Any, checkpoint: Path) -> tuple[int, int] | None:
    """(passes over a stream that are done, micro-batches of the one at hand that are done).

    After step s of pass p, from 0, `epoch` is p + s / `max_steps`: those of the run that saved it.
    None where transformers counts right: rows that have numbers, or a place that is not looked for.
    """
    file = checkpoint / TRAINER_STATE_NAME
    stream = isinstance(trainer.train_dataset, IterableDataset)
    if not stream or trainer.args.ignore_data_skip or not file.is_file():
        return None
    saved = TrainerState.load_from_json(str(file))
    epoch = saved.epoch or 0.0
    passes = max(math.ceil(epoch) - 1, 0)
    steps = round((epoch - passes) * saved.max_steps)
    return passes, steps * trainer.args.gradient_accumulation_steps


def wind_on(sampler: Any, epochs: int) -> None:
    """Have a sampler of trl's go on after so many epochs: each drew one permutation."""
    generator = getattr(sampler, "generator", None)
    for _ in range(epochs if generator is not None else 0):
        torch.randperm(sampler.num_samples, generator=generator)


def check_columns(trainer: Any) -> None:
    """Raise `UserError` for rows without a prompt, and for settings in rows that are none."""
    rows = trainer.train_dataset
    if not isinstance(rows, Dataset) or trainer.environment_factories is not None:
        return  # an environment of trl's asks first
    if "prompt" not in rows.column_names:
        there = ", ".join(sorted(rows.column_names))
        raise UserError(f"train_dataset has no column 'prompt'; it has {there}")
    for number, prompt in enumerate(rows["prompt"], 1):
        if not isinstance(prompt, (str, list)):
            raise UserError(
                f"train_dataset, row {number}: its prompt is {prompt!r:.40}, not a text or messages"
            )
    settings = [name for name in (APPLIES, "max_tokens") if name in rows.column_names]
    if not trainer.use_row_settings or not settings:
        return
    known = {*trainer.reward_func_names}
    own = trainer.reward_funcs[: -1 if trainer.objective.punishes else None]
    named = not any(getattr(reward, "of_every_row", False) for reward in own)
    for number, row in enumerate(rows.select_columns(settings), 1):
        asked = row_settings(row, f"train_dataset, row {number}")
        if named and asked and known.isdisjoint(asked):
            owner = f"train_dataset, row {number}: the trainer"
            raise unknown("reward", asked[0], known, owner=owner)


def check_rows(trainer: Any) -> None:
    """Raise `UserError` where the rows of a GRPO trainer do not fill one generation."""
    rows, args = trainer.train_dataset, trainer.args
    if isinstance(rows, IterableDataset):
        return  # nobody knows how many it has
    wanted = args.generation_batch_size // trainer.num_generations
    if not len(rows):
        raise UserError("train_dataset is empty: there is nothing to train on")
    if len(rows) < wanted:
        raise UserError(
            f"train_dataset has too few rows, {len(rows)}: completions are sampled for {wanted} "
            f"prompts at a time (generation_batch_size {args.generation_batch_size} / "
            f"num_generations {trainer.num_generations}), so nothing would be trained. Give more "
            "rows, or make per_device_train_batch_size or steps_per_generation smaller"
        )


def check_trained(trainer: Any) -> None:
    """Raise `UserError` where a stream ended before it filled one generation."""
    stream = isinstance(trainer.train_dataset, IterableDataset)
    if stream and trainer.state.global_step == first_step(trainer) < trainer.args.max_steps:
        wanted = trainer.args.generation_batch_size // trainer.num_generations
        raise UserError(
            f"nothing was trained: the stream train_dataset ended before it gave {wanted} prompts "
            f"(generation_batch_size {trainer.args.generation_batch_size} / num_generations "
            f"{trainer.num_generations})"
        )
