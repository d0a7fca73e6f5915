"""What somebody else's run, recipe or evaluation names: no code of it runs, no address is asked."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from rl_reasoner import trust
from rl_reasoner.audit import apart
from rl_reasoner.audit.checks import Replay
from rl_reasoner.errors import UserError
from rl_reasoner.scoring import registry
from rl_reasoner.trust import untyped
from support.commands import Cli

CODE = '''
import os
from pathlib import Path

(Path("ran") / f"{os.getpid()}").touch()  # at its import: that is too late for anybody to say no


def fine(completions, **columns):
    return [0.0] * len(completions)


def look(text: str) -> str:
    """Look something up.

    Args:
        text: What to look for.
    """
    return text


def ask(messages, seed):
    return "{}"


class Own:
    def reset(self, row):
        return []

    def step(self, completion):
        return "", 1.0, True
'''
FORGER = """
from rl_reasoner.audit import findings

findings.Audit.holds = property(lambda self: True)
findings.Audit.of = lambda self, status: []
findings.differs = findings.held
"""
CODES: dict[str, dict[str, Any]] = {
    "reward": {"rewards": {"their.py:fine": 1}},
    "source": {"rewards": {"fine": {"weight": 1, "source": CODE}}},
    "package": {"rewards": {"theirs.deep:fine": 1}},
    "judge": {
        "rewards": {"judge": {"weight": 1, "options": {"function": "their.py:ask"}}},
    },
    "tool": {"rewards": {"math_answer": 1}, "tools": {"use": ["their.py:look"]}},
    "environment": {"rewards": {"environment": 1}, "environment": {"use": "their.py:Own"}},
    "trl": {
        "rewards": {"environment": 1},
        "environment": {"use": "trl", "options": {"factory": "their.py:Own"}},
    },
    "meter": {"rewards": {"math_answer": 1}, "hacking_meter": {"judge": "their.py:fine"}},
    "evals": {"rewards": {"math_answer": 1}, "evals": {"reward": "their.py:fine"}},
}
"""What a recipe has to run code by, each with a canary in it."""


class Listener(BaseHTTPRequestHandler):
    """Notes who connects, and with which token."""

    seen: ClassVar[list[str]] = []

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        self.seen.append("connected")
        super().handle_one_request()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append(self.headers.get("Authorization", ""))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"0.5")

    do_GET = do_HEAD = do_POST


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of theirs, which the secrets of this user are none of."""
    monkeypatch.setenv("MY_SECRET", "hunter2")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    Listener.seen.clear()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def planted(here: Path, **fields: Any) -> Path:
    """The run in `here`, in whose recipe a stranger has put `fields`; a set of his beside it."""
    (here / "ran").mkdir(exist_ok=True)
    (here / "their.py").write_text(CODE, encoding="utf-8")
    package = here / "theirs"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(CODE, encoding="utf-8")
    (package / "deep.py").write_text(CODE, encoding="utf-8")
    file = here / "run" / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    recipe["evals"] |= {"reward": None, "reward_options": {}} | fields.pop("evals", {})
    for name, value in fields.items():
        recipe[name] = value
    (here / "run" / "hashes.json").unlink()  # nothing is sealed
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return here / "run"


def saved(run: Path, reward: str, options: dict[str, Any] | None = None) -> Path:
    """An evaluation of the run, whose judge is said to be `reward`: in its set alone."""
    file = run / "evals" / "after.json"
    result = json.loads(file.read_text(encoding="utf-8"))
    result["settings"] |= {"reward": "math_answer", "reward_options": options or {}}
    for figures in result["sets"].values():
        figures["reward"] = reward
    file.write_text(json.dumps(result), encoding="utf-8")
    return file


