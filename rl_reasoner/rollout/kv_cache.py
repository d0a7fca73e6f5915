"""Keys and values while completions are sampled: a prompt's once, whatever the number of its rows.

`KVCache` holds them for the prompts and rows that are alive. A row has a slot of its own and its
own length, so that rows may enter and leave at any time; slots and the room of a prompt are used
again. A row that leaves for a while takes what it has along (`CachedRow`). `KVCache` is also the
layout of rl_reasoner.kernels.packing in a pass over one new token of each row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

_STEP = 64  # tokens that rows have room for at first; doubled when a row needs more
_SLACK = 8  # what grows gets up to one part in so many more than it needs
Buffers = tuple[Tensor, Tensor]  # keys and values
_Shape = tuple[int, int, int, int]


@dataclass(eq=False)
class CachedPrompt:
    """A prompt in the cache: `length` tokens, kept until all of its `rows` have left.

    `slot` is where it lies now: it changes when another prompt goes.
    """

    length: int
    rows: int
    slot: int


@dataclass(eq=False)
class CachedRow:
    """A row without a slot: its own keys and values, of each call (kv heads, n, d) for n tokens.

    It counts among the rows of its prompt.
    """

    prompt: CachedPrompt
    pairs: list[Buffers] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The number of its own tokens in the cache."""
        return self.pairs[0][0].shape[1] if self.pairs else 0


