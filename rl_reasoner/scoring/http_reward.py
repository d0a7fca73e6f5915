"""Rewards over HTTP: a judge that runs somewhere else, named in a recipe by its URL.

    rewards:
      "https://judge.example/score": {weight: 1.0, options: {columns: [answer], timeout_s: 20}}

Each completion is one POST of JSON, `{"completion": …, "answer": …}` with the columns asked for;
the reply is a number, or `{"value": number or null, "reason": text, "parts": {name: number}}`.
Sixteen requests are under way at most (`call.CONCURRENT`). What may pass by itself (no
connection, a time-out, 429, 5xx) is tried again after a random, growing pause.
"""

import asyncio
import os
import ssl
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from rl_reasoner.errors import UserError
from rl_reasoner.foreign import json_value
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.trust import check_address
from rl_reasoner.types import Score

_LONGEST_PAUSE_S = 10.0
_CONNECTED_S = 10.0  # of the first request
_MOST = 1 << 20  # bytes of a reply
_SHOWN = 80  # characters of one in a message


class _Busy(RuntimeError):
    """The server says that it may be better later."""


def http_reward(
    url: str,
    columns: Sequence[str] = ("answer",),
    timeout_s: float = 20.0,
    attempts: int = 4,
    token: str | None = None,
) -> Reward:
    """The reward that a POST to `url` gives, of a completion with these columns.

    `timeout_s` bounds each attempt, `token` names the environment variable with a bearer token.
    Raises `UserError` where `url` is none, the variable is not set, or a number makes no sense.
    """
    if attempts < 1 or timeout_s <= 0:
        raise UserError(f"reward {url}: attempts and timeout_s must be positive")
    try:
        where = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"reward {url}: no URL: {error}") from error
    if not where.host:
        raise UserError(f"reward {url}: a URL without a host")
    check_address(url, token)
    if token is not None and token not in os.environ:
        raise UserError(f"reward {url}: the environment variable {token} is not set")

    async def judge(completion: str, **row: Any) -> Score:
        return await _asked(url, {"completion": completion, **row}, timeout_s, attempts, token)

    judge.__name__ = name_of_url(url)
    made = Reward(judge)
    made.columns = tuple(columns)
    return made


def name_of_url(url: str) -> str:
    """The name by which the scores of the reward at `url` are kept."""
    where = httpx.URL(url)
    return (where.host + where.path).rstrip("/").replace("/", "_")


def check_reachable(url: str) -> None:
    """Raise `UserError` where nothing answers at `url`, whatever it says.

    A reward is asked again and again where no connection is made; a test need not wait for that.
    """
    try:
        with httpx.Client(verify=certificates(), timeout=_CONNECTED_S) as client:
            client.head(url)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise UserError(f"reward {url}: no server answers there: {error}") from error
    except httpx.TransportError:
        return  # it is there; what it makes of a reward's request is tested next


async def _asked(
    url: str, body: Mapping[str, Any], timeout_s: float, attempts: int, token: str | None
) -> Score:
    """The server's verdict; raises what the last attempt ended in."""
    headers = {"Authorization": f"Bearer {os.environ[token]}"} if token else {}
    again = AsyncRetrying(
        stop=stop_after_attempt(attempts),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_PAUSE_S),
        retry=retry_if_exception_type((httpx.TransportError, _Busy)),
        reraise=True,
    )
    async with httpx.AsyncClient(verify=certificates(), timeout=timeout_s) as client:
        async for attempt in again:
            with attempt:
                try:
                    async with asyncio.timeout(timeout_s):  # httpx bounds each piece alone
                        return _score(url, await _posted(client, url, body, headers))
                except TimeoutError as error:
                    late = f"{url} has not answered within {timeout_s:g} s"
                    raise httpx.ReadTimeout(late) from error
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _posted(
    client: httpx.AsyncClient, url: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> bytes:
    """The body of the reply, of `_MOST` bytes; raises for a status that is an error."""
    headers = {**headers, "Accept-Encoding": "identity"}
    content = b""
    async with client.stream("POST", url, json=body, headers=headers) as reply:
        if reply.status_code == 429 or reply.status_code >= 500:
            raise _Busy(f"{url} answered {reply.status_code}")
        if not reply.is_success:
            moved = reply.headers.get("Location", "")
            where = f" (to {moved[:_SHOWN]}: give that URL)" if moved else ""
            raise ValueError(f"{url} answered {reply.status_code} {reply.reason_phrase}{where}")
        async for piece in reply.aiter_bytes():
            content += piece
            if len(content) > _MOST:
                raise ValueError(f"{url}: the reply has more than {_MOST:,} bytes")
    return content


@cache
def certificates() -> ssl.SSLContext:
    """The root certificates, made once: reading them takes a while."""
    return httpx.create_ssl_context()


def _score(url: str, body: bytes) -> Score:
    """The reply as a Score; raises ValueError where it is none."""
    text = body.decode("utf-8", "replace")
    shown = f"{text[:_SHOWN]!r}" if text.strip() else "nothing"
    try:
        reply = json_value(body)
    except ValueError as error:
        raise ValueError(f"{url} answered {shown}, which is not JSON ({error})") from error
    if isinstance(reply, (int, float)):
        return Score(float(reply))
    if not isinstance(reply, dict) or "value" not in reply:
        raise ValueError(f"{url} answered {shown}, which is not a number and has no value")
    parts = reply.get("parts") or {}
    if not isinstance(parts, dict):
        raise ValueError(
            f"{url} answered {shown}: its parts should be an object of numbers by name"
        )
    try:
        return Score(reply["value"], reply.get("reason", ""), parts)
    except TypeError as error:
        raise ValueError(f"{url} answered {shown}: {error}") from error
