"""Asking a vLLM server, which may be slow, restarted or gone.

`Connection.ask` sends one request, once. What may pass by itself (no connection, a broken one, no
reply in time, statuses 408, 429 and from 500 up) is `Unreachable`; `Waiting` says how long it is
waited for, with growing pauses. All else ends the run with one message. Knows nothing of torch.
"""

import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from rl_reasoner.errors import first_line
from rl_reasoner.rollout.server import CONNECTIONS, ServerFailed
from rl_reasoner.trust import check_address

logger = logging.getLogger(__name__)
MOST_REQUESTS = 128
"""Requests that are under way at once; vLLM batches them by itself."""
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_MAY_PASS = (408, 429)
_NOT_NOW = (429, 502, 503, 504)  # said by a server, or a gateway before it, that is busy or starts
WORKER = Path(__file__).parent / "worker"
"""The folder of the file that a server's workers are extended by."""
START_COMMAND = (
    f"VLLM_SERVER_DEV_MODE=1 PYTHONPATH={WORKER} vllm serve FOLDER_OR_NAME "
    "--worker-extension-cls rl_reasoner_weights.PolicyWeights "
    "--logprobs-mode processed_logprobs --max-model-len TOKENS"
)
"""How a server for rollouts is started."""
LORA_FLAGS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora --max-lora-rank RANK"
"""What a server is started with besides, to be given an adapter by itself."""


class Unreachable(Exception):
    """A request came to nothing, for a reason that may pass.

    `not_now`: it was not even begun; `replied`: the server said so itself.
    """

    def __init__(self, message: str, *, not_now: bool = False, replied: bool = False) -> None:
        super().__init__(message)
        self.not_now, self.replied = not_now, replied


class NotThere(ServerFailed):
    """The server knows no such path, or not what was asked for there: `said` in its own words."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


@dataclass
class Connection:
    """A vLLM server at `url`; a request may take `timeout_s`, and so may its absence."""

    url: str
    timeout_s: float

    def __str__(self) -> str:
        return f"vLLM at {self.url}"

    @cached_property
    def client(self) -> httpx.Client:
        """The HTTP client, for all threads."""
        check_address(self.url, kind="vllm")
        limits = httpx.Limits(max_connections=MOST_REQUESTS, **CONNECTIONS)
        timeout = httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, 10.0))
        return httpx.Client(base_url=self.url.rstrip("/"), timeout=timeout, limits=limits)

    def drop(self) -> None:
        """Break off every request that is under way; the next one makes a new client."""
        if (client := vars(self).pop("client", None)) is not None:
            client.close()

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON that the server replies, to a POST of `body` where there is one.

        Raises `Unreachable`, or `ServerFailed` for a request that it refuses (`NotThere`: 404).
        """
        reply = self._replied(path, body)
        try:
            return reply.json() if reply.content else None
        except ValueError as error:
            raise ServerFailed(f"{self} answers {path} with something else than JSON") from error

    def tell(self, path: str, body: Any) -> None:
        """As `ask`, where the reply says no more than that it was done."""
        self._replied(path, body)

    def _replied(self, path: str, body: Any) -> httpx.Response:
        try:
            reply = self.client.request("GET" if body is None else "POST", path, json=body)
        except httpx.TimeoutException as error:
            raise Unreachable(f"no reply to {path} within {self.timeout_s:g} s") from error
        except httpx.TransportError as error:
            why = first_line(error) or type(error).__name__
            raise Unreachable(f"no connection: {why}") from error
        if reply.status_code in _MAY_PASS or reply.status_code >= 500:
            said = f"status {reply.status_code} for {path}: {_said(reply)}"
            raise Unreachable(said, not_now=reply.status_code in _NOT_NOW, replied=True)
        if reply.status_code == 404:
            raise NotThere(
                f"{self} knows no {path}: rollouts need vLLM's own server (0.32 is tested), "
                f"started with {START_COMMAND}",
                _said(reply),
            )
        if reply.status_code >= 400:
            raise ServerFailed(f"{self} refuses {path} ({reply.status_code}): {_said(reply)}")
        return reply

    def ask_when_there(self, path: str, body: Any = None) -> Any:
        """As `ask`, again and again while the reason may pass."""
        waiting = Waiting(self)
        while True:
            try:
                return self.ask(path, body)
            except Unreachable as error:
                waiting.pause(error)


class Waiting:
    """The time that a server is waited for since it last did what it was asked."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._since = time.monotonic()
        self._pauses = 0

    def pause(self, error: Unreachable) -> None:
        """Wait before the next try; raise `ServerFailed` where the time is up."""
        waited = time.monotonic() - self._since
        limit = self.connection.timeout_s
        if waited >= limit:
            raise ServerFailed(
                f"{self.connection}: {error}; tried for {waited:.0f} s (vllm.timeout_s: {limit:g})."
                " The run can be resumed when the server is there again"
            ) from error
        if self._pauses == 0:
            logger.warning("%s: %s; trying for up to %g s", self.connection, error, limit)
        pause = _PAUSES_S[min(self._pauses, len(_PAUSES_S) - 1)]
        self._pauses += 1
        time.sleep(min(pause, max(0.0, limit - waited)))

    def over(self) -> None:
        """The server did what it was asked."""
        self._since, self._pauses = time.monotonic(), 0


def _said(reply: httpx.Response) -> str:
    """What the server says is wrong, in one line."""
    try:
        told = reply.json()
        error = told.get("error", told) if isinstance(told, dict) else told
        text = error.get("message", error) if isinstance(error, dict) else error
    except ValueError:
        text = reply.text
    return " ".join(str(text).split())[:300]
