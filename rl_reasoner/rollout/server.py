"""A policy behind an OpenAI-compatible server: vLLM, `transformers serve`, llama.cpp and others.

One request is one completion, several are under way at once; prompts that repeat are the server's
own to share. Requests that fail in a way that may pass (no connection, a broken one, statuses 408,
409, 429 and from 500 up) are sent again by the `openai` client, with growing pauses. What arrives
is kept at once, so that a server that dies loses nothing. `replies` serves judges: one request's
failure is its own. Knows nothing of torch.
"""

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.language.thinking import CLOSE_THINK, OPEN_THINK
from rl_reasoner.rollout.cache import SampleCache, SampleJob, Take, sample_through
from rl_reasoner.scoring.waiting import GivenUp, ended_by_giving_up
from rl_reasoner.trust import check_address, token_for
from rl_reasoner.types import Prompt, Rollout
from rl_reasoner.version import install_extra

_Key = TypeVar("_Key")
_RETRIES = 8
_TIMEOUT_S = 600.0
_KEPT = "What arrived is kept: the same command continues from there"
_NOTHING_KEPT = "Nothing is kept without the cache: the same command starts over"
CONNECTIONS = {"max_keepalive_connections": 0}
"""`httpx.Limits` of a client: each try has a connection of its own. A server ends a connection that
looks idle for some seconds (uvicorn, and so vLLM: five); one that is busy sees the next question on
it only after that, and so answers it, and its repeats, with "disconnected"."""


class ServerFailed(RunStopped):
    """The server could not be reached, or did not answer, after all retries."""

    title = "the server failed"


