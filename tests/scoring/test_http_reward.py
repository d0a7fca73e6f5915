"""Rewards over HTTP, against a server that fails in every way a judge does."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.call import CONCURRENT
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.scoring.transport import pack_reward
from rl_reasoner.types import Fault, Score

RAW = {
    "page": b"<html>loading</html>",
    "list of parts": b'{"value": 1, "parts": [1]}',
    "text as a part": b'{"value": 1, "parts": {"a": "b"}}',
    "no reason": b'{"value": 1, "reason": null}',
    "number as a reason": b'{"value": 1, "reason": 7}',
}
"""Replies as they are sent, by the completion."""


class Judge(BaseHTTPRequestHandler):
    """Does what the completion says; counts calls and how many are under way."""

    calls: ClassVar[Counter[str]] = Counter()
    now = most = 0
    lock, over = threading.Lock(), threading.Event()
    all_at_once = threading.Barrier(CONCURRENT, timeout=60)
    seen: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["completion"]
        with self.lock:
            Judge.seen.append({**body, "token": self.headers.get("Authorization")})
            Judge.calls[text] += 1
        self.reply(text, body)

    def reply(self, text: str, body: dict[str, Any]) -> None:
        first = self.calls[text] == 1
        if text == "slow":
            self.over.wait()
        if text == "hang up" and first:
            self.connection.close()
            return
        code = {"busy": 429, "broken": 500}.get(text, 200) if first else 200
        code = {"always broken": 503, "not found": 404}.get(text, code)
        said: Any = {
            "value": float(text == body["answer"]),
            "reason": "compared",
            "parts": {"a": 1},
        }
        said = {
            "bare": 0.5,
            "abstain": {"value": None},
            "words": "good",
            "text": {"value": "1"},
        }.get(text, said)
        if text.startswith("wait"):
            with self.lock:
                Judge.now += 1
                Judge.most = max(Judge.most, Judge.now)
            self.all_at_once.wait()
            with self.lock:  # before it is answered: then another may come
                Judge.now -= 1
        data = RAW.get(text) or json.dumps(said).encode()
        if text == "empty":
            data = b""
        if text == "drips":
            self.send_response(200)
            while not self.over.wait(0.2):
                self.send_header("X-1", "y")
                self.flush_headers()
        if text == "endless":
            data = b"[" * (2 << 20)
        self.send_response(302 if text == "moved" else code)
        if text == "moved":
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def url() -> Iterator[str]:
    """The judge's address."""
    Judge.calls, Judge.seen, Judge.over = Counter(), [], threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    Judge.over.set()
    server.shutdown()


def test_what_passes_by_itself_is_tried_again_and_the_rest_is_a_fault(url: str) -> None:
    reward = load_reward(url, {"timeout_s": 5.0, "attempts": 2})
    assert isinstance(pack_reward(reward), dict), "it runs in a process of its own"
    texts = ["4", "5", "bare", "abstain", "busy", "broken", "hang up"]
    texts += ["slow", "always broken", "not found", "words", "text"]
    found = score_batch(reward, texts, {"answer": ["4"] * len(texts), "other": texts})
    values = [o.value if isinstance(o, Score) else o.message for o in found]
    assert values[:7] == [1.0, 0.0, 0.5, None, 0.0, 0.0, 0.0]
    for message, why in zip(
        values[7:],
        ("Timeout", "answered 503", "404", "is not a number and has no value", "not a number"),
        strict=True,
    ):
        assert why in str(message)
    assert found[0] == Score(1.0, "compared", {"a": 1.0})
    assert Judge.calls["busy"] == Judge.calls["broken"] == Judge.calls["hang up"] == 2
    assert {frozenset(body) for body in Judge.seen} == {
        frozenset(("completion", "answer", "token"))
    }


def test_a_reply_is_bounded_in_seconds_and_in_bytes(url: str) -> None:
    reward = load_reward(url, {"timeout_s": 5.0, "attempts": 1})
    drips, endless, other = score_batch(reward, ["drips", "endless", "4"], {"answer": ["4"] * 3})
    assert isinstance(drips, Fault) and "has not answered within 5 s" in drips.message
    assert isinstance(endless, Fault) and "the reply has more than 1,048,576" in endless.message
    assert other == Score(1.0, "compared", {"a": 1.0})


def test_a_reply_that_is_none_is_told_with_the_url_and_its_beginning(url: str) -> None:
    said = {
        "empty": "answered nothing, which is not JSON",
        "page": "answered '<html>loading</html>', which is not JSON",
        "words": "which is not a number and has no value",
        "list of parts": "[1]}': its parts should be an object of numbers by name",
        "text as a part": "the part 'a' of a Score is str",
        "number as a reason": "the reason of a Score is int",
        "moved": "answered 302 Found (to /elsewhere: give that URL)",
        "not found": "answered 404 Not Found",
    }
    reward = load_reward(url, {"attempts": 1})
    found = score_batch(reward, [*said, "no reason"], {"answer": ["4"] * (len(said) + 1)})
    for (text, why), outcome in zip(said.items(), found, strict=False):
        assert isinstance(outcome, Fault) and why in outcome.message, (text, outcome)
        assert url in outcome.message and "\n" not in outcome.message
    assert found[-1] == Score(1.0)


def test_its_columns_are_kept_with_other_options(url: str) -> None:
    reward = load_reward(url, {"columns": ["reference"]})
    assert isinstance(reward, Reward)
    again = reward.with_options()
    assert (again.columns, again.name) == (reward.columns, reward.name)
    score_batch(again, ["4"], {"reference": ["4"], "answer": ["5"]})
    assert Judge.seen[-1]["reference"] == "4" and "answer" not in Judge.seen[-1]


def test_so_many_at_a_time_and_no_more(url: str) -> None:
    reward = load_reward(url, {"columns": ["answer"]})
    texts = [f"wait {i}" for i in range(64)]
    found = score_batch(reward, texts, {"answer": ["4"] * 64})
    assert not any(isinstance(o, Fault) for o in found)
    assert Judge.most == CONCURRENT


def test_a_judge_that_is_away_is_a_fault() -> None:
    reward = load_reward("http://127.0.0.1:9/score", {"attempts": 2})
    [found] = score_batch(reward, ["4"], {"answer": ["4"]}, Limits(timeout_s=10))
    assert isinstance(found, Fault) and "ConnectError" in found.message


def test_a_token_comes_from_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="JUDGE_TOKEN is not set"):
        load_reward(url, {"token": "JUDGE_TOKEN"})
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    score_batch(load_reward(url, {"token": "JUDGE_TOKEN"}), ["4"], {"answer": ["4"]})
    assert Judge.seen[-1]["token"] == "Bearer secret"


def test_options_are_checked(url: str) -> None:
    with pytest.raises(UserError, match=r"'atempts'.*Did you mean 'attempts'"):
        load_reward(url, {"atempts": 2})
    with pytest.raises(UserError, match="must be positive"):
        load_reward(url, {"attempts": 0})
