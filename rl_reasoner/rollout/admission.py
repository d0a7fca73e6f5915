"""Which prompts are run when, and which rows enter the batch: the engine's budgets.

Rows wait in the order of their prompts. One is taken when it fits, by the longest that it may get:
then nothing has to be thrown out later. Prompts of rows that are taken are run part by part, so
that rows that are being sampled wait for no more than a share of the time. What is decided here
follows from numbers of tokens, never from a clock: a run that is repeated takes the same rows at
the same steps. Knows nothing of models.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rl_reasoner.rollout.kv_cache import CachedPrompt, KVCache, PromptPart

LIVE_ROWS = 512  # that are sampled at once
PREFILL = 8192  # prompt tokens of one pass
_CHUNK = 512  # of one pass while rows wait for it: fewer would be slow work
_SHARE = 0.5  # of the time between tokens that new prompts may take
_FEW = {"cpu": 64, "cuda": 512}  # tokens in a pass below which it takes no less time


@dataclass(eq=False)
class WaitingPrompt:
    """A prompt and those of its rows that have not been taken; `due` are taken, not sampled yet."""

    number: int
    ids: tuple[int, ...]
    rows: deque[int]
    due: list[int] = field(default_factory=list)
    cached: CachedPrompt | None = None
    stored: int = 0  # tokens
    logits: Tensor | None = None  # (V,) behind it, once it is stored


class Admission:
    """The rows of one call of the engine that have not entered yet."""

    def __init__(
        self,
        prompts: Sequence[WaitingPrompt],
        cache: KVCache,
        longest: int,
        tokens: int,
        rows: int = 0,
    ) -> None:
        """`longest` completion; at most `tokens` of keys and values; at most `rows` at once."""
        self.cache = cache
        self.longest = longest
        self.tokens = tokens
        self.limit = rows or LIVE_ROWS
        self.taken = 0  # rows that live or are due
        self._waiting = deque(prompts)
        self._started: list[WaitingPrompt] = []  # with rows that are due
        self._credit = 0.0  # prompt tokens that may be run now
        self._few = _FEW.get(cache.device.type, _FEW["cuda"])

    @property
    def left(self) -> bool:
        """Whether rows are still to enter."""
        return bool(self._waiting or self._started)

    def worked(self, rows: int) -> None:
        """Count a pass over one new token of `rows`: prompts may now take their share."""
        due = sum(len(p.ids) - p.stored for p in self._started)
        earned = max(rows, self._few) * _SHARE / (1 - _SHARE)
        self._credit = min(self._credit + earned, _CHUNK) if due else 0.0

    def take(self) -> None:
        """Take the waiting rows that fit now, and make room for their prompts."""
        fresh: list[WaitingPrompt] = []
        while self._waiting and self._fits(self._waiting[0], fresh):
            prompt = self._waiting[0]
            if prompt.cached is None and prompt not in fresh:
                fresh.append(prompt)
            if not prompt.due:
                self._started.append(prompt)
            prompt.due.append(prompt.rows.popleft())
            self.taken += 1
            if not prompt.rows:
                self._waiting.popleft()
        if fresh:
            counts = [len(prompt.due) + len(prompt.rows) for prompt in fresh]
            room = self.cache.add_prompts([len(prompt.ids) for prompt in fresh], counts)
            for prompt, cached in zip(fresh, room, strict=True):
                prompt.cached = cached

    def _fits(self, prompt: WaitingPrompt, fresh: Sequence[WaitingPrompt]) -> bool:
        if not self.taken:
            return True
        if self.taken >= self.limit:
            return False
        prompts, longest = self.cache.prompts + len(fresh), self.cache.longest_prompt
        longest = max(longest, *(len(p.ids) for p in (prompt, *fresh)))
        prompts += prompt.cached is None and prompt not in fresh
        return prompts * longest + (self.taken + 1) * self.longest <= self.tokens

    def parts(self) -> list[tuple[WaitingPrompt, PromptPart]]:
        """The parts of prompts to run in one pass now; counted as stored."""
        room = PREFILL
        due = [p for p in self._started if p.stored < len(p.ids)]
        if self.cache.rows:
            left = sum(len(p.ids) - p.stored for p in due)
            if self._credit < min(left, _CHUNK):
                return []
            room = min(_CHUNK, int(self._credit))
        found: list[tuple[WaitingPrompt, PromptPart]] = []
        for prompt in due:
            length = min(room, len(prompt.ids) - prompt.stored)
            if not length:
                break
            if found and not self.cache.rows and length < len(prompt.ids) - prompt.stored:
                break  # whole ones, while nobody waits
            assert prompt.cached is not None
            found.append((prompt, PromptPart(prompt.cached, prompt.stored, length)))
            prompt.stored += length
            room -= length
        if self.cache.rows:
            self._credit -= sum(part.length for _, part in found)
        return found

    def ready(self) -> list[WaitingPrompt]:
        """The prompts whose `due` rows can be sampled now; they are no longer started."""
        found = [p for p in self._started if p.logits is not None]
        self._started = [p for p in self._started if p.logits is None]
        return found