class KVCache:
    """Keys and values of every attention call: of the prompts, and of the rows that are alive.

    Calls are told apart by their order in a pass, not by their layer: a layer may attend twice.
    For a call c, with all buffers contiguous, on the model's device and in the keys' own type:

    - `own[c]`: keys (slots, kv heads, capacity, d) and values (slots, kv heads, capacity, e) of the
      rows' own tokens. The live rows are the slots 0 ... `rows` - 1. Row r has `own_lengths[r]`
      tokens there, at 0 ... own_lengths[r] - 1; a pass writes its new token at own_lengths[r].
    - `prompt[c]`: keys (prompt slots, kv heads, P, d) and values of the prompts. Row r reads the
      slot `prompt_of[r]`, of which `prompt_lengths[slot]` tokens are real.

    `own_lengths`, `prompt_of` (slots,) and `prompt_lengths` (prompt slots,) are int64 tensors on
    the device, valid beyond `rows` too (length 0, prompt 0), so that a pass may be padded with more
    rows. What is not real is finite, mostly zeros. `longest`, `shortest` (own) and `longest_prompt`
    are the same as numbers, for what is alive. `version` changes when buffers are made anew, at
    other addresses; `membership` when rows enter, leave or move.
    """

    def __init__(
        self,
        device: torch.device,
        longest: int,
        budget: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`longest`: tokens of the longest completion; `budget`: tokens of all buffers together.

        Buffers keep to the budget where rows of `longest` tokens, with the prompts, would: that
        they do is up to the caller. The kept beginning comes on top. `dtype`: that of the buffers,
        by default the keys' own.
        """
        self.device = device
        self.most = longest
        self.budget = budget
        self.dtype = dtype
        self.own: list[Buffers] = []
        self.prompt: list[Buffers] = []
        self.beginning: list[Buffers] = []  # of each call (kv heads, n, d), of all prompts
        self.slots, self.capacity, self.prompt_slots, self.prompt_capacity = 0, 0, 0, 0
        self.own_lengths = self.prompt_of = self.prompt_lengths = self._numbers = self._tensor([])
        self.rows = self.longest = self.shortest = self.longest_prompt = 0
        self.version = self.membership = 0
        self._prompts: list[CachedPrompt] = []  # by slot
        self._row_prompts: list[CachedPrompt] = []  # by slot of the row
        self._outside: set[CachedRow] = set()  # that keep what they have
        self.lengths = np.zeros(0, dtype=np.int64)  # of the live rows' own, on the host
        self._calls = 0  # of the attention in this pass
        self._hidden: dict[int, Tensor | None] = {}  # window -> what rows do not see in this pass

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(
            buffer.nbytes for pair in (*self.own, *self.prompt, *self.beginning) for buffer in pair
        )

    @property
    def prompts(self) -> int:
        """The number of prompts."""
        return len(self._prompts)

    @property
    def positions(self) -> Tensor:
        """(rows,) positions of the new tokens of a pass."""
        prompts = self.prompt_lengths[self.prompt_of[: self.rows]]
        return prompts + self.own_lengths[: self.rows]

    @property
    def most_rows(self) -> int:
        """The most rows that one prompt has."""
        return self._width

    # ------------------------------------------------------------------------ who is in the cache

    def add_prompts(self, lengths: Sequence[int], rows: Sequence[int]) -> list[CachedPrompt]:
        """Make room for prompts, each for a number of rows; their tokens are stored later."""
        first = len(self._prompts)
        added = [
            CachedPrompt(length, count, slot)
            for slot, (length, count) in enumerate(zip(lengths, rows, strict=True), first)
        ]
        self._prompts += added
        self._clean(self.prompt, [prompt.slot for prompt in added])
        self._fit()
        return added

    def grows_to(self, rows: int, prompts: int, length: int) -> bool:
        """Whether there is room for as many, at their longest, with all that buffers have now.

        `length`: of the longest prompt. What rows without a slot keep is not counted: it may go.
        """
        slots, capacity = max(self.slots, rows), max(self.prompt_capacity, with_slack(length))
        prompt_slots = max(self.prompt_slots, prompts)
        if (slots, prompt_slots, capacity) == (self.slots, self.prompt_slots, self.prompt_capacity):
            return True
        held = slots * self.most + prompt_slots * capacity
        return self.budget is None or held <= self.budget

    def keep_beginning(self, prompt: CachedPrompt, length: int) -> None:
        """Keep a copy of the first `length` tokens of a prompt, with which others begin, too."""
        self.beginning = [
            (keys[prompt.slot, :, :length].clone(), values[prompt.slot, :, :length].clone())
            for keys, values in self.prompt
        ]

    def begin(self, prompt: CachedPrompt) -> None:
        """Store the kept beginning as that of a prompt."""
        _write(self.prompt, prompt.slot, self.beginning)

    def take_out(self, slot: int, length: int) -> CachedRow:
        """A copy of the first `length` own tokens of the row in `slot`, which is to leave."""
        prompt = self._row_prompts[slot]
        prompt.rows += 1
        pairs = [(k[slot, :, :length].clone(), v[slot, :, :length].clone()) for k, v in self.own]
        return CachedRow(prompt, pairs if length else [])

    def keep(self, row: CachedRow) -> CachedRow:
        """Count what `row` has in the budget, until it enters or is let go."""
        self._outside.add(row)
        return row

    def let_go(self, row: CachedRow) -> None:
        """A row less, that has no slot; call `change` behind it."""
        self._outside.discard(row)
        self.release(row.prompt)

    def change(
        self, gone: Sequence[int], entering: Sequence[CachedRow]
    ) -> tuple[list[int], list[int], list[int]]:
        """Let the rows in the slots `gone` leave, and those of `entering` enter.

        They take the places of those that left, then slots at the end; rows from the end move to
        the places that are left over. Returns the slots of the entering rows, and the slots that
        rows move to and from. A prompt whose last row leaves is dropped.
        """
        left = self.rows - len(gone) + len(entering)
        holes = [*sorted(gone), *range(self.rows, left)]
        places, holes = holes[: len(entering)], holes[len(entering) :]
        empty = {*holes}
        to = [slot for slot in holes if slot < left]
        source = [slot for slot in range(left, self.rows) if slot not in empty]
        leaving = [self._row_prompts[slot] for slot in gone]
        # long enough for every slot; set right below
        self._row_prompts += [row.prompt for row in entering]
        self.lengths = np.append(self.lengths, np.zeros(len(entering), dtype=np.int64))
        for slot, row in zip(places, entering, strict=True):
            self._row_prompts[slot], self.lengths[slot] = row.prompt, row.length
        self._clean(self.own, places)
        self._move(self.own, to, source, self.longest)
        for there, here in zip(to, source, strict=True):
            self._row_prompts[there] = self._row_prompts[here]
            self.lengths[there] = self.lengths[here]
        del self._row_prompts[left:]
        self.lengths = self.lengths[:left].copy()
        self.rows = left
        for prompt in leaving:
            self.release(prompt)
        self._fit()
        self._fill(places, entering)
        return places, to, source

    def _fill(self, places: Sequence[int], entering: Sequence[CachedRow]) -> None:
        """Write what the rows bring along into their slots."""
        for slot, row in zip(places, entering, strict=True):
            self._outside.discard(row)
            if not row.pairs:
                continue
            self.make_room()
            _write(self.own, slot, row.pairs)

    def advance(self) -> None:
        """Count the tokens of the pass that is done."""
        self.own_lengths[: self.rows] += 1
        self.lengths += 1
        self.longest += 1
        self.shortest += 1
        self._calls = 0
        self._hidden.clear()
        if self.longest == self.capacity < self.most:
            self._fit()

    def release(self, prompt: CachedPrompt) -> None:
        """One row less: the last prompt of all takes the place of one that has none left."""
        prompt.rows -= 1
        if prompt.rows:
            return
        last = self._prompts.pop()
        if last is not prompt:
            self._move(self.prompt, [prompt.slot], [last.slot], self.longest_prompt)
            self._prompts[prompt.slot] = last
            last.slot = prompt.slot

    def _clean(self, buffers: list[Buffers], slots: Sequence[int]) -> None:
        """Zero `slots`, as far as they are there: rows before may have left NaN or infinities."""
        slots = [slot for slot in slots if buffers and slot < len(buffers[0][0])]
        if slots:
            there = self._tensor(slots)
            for pair in buffers:
                for buffer in pair:
                    buffer[there] = 0

    def _move(self, buffers: list[Buffers], to: list[int], source: list[int], length: int) -> None:
        if not to or not buffers:
            return
        there, here = self._tensor(to), self._tensor(source)
        for pair in buffers:
            for buffer in pair:
                buffer[there, :, :length] = buffer[here, :, :length]

    # ------------------------------------------------------------------------------ the buffers

    def _fit(self) -> None:
        """Make buffers large enough for who is alive, and bring the index tensors up to date."""
        self.longest = int(self.lengths.max(initial=0))
        self.shortest = int(self.lengths.min(initial=self.most))
        self.longest_prompt = max((prompt.length for prompt in self._prompts), default=0)
        capacity = max(self.capacity, min(_STEP, self.most))
        while capacity < min(self.longest + 1, self.most):
            capacity = min(2 * capacity, self.most)
        need = (self.rows, capacity, len(self._prompts), self.longest_prompt)
        have = (self.slots, self.capacity, self.prompt_slots, self.prompt_capacity)
        new = self._shape(need, have)
        if new != have:
            self.slots, self.capacity, self.prompt_slots, self.prompt_capacity = new
            self.version += 1
            for buffers, shape in ((self.own, new[:2]), (self.prompt, new[2:])):
                for call, pair in enumerate(buffers):  # one after the other, for the memory
                    buffers[call] = (_resized(pair[0], *shape), _resized(pair[1], *shape))
        self._place()

    def _shape(self, need: _Shape, have: _Shape) -> _Shape:
        """Slots and capacity, for rows and for prompts: as they are, unless room or memory lacks.

        Buffers made anew are all copied. So what grows gets some slack, where the budget has it,
        and where rows and prompts have to share it anew, one of the two stays if it can.
        """
        grown = tuple(h if n <= h else with_slack(n) for n, h in zip(need, have, strict=True))
        most = tuple(map(max, need, have))
        outside = sum(row.length for row in self._outside)
        for slots, capacity, prompts, length in (
            (grown[0], most[1], *grown[2:]),
            (*most[:3], grown[3]),
            (*most[:2], need[2], with_slack(need[3])),
            (*need[:2], most[2], grown[3]),
            (*need[:3], with_slack(need[3])),
        ):
            held = slots * capacity + prompts * length + outside
            if self.budget is None or held <= self.budget:
                return slots, capacity, prompts, length
        return need

    def _place(self) -> None:
        """Bring the index tensors up to date."""
        groups = np.array([prompt.slot for prompt in self._row_prompts], dtype=np.int64)
        lengths = np.array([prompt.length for prompt in self._prompts], dtype=np.int64)
        self.own_lengths = self._filled(self.own_lengths, self.slots, self.lengths)
        self.prompt_of = self._filled(self.prompt_of, self.slots, groups)
        self.prompt_lengths = self._filled(self.prompt_lengths, self.prompt_slots, lengths)
        self.membership += 1
        self._hidden.clear()
        if len(self._numbers) != self.slots:
            self._numbers = torch.arange(self.slots, device=self.device)
        # each row's place in the table (prompts, most rows of a prompt), and back
        self._width = int(np.bincount(groups, minlength=len(lengths)).max(initial=1))
        self._places, self._table = self.table(self._width)
        self._padded = bool(len(lengths)) and int(lengths.min()) < self.longest_prompt

    def table(self, width: int) -> tuple[Tensor, Tensor]:
        """Rows by their prompts: each row's place in a table (prompts, width), and who is there.

        `width`: at least `most_rows`. (rows,), and (prompts * width,) with row 0 where nobody is.
        """
        groups = np.array([prompt.slot for prompt in self._row_prompts], dtype=np.int64)
        counts = np.bincount(groups, minlength=len(self._prompts))
        order = groups.argsort(kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(groups)) - (counts.cumsum() - counts)[groups[order]]
        places = groups * width + rank
        rows = np.zeros(len(self._prompts) * width, dtype=np.int64)
        rows[places] = np.arange(len(groups))
        return self._tensor(places), self._tensor(rows)

    def _filled(self, tensor: Tensor, size: int, values: np.ndarray) -> Tensor:
        """`tensor`, made anew where it has another size, with `values` in front, 0 behind."""
        if len(tensor) != size:
            tensor = torch.empty(size, dtype=torch.long, device=self.device)
        whole = np.zeros(size, dtype=np.int64)
        whole[: len(values)] = values
        return tensor.copy_(self._tensor(whole))

    def _tensor(self, values: "Sequence[int] | np.ndarray") -> Tensor:
        return on_device(values, self.device)

    def store_prompt(self, call: int, slot: int, start: int, key: Tensor, value: Tensor) -> Buffers:
        """Keep (kv heads, n, d) of a prompt's tokens from `start`; return all until then."""
        if call == len(self.prompt):
            self.prompt.append(self._pair(key, value, self.prompt_slots, self.prompt_capacity))
        end = start + key.shape[1]
        for buffer, tensor in zip(self.prompt[call], (key, value), strict=True):
            buffer[slot, :, start:end] = tensor
        keys, values = (
            buffer[slot : slot + 1, :, :end].to(tensor.dtype)
            for buffer, tensor in zip(self.prompt[call], (key, value), strict=True)
        )
        return keys, values

    def make_room(self) -> None:
        """Make the rows' buffers of every call that prompts have, for a pass that fills them."""
        for keys, values in self.prompt[len(self.own) :]:
            self.own.append(self._pair(keys[0], values[0], self.slots, self.capacity))

    def _pair(self, key: Tensor, value: Tensor, slots: int, length: int) -> Buffers:
        """Zeros for the likes of `key` and `value` (kv heads, n, d)."""
        keys, values = (
            t.new_zeros(slots, t.shape[0], length, t.shape[-1], dtype=self.dtype or t.dtype)
            for t in (key, value)
        )
        return keys, values

    # ---------------------------------------------------------------------------- the attention

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int
    ) -> Tensor:
        """Each row attends to its prompt and to its own tokens, with the new one.

        (rows, heads, 1, d), (rows, kv heads, 1, d), (rows, kv heads, 1, e) -> (rows, 1, heads, e).
        """
        rows, heads = query.shape[:2]
        shared = key.shape[1]
        if self._calls == len(self.own):
            self.own.append(self._pair(key[0], value[0], self.slots, self.capacity))
        pair = self.own[self._calls]
        prompt_keys, prompt_values = (
            t[: len(self._prompts), :, : self.longest_prompt] for t in self.prompt[self._calls]
        )
        self._calls += 1
        at = (self._numbers[:rows], slice(None), self.own_lengths[:rows])
        pair[0][at], pair[1][at] = key[:, :, 0], value[:, :, 0]
        first = self._first(window)
        keys, values = (
            t.view(-1, *t.shape[2:])[: rows * shared, first : self.longest + 1] for t in pair
        )
        query = query.reshape(rows, shared, heads // shared, -1) * scale
        table, places, width = self._table, self._places, self._width
        before = by_row(by_prompt(query, table, width) @ prompt_keys.transpose(2, 3), places, width)
        own = torch.bmm(query.flatten(0, 1), keys.transpose(1, 2)).view(*before.shape[:3], -1)
        scores = torch.cat((before, own), dim=-1)  # (rows, kv heads, queries, P + own)
        if (hidden := self._hidden_in(window)) is not None:
            scores = scores.masked_fill_(hidden, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
        there, here = torch.split(weights, [before.shape[-1], own.shape[-1]], dim=-1)
        out = torch.bmm(here.flatten(0, 1), values).view(*before.shape[:3], -1)
        out = out + by_row(by_prompt(there, table, width) @ prompt_values, places, width)
        return out.reshape(rows, 1, heads, -1)

    def _first(self, window: int) -> int:
        """The first of the rows' own tokens that a row may see."""
        return max(0, self.shortest + 1 - window) if window else 0

    def _hidden_in(self, window: int) -> Tensor | None:
        """(rows, 1, 1, P + own) bool: what rows do not see; None where they see everything."""
        if window not in self._hidden:
            uneven = self.shortest < self.longest
            reached = window and self.longest_prompt + self.longest >= window
            needed = self._padded or uneven or reached
            self._hidden[window] = self._mask(window) if needed else None
        return self._hidden[window]

    def _mask(self, window: int) -> Tensor:
        own = self.own_lengths[: self.rows, None]
        prompts = self.prompt_lengths[self.prompt_of[: self.rows], None]
        before = torch.arange(self.longest_prompt, device=self.device)
        behind = torch.arange(self._first(window), self.longest + 1, device=self.device)
        return unseen(before, prompts, behind, own, window)


def with_slack(count: int) -> int:
    """`count`, rounded up by an eighth at most, so that few others give another number."""
    step = 1 << max(count.bit_length() - _SLACK.bit_length(), 0)
    return -(-count // step) * step


def unseen(before: Tensor, prompts: Tensor, behind: Tensor, own: Tensor, window: int) -> Tensor:
    """(rows, 1, 1, P + own) bool: what rows do not see of a pass's keys.

    `before` (P,) and `behind` are the numbers of the tokens of prompts, and of rows' own, that are
    read; `prompts` and `own` (rows, 1) how many of them there are before the new token.
    """
    parts = [before >= prompts, behind > own]
    if window:
        parts = [
            parts[0] | (before <= prompts + own - window),
            parts[1] | (behind <= own - window),
        ]
    return torch.cat(parts, dim=1)[:, None, None]


def by_prompt(tensor: Tensor, table: Tensor, width: int) -> Tensor:
    """(rows, kv heads, queries, x) -> (prompts, kv heads, width * queries, x); `KVCache.table`."""
    rows = tensor[table].unflatten(0, (-1, width))  # type: ignore[no-untyped-call]
    return rows.transpose(1, 2).flatten(2, 3)  # type: ignore[no-any-return]


def by_row(tensor: Tensor, places: Tensor, width: int) -> Tensor:
    """The inverse of `by_prompt`."""
    rows = tensor.unflatten(2, (width, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
    return rows.flatten(0, 1)[places]  # type: ignore[no-any-return]


def on_device(values: "Sequence[int] | np.ndarray", device: torch.device) -> Tensor:
    """Numbers on the device; the host does not wait for them to get there."""
    tensor = torch.as_tensor(values, dtype=torch.long)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _write(buffers: Sequence[Buffers], slot: int, pairs: Sequence[Buffers]) -> None:
    """Store (kv heads, n, d) of each call as the first n tokens of a slot."""
    for whole, pair in zip(buffers, pairs, strict=True):
        for buffer, tensor in zip(whole, pair, strict=True):
            buffer[slot, :, : tensor.shape[1]] = tensor


def _resized(buffer: Tensor, slots: int, length: int) -> Tensor:
    """`buffer` (slots, heads, length, d) with other numbers of slots and tokens."""
    if buffer.shape[0] == slots and buffer.shape[2] == length:
        return buffer
    new = buffer.new_zeros(slots, buffer.shape[1], length, buffer.shape[3])
    kept, width = min(slots, buffer.shape[0]), min(length, buffer.shape[2])
    new[:kept, :, :width] = buffer[:kept, :, :width]
    return new
