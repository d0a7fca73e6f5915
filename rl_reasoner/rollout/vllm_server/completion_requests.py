"""Rows of a batch as requests to vLLM, token ids in, and replies as completions.

Every setting is sent, since a server takes those that are left out from the model's own
`generation_config.json`. Ends are the trainer's, not the server's. Where tools or an environment
answer in the middle (`Dialogues`), a row is asked for part by part. Knows nothing of the network.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig

from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.sampling_params import HANDLED, SamplingParams
from rl_reasoner.rollout.turns import Answer, TurnTaker

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
MARK = "mark"
"""How a part of a completion has ended, where a turn may end."""


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
    prompt: Sequence[int],
    key: Sequence[int],
    sampling: SamplingParams,
    budget: int | None,
    marks: Sequence[str] = (),
) -> dict[str, Any]:
    """The body of a request to `/v1/completions` for one row.

    `key`: what the row's randomness follows from, as in `engine.generate`; `budget`: its longest
    completion, where that is less than `sampling.max_tokens`. `marks`: texts that may end a turn,
    and are no stop strings.
    """
    settings = sampling.settings
    sampled = bool(settings.do_sample)
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
        "stop": [*_stop_strings(sampling), *marks],
        "ignore_eos": True,  # of the server's own; ours are these
        "stop_token_ids": list(sampling.ends),
        "logprobs": 0,  # that of the token itself
        "return_token_ids": True,
        "add_special_tokens": False,
        "skip_special_tokens": False,
    }


def _stop_strings(sampling: SamplingParams) -> list[str]:
    given = sampling.settings.stop_strings or []
    return [given] if isinstance(given, str) else list(given)


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def seed_of(key: Sequence[int]) -> int:
    """A row's seed, below 2^63, from what its randomness follows from."""
    digest = hashlib.sha256(json.dumps([int(number) for number in key]).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def completion_of(reply: Any, marks: Sequence[str] = ()) -> SampledCompletion:
    """The completion in a reply; raises `NoCompletion` for one without ids or log-probs.

    `ended` is "end" (an end token, a stop string), `MARK` (one of `marks`) or "length".
    """
    try:
        [choice] = reply["choices"]
        why, ids = choice["finish_reason"], choice["token_ids"]
        logps = choice["logprobs"]["token_logprobs"]
        if why not in _FINISHED:
            raise NoCompletion(f"a completion ended by {why!r}")
        if not ids or len(ids) != len(logps):
            raise NoCompletion("as many log-probs as token ids were expected")
        if why == "stop":
            why = MARK if choice.get("stop_reason") in marks else "end"
        return SampledCompletion(
            [int(token) for token in ids],
            [math.nan if logp is None else float(logp) for logp in logps],
            ended=why,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NoCompletion("no token ids with log-probs: vLLM 0.32 has them") from error


@dataclass
class _Row:
    """A completion so far; `parts`: how many were asked for and came."""

    prompt: Sequence[int]
    key: Sequence[int]
    budget: int
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    parts: int = 0
    ended: str = ""


class Dialogues:
    """The rows of one batch; arguments as of `engine.generate`, and texts that may end a turn.

    A row is asked for behind its prompt and all that it has by now. Its tokens are read one by one,
    as our engine draws them, so that it stops where it would there; what a server has sampled
    beyond that place is left out.

    `open`: rows whose next part is to be asked for; `away`: rows that wait for an answer.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        sampling: SamplingParams,
        budgets: Sequence[int | None] | None,
        turns: TurnTaker | None,
        marks: Sequence[str] = (),
    ) -> None:
        most, limits = sampling.max_tokens, budgets or [None] * len(prompts)
        self._rows = [
            _Row(prompt, key, min(limit or most, most))
            for prompt, key, limit in zip(prompts, keys, limits, strict=True)
        ]
        self._sampling, self._turns = sampling, turns
        self._ends = frozenset(sampling.ends)
        stops = _stop_strings(sampling)  # these end a completion, also where they may end a turn
        self.marks = [mark for mark in marks if mark not in stops]
        self.open = set(range(len(prompts)))
        self.away: set[int] = set()

    @property
    def over(self) -> bool:
        """Whether every row has ended."""
        return not self.open and not self.away

    def body(self, row: int) -> dict[str, Any]:
        """The request for the next part of a row: as much as there is room for."""
        at = self._rows[row]
        key = [*at.key, at.parts] if at.parts else at.key  # each part draws anew
        room = at.budget - len(at.ids)
        return request_of([*at.prompt, *at.ids], key, self._sampling, room, self.marks)

    def learn(self, row: int, part: SampledCompletion) -> None:
        """Read the part that came for a row."""
        at, turns = self._rows[row], self._turns
        at.parts += 1
        stop = len(at.ids) + len(part.ids) if part.ended == "end" else None  # of a stop string
        for token, logp in zip(part.ids, part.logps, strict=True):
            at.ids.append(token)
            at.logps.append(logp)
            at.mask.append(1)
            last = len(at.ids) >= at.budget or math.isnan(logp)
            ended = token in self._ends or len(at.ids) == stop
            if turns is not None and not last and turns.stops(row, at.ids):
                self.open.remove(row)
                self.away.add(row)
                turns.submit(row, [*at.ids])
                return
            if last or ended:
                self._end(row, "end" if ended else "length")
                return
        if part.ended != MARK:  # at a mark that ended no call it goes on
            self._end(row, part.ended)

    def hear(self, wait: bool) -> None:
        """Take the answers that are there; waits for one where told to."""
        for answer in () if self._turns is None else self._turns.answers(wait):
            self._goes_on(answer)

    def _goes_on(self, answer: Answer) -> None:
        self.away.remove(answer.row)
        self.open.add(answer.row)
        at = self._rows[answer.row]
        if answer.ended or len(at.ids) + len(answer.ids) >= at.budget:
            self._end(answer.row, answer.ended or "length")
            return
        at.ids += answer.ids
        at.logps += [0.0] * len(answer.ids)
        at.mask += [0] * len(answer.ids)

    def _end(self, row: int, why: str) -> None:
        self._rows[row].ended = why
        self.open.remove(row)

    def all(self) -> list[SampledCompletion]:
        """The completions."""
        several = self._turns is not None
        return [
            SampledCompletion(
                row.ids, row.logps, tool_mask=row.mask if several else [], ended=row.ended
            )
            for row in self._rows
        ]
