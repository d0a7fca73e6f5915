"""A row of a batch as a request to vLLM, token ids in, and its reply as a completion.

Every setting is sent, since a server takes those that are left out from the model's own
`generation_config.json`. Ends are the trainer's, not the server's. Knows nothing of the network.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig

from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.sampling_params import HANDLED, SamplingParams

_SENT = frozenset(
    (
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
        *("max_new_tokens", "stop_strings", "pad_token_id", "bos_token_id"),
    )
)
_HARMLESS = frozenset(("renormalize_logits", "remove_invalid_values"))
_OFF = {  # what does nothing; of a token's id 0 and 1 are none
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff"), 0.0),
    "typical_p": 1.0,
}
_FINISHED = ("stop", "length")


class NoCompletion(Exception):
    """A reply that has not what a completion needs."""


def unsent(settings: GenerationConfig) -> str | None:
    """The first setting of transformers' that shapes completions and vLLM is not told, or None."""
    plain = GenerationConfig()
    for name in sorted(HANDLED - _SENT - _HARMLESS):
        value = getattr(settings, name, None)
        if value is not None and value not in (_OFF.get(name), getattr(plain, name, None)):
            return name
    return None


def request_of(
    prompt: Sequence[int], key: Sequence[int], sampling: SamplingParams, budget: int | None
) -> dict[str, Any]:
    """The body of a request to `/v1/completions` for one row.

    `key`: what the row's randomness follows from, as in `engine.generate`; `budget`: its longest
    completion, where that is less than `sampling.max_tokens`.
    """
    settings = sampling.settings
    sampled = bool(settings.do_sample)
    stops = settings.stop_strings or []
    return {
        "prompt": list(prompt),
        "max_tokens": min(budget or sampling.max_tokens, sampling.max_tokens),
        "temperature": _or(settings.temperature, 1.0) if sampled else 0.0,
        "top_p": _or(settings.top_p, 1.0) if sampled else 1.0,
        "top_k": int(settings.top_k or 0) if sampled else 0,
        "min_p": _or(settings.min_p, 0.0) if sampled else 0.0,
        "repetition_penalty": _or(settings.repetition_penalty, 1.0),
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": seed_of(key),
        "stop": [stops] if isinstance(stops, str) else list(stops),
        "ignore_eos": True,  # of the server's own; ours are these
        "stop_token_ids": list(sampling.ends),
        "logprobs": 0,  # that of the token itself
        "return_token_ids": True,
        "add_special_tokens": False,
        "skip_special_tokens": False,
    }


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def seed_of(key: Sequence[int]) -> int:
    """A row's seed, below 2^63, from what its randomness follows from."""
    digest = hashlib.sha256(json.dumps([int(number) for number in key]).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def completion_of(reply: Any) -> SampledCompletion:
    """The completion in a reply; raises `NoCompletion` for one without ids or log-probs.

    `ended` is "end" (an end token, a stop string) or "length".
    """
    try:
        [choice] = reply["choices"]
        why, ids = choice["finish_reason"], choice["token_ids"]
        logps = choice["logprobs"]["token_logprobs"]
        if why not in _FINISHED:
            raise NoCompletion(f"a completion ended by {why!r}")
        if not ids or len(ids) != len(logps):
            raise NoCompletion("as many log-probs as token ids were expected")
        return SampledCompletion(
            [int(token) for token in ids],
            [math.nan if logp is None else float(logp) for logp in logps],
            ended="length" if why == "length" else "end",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NoCompletion("no token ids with log-probs: vLLM 0.32 has them") from error
