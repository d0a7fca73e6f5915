"""Rows of a batch that wait for answers (rl_reasoner.rollout.turns): out of the batch, and back.

A row that waits has no slot. Its keys and values are kept while there is room for them
(rl_reasoner.rollout.admission), but for those of its last token: that runs again with the answer
behind it, in one pass over both.
"""

from collections.abc import Sequence

from rl_reasoner.rollout.admission import Admission, WaitingRow
from rl_reasoner.rollout.completions import Completions
from rl_reasoner.rollout.kv_cache import CachedRow, KVCache
from rl_reasoner.rollout.turns import Answer, TurnTaker


class Parking:
    """The rows that wait for `turns`, in one call of the engine."""

    def __init__(
        self, turns: TurnTaker, known: Completions, admission: Admission, cache: KVCache
    ) -> None:
        self.turns, self.known, self.admission, self.cache = turns, known, admission, cache

    def take_out(self, slots: Sequence[int], rows: Sequence[int]) -> None:
        """Park those of the `rows` in `slots` that stop; all of them are to leave."""
        for slot, row in zip(slots, rows, strict=True):
            if row in self.known.stopping:
                self.park(row, self.cache.take_out(slot, int(self.known.counts[row]) - 1))

    def park(self, row: int, cached: CachedRow) -> bool:
        """Let a row wait with what it has in the cache, and hand it over; False if it ended."""
        if row not in self.known.stopping:
            return False
        self.known.stopping.remove(row)
        ids = self.known.so_far(row)
        kept = self.cache.keep(cached)
        self.admission.leave(WaitingRow(row, tuple(ids), len(ids) - 1, kept, kept.length))
        self.turns.submit(row, ids)
        return True

    def hear(self, wait: bool) -> None:
        """Take the answers that are there: rows come back, or end. Waits for one where told to.

        Raises ValueError for an answer to a row that waits for none.
        """
        ended = False
        for answer in self.turns.answers(wait):
            if answer.row not in self.admission.away:
                raise ValueError(f"an answer to row {answer.row}, which waits for none")
            ended |= not self._goes_on(answer)
        if ended:
            self.cache.change([], [])

    def _goes_on(self, answer: Answer) -> bool:
        """Let the row come back behind its answer, or end."""
        if not answer.ended and self.known.answer(answer.row, answer.ids):
            self.admission.come_back(answer.row, self.known.so_far(answer.row))
            return True
        self.cache.let_go(self.admission.away.pop(answer.row).cached)
        self.known.end(answer.row, answer.ended or "length")
        return False
