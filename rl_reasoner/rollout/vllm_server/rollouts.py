"""`VllmRollouts`: a trainer's batches, sampled by a vLLM server with the weights of now.

A batch is asked for row by row, all at once; where tools or an environment answer, part by part.
Only what came while the server had the weights at hand is kept: a server that was started again in
between gets the weights again, and the rows that are missing. Knows models and the server; nothing
of trainers.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.turns import TurnTaker
from rl_reasoner.rollout.vllm_server.adapters import (
    base_tensors,
    forget_adapters,
    is_adapted,
    why_merged,
    write_adapter,
)
from rl_reasoner.rollout.vllm_server.completion_requests import (
    Dialogues,
    NoCompletion,
    completion_of,
)
from rl_reasoner.rollout.vllm_server.connection import (
    MOST_REQUESTS,
    Connection,
    NotThere,
    Unreachable,
    Waiting,
)
from rl_reasoner.rollout.vllm_server.folder import own_folder
from rl_reasoner.rollout.vllm_server.weights import (
    ServedWeights,
    has_weights,
    load_weights,
    write_weights,
)

logger = logging.getLogger(__name__)
TIMEOUT_S = 600.0
"""Seconds that a reply may take, and that a server which is gone is waited for."""

Asked = dict[int, Future[SampledCompletion]]  # requests under way, by row
Arrived = dict[int, SampledCompletion]
_LOOK_S = 0.02  # between looks at answers while requests are under way
_GOODBYE_S = 10.0  # for what is nice to have at the end
_LOST = "it had other weights, and got these again: it was started again, or another run uses it"


@dataclass
class VllmRollouts:
    """The vLLM server at `url`, which gets weights through `folder`.

    Both have to see the folder under the same path; `own` holds it. `timeout_s` bounds one reply,
    and how long a server that is gone is waited for.
    """

    url: str
    folder: Path
    timeout_s: float = TIMEOUT_S
    loads: int = field(default=0, init=False)
    """how often weights were written for the server"""
    form: str = field(default="", init=False)
    """what the server gets, in words, once that is known"""
    by_adapter: bool = field(default=False, init=False)
    """whether the adapter of a policy goes by itself, and its base once"""
    _written: ServedWeights | None = field(default=None, init=False)
    _of: Any = field(default=None, init=False)  # what `load` was told that the weights are of
    _base: Any = field(default=None, init=False)  # how the base was when it was written

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

    @contextmanager
    def own(self) -> Iterator[None]:
        """Inside, the folder is this run's; afterwards it is gone, and the server's adapters, too.

        Raises `UserError` as `own_folder` does.
        """
        with own_folder(self.folder):
            try:
                yield
            finally:
                if self.by_adapter:
                    goodbye = Connection(self.url, min(self.timeout_s, _GOODBYE_S))
                    try:
                        forget_adapters(goodbye, self.folder)
                    except (Unreachable, ServerFailed) as error:
                        logger.info("%s keeps the names of adapters: %s", goodbye, error)

    def choose(self, model: Any) -> None:
        """Whether the adapter of `model`, if it has one, goes by itself or merged: once, with a
        line in the log. A server that is not there is waited for."""
        if self.form:
            return
        if not is_adapted(model):
            self.form = "whole weights"
        elif (reason := why_merged(self.connection, model)) is None:
            self.by_adapter, self.form = True, "the adapter by itself, its base once"
        else:
            self.form = f"whole weights, the adapter merged: {reason}"
        logger.info("%s gets %s", self.connection, self.form)

    def load(self, model: Any, of: Any) -> None:
        """Give the server the weights of `model`; those `of` what was given last, in which nothing
        was changed since, are not written again. `None` is of nothing."""
        self.choose(model)
        now = None if of is None else (of, _changes((*model.parameters(), *model.buffers())))
        if self._written is None or now is None or now != self._of:
            self._written = self._write(model)
            self._of = now
            self.loads += 1
        load_weights(self.connection, self.folder, self._written)

    def _write(self, model: Any) -> ServedWeights:
        if not self.by_adapter:
            return ServedWeights(write_weights(model, self.folder))
        base = _changes(base_tensors(model))
        if self._written is not None and base == self._base:
            weights = self._written.weights
        else:
            weights = write_weights(model, self.folder, merged=False)
        self._base = base
        return ServedWeights(weights, write_adapter(model, self.folder))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Sequence[int]],
        sampling: SamplingParams,
        budgets: Sequence[int | None] | None = None,
        turns: TurnTaker | None = None,
        marks: Sequence[str] = (),
    ) -> list[SampledCompletion]:
        """A completion for each of `prompts`, by the weights that were loaded last.

        Arguments as of `engine.generate`. `marks`: texts that may end a turn: `turns` says whether.

        Raises `ServerFailed` for a server that stays away.
        """
        rows = Dialogues(prompts, keys, sampling, budgets, turns, marks)
        waiting = Waiting(self.connection)
        asked: Asked = {}
        with self._threads(len(prompts)) as threads:
            while not rows.over:
                for row in sorted(rows.open - asked.keys()):
                    asked[row] = threads.submit(self._row, rows.body(row), rows.marks)
                arrived, error = _arrivals(asked, turns is not None, bool(rows.away))
                if arrived or error is not None:
                    arrived, error = self._kept(asked, arrived, error)
                for row, part in arrived.items():
                    rows.learn(row, part)
                if arrived:
                    waiting.over()
                if error is not None:
                    waiting.pause(error)
                idle = bool(rows.away) and not asked and not rows.open
                rows.hear(wait=idle)
                if idle:  # it was asked for nothing meanwhile
                    waiting.over()
        return rows.all()

    def _kept(
        self, asked: Asked, arrived: Arrived, error: Unreachable | None
    ) -> tuple[Arrived, Unreachable | None]:
        """What `arrived` if the server still has the weights at hand; else it gets them again."""
        assert self._written is not None
        try:
            if has_weights(self.connection, self.folder, self._written):
                return arrived, error
            _drain(asked)
            load_weights(self.connection, self.folder, self._written)
            return {}, error or Unreachable(_LOST)
        except Unreachable as gone:
            _drain(asked)
            return {}, gone

    @contextmanager
    def _threads(self, count: int) -> Iterator[ThreadPoolExecutor]:
        """Threads for the requests of so many rows."""
        threads = ThreadPoolExecutor(max(1, min(MOST_REQUESTS, count)), "vLLM rollouts")
        try:
            yield threads
            threads.shutdown()
        except BaseException:  # of the user, or a signal: nothing is waited for
            self.connection.drop()
            threads.shutdown(wait=False, cancel_futures=True)
            raise

    def _row(self, body: dict[str, Any], marks: Sequence[str]) -> SampledCompletion:
        assert self._written is not None
        if self._written.adapter is not None:
            body["model"] = self._written.adapter
        try:
            return completion_of(self.connection.ask("/v1/completions", body), marks)
        except NotThere as error:
            if "model" in body:  # started again, or told by another run to forget it
                raise Unreachable(error.said) from error
            raise
        except NoCompletion as error:
            raise ServerFailed(f"{self.connection} replies with {error}") from error


def _arrivals(asked: Asked, each: bool, look: bool) -> tuple[Arrived, Unreachable | None]:
    """Take out of `asked` what has come, and why something did not, if so.

    Waits for all of it, with `each` for one of them, and not for long where one is to `look`
    elsewhere too. Where a request failed, those under way are waited for, and no other begins.
    """
    if not asked:
        return {}, None
    until = FIRST_COMPLETED if each else FIRST_EXCEPTION
    wait(asked.values(), timeout=_LOOK_S if look else None, return_when=until)
    failed = [r for r in asked.values() if r.done() and not r.cancelled() and r.exception()]
    done = _drain(asked) if failed else {r: asked.pop(r) for r in [*asked] if asked[r].done()}
    errors = {row: reply.exception() for row, reply in done.items()}
    for error in errors.values():
        if error is not None and not isinstance(error, Unreachable):
            raise error
    gone = next((error for error in errors.values() if isinstance(error, Unreachable)), None)
    return {row: reply.result() for row, reply in done.items() if errors[row] is None}, gone


def _drain(asked: Asked) -> Asked:
    """Have nothing asked any more; what was under way is waited for, and is returned."""
    under_way = {row: reply for row, reply in asked.items() if not reply.cancel()}
    wait(under_way.values())
    asked.clear()
    return under_way


def _changes(tensors: Iterable[torch.Tensor]) -> tuple[int, int]:
    """Another pair after a change of a tensor: in place, which torch counts, or by another one.

    A change through `.data`, which torch does not count, is not seen.
    """
    here = list(tensors)
    counted = sum(tensor._version for tensor in here)
    return counted, hash(tuple(tensor.data_ptr() for tensor in here))
