"""The hub, or what stands in its place: asked once, and after a refusal no more."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rl_reasoner import open_policy


@dataclass
class Hub:
    """A hub that answers every request with `status`, or hangs up (0), and counts them."""

    folder: Path
    url: str = ""
    status: int = 0
    asked: list[str] = field(default_factory=list)

    def run(self, *verbs: tuple[str, ...]) -> list[str]:
        """The messages of verbs that are run one after the other in one process of their own."""
        codes = "[main(argv) for argv in json.loads(sys.argv[1])]"
        code = f"import json, sys; from rl_reasoner.cli import main; print(*{codes})"
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.folder / "hf"), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(verbs)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            input="",
            env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
        )
        assert "Traceback" not in done.stderr, done.stderr
        self.codes = [int(word) for word in done.stdout.split()[-len(verbs) :]]
        return re.split(r"^error: ", done.stderr, flags=re.MULTILINE)[1:]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/api/agent-harnesses":  # huggingface_hub's own matter, once
                made.asked.append(self.path)
            if not made.status:
                self.close_connection = True
                return
            self.send_response(made.status)
            self.send_header("Content-Length", "0")
            if made.status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        do_HEAD = do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


RECIPE = """
policy: nobody/nothing
rewards: {math_answer: 1}
data: {path: nobody/rows}
stages:
- {kind: grpo, name: a}
- {kind: grpo, name: b, data: {path: nobody/others}}
evals: {sets: [gsm8k, math500, mgsm_zh]}
"""


@pytest.mark.parametrize("status", [0, 503])
def test_after_a_refusal_the_hub_is_asked_no_more(status: int, hub: Hub) -> None:
    hub.status = status
    (hub.folder / "many.yaml").write_text(RECIPE)
    told, *others = hub.run(
        ("check", "many.yaml"),
        ("chat", "nobody/nothing"),
        ("eval", "gpt2", "--sets", "modular_test"),
        ("env", "--plan", "many.yaml"),
    )
    assert hub.codes == [2, 2, 2, 2]
    assert len(hub.asked) == 1, hub.asked
    assert told.count("the hub does not answer: ") == told.count("available on the hub") == 6
    assert len(others) == 3 and all("the hub does not answer: " in text for text in others)


def test_what_the_hub_does_not_have_is_asked_for_once(hub: Hub) -> None:
    hub.status = 404
    told = hub.run(("chat", "nobody/nothing"), ("score", "math_answer", "nobody/rows"))
    assert len(hub.asked) == 2, "once each"
    assert "the hub has no model 'nobody/nothing' that you may read" in told[0]
    assert "the hub has no dataset 'nobody/rows' that you may read" in told[1]


def test_a_mistyped_folder_is_no_matter_of_the_hub(hub: Hub) -> None:
    (hub.folder / "runs" / "quickstart-1").mkdir(parents=True)
    (hub.folder / "runs" / "note.txt").write_text("x")
    verbs = [("chat", name) for name in ("runs/quikstart-1", "/no/where", "./a", "a/b/c", "~/x")]
    told = hub.run(*verbs, ("eval", "runs/note.txt", "--sets", "modular_test"))
    assert hub.codes == [2] * 6 and not hub.asked
    assert told[0].strip() == (
        "there is no policy 'runs/quikstart-1': no such folder. Did you mean 'runs/quickstart-1'?"
    )
    assert all("no such folder" in text for text in told[:5])
    assert "is a file: give a folder" in told[5]


def test_what_is_in_the_cache_opens_without_the_hub(hub: Hub) -> None:
    place = hub.folder / "hf" / "hub" / "models--somebody--tiny"
    open_policy("scratch:dense-tiny", device="cpu").save(place / "snapshots" / "1")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("1")
    assert hub.run(("chat", "somebody/tiny")) == []
    assert hub.codes == [0] and len(hub.asked) == 1
