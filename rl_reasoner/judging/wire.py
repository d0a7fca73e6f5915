"""The HTTP client of a judge's server: each try is counted, bounded in bytes and in seconds.

`httpx` bounds the time between two pieces of a reply, so that one that drips never ends, and a body
of any size is read. Retries are the `openai` client's; here is seen what each try came to.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx

from rl_reasoner.rollout.server import CONNECTIONS

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
        limits = httpx.Limits(**CONNECTIONS)
        headers = {"Accept-Encoding": "identity"}  # a small body could unpack to any size
        super().__init__(follow_redirects=True, timeout=timeout_s, limits=limits, headers=headers)
        self.counts = counts
        self.timeout_s = timeout_s

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> Any:
        """Send a request and read its whole reply."""
        self.counts.add("tries")
        try:
            ends = time.monotonic() + self.timeout_s
            response = super().send(request, stream=True, **options)
            if response.headers.get("Content-Encoding", "") in _PACKED:
                response.close()
                raise httpx.ReadError(
                    "the reply is packed, which was not asked for", request=request
                )
            response.stream = _Bounded(response.stream, ends, request, self.counts)
            try:
                response.read()
            finally:
                response.close()
        except httpx.TimeoutException:
            self.counts.add("timeout")
            raise
        except httpx.TransportError:
            self.counts.add("disconnected")
            raise
        if response.status_code >= 400:
            self.counts.add(f"HTTP {response.status_code}")
        return response


class _Bounded(httpx.SyncByteStream):
    """A reply's body up to its last second and byte."""

    def __init__(self, inner: Any, ends: float, request: httpx.Request, counts: Counts) -> None:
        self.inner = inner
        self.ends = ends
        self.request = request
        self.counts = counts

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for piece in self.inner:
            size += len(piece)
            if size > REPLY_BYTES:
                self.counts.add("huge")
                what = f"the reply has more than {REPLY_BYTES:,} bytes"
                raise httpx.ReadError(what, request=self.request)
            if time.monotonic() > self.ends:
                raise httpx.ReadTimeout("the reply drips", request=self.request)
            yield piece

    def close(self) -> None:
        """Close what is underneath."""
        self.inner.close()