def commands(run: Path) -> dict[str, list[str | Path]]:
    """Every verb that opens a run, or what lies in it."""
    recipe = run / "recipe.yaml"
    evaluation = run / "evals" / "after.json"
    sampled = ["--sets", "modular_test", "--limit", "1", "--max-tokens", "2", "--no-cache"]
    return {
        "audit": ["audit", run, "--quiet"],
        "audit without a replay": ["audit", run, "--no-replay", "--quiet"],
        "audit of all": ["audit", run, "--all", "--quiet"],
        "publish": ["publish", run, "published"],
        "check": ["check", recipe, "--quiet", "--run.folder", "other"],
        "export to verl": ["export", recipe, "verl", "--to", "verl"],
        "export": ["export", run, "policy"],
        "eval": ["eval", run, *sampled, "--quiet"],
        "eval again": ["eval", "--replay", evaluation],
        "filter": [
            "filter",
            run,
            "modular_test",
            "--limit",
            "1",
            "--max-tokens",
            "2",
            "--no-cache",
        ],
        "chat": ["chat", run, "--max-tokens", "2", "--quiet"],
        "score": ["score", "fine", "--rescore", run],
        "score by its judge": ["score", "judge", "--rescore", run],
        "why": ["why", run],
        "why under a reward": ["why", run, "--step", "1", "--reward", "length"],
        "compare": ["compare", evaluation, evaluation],
        "report": ["report", run],
        "plan": ["env", "--plan", recipe, "--gpus", "1", "--gpu", "h100"],
        "help": ["train", "--resume", run, "--help"],
        "completion": ["completion", "words", "train", "--resume", str(run), "--rew"],
    }


