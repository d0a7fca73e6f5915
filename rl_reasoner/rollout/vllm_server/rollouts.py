"""`VllmRollouts`: a trainer's batches, sampled by a vLLM server with the weights of now.

A batch is asked for row by row, all at once. Only what came while the server had the weights at
hand is kept: a server that was started again in between gets the weights again, and the rows that
are missing. Knows models and the server; nothing of trainers.
"""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.vllm_server.completion_requests import (
    NoCompletion,
    completion_of,
    request_of,
)
from rl_reasoner.rollout.vllm_server.connection import (
    MOST_REQUESTS,
    Connection,
    Unreachable,
    Waiting,
)
from rl_reasoner.rollout.vllm_server.weights import load_weights, version_of, write_weights

TIMEOUT_S = 600.0
"""Seconds that a reply may take, and that a server which is gone is waited for."""

_LOST = "it had other weights, and got these again: it was started again, or another run uses it"


@dataclass
class VllmRollouts:
    """The vLLM server at `url`, which gets weights through `folder`.

    Both have to see the folder under the same path. `timeout_s` bounds one reply, and how long a
    server that is gone is waited for.
    """

    url: str
    folder: Path
    timeout_s: float = TIMEOUT_S
    loads: int = field(default=0, init=False)
    """how often weights were written for the server"""
    _weights: str | None = field(default=None, init=False)
    _of: Any = field(default=None, init=False)  # what `load` was told that the weights are of

    def __post_init__(self) -> None:
        self.connection = Connection(self.url, self.timeout_s)

    def model(self) -> dict[str, Any]:
        """What the server says of its model: `id`, `max_model_len` and others.

        A server that is not there is waited for.
        """
        found = self.connection.ask_when_there("/v1/models")
        try:
            return dict(found["data"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServerFailed(f"{self.connection} names no model") from error

    def load(self, model: Any, of: Any) -> None:
        """Give the server the weights of `model`; those `of` what was given last, in which nothing
        was changed since, are not written again. `None` is of nothing."""
        now = None if of is None else (of, _changes(model))
        if self._weights is None or now is None or now != self._of:
            self._weights = write_weights(model, self.folder)
            self._of = now
            self.loads += 1
        load_weights(self.connection, self.folder, self._weights)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        sampling: SamplingParams,
        budgets: Sequence[int | None] | None = None,
    ) -> list[SampledCompletion]:
        """A completion for each of `prompts`, by the weights that were loaded last.

        Arguments as of `engine.generate`. Raises `ServerFailed` for a server that stays away.
        """
        assert self._weights is not None
        limits = budgets or [None] * len(prompts)
        bodies = [
            request_of(prompt, key, sampling, budget)
            for prompt, key, budget in zip(prompts, keys, limits, strict=True)
        ]
        found: dict[int, SampledCompletion] = {}
        waiting = Waiting(self.connection)
        while len(found) < len(bodies):
            missing = [row for row in range(len(bodies)) if row not in found]
            arrived, error = self._asked(bodies, missing)
            try:
                if version_of(self.connection) != self._weights:
                    load_weights(self.connection, self.folder, self._weights)
                    error = error or Unreachable(_LOST)
                    arrived = {}
            except Unreachable as gone:
                arrived, error = {}, gone
            found |= arrived
            if arrived:
                waiting.over()
            if error is not None:
                waiting.pause(error)
        return [found[row] for row in range(len(bodies))]

    def _asked(
        self, bodies: Sequence[Any], rows: Sequence[int]
    ) -> tuple[dict[int, SampledCompletion], Unreachable | None]:
        """What arrives for `rows`, and why the others did not, if so."""
        threads = ThreadPoolExecutor(min(MOST_REQUESTS, len(rows)), "vLLM rollouts")
        try:
            asked = {row: threads.submit(self._row, bodies[row]) for row in rows}
            wait(asked.values(), return_when=FIRST_EXCEPTION)
            threads.shutdown(cancel_futures=True)
        except BaseException:  # of the user, or a signal: nothing is waited for
            self.connection.drop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        done = {row: reply for row, reply in asked.items() if not reply.cancelled()}
        failed: list[Unreachable] = []
        for reply in done.values():
            if isinstance(error := reply.exception(), Unreachable):
                failed.append(error)
            elif error is not None:
                raise error
        arrived = {row: reply.result() for row, reply in done.items() if not reply.exception()}
        return arrived, next(iter(failed), None)

    def _row(self, body: Any) -> SampledCompletion:
        try:
            return completion_of(self.connection.ask("/v1/completions", body))
        except NoCompletion as error:
            raise ServerFailed(f"{self.connection} replies with {error}") from error


def _changes(model: Any) -> tuple[int, int]:
    """Another pair after a change of a tensor: in place, which torch counts, or by another one.

    A change through `.data`, which torch does not count, is not seen.
    """
    tensors = [*model.parameters(), *model.buffers()]
    counted = sum(tensor._version for tensor in tensors)
    return counted, hash(tuple(tensor.data_ptr() for tensor in tensors))
