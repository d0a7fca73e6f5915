"""The page of a run that trains: served here alone, to who has the token; it follows the run."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.report.server import Watched, serve_folder
from support.report_runs import lines, make_run, packs, rollout

STAGE = Path("stages") / "2-grpo"
SOURCE = "stage-2-rollouts"


@dataclass
class Served:
    """A served run: its folder and address."""

    folder: Path
    url: str

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str, Any]:
        """Status, body and headers of the answer to a request for `path` (from the host's root)."""
        where = urlsplit(self.url)
        connection = HTTPConnection(where.hostname or "", where.port, timeout=20)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body, answer.headers

    @property
    def path(self) -> str:
        return urlsplit(self.url).path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = make_run(tmp_path, steps=8)
    command = [sys.executable, "-m", "rl_reasoner.cli", "report", str(folder), "--live", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield Served(folder, json.loads(process.stdout.readline())["live"])
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    process.stdout.close()


def test_only_the_token_opens_and_only_two_things_are_there(served: Served) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", served.url)
    status, body, headers = served.ask(served.path)
    assert (status, "modular-r1-zero" in body) == (200, True)
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    port = urlsplit(served.url).port
    token = served.path.strip("/")
    wrong = "x" if token[-1] != "x" else "y"
    refused = [
        "/",
        "/state",
        f"/{token[:-1]}{wrong}/",
        served.path.rstrip("/"),
        f"{served.path}lock.json",
        f"{served.path}../../../etc/passwd",
        f"{served.path}..%2f..%2fetc%2fpasswd",
        f"{served.path}/etc/passwd",
        f"{served.path}state/",
        "/%2e%2e/",
        "//",
        "//[",
        "*",
        f"{served.path[1:]}state",
    ]
    for path in refused:
        status, body, _ = served.ask(path)
        assert (status, body) == (404, ""), path
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", ""):
        assert served.ask(served.path, Host=host)[0] == 403
    assert served.ask(served.path, Host=f"localhost:{port}")[0] == 200
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
        assert served.ask(served.path, method)[0] == 501
    for ends in ("{", "[]", "7"):
        assert served.ask(f"{served.path}state?ends={ends}")[0] == 400


def test_nothing_listens_beyond_this_machine(served: Served) -> None:
    port = urlsplit(served.url).port
    with pytest.raises(OSError):  # an address of this machine that is not the one listened at
        socket.create_connection(("127.0.0.2", port), timeout=2).close()


def test_serving_writes_nothing_into_the_run(served: Served) -> None:
    before = sorted(served.folder.rglob("*"))
    served.ask(served.path)
    served.ask(f"{served.path}state?have=&ends={{}}")
    assert sorted(served.folder.rglob("*")) == before


def grow(folder: Path, step: int, more: dict[str, float] | None = None) -> None:
    """What a step of training appends to a stage."""
    with (folder / STAGE / "rollouts.jsonl").open("a") as file:
        file.writelines(json.dumps(rollout(step, 0, i, True)) + "\n" for i in range(4))
    with (folder / STAGE / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "reward": 0.125, "kl": 0.5, **(more or {})}) + "\n")


def begun(folder: Path) -> tuple[Watched, dict[str, Any], dict[str, int]]:
    watched = Watched(folder)
    about = packs(watched.page())["about"]
    return watched, about["live"], {s["key"]: s["end"] for s in about["sources"] if s["end"]}


def test_what_a_step_adds_is_sent_once(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=8)
    watched, live, ends = begun(folder)
    assert watched.state(live["version"], ends) is None
    grow(folder, 9)
    state = watched.state(live["version"], ends)
    assert state is not None
    assert state["structure"] == live["structure"]
    assert ["Completions", "124"] in [list(fact) for fact in state["facts"]]
    assert state["charts"]["stage-2/Reward"]["spec"]["lines"][0]["y"][-1] == 0.125
    sent = state["rollouts"][SOURCE]
    assert [row[0] for row in sent["rows"]] == [9] * 4
    assert watched.state(state["version"], {**ends, SOURCE: sent["end"]}) is None
    late = watched.state(state["version"], ends)  # another reader, who has less
    assert late is not None
    assert late["rollouts"] == state["rollouts"]


@pytest.mark.parametrize("change", ["evaluation", "stage", "chart", "cut back"])
def test_what_only_a_new_page_can_show_makes_the_page_load_anew(
    tmp_path: Path, change: str
) -> None:
    folder = make_run(tmp_path, steps=8)
    watched, live, ends = begun(folder)
    if change == "evaluation":
        shutil.copy(folder / "evals" / "after.json", folder / "evals" / "later.json")
    elif change == "stage":
        lines(folder / "stages" / "3-more" / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    elif change == "chart":
        grow(folder, 9, {"router_replay/flips": 0.1})
    else:
        text = (folder / STAGE / "rollouts.jsonl").read_text().splitlines(keepends=True)
        (folder / STAGE / "rollouts.jsonl").write_text("".join(text[:20]))
    state = watched.state(live["version"], ends)
    assert state is not None
    assert state["structure"] != live["structure"]
    after = packs(watched.page())["about"]["live"]
    grow(folder, 10)
    state = watched.state(after["version"], {})
    assert state is not None
    assert state["structure"] == after["structure"]  # and is not loaded over and over


def test_a_run_that_has_only_just_begun_is_served(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: young\n")
    watched, live, _ = begun(tmp_path)
    lines(tmp_path / STAGE / "metrics.jsonl", [{"step": 1, "reward": 1.0}])
    state = watched.state(live["version"], {})
    assert state is not None
    assert state["structure"] != live["structure"]
    assert "Stage 2 · grpo" in watched.page()


def test_a_folder_that_is_no_run_and_a_port_that_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        serve_folder(tmp_path, 0, print)
    (tmp_path / "recipe.yaml").write_text("name: young\n")
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(UserError, match="cannot listen"):
        serve_folder(tmp_path, taken.getsockname()[1], print)


def test_readers_at_once_get_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=8)
    watched, live, ends = begun(folder)
    grow(folder, 9)
    got: list[Any] = []
    readers = [
        threading.Thread(target=lambda: got.append(watched.state(live["version"], ends)))
        for _ in range(4)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert all(state == got[0] for state in got)
    assert ("Completions", "124") in got[0]["facts"]
