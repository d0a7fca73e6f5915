"""Completions while they are sampled, as far as the host knows them.

`Completions` learns the tokens of pass after pass, which rows have ended by them, and what rows
were given by a `TurnTaker` (rl_reasoner.rollout.turns); it tells those who listen. Knows nothing
of models, or of who is in the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from rl_reasoner.kernels.kept_tokens import KeptWriter
from rl_reasoner.moe.routing import SampledRoutes
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.turns import TurnTaker

OnFinished = Callable[[list[tuple[int, list[int]]]], None]
OnToken = Callable[[int, int], None]


@dataclass
class SampledCompletion:
    """Token ids up to and with the end token, and the log-probability each was drawn with.

    `policy_logps`: those under the policy at `SamplingParams.policy_temperature`, whatever cut-offs
    and penalties sampling had; empty where no temperature is given. Where completions have turns:
    `tool_mask` is 1 for tokens that were sampled, 0 for those that were given, whose
    log-probabilities are 0.0 (trl's meaning of both); `ended` says why the completion did, "end"
    (an end token, a stop string), "length" (no room for one more sampled token), or in a word of
    the taker's.
    """

    ids: list[int]
    logps: list[float]
    policy_logps: list[float] = field(default_factory=list)
    tool_mask: list[int] = field(default_factory=list)
    ended: str = ""
    kept: Tensor | None = None


@dataclass
class Drawn:
    """What one pass has drawn, on its way to the host.

    `rows`, and which token of theirs it is (`times`), are known here; the tensors are copies that
    may be read once `copied` says so.
    """

    rows: "np.ndarray"
    times: "np.ndarray"
    # tokens, logps, policy_logps, stopped (n,), choices (n, layers, k), kept (n, V / 8)
    copies: list[Tensor | None]
    copied: Any  # torch.cuda.Event, or None


class Completions:
    """The completions of one call of the engine; see the module."""

    def __init__(
        self,
        rows: int,
        sampling: SamplingParams,
        budgets: Sequence[int | None] | None,
        routes: SampledRoutes | None,
        on_finished: OnFinished | None,
        on_token: OnToken | None,
        turns: TurnTaker | None,
    ) -> None:
        longest = sampling.max_tokens
        self.routes, self.on_finished, self.on_token = routes, on_finished, on_token
        shape = (rows, longest)
        self.ids = np.empty(shape, dtype=np.int64)  # touched as far as completions reach
        self.logps = np.empty(shape, dtype=np.float32)
        self.policy_logps: np.ndarray | None = None  # where they are asked for and others
        self.kept: list[KeptWriter] | None = None  # of the rows, where they are asked for
        self.counts = np.zeros(rows, dtype=np.int64)  # tokens that the host knows
        self.done = np.zeros(rows, dtype=bool)  # rows whose next tokens do not count
        self.budgets = np.array([b or longest for b in budgets or [longest] * rows])
        self.budgets = self.budgets.clip(max=longest)
        self.ends = np.array(sampling.ends)
        self.turns = turns
        self.stopping: set[int] = set()  # rows that stop for an answer, and have not left yet
        self._ended = [""] * rows
        if turns is not None:
            self._lists: list[list[int]] = [[] for _ in range(rows)]  # `ids`, for `turns`
            self._mask = np.ones(shape, dtype=np.uint8)

    def keep_sets(self) -> None:
        """Keep the sets of tokens that are drawn from."""
        self.kept = [KeptWriter() for _ in self.counts]

    def learn(self, drawn: Drawn) -> None:
        """Read what was drawn; waits where it is not there yet."""
        if drawn.copied is not None:
            drawn.copied.synchronize()
        new = np.flatnonzero(~self.done[drawn.rows])  # not what was run once too often
        rows, times = drawn.rows[new], drawn.times[new]
        tokens, logps, policy_logps, stopped, choices, kept = (
            None if t is None else t[new] for t in drawn.copies
        )
        assert tokens is not None and logps is not None
        self.ids[rows, times], self.logps[rows, times] = tokens.numpy(), logps.numpy()
        if self.policy_logps is not None and policy_logps is not None:
            self.policy_logps[rows, times] = policy_logps.numpy()
        if self.kept is not None and kept is not None:
            for row, bits in zip(rows.tolist(), kept.numpy(), strict=True):
                self.kept[row].add(bits)
        self.counts[rows] = times + 1
        ended = (self.ids[rows, times][:, None] == self.ends).any(1)
        if stopped is not None:
            ended |= stopped.numpy()
        full = times + 1 >= self.budgets[rows]
        if self.routes is not None and choices is not None:
            self.routes.step(choices, rows.tolist(), times.tolist())
        if self.on_token is not None:
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                self.on_token(row, token)
        self.done[rows] = over = ended | full
        if self.turns is not None:
            over = self._ask(self.turns, rows, ended, full | logps.isnan().numpy())
        self._finished(rows[over].tolist())

    def _ask(
        self, turns: TurnTaker, rows: "np.ndarray", ended: "np.ndarray", last: "np.ndarray"
    ) -> "np.ndarray":
        """Which of `rows`, with a new token each, are over; those that stop are not."""
        over: np.ndarray = ended | last
        for place, row in enumerate(rows.tolist()):
            ids = self._lists[row]
            ids.append(int(self.ids[row, len(ids)]))
            if not last[place] and turns.stops(row, ids):
                self.stopping.add(row)
                self.done[row] = True
                over[place] = False
            elif over[place]:
                self._ended[row] = "end" if ended[place] else "length"
        return over

    def so_far(self, row: int) -> list[int]:
        """The completion of a row, where there are turns."""
        return [*self._lists[row]]

    def answer(self, row: int, given: Sequence[int]) -> bool:
        """Append what a row was given; False where that leaves no room for a sampled token."""
        first = int(self.counts[row])
        last = first + len(given)
        if last >= self.budgets[row]:
            return False
        self.ids[row, first:last], self.logps[row, first:last] = given, 0.0
        self._mask[row, first:last] = 0
        if self.policy_logps is not None:
            self.policy_logps[row, first:last] = 0.0
        if self.kept is not None:
            self.kept[row].given(len(given))
        self.counts[row] = last
        self._lists[row] += given
        return True

    def end(self, row: int, why: str) -> None:
        """End a row that waits, as it is."""
        self._ended[row] = why
        self._finished([row])

    def _finished(self, rows: Sequence[int]) -> None:
        if self.on_finished is not None and rows:
            self.on_finished([(r, self.ids[r, : self.counts[r]].tolist()) for r in rows])

    def all(self, policy_logps: bool) -> list[SampledCompletion]:
        """The completions, with `policy_logps` where they are wanted."""
        own = self.logps if self.policy_logps is None else self.policy_logps
        found = [
            SampledCompletion(
                self.ids[row, :count].tolist(),
                self.logps[row, :count].tolist(),
                own[row, :count].tolist() if policy_logps else [],
                kept=None if self.kept is None else self.kept[row].deflated(),
            )
            for row, count in enumerate(self.counts.tolist())
        ]
        if self.turns is not None:
            for row, completion in enumerate(found):
                completion.tool_mask = self._mask[row, : self.counts[row]].tolist()
                completion.ended = self._ended[row]
        return found
