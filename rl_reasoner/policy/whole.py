"""Loading a model's weights, all of them: what a file lacks would be random, and trained so."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM

_NAMED = 3  # weights in a message; the others are counted
_TORN = "conversion of the weights"  # in transformers' words for stacks that cannot be made


class NotWholeError(ValueError):
    """Files of a policy that have not all weights of its model, or others than its sizes say.

    Its text goes on from the name of the file or folder.
    """


def load_whole(path: str, **settings: Any) -> Any:
    """The model in a folder, file or place on the hub, in fp32. Runs no code of its own.

    `settings` are `from_pretrained`'s. A head that is tied to the embeddings needs no weight.
    Raises `NotWholeError`, and what transformers does.
    """
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            **settings,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by their names
        )
    except RuntimeError as error:
        if _TORN not in str(error):
            raise
        raise NotWholeError("has weights that do not fit the sizes of its config") from error
    if lacking := sorted(found["missing_keys"]):
        raise NotWholeError(f"lacks weights of its model ({_first(lacking)})")
    if unlike := sorted(name for name, *_ in found["mismatched_keys"]):
        raise NotWholeError(f"has weights of other sizes than its config says ({_first(unlike)})")
    return model


def _first(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
    return ", ".join(names[:_NAMED]) + more