@dataclass(frozen=True)
class ServedPolicy:
    """The model `model` at `url`; the key is in `$OPENAI_API_KEY`, where one is needed.

    `tokenizer` is None: the server has it. Its own defaults hold for what the OpenAI interface does
    not name (top-k, repetition penalty). `http` makes the HTTP client (an `httpx.Client`), where it
    is not to be the usual one.
    """

    url: str
    model: str
    concurrency: int = 16
    tokenizer: None = None
    retries: int = _RETRIES
    timeout_s: float = _TIMEOUT_S
    http: Callable[[], Any] | None = None

    @property
    def source(self) -> str:
        """How results name this policy."""
        return f"{self.model} at {self.base}"

    @property
    def base(self) -> str:
        """The URL that the interface's paths follow; `/v1` where the given one has no path."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"server {self.url!r}: expected a URL such as http://localhost:8000/v1")
        check_address(self.url, kind="server")
        return self.url.rstrip("/") if parts.path.strip("/") else f"{self.url.rstrip('/')}/v1"

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int = 1,
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        force: str | None = None,
        progress: Callable[[int], None] | None = None,
        cache: SampleCache | None = None,
    ) -> list[list[Rollout]]:
        """Sample `samples` completions for each prompt, as `sampler.sample` does.

        Raises `UserError` where a start is to be forced (a chat has none), where the client is not
        installed or the server refuses a request; `ServerFailed` when it is gone.
        """
        if force:
            raise UserError(f"a server cannot force the start of a completion ({force})")
        settings = {"temperature": temperature, "max_tokens": max_tokens}
        if temperature:  # a server's default may be the model's own: less than all tokens
            settings["top_p"] = 1.0
        drawn_with = seed if temperature else None
        after = _NOTHING_KEPT if cache is None else _KEPT
        return sample_through(
            cache,
            len(prompts),
            samples,
            not temperature,
            lambda cache, job: cache.key(prompts[job[0]], settings, drawn_with, job[1]),
            lambda jobs, take: self._draw(jobs, take, prompts, settings, seed, after),
            progress,
        )

    def _draw(
        self,
        jobs: Sequence[SampleJob],
        take: Take,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any],
        seed: int,
        after: str,
    ) -> None:
        """Hand the completions of `jobs` to `take` as they arrive; a failure ends with `after`."""
        requests = {
            (i, n): (prompts[i], {**settings, "seed": _seed(seed, prompts[i], n)}) for i, n in jobs
        }
        with closing(self._arriving(requests)) as arriving:
            for job, done in arriving:
                take({job: self._replied(done, prompts[job[0]], after)})

    def replies(
        self,
        prompts: Sequence[Prompt],
        settings: Mapping[str, Any],
        seed: int,
        take: Callable[[int, Rollout | Exception], None],
    ) -> None:
        """Hand the reply to each prompt to `take` as it arrives, or the exception it ended in.

        `settings` go into the requests as they are. Raises `UserError` without the client.
        """
        requests = {
            i: (prompt, {**settings, "seed": _seed(seed, prompt, 0)})
            for i, prompt in enumerate(prompts)
        }
        with closing(self._arriving(requests)) as arriving:
            for index, done in arriving:
                error = done.exception()
                take(index, error if isinstance(error, Exception) else done.result())

    def _arriving(
        self, requests: Mapping[_Key, tuple[Prompt, Mapping[str, Any]]]
    ) -> Generator[tuple[_Key, "Future[Rollout]"]]:
        """The replies to requests (prompt and options), each as it comes; closed, the rest end."""
        if not requests:
            return
        arrived: queue.SimpleQueue[_Key | None] = queue.SimpleQueue()
        waiting: queue.SimpleQueue[_Key] = queue.SimpleQueue()
        found: dict[_Key, Future[Rollout]] = {key: Future() for key in requests}
        for key in requests:
            waiting.put(key)
        ended = threading.Event()
        with self._client() as client, ended_by_giving_up(lambda: arrived.put(None)):

            def work() -> None:
                with suppress(queue.Empty):
                    while not ended.is_set():
                        key = waiting.get_nowait()
                        self._settle(found[key], client, *requests[key])
                        arrived.put(key)

            try:
                for _ in range(min(self.concurrency, len(requests))):
                    # a daemon: nobody waits for a server that hangs, not even the interpreter
                    threading.Thread(target=work, name="rl_reasoner request", daemon=True).start()
                for _ in requests:
                    if (done := arrived.get()) is None:
                        raise GivenUp
                    yield done, found[done]
            finally:
                ended.set()

    def _client(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise UserError(
                f"asking a server needs the openai client: {install_extra('server')}"
            ) from error
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)  # of whichever httpx the client is built on
        return openai.OpenAI(
            base_url=self.base,
            api_key=token_for(self.url, "OPENAI_API_KEY") or "none",
            max_retries=self.retries,
            timeout=self.timeout_s,
            http_client=self.http()
            if self.http
            else openai.DefaultHttpxClient(limits=limits(**CONNECTIONS)),
        )

    def _replied(self, done: "Future[Rollout]", prompt: Prompt, after: str) -> Rollout:
        """The reply to a request for `prompt`; raises what the command prints if it failed."""
        import openai

        try:
            return done.result()
        except openai.APIError as error:
            if isinstance(error, openai.APIStatusError) and error.status_code < 500:
                last = prompt if isinstance(prompt, str) else prompt[-1]["content"]
                refusal = f"{self.source} refuses the request for {last!r:.80}: {error}"
                raise UserError(refusal, f"{after}, once the row is fixed or left out") from error
            raise ServerFailed(f"{self.source}: {error}".rstrip(".") + f". {after}") from error

    def _settle(
        self, future: "Future[Rollout]", client: Any, prompt: Prompt, options: Mapping[str, Any]
    ) -> None:
        """Let the future have the reply to a request, or what it ended in."""
        try:
            future.set_result(self._ask(client, prompt, options))
        except BaseException as error:  # whoever takes the reply decides
            future.set_exception(error)

    def _ask(self, client: Any, prompt: Prompt, options: Mapping[str, Any]) -> Rollout:
        """Send one request; its seed differs between samples and is the same in every retry."""
        if isinstance(prompt, str):
            reply = client.completions.create(model=self.model, prompt=prompt, **options)
            text = self._choice(reply).text
        else:
            reply = client.chat.completions.create(model=self.model, messages=prompt, **options)
            message = self._choice(reply).message
            thoughts = getattr(message, "reasoning_content", None)  # some servers set it apart
            chain = f"{OPEN_THINK}{thoughts}{CLOSE_THINK}" if thoughts else ""
            text = chain + (message.content or getattr(message, "refusal", None) or "")
        usage = reply.usage
        tokens, of_prompt = (
            (usage.completion_tokens, usage.prompt_tokens) if usage else (None, None)
        )
        cut_off = self._choice(reply).finish_reason == "length"
        return Rollout(text, tokens, cut_off, of_prompt)

    def _choice(self, reply: Any) -> Any:
        if not getattr(reply, "choices", None):  # a page of HTML comes as a text
            raise ServerFailed(f"{self.source} answered without a completion")
        return reply.choices[0]


def _seed(seed: int, prompt: Prompt, number: int) -> int:
    """The seed of one request, below 2^31."""
    digest = hashlib.sha256(json.dumps([seed, prompt, number]).encode()).digest()
    return int.from_bytes(digest[:4]) >> 1
