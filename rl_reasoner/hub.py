"""The hub of Hugging Face: whether it has a policy or data set, asked briefly.

The libraries ask a hub that does not answer again and again, half a minute for each name. Here each
name is asked for once; after a failure (no network, no answer, an error of the hub's) nothing is
asked for some minutes, and the libraries use only their caches.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from rl_reasoner import trust

_TIMEOUT_S = 10
_QUIET_S = 300.0
"""Seconds after a refusal in which the hub is not asked."""
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # with its owner, or without as "gpt2"

_there: set[tuple[str, str]] = set()  # what the hub has been asked for, and has
_refusals: list[tuple[float, str]] = []  # the last one: when, and why


class NotThereError(Exception):
    """What was asked for is not available on the hub; the message says why."""


def is_name(text: str) -> bool:
    """Whether `text` can name something on the hub: `OWNER/NAME` or `NAME`, and no path."""
    return _NAME.fullmatch(text) is not None and not text.startswith((".", "-"))


@contextmanager
def access(kind: Literal["model", "dataset"], name: str) -> Iterator[None]:
    """Inside, libraries may open `name` from the hub, or where it does not answer from the cache.

    Raises `NotThereError` where the hub does not have it, or gives no answer and the cache lacks
    it.
    """
    recent = [why for when, why in _refusals if time.monotonic() - when < _QUIET_S]
    refusal: str | None = "the hub is not asked in an audit"
    if trust.asks():
        refusal = recent[-1] if recent else _ask(kind, name)
    if refusal is None:
        yield
        return
    if kind == "model" and not _cached(name):
        raise NotThereError(refusal)
    try:
        with _offline():
            yield
    except OSError as error:  # of what is lacking in the cache
        raise NotThereError(refusal) from error


def _ask(kind: str, name: str) -> str | None:
    """Ask the hub for `name`; why there is no answer, or None. Raises `NotThereError`."""
    if (kind, name) in _there:
        return None
    info: Any = huggingface_hub.model_info if kind == "model" else huggingface_hub.dataset_info
    try:
        info(name, timeout=_TIMEOUT_S)
        _there.add((kind, name))
    except HfHubHTTPError as error:
        if isinstance(error, RepositoryNotFoundError) and not _cached(name):
            raise NotThereError(f"the hub has no {kind} {name!r} that you may read") from error
        if error.response.status_code < 500:  # a repository that asks for consent, too many calls
            return None
        why = f"it answered {error.response.status_code}"
    except Exception as error:  # the network's own errors are many and share no base class
        why = str(error).strip().partition("\n")[0] or type(error).__name__
    _refusals[:] = [(time.monotonic(), f"the hub does not answer: {why}")]
    return _refusals[0][1]


def _cached(name: str) -> bool:
    files = ("config.json", "adapter_config.json")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(name, f), str) for f in files)


@contextmanager
def _offline() -> Iterator[None]:
    """Inside, huggingface_hub (and with it transformers) and datasets ask nobody."""
    import datasets

    places: tuple[Any, ...] = (constants, datasets.config)
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = was
