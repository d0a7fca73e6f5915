"""The HTTP client of a judge's server: each try is counted, bounded in bytes and in seconds.

`httpx` bounds the time between two pieces of a reply, so that one that drips never ends, not even
its headers, and a body of any size is read. So each try is a task with a deadline. Retries are
the `openai` client's; here is seen what each try came to.
"""

import asyncio
import threading
from collections import Counter
from typing import Any

import httpx

from rl_reasoner.rollout.server import CONNECTIONS
from rl_reasoner.scoring.http_reward import certificates

_PACKED = {"gzip", "deflate", "br", "zstd"}
REPLY_BYTES = 1 << 20
"""What a reply may have."""


class Counts:
    """Counts of events by name, from several threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, more: int = 1) -> None:
        """Count an event."""
        with self._lock:
            self._counts[name] += more

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def to_json(self) -> dict[str, int]:
        """All counts by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))


class CountedClient(httpx.Client):
    """A client whose tries end after `timeout_s` and at `REPLY_BYTES`, whatever the server does."""

    def __init__(self, counts: Counts, timeout_s: float) -> None:
        super().__init__(timeout=timeout_s, verify=certificates())
        self.counts = counts
        self.timeout_s = timeout_s
        self._under_way: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """End the tries under way, whichever threads wait for them, and begin no more."""
        super().close()
        with self._lock:
            for task, loop in self._under_way.items():
                loop.call_soon_threadsafe(task.cancel)

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> Any:
        """Send a request and read its whole reply."""
        self.counts.add("tries")
        try:
            response = asyncio.run(self._unless_closed(request, options))
        except httpx.TimeoutException:
            self.counts.add("timeout")
            raise
        except httpx.TransportError:
            self.counts.add("disconnected")
            raise
        if response.status_code >= 400:
            self.counts.add(f"HTTP {response.status_code}")
        return response

    async def _unless_closed(
        self, request: httpx.Request, options: dict[str, Any]
    ) -> httpx.Response:
        """A try that `close` ends."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        with self._lock:
            if self.is_closed:
                raise RuntimeError("the client is closed")
            self._under_way[task] = loop
        try:
            return await self._tried(request, options)
        finally:
            with self._lock:
                del self._under_way[task]

    async def _tried(self, request: httpx.Request, options: dict[str, Any]) -> httpx.Response:
        """The whole reply, by the deadline."""
        limits = httpx.Limits(**CONNECTIONS)
        request.headers["Accept-Encoding"] = "identity"  # a small body could unpack to any size
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                httpx.AsyncClient(
                    follow_redirects=True,
                    timeout=self.timeout_s,
                    limits=limits,
                    verify=certificates(),
                ) as client,
            ):
                reply = await client.send(request, stream=True, **options)
                content = await self._body(reply)
        except TimeoutError as error:
            late = f"no whole reply within {self.timeout_s:g} s"
            raise httpx.ReadTimeout(late, request=request) from error
        return httpx.Response(
            reply.status_code, headers=reply.headers, content=content, request=reply.request
        )

    async def _body(self, reply: httpx.Response) -> bytes:
        """The body up to its last byte; raises where it is packed or too large."""
        if reply.headers.get("Content-Encoding", "") in _PACKED:
            packed = "the reply is packed, which was not asked for"
            raise httpx.ReadError(packed, request=reply.request)
        content = bytearray()
        async for piece in reply.aiter_raw():
            content += piece
            if len(content) > REPLY_BYTES:
                self.counts.add("huge")
                what = f"the reply has more than {REPLY_BYTES:,} bytes"
                raise httpx.ReadError(what, request=reply.request)
        return bytes(content)
