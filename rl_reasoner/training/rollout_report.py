"""What `rollout_sink` is told: one dict a completion, of a batch with its scores and advantages."""

import json
from collections.abc import Sequence
from typing import Any

from rl_reasoner.rollout.turns import policy_text
from rl_reasoner.scoring.batch import POLICY_TEXT
from rl_reasoner.scoring.outcome import outcome_json, usable
from rl_reasoner.training.objective import row_means, trained_tokens
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.types import Row, text_of


class RowNumbers:
    """The numbers of a data set's `rows` (with their `prompt`), found again by what a row holds.

    Mostly the prompt says which row it is; where rows share one, the other columns do, such as the
    tests. Of rows that are the same, the first one is found.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._of_prompt: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            self._of_prompt.setdefault(text_of(row["prompt"]), []).append(number)

    def of(self, row: Row) -> int | None:
        """The number of `row`, as a trainer has taken it from the data; None for none of them."""
        numbers = self._of_prompt.get(text_of(row["prompt"]), [])
        if len(numbers) < 2:
            return next(iter(numbers), None)
        same = (n for n in numbers if all(_alike(v, row.get(k)) for k, v in self._rows[n].items()))
        return next(same, numbers[0])


def _alike(value: Any, taken: Any) -> bool:
    """Whether a value of a row is `taken` from the data set, where nested ones lie as JSON."""
    return bool(value == taken) or json.dumps(value, default=str) == json.dumps(taken, default=str)


def rollout_rows(trainer: Any, batch: RolloutBatch, output: dict[str, Any]) -> list[dict[str, Any]]:
    """This process's completions, with the fields that `GRPOTrainer` names.

    `output` is trl's batch: tokens, masks, advantages.
    """
    advantages = row_means(output["advantages"], trained_tokens(output)).tolist()
    names, weights = trainer.reward_func_names, trainer.reward_weights.tolist()
    first = len(batch.rows) * trainer.accelerator.process_index
    table = batch.rewards[first:].tolist()
    rows = []
    for i, row in enumerate(batch.rows):
        ids = batch.ids[i]
        scores = [scores[i] for scores in batch.outcomes]
        values = [usable(s) if v == v else v for s, v in zip(scores, table[i], strict=True)]
        record = batch.episodes[i] if batch.episodes else None
        cut = not ids or ids[-1] not in trainer.eos_token_ids
        known = [w * v for w, v in zip(weights, values, strict=True) if v == v]
        rows.append(
            {
                "step": trainer.state.global_step + 1,
                "group": (first + i) // trainer.num_generations,
                "prompt": text_of(row["prompt"]),
                "completion": batch.texts[i],
                "answer": row.get("answer"),
                "reward": sum(known) if known else None,
                "scores": {n: outcome_json(score) for n, score in zip(names, scores, strict=True)},
                "seconds": {n: score.seconds for n, score in zip(names, scores, strict=True)},
                "advantage": advantages[i],
                "truncated": record.truncated if record else cut,
                **({"row": trainer.row_numbers.of(row)} if trainer.row_numbers else {}),
                **(_called(trainer, batch, i) if batch.turns else {}),
                **({} if known else {"left_out_by": trainer.reward_pass.took_out(scores)}),
            }
        )
    return rows


def _called(trainer: Any, batch: RolloutBatch, i: int) -> dict[str, Any]:
    """The calls of a completion, or its environment's turns: `turns`, each with where in the text
    its result is; seconds; what the policy wrote, where that is not all; how it `ended`, and of an
    environment that failed `why`."""
    assert batch.turns is not None
    tokenizer, ids, events = trainer.internals.tokenizer, batch.ids[i], batch.turns[i]

    def text(tokens: int) -> str:
        found: str = tokenizer.decode(ids[:tokens], skip_special_tokens=True)
        return found

    own = policy_text(tokenizer, ids, events)
    turns = [event.told() for event in events]
    if events and text(len(ids)) == batch.texts[i]:  # else a chat's template reads it otherwise
        for turn, event in zip(turns, events, strict=True):
            turn["text"] = [len(text(event.at)), len(text(event.at + event.given))]
    return {
        "turns": turns,
        "call_seconds": [event.seconds for event in events],
        **({POLICY_TEXT: own} if own != batch.texts[i] else {}),
        **({"ended": batch.ended[i]} if batch.ended and not batch.episodes else {}),
        **(batch.episodes[i].kept() if batch.episodes else {}),
    }
