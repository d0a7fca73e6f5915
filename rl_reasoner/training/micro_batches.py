"""The micro-batches of an optimizer step as they are: rows that move the policy, that leave, that
change places. Knows batches of trl's trainer; no models.
"""

from typing import Any

import torch
from torch import Tensor


def take_out(batch: dict[str, Any]) -> None:
    """Rows that another pass could not give a log-prob to leave the batch: no token, no advantage.

    In place, so that a buffered batch is without them ever after.
    """
    found = (batch.get(name) for name in ("old_per_token_logps", "ref_per_token_logps"))
    tables = [table for table in found if table is not None]
    for bad in [~table.isfinite().all(1) for table in tables]:
        if bad.any():
            for table in tables:
                table[bad] = 0.0
            batch["completion_mask"][bad] = 0
            batch["advantages"][bad] = 0.0


def moves(advantages: Tensor) -> Tensor:
    """(B,) bool for advantages (B,) or (B, T): the rows that are not zero throughout."""
    return advantages.reshape(advantages.shape[0], -1).ne(0).any(1)


def regrouped(batches: list[dict[str, Any]], flat_last: bool) -> list[dict[str, Any]]:
    """Micro-batches of the same sizes with the same rows, a group's rows together by length.

    `flat_last` puts the rows without advantage at the end. Lists have an entry a row; values
    without a row dimension stay.
    """
    joined = {
        key: torch.cat([batch[key] for batch in batches])
        for key, value in batches[0].items()
        if isinstance(value, Tensor) and value.dim()
    }
    prompts = [tuple(row) for row in joined["prompt_ids"].tolist()]
    number = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    lengths = joined["completion_mask"].sum(1).tolist()
    still = (~moves(joined["advantages"])).tolist() if flat_last else [False] * len(prompts)
    order = sorted(
        range(len(prompts)), key=lambda row: (still[row], number[prompts[row]], lengths[row])
    )
    index = torch.tensor(order, device=joined["prompt_ids"].device)
    orders = torch.split(index, [batch["prompt_ids"].shape[0] for batch in batches])
    split: dict[str, list[Any]] = {k: [value[o] for o in orders] for k, value in joined.items()}
    for key in (key for key, value in batches[0].items() if isinstance(value, list)):
        entries = [entry for batch in batches for entry in batch[key]]
        split[key] = [[entries[row] for row in o.tolist()] for o in orders]
    return [
        {**batch, **{key: parts[i] for key, parts in split.items()}}
        for i, batch in enumerate(batches)
    ]