def nothing_ran(here: Path) -> bool:
    return not [*(here / "ran").iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("way", CODES)
def test_no_verb_runs_the_code_of_a_run(way: str, cli: Cli, here: Path, monkeypatch: Any) -> None:
    """A reward, a tool, an environment, a judge or a package of the run's: none is imported."""
    monkeypatch.syspath_prepend(str(here))  # as with python -m, where packages beside are found
    run = planted(here, **CODES[way])
    for name, command in commands(run).items():
        ended = cli(*command, stdin="1+1=\n")
        assert nothing_ran(here), f"{name}: {ended.err}"
        assert ended.code in (0, 1, 2), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evil.YAML", "evil.yaml.txt", "recipe", "quickstart"])
def test_a_recipe_is_no_program_by_its_name(name: str, cli: Cli, here: Path) -> None:
    """What runs is a script; a file that is read as YAML is anybody's, whatever it is called."""
    run = planted(here, **CODES["reward"])
    (run / "recipe.yaml").rename(here / name)
    for command in (["check", name, "--quiet"], ["export", name, "verl", "--to", "verl"]):
        ended = cli(*command)
        assert (ended.code, nothing_ran(here)) == (2, True), ended.err


@pytest.mark.slow
def test_an_evaluation_brings_no_code_along(cli: Cli, here: Path) -> None:
    """The reward of a set stands in a file that nobody typed; the recipe is clean."""
    run = planted(here, rewards={"math_answer": 1})
    file = saved(run, "their.py:fine")
    ended = cli("eval", "--replay", file)
    assert (ended.code, nothing_ran(here)) == (2, True), ended.err
    assert "their.py:fine" in ended.err
    assert "--run-its-code" in ended.err
    ended = cli("audit", run, "--no-replay", "--json")
    assert nothing_ran(here)
    said = [f for f in json.loads(ended.out)["findings"] if "their.py:fine" in f["said"]]
    assert said[-1]["status"] == "unchecked"
    assert cli("eval", "--replay", file, "--run-its-code").code == 0
    assert not nothing_ran(here)


ASKED = ("reward", "judge", "meter", "evals", "set", "rollouts")


def asking(here: Path, server: str, way: str) -> Path:
    """The run, whose recipe or evaluation names the server in the `way`."""
    url: dict[str, Any] = {"token": "MY_SECRET", "attempts": 1}
    judge = {"server": server, "model": "m", "attempts": 1}
    clean = {"rewards": {"math_answer": 1}}
    if way == "reward":
        return planted(here, rewards={server: {"weight": 1, "options": url}})
    if way == "judge":
        return planted(here, rewards={"judge": {"weight": 1, "options": judge}})
    if way == "meter":
        meter = {"judge": server, "judge_options": url}
        return planted(here, **clean, hacking_meter=meter)
    if way == "evals":
        return planted(here, **clean, evals={"reward": server, "reward_options": url})
    if way == "set":
        run = planted(here, **clean)
        saved(run, server, url)
        return run
    run = planted(here, **clean)
    file = run / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    recipe["stages"][-1]["vllm"] = {"mode": "server", "url": server, "timeout_s": 1}
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("way", ASKED)
def test_no_verb_asks_an_address_of_a_run(way: str, cli: Cli, here: Path, server: str) -> None:
    """No connection, no token: also where the user was told to run the code, which is another."""
    run = asking(here, server, way)
    for name, command in commands(run).items():
        ended = cli(*command, stdin="1+1=\n")
        assert not Listener.seen, f"{name}: {ended.err}"


def test_an_address_is_asked_where_the_user_allows_it(
    cli: Cli, here: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, with the token that would go there; a token goes to the host it is for."""
    file = saved(asking(here, server, "reward"), server, {"token": "MY_SECRET", "attempts": 1})
    host = server.removeprefix("http://")
    for allowed in ("", host, f"{host}=OTHER", f"localhost:1={'MY_SECRET'}", f"{host}1=MY_SECRET"):
        monkeypatch.setenv("RL_REASONER_HOSTS", allowed)
        ended = cli("eval", "--replay", file)
        assert (ended.code, Listener.seen) == (2, []), allowed
        assert f"RL_REASONER_HOSTS={host}=MY_SECRET" in ended.err
    monkeypatch.setenv("RL_REASONER_HOSTS", f"judge.example=KEY,{host}=MY_SECRET")
    assert cli("eval", "--replay", file).code == 0
    assert "Bearer hunter2" in Listener.seen
    Listener.seen.clear()
    cli("audit", file.parents[1], "--no-replay")  # an audit asks nobody
    assert not Listener.seen


def test_what_was_typed_is_loaded(cli: Cli, here: Path, server: str) -> None:
    """A reward, its options and an address on the command line are the user's own."""
    run = planted(here, rewards={"math_answer": 1})
    (here / "mine.py").write_text(CODE, encoding="utf-8")
    assert cli("score", "mine.py:fine", "--rescore", run).code == 0
    assert not nothing_ran(here)
    file = run / "evals" / "after.json"
    typed = ["--reward", server, "--reward-options", "token=MY_SECRET,attempts=1"]
    assert cli("eval", "--replay", file, *typed).code == 0
    assert "Bearer hunter2" in Listener.seen


def test_a_run_that_was_tampered_with_cannot_clear_itself(cli: Cli, here: Path) -> None:
    """Its code rewrites every finding that is made in its process: it has one of its own."""
    run = planted(here, rewards={"their.py:fine": 1})
    (here / "their.py").write_text(CODE + FORGER, encoding="utf-8")
    rollouts = run / "stages" / "2-grpo" / "rollouts.jsonl"
    text = rollouts.read_text(encoding="utf-8")
    rollouts.write_text(text.replace('"reward": ', '"reward": 1', 1), encoding="utf-8")
    for flags in ([], ["--run-its-code"]):
        ended = cli("audit", run, "--no-replay", "--json", *flags)
        assert ended.code == 1, ended.out
        found = json.loads(ended.out)["findings"]
        assert any(f["status"] == "differs" and f["part"] == "completions" for f in found)
        assert nothing_ran(here) is not bool(flags)
    by_code = [f["said"] for f in found if "by the run's own code" in f["said"]]
    assert by_code
    assert not any("--run-its-code" in f["said"] for f in found)


@pytest.mark.parametrize(
    "reply",
    [
        b"7",
        b"[1]",
        b'{"what": 7}',
        b'{"what": [1]}',
        b'{"what": [{"part": 1, "status": "held", "said": "x"}]}',
        b'{"what": [{"part": "code", "status": "fine", "said": "x"}]}',
        b'{"what": [{"part": "code", "status": ["held"], "said": "x"}]}',
        b'{"what": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_a_reply_that_is_none_loses_no_finding(
    reply: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that a helper outlives, or that does not end."""
    start = tmp_path / "start.sh"
    (tmp_path / "reply").write_bytes(reply)
    start.write_text(f"#!/bin/sh\nsleep 20 &\ncat '{tmp_path}/reply'\n", encoding="utf-8")
    start.chmod(0o755)
    monkeypatch.setattr(apart.sys, "executable", str(start))
    began = time.monotonic()
    for more in ("", "sleep 20\n"):
        start.write_text(start.read_text(encoding="utf-8") + more, encoding="utf-8")
        [found] = apart.checks_apart(tmp_path, Replay(), ["what"])["what"]
        assert (found.part, found.status) == ("code", "unchecked")
        monkeypatch.setattr(apart, "_MOST_H", 1e-5)
    assert "was ended after" in found.said
    assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.parametrize("argument", [{"report_to": "wandb"}, {"push_to_hub": True}])
def test_an_argument_of_trl_may_not_load_or_send(
    argument: dict[str, Any], cli: Cli, here: Path
) -> None:
    """Texts name files, modules and addresses; numbers name nothing."""
    run = planted(here, rewards={"math_answer": 1})
    file = run / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    for given, code in ((argument, 2), ({"seed": None, "data_seed": 7}, 0)):
        recipe["stages"][-1]["trainer"] = {n: v for n, v in given.items() if v is not None}
        file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        ended = cli("check", file, "--quiet", "--run.folder", "other")
        assert ended.code == code, ended.err
        assert ("--run-its-code" in ended.err) is (code == 2)


def test_what_is_installed_is_code_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point and a taskset of verifiers: a file that names them has them imported."""
    from rl_reasoner.environments.verifiers import VerifiersTaskset

    point = EntryPoint("theirs", "theirs.deep:fine", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    with untyped():
        for load in (lambda: registry.load_reward("theirs"), lambda: VerifiersTaskset("theirs")):
            with pytest.raises(UserError, match="--run-its-code"):
                load()
        assert registry.function_name("theirs") == "fine"


def test_a_word_that_was_typed_is_no_part_of_another() -> None:
    """What a file names is compared as a whole, and a host with its port."""
    with untyped(["--reward-options", "function=my/judge.py:ask,server=http://a.example:8/v1"]):
        trust.check_typed("my/judge.py:ask")
        trust.check_address("http://a.example:8/other")
        for name in ("judge.py:ask", "y/judge.py:ask", "os:system"):
            with pytest.raises(UserError):
                trust.check_typed(name)
        for url in ("http://a.example", "http://a.example:80", "http://a.example:8@b.example"):
            with pytest.raises(UserError):
                trust.check_address(url)
        with untyped(code=True):  # of a file, within what was typed: nothing more is allowed
            for name in ("my/judge.py:ask", "os:system"):
                with pytest.raises(UserError):
                    trust.check_typed(name)
    trust.check_typed("os:system")


def test_a_token_goes_where_nobody_else_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over https or on this machine, or as it was typed; not with every address."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    monkeypatch.setenv(
        "RL_REASONER_HOSTS", "b.example:443=KEY,http://c.example:8=KEY,d.example=KEY"
    )
    typed = ["https://a.example/s", "--reward-options", "token=MINE,server=http://e.example:8/v1"]
    goes = [
        ("https://a.example/t", "MINE"),
        ("https://a.example:443/t", "MINE"),
        ("https://b.example", "KEY"),
        ("http://c.example:8", "KEY"),
        ("https://d.example:443", "KEY"),
    ]
    stays = [
        ("https://a.example/s", "OPENAI_API_KEY"),
        ("http://a.example/s", "MINE"),
        ("http://b.example:443", "KEY"),
        ("http://d.example", "KEY"),
        ("http://e.example:8", "OPENAI_API_KEY"),
    ]
    with untyped(["score", *typed]):
        for url, token in goes:
            trust.check_address(url, token)
        for url, token in stays:
            with pytest.raises(UserError, match=token):
                trust.check_address(url, token)
        assert trust.token_for("http://e.example:8/v1", "OPENAI_API_KEY") == "sk-mine"
        for url in ("https://a.example/s", "http://e.example/v1", "https://b.example"):
            assert trust.token_for(url, "OPENAI_API_KEY") is None
        with untyped(code=True):
            assert trust.token_for("http://e.example:8/v1", "OPENAI_API_KEY") is None


@pytest.mark.parametrize("options", ["votes=3,function={}", '{{"function": "{}"}}'])
def test_a_path_with_a_space_is_typed(options: str) -> None:
    """As a whole: a part of it is another name."""
    with untyped(["--reward-options", options.format("my own/judge.py:ask")]):
        trust.check_typed("my own/judge.py:ask")
        with pytest.raises(UserError):
            trust.check_typed("my own")


def test_a_handover_refuses_code_by_the_name_in_the_recipe(cli: Cli, here: Path) -> None:
    run = planted(here, **CODES["reward"])
    ended = cli("export", run / "recipe.yaml", "verl", "--to", "verl")
    assert (ended.code, nothing_ran(here)) == (2, True)
    assert "reward 'their.py:fine'" in ended.err and "own_rewards" not in ended.err
