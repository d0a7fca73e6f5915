"""Which prompts are run when, and which rows enter the batch: the engine's budgets.

Rows wait in the order of their prompts. One is taken when it fits, by the longest that it may get:
then nothing has to be thrown out later. Where rows have to give room to prompts, or prompts to
rows, all is copied, so that waits until many can be taken at once. Prompts of rows that are taken
are run part by part, so that rows that are being sampled wait for no more than a share of the time.
What is decided here follows from numbers of tokens, never from a clock: a run that is repeated
takes the same rows at the same steps.

A row that waits for an answer is away; when it comes back is up to who answers. It keeps what it
has stored as long as nobody needs the room; else that is run again when it is back. Rows that come
back go before prompts that wait, and a few of them wait for others: a pass over little takes its
time, too. A prompt stays until its last row has ended, so that there is room for any of them alone.

What all prompts begin with (a system prompt, worked examples) is run once, before any of them; each
gets a copy of its keys and values. Knows nothing of models.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rl_reasoner.rollout.kv_cache import CachedPrompt, CachedRow, KVCache, with_slack
from rl_reasoner.rollout.prefill import PromptPart, RowPart

LIVE_ROWS = 512  # that are sampled at once
PREFILL = 8192  # prompt tokens of one pass
_CHUNK = 512  # of one pass while rows wait for it: fewer would be slow work
_SHARE = 0.5  # of the time between tokens that new prompts may take
_BEGINNING = 32  # tokens that all prompts begin with; fewer are not worth a pass of their own
_SPARE = 8  # the cache's split is changed for one part in so many of its tokens
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

    @property
    def own(self) -> tuple[int, ...]:
        """Of the completion of its rows: nothing yet."""
        return ()

    def enter(self) -> list[CachedRow]:
        """The rows that are due, and from now on are not."""
        assert self.cached is not None
        rows = [CachedRow(self.cached) for _ in self.due]
        self.due.clear()
        return rows

    def part(self, length: int) -> PromptPart:
        """The next tokens, counted as stored."""
        assert self.cached is not None
        self.stored += length
        return PromptPart(self.cached, self.stored - length, length)


@dataclass(eq=False)
class WaitingRow:
    """A row that has left the batch for an answer, and comes back behind it.

    `ids` of its completion, of which the first `known` have been run before.
    """

    row: int
    ids: tuple[int, ...]
    known: int
    cached: CachedRow
    stored: int  # tokens
    logits: Tensor | None = None  # (V,) behind it, once it is stored

    @property
    def due(self) -> list[int]:
        """Itself."""
        return [self.row]

    @property
    def own(self) -> tuple[int, ...]:
        """Of its completion: all so far."""
        return self.ids

    def enter(self) -> list[CachedRow]:
        """Itself."""
        return [self.cached]

    def part(self, length: int) -> RowPart:
        """The next tokens, counted as stored."""
        self.stored += length
        return RowPart(self.cached, self.stored - length, length)

    def drop(self) -> None:
        """Keep nothing: all is to be run again."""
        self.cached.pairs, self.stored = [], 0


def shared_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all prompts begin with, but for the last of each; 0 for a few, or for one."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # in alphabetical order: the others lie between
    most = min(map(len, prompts)) - 1
    pairs = zip(first[:most], last[:most], strict=True)
    shared = next((at for at, (a, b) in enumerate(pairs) if a != b), most)
    return shared if shared >= _BEGINNING else 0


class Admission:
    """The rows of one call of the engine that have not entered yet."""

    def __init__(
        self,
        prompts: Sequence[WaitingPrompt],
        cache: KVCache,
        longest: int,
        tokens: int,
        rows: int = 0,
        shared: int = 0,
    ) -> None:
        """`longest` completion; at most `tokens` of keys and values; at most `rows` at once.

        `shared`: tokens that all prompts begin with, to be run once.
        """
        self.cache = cache
        self.longest = longest
        self.tokens = tokens - shared
        self.limit = rows or LIVE_ROWS
        self._shared = shared
        self.taken = 0  # rows that live or are due
        self.away: dict[int, WaitingRow] = {}  # that have no answer yet
        self._back: deque[WaitingRow] = deque()  # that have
        self._waiting = deque(prompts)
        self._started: list[WaitingPrompt | WaitingRow] = []  # with rows that are due
        self._credit = 0.0  # prompt tokens that may be run now
        self._lost = 0.0  # passes' worth of the rows that wait to enter
        self._remade = False  # the cache is, for those that are taken now
        self._few = _FEW.get(cache.device.type, _FEW["cuda"])

    @property
    def left(self) -> bool:
        """Whether rows are still to enter, without an answer."""
        return bool(self._waiting or self._started or self._back)

    @property
    def started(self) -> bool:
        """Whether rows have been taken that have not entered."""
        return bool(self._started)

    def leave(self, row: WaitingRow) -> None:
        """A row goes away."""
        self.away[row.row] = row

    def come_back(self, number: int, ids: Sequence[int]) -> None:
        """A row that is away has its answer; `ids`: its whole completion."""
        row = self.away.pop(number)
        row.ids = tuple(ids)
        self._back.append(row)

    def worked(self, rows: int) -> None:
        """Count a pass over one new token of `rows`: prompts may now take their share."""
        due = sum(len(p.ids) - p.stored for p in self._started)
        earned = max(rows, self._few) * _SHARE / (1 - _SHARE)
        self._credit = min(self._credit + earned, _CHUNK) if due else 0.0
        self._lost = self._lost + len(self._started) / rows if due else 0.0

    def take(self) -> None:
        """Take the waiting rows that fit now, and make room for their prompts."""
        while self._back and self._fits_again(self._back[0]):
            self._started.append(self._back.popleft())
            self.taken += 1
        fresh: list[WaitingPrompt] = []
        self._remade = False
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
            self._begin(fresh)

    def _begin(self, prompts: Sequence[WaitingPrompt]) -> None:
        """Give prompts what all begin with, once that has been run."""
        if self.cache.beginning:
            for prompt in prompts:
                assert prompt.cached is not None
                self.cache.begin(prompt.cached)
                prompt.stored = self._shared

    def _fits(self, prompt: WaitingPrompt, fresh: Sequence[WaitingPrompt]) -> bool:
        if not self.taken and not self._back and not self.away:
            self._remade = True
            return True
        if self.taken >= self.limit:
            return False
        prompts, longest = self.cache.prompts + len(fresh), self.cache.longest_prompt
        longest = max(longest, *(len(p.ids) for p in (prompt, *fresh)))
        new = prompt.cached is None and prompt not in fresh
        room = self._room(longest)
        left = self.tokens - (prompts + new) * room - (self.taken + 1) * self.longest
        if left < 0:
            return False
        if not self._remade and not self.cache.grows_to(self.taken + 1, prompts + new, longest):
            free = left + self.longest + new * room  # before this one
            if self.taken and free * _SPARE < self.tokens:
                return False
            self._remade = True
        self._drop([*self._back, *self.away.values()], left)
        return True

    def _room(self, longest: int) -> int:
        """Tokens that each prompt takes; a few rows have no slack, which one more may need."""
        return longest if self.taken < _SPARE else with_slack(longest)

    def _fits_again(self, row: WaitingRow) -> bool:
        if self.taken >= self.limit:
            return False
        prompts = self.cache.prompts * self._room(self.cache.longest_prompt)
        left = self.tokens - prompts - (self.taken + 1) * self.longest
        if left < 0 and self.taken:
            return False
        others = (*self._back, *self.away.values())
        self._drop([other for other in others if other is not row], left)
        return True

    def _drop(self, rows: list[WaitingRow], left: int) -> None:
        """Let `rows` keep no more than `left` tokens; the last ones wait longest."""
        kept = sum(row.stored for row in rows)
        while kept > left and rows:
            row = rows.pop()
            kept -= row.stored
            row.drop()

    def parts(self) -> list[tuple[WaitingPrompt | WaitingRow, PromptPart | RowPart]]:
        """The parts of prompts, and of rows that come back, to run in one pass now."""
        room = PREFILL
        if self._shared and not self.cache.beginning and (part := self._first_part()):
            return [part]
        due = [p for p in self._started if p.stored < len(p.ids)]
        if self.cache.rows:
            left = sum(len(p.ids) - p.stored for p in due)
            if self._credit < min(left, _CHUNK) or self._too_few(due, left):
                return []
            self._lost = 0.0
            room = min(_CHUNK, int(self._credit))
        found: list[tuple[WaitingPrompt | WaitingRow, PromptPart | RowPart]] = []
        for prompt in due:
            length = min(room, len(prompt.ids) - prompt.stored)
            if not length:
                break
            if found and not self.cache.rows and length < len(prompt.ids) - prompt.stored:
                break  # whole ones, while nobody waits
            found.append((prompt, prompt.part(length)))
            room -= length
        if self.cache.rows:
            self._credit -= sum(part.length for _, part in found)
        return found

    def _first_part(self) -> tuple[WaitingPrompt, PromptPart] | None:
        """The next part of what all prompts begin with; None once it is run, and all have it."""
        first, *others = (p for p in self._started if isinstance(p, WaitingPrompt))
        if left := self._shared - first.stored:
            return first, first.part(min(left, PREFILL))
        assert first.cached is not None
        self.cache.keep_beginning(first.cached, self._shared)
        self._begin(others)
        return None

    def _too_few(self, due: Sequence[WaitingPrompt | WaitingRow], left: int) -> bool:
        """Whether rows that come back are to wait for others, until that costs a pass as well."""
        again = all(isinstance(waiting, WaitingRow) for waiting in due)
        return again and left < self._few and self._lost < 1

    def ready(self) -> list[WaitingPrompt | WaitingRow]:
        """Those whose `due` rows can be sampled now; they are no longer started."""
        found = [p for p in self._started if p.logits is not None]
        self._started = [p for p in self._started if p.logits is None]
        return found
