"""Sampling in a process of its own, beside what this one does meanwhile.

`SamplingProcess` starts it (`sampling_worker`), sends it the policy (`shared_policy`) and what
answers its completions once, and then one order at a time: `begin` takes the weights of now,
`finish` waits for the completions. The process leads a group of its own, so that Ctrl-C does not
reach it, and ends with this one, however that ends. One that is killed is started again and does
the order once more, from the same weights: what is sampled follows from weights and order alone.
Knows policies and orders; nothing of trainers.
"""

import base64
import logging
import pickle
import time
from typing import Any, NoReturn

from torch import nn

from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.machine import choices
from rl_reasoner.policy.fp8.layers import fp8_of
from rl_reasoner.rollout.decode_pass import is_proved
from rl_reasoner.rollout.sampling_order import Answering, Sampled, SamplingOrder
from rl_reasoner.rollout.shared_policy import SharedPolicy
from rl_reasoner.workers import Worker, WorkerDied

logger = logging.getLogger(__name__)
_MODULE = "rl_reasoner.rollout.sampling_worker"
_FOREVER = 1e6  # seconds: an order takes as long as it takes
_AGAIN = 1  # times that one order is begun anew after its process has died


class SamplingFailed(RunStopped):
    """The process that samples ahead failed."""

    title = "sampling ahead has failed"


class SamplingProcess:
    """A process that samples from `model`, with so many threads; see the module.

    `answering`: the tools, or the environment, that completions have. Raises `UserError` where one
    of them cannot be sent to another process.
    """

    def __init__(self, model: nn.Module, threads: int, answering: Answering | None = None) -> None:
        what = "this policy"
        try:
            self._policy = SharedPolicy(model)
            what = "what answers its completions"
            self._answering = pickle.dumps(answering)
        except (pickle.PicklingError, AttributeError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"overlap: {what} cannot be sent to the process that samples ({error})"
            ) from error
        self._proved = is_proved(model)
        self._fp8 = fp8_of(model)
        self._device = str(next(model.parameters()).device)
        self._threads = threads
        self._order: SamplingOrder | None = None
        self._failure: SamplingFailed | None = None
        self._worker = self._started()

    def _started(self) -> Worker:
        file = self._policy.file.fileno()
        worker = Worker(_MODULE, shown=True, fds=(file,))
        opening = {
            "modules": _text(self._policy.modules),
            "answering": _text(self._answering),
            "file": file,
            "size": self._policy.size,
            "device": self._device,
            "threads": self._threads,
            "proved": self._proved,  # a copy of the model is what the model is
            "choices": choices.taken(),
            "fp8": self._fp8,  # forwards of modules stay here
        }
        worker.send(opening, time.monotonic() + _FOREVER)
        return worker

    @property
    def pid(self) -> int:
        """The number of the process at work."""
        return self._worker.process.pid

    def begin(self, order: SamplingOrder) -> None:
        """Have `order` sampled from the weights as they are now; the one before is finished."""
        self._policy.publish()
        self._order = order
        try:
            self._send(order)
        except WorkerDied as death:  # while it had nothing to do
            self._begin_again(death, _AGAIN)

    def _send(self, order: SamplingOrder) -> None:
        self._worker.send({"order": _text(pickle.dumps(order))}, time.monotonic() + _FOREVER)

    def finish(self) -> Sampled:
        """The completions of the order that was begun; raises `SamplingFailed`."""
        if self._failure is not None:
            raise self._failure
        for left in reversed(range(_AGAIN + 1)):
            try:
                reply = self._worker.receive(time.monotonic() + _FOREVER)
                break
            except WorkerDied as death:
                self._begin_again(death, left)
        if "failed" in reply:
            self._fail(f"the process that samples failed: {reply['failed']}")
        self._order = None
        data = base64.b64decode(reply["sampled"])
        sampled: Sampled = pickle.loads(data)  # noqa: S301, our own process wrote it
        return sampled

    def _begin_again(self, death: WorkerDied, left: int) -> None:
        """Another process for the order; raises `SamplingFailed` where there were enough."""
        if not left:
            self._fail(
                f"the process that samples ended {_AGAIN + 1} times in one batch ({death}): is "
                "there enough memory for a second copy of the policy?"
            )
        logger.warning("the process that samples ended (%s): it is started again", death)
        assert self._order is not None
        try:
            self._worker = self._started()
            self._send(self._order)
        except WorkerDied as another:
            self._begin_again(another, left - 1)

    def _fail(self, why: str) -> NoReturn:
        self.close()
        self._failure = SamplingFailed(why)
        raise self._failure

    def close(self) -> None:
        """End the process."""
        self._worker.stop()
        self._policy.close()


def _text(data: bytes) -> Any:
    return base64.b64encode(data).decode()
