"""Prompts that, with their completions, exceed the positions of a model.

A model with a table of positions (GPT-2, OPT, GPT-J) ends with an IndexError, or on a GPU with no
word at all, in the step that such a row comes to. It is named before: `fit_prompts` does so for the
rows of a trainer, `too_long` for any prompts. Whether the run stops or goes on without these rows
is the user's choice.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from rl_reasoner.errors import UserError

logger = logging.getLogger(__name__)
CHOICES = ("stop", "skip")
_TOLD = 3  # rows that are named
_AT_ONCE = 256  # prompts that are tokenised together
_OF_A_TEMPLATE = 2048  # more characters than a chat template adds to messages
_NAMES = ("pos", "wpe")  # what is in the name of a table of positions
_OFFSETS = (0, 2)  # OPT's has two places more than positions


def places_of(model: nn.Module) -> int | None:
    """The size of a model's table of positions; None for one that has no such limit."""
    places = declared_places(model)
    if places is None:
        return None
    sizes = {places + more for more in _OFFSETS}
    for name, module in model.named_modules():
        held = {**module._parameters, **module._buffers, **vars(module)}
        for own, table in held.items():
            named = any(part in f"{name}.{own}" for part in _NAMES)
            if named and isinstance(table, Tensor) and table.dim() == 2 and len(table) in sizes:
                return places
    return None


def too_long(
    prompts: Sequence[Any], tokens: Callable[[list[Any]], list[int]], most: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """(index, tokens) of the prompts, texts or chats, that have more tokens than `most` allows.

    `tokens` counts them for a few prompts; those whose text is short enough anyway are not counted.
    """
    doubtful = [i for i, prompt in enumerate(prompts) if _bytes(prompt) > most[i]]
    for start in range(0, len(doubtful), _AT_ONCE):
        part = doubtful[start : start + _AT_ONCE]
        for i, count in zip(part, tokens([prompts[i] for i in part]), strict=True):
            if count > most[i]:
                yield i, count


def _bytes(prompt: Any) -> int:
    """An upper bound on the prompt's number of tokens."""
    if isinstance(prompt, str):
        return len(prompt.encode(errors="replace")) + 8
    return _OF_A_TEMPLATE + sum(len(str(m).encode(errors="replace")) for m in prompt)


def declared_places(model: nn.Module) -> int | None:
    """The number of positions that a model's config declares, in a table or not."""
    config: Any = model.config
    places = getattr(config.get_text_config(), "max_position_embeddings", None)
    return places if isinstance(places, int) else None


def named_rows(rows: Sequence[tuple[int, int]], where: str, prompts: Sequence[Any]) -> str:
    """The first of the rows, counted from 1, with their lengths and beginnings."""
    names = [f"{where} {i + 1} ({_begin(prompts[i])}) has {n} tokens" for i, n in rows[:_TOLD]]
    more = len(rows) - _TOLD
    return ", ".join(names) + (f", and {more} more rows are too long" if more > 0 else "")


def _begin(prompt: Any) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    return repr(text if len(text) <= 40 else f"{text[:40]}…")


def fit_prompts(trainer: Any, tokens: Callable[[list[Any]], list[int]]) -> None:
    """Skip the rows of a trainer that are too long, or raise a `UserError` that names them.

    `tokens` counts those of prompts.
    Rows of a stream are looked at when they come.
    """
    places = places_of(trainer.accelerator.unwrap_model(trainer.model))
    others = trainer.rollout_func is not None or trainer.environment_factories is not None
    if places is None or others:  # prompts that are made, or changed, while sampling
        return
    fits = _Fits(trainer, places, tokens)
    trainer.train_dataset = fits.among(trainer.train_dataset, "train_dataset")
    if isinstance(evals := trainer.eval_dataset, dict):
        fitting = {name: fits.among(d, f"eval_dataset[{name!r}]") for name, d in evals.items()}
        trainer.eval_dataset = fitting
    else:
        trainer.eval_dataset = fits.among(trainer.eval_dataset, "eval_dataset")


class _Fits:
    """Skips or reports rows whose prompt and completion exceed `places` tokens."""

    def __init__(self, trainer: Any, places: int, tokens: Callable[[list[Any]], list[int]]) -> None:
        self.trainer = trainer
        self.tokens = tokens
        self.places = places
        self.longest = trainer.max_completion_length
        self.skips = getattr(trainer.args, "long_prompts", "stop") == "skip"

    def among(self, rows: Any, name: str) -> Any:
        """The rows that fit. Raises `UserError` for the others unless they are to be skipped."""
        if rows is None:
            return None
        from datasets import IterableDataset

        if isinstance(rows, IterableDataset):
            return rows.filter(lambda row, i: self._one(row, i, name), with_indices=True)
        prompts = rows["prompt"][:]
        own = self.trainer.use_row_settings and "max_tokens" in rows.column_names
        long = self._too_long(prompts, rows["max_tokens"] if own else None)
        if not long:
            return rows
        if not self.skips:
            raise self._error(named_rows(long, "row", prompts), name)
        logger.warning("%s: %d rows are skipped: their prompts are too long", name, len(long))
        left = {i for i, _ in long}
        return rows.select([i for i in range(len(prompts)) if i not in left])

    def _one(self, row: dict[str, Any], index: int, name: str) -> bool:
        own = [row.get("max_tokens")] if self.trainer.use_row_settings else None
        long = self._too_long([row["prompt"]], own)
        if long and not self.skips:
            [(_, count)] = long
            raise self._error(f"row {index + 1} ({_begin(row['prompt'])}) has {count} tokens", name)
        return not long

    def _too_long(self, prompts: Sequence[Any], own: Any) -> list[tuple[int, int]]:
        budgets = [min(n or self.longest, self.longest) for n in own or [None] * len(prompts)]
        return [*too_long(prompts, self.tokens, [self.places - budget for budget in budgets])]

    def _error(self, rows: str, name: str) -> UserError:
        return UserError(
            f"{name}: the prompt of {rows}; with a completion of up to {self.longest} "
            f"(max_completion_length) that is more than the {self.places} positions of the model. "
            "Lower max_completion_length, shorten these rows, or skip them with "
            "long_prompts='skip'"
        )
