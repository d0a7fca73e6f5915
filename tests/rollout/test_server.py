"""Evaluation over HTTP: `transformers serve` behind a proxy that fails now and then."""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rl_reasoner import evaluate, open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.judging.wire import CountedClient, Counts
from rl_reasoner.report.evaluation import build_evaluation_page
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.rollout.sampler import sample
from rl_reasoner.rollout.server import ServedPolicy, ServerFailed
from support.places import free_port

pytest.importorskip("openai", reason="the extra `server` is not installed")
CHAT = (  # the server's parser of replies looks for these marks in models of this kind
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `port`; `faults` says what goes wrong with which request, from 1."""

    daemon_threads = True

    def __init__(self, port: int, faults: dict[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.port, self.faults = port, faults
        self.lock = threading.Lock()
        self.count = 0
        self.delivered: list[dict[str, Any]] = []  # bodies of requests that were answered whole
        self.met: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this is for."""


class Passing(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.count += 1
            fault = self.server.faults.get(self.server.count, "")
            self.server.met[fault] += 1
        if fault == "refused":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if fault.isdecimal():
            self.answer(int(fault), b'{"error": {"message": "injected"}}')
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)
        upstream.request("POST", self.path, body, {"Content-Type": "application/json"})
        reply = upstream.getresponse()
        data = reply.read()
        if fault == "cut":  # the completion was made, and its end never arrives
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        with self.server.lock:
            self.server.delivered.append(json.loads(body))
        self.answer(reply.status, data)

    def answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy that can chat, on the disk."""
    policy = open_policy("scratch:dense-tiny", seed=7, device="cpu")
    policy.tokenizer.chat_template = CHAT
    place = tmp_path_factory.mktemp("served") / "policy"
    policy.save(place)
    return place


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """`transformers serve` with that policy."""
    found = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += [
        "--port",
        str(found),
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = (folder.parent / "serve.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", found)) == 0:
                    break
            if server.poll() is not None:
                pytest.skip("transformers serve does not start: its extra is not installed")
            time.sleep(0.2)
        yield found
    finally:
        server.kill()
        server.wait()
        log.close()


@pytest.fixture
def served(port: int, request: pytest.FixtureRequest) -> Iterator[Proxy]:
    proxy = Proxy(port, getattr(request, "param", {}))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's pauses between retries, made short."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.1)


FAULTS = {2: "500", 4: "cut", 5: "refused", 7: "503", 9: "429", 11: "cut", 12: "500", 13: "refused"}


@pytest.mark.parametrize("served", [FAULTS], indirect=True)
def test_no_sample_is_lost_or_doubled(served: Proxy, folder: Path, tmp_path: Path) -> None:
    server = ServedPolicy(served.url, str(folder), concurrency=3)
    result = evaluate(
        server, ["modular_test"], 2, seed=7, max_tokens=6, limit=8, cache=tmp_path / "cache"
    )
    assert dict(served.met) == {"": 16, **Counter(FAULTS.values())}
    asked = Counter((json.dumps(body["messages"]), body["seed"]) for body in served.delivered)
    assert len(asked) == 16 and set(asked.values()) == {1}, "each sample once"
    drawn_from = {(body["temperature"], body["top_p"]) for body in served.delivered}
    assert drawn_from == {(1.0, 1.0)}, "all tokens, whatever the model's own default"
    rows = result.rows["modular_test"]
    assert [len(row["completions"]) for row in rows] == [2] * 8
    assert result.manifest["policy"]["server"] == f"{served.url}/v1"
    again = evaluate(
        server, ["modular_test"], 3, seed=7, max_tokens=6, limit=8, cache=tmp_path / "cache"
    )
    assert len(served.delivered) == 24, "more samples only add"
    assert [row["completions"][:2] for row in again.rows["modular_test"]] == [
        row["completions"] for row in rows
    ]


@pytest.mark.parametrize("served", [{1: "500", 3: "cut"}], indirect=True)
def test_greedy_answers_are_our_engines(served: Proxy, folder: Path) -> None:
    """As chats and as plain texts, over HTTP and in this process."""
    server, policy = (
        ServedPolicy(f"{served.url}/v1", str(folder)),
        open_policy(str(folder), device="cpu"),
    )
    chats: list[Any] = [[{"role": "user", "content": text}] for text in ("1+1=", "(7-2)*3=")]
    for prompts in (chats, ["1+1=", "12="]):
        over_http = server.sample(prompts, max_tokens=8)
        # a server alone counts the prompt's tokens
        answers = [[replace(one, prompt_tokens=None) for one in group] for group in over_http]
        assert answers == sample(policy, prompts, max_tokens=8)


def test_what_cannot_be_asked(served: Proxy, folder: Path) -> None:
    with pytest.raises(UserError, match="cannot force"):
        ServedPolicy(served.url, "x").sample(["1="], force="chain")
    with pytest.raises(UserError, match="expected a URL such as"):
        ServedPolicy("localhost:8000", "x").sample(["1="])
    with pytest.raises(UserError, match="weights is int8, but a server has weights of its own"):
        evaluate(ServedPolicy(served.url, "x"), ["modular_test"], weights="int8", limit=1)
    served.faults = {served.count + 1: "401"}
    with pytest.raises(UserError, match=r"refuses the request for '1=': .*injected"):
        ServedPolicy(served.url, str(folder)).sample(["1="], max_tokens=2)


def test_a_server_that_is_gone_loses_nothing(served: Proxy, folder: Path, tmp_path: Path) -> None:
    """It dies for good after five answers; they are kept, and the next call asks for the rest."""
    served.faults = dict.fromkeys(range(6, 500), "500")
    server, cache = (
        ServedPolicy(served.url, str(folder), concurrency=1),
        SampleCache(tmp_path, "it"),
    )
    prompts = [f"{n}+1=" for n in range(8)]
    with pytest.raises(ServerFailed, match=r"injected.* What arrived is kept"):
        server.sample(prompts, max_tokens=3, cache=cache)
    assert len(cache) == 5
    with pytest.raises(ServerFailed, match=r"injected.* Nothing is kept without the cache"):
        server.sample(prompts[6:], max_tokens=3)
    served.faults = {}
    assert [len(group) for group in server.sample(prompts, max_tokens=3, cache=cache)] == [1] * 8
    asked = Counter(body["prompt"] for body in served.delivered)  # one under way may come twice
    assert asked.keys() == {*prompts} and all(asked[prompt] == 1 for prompt in prompts[:5])


class Silent(BaseHTTPRequestHandler):
    """A server that tells no usage, or answers without a choice."""

    def do_POST(self) -> None:
        """Answer one request."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"index": 0, "text": "12", "finish_reason": "stop"}
        made: dict[str, Any] = {"id": "1", "object": "text_completion", "created": 0, "model": "m"}
        made["choices"] = [] if asked["prompt"] == "nothing" else [choice]
        body = json.dumps(made).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_lengths_that_a_server_does_not_tell_are_not_zero(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        asked = ServedPolicy(f"http://127.0.0.1:{server.server_port}", "m")
        file = tmp_path / "rows.jsonl"
        file.write_text('{"problem": "6+6=", "answer": "12"}\n')
        result = evaluate(asked, [str(file)], template="plain")
        figures = result.sets[str(file)]
        assert figures["accuracy"] == 1.0 and "mean_length" not in figures
        assert result.rows[str(file)][0]["tokens"] == [None]
        assert "12" in build_evaluation_page([result])
        with pytest.raises(ServerFailed, match="answered without a completion"):
            asked.sample(["nothing"])
    finally:
        server.shutdown()
        server.server_close()


class Impatient(Silent):
    """A server that keeps connections open, and ends each at its second request, unanswered."""

    protocol_version = "HTTP/1.1"
    met: ClassVar[Counter[str]] = Counter()

    def do_POST(self) -> None:
        """Answer the first request of a connection."""
        self.met["requests"] += 1
        if getattr(self, "known", False):
            self.close_connection = True
            return
        self.known = True
        super().do_POST()


@pytest.mark.parametrize("http", [None, lambda: CountedClient(Counts(), 60)], ids=["eval", "judge"])
def test_a_server_that_ends_idle_connections_is_asked_once_a_question(http: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Impatient)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Impatient.met.clear()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        asked = ServedPolicy(url, "m", concurrency=1, retries=0, http=http)
        assert [len(group) for group in asked.sample(["6+6=", "5+7=", "4+8="])] == [1, 1, 1]
    finally:
        server.shutdown()
        server.server_close()
    assert Impatient.met["requests"] == 3
