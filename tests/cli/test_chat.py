"""`rl-reasoner chat`: thinking apart from the answer, two policies, verdicts, hostile text."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.cli import main
from rl_reasoner.cli.chat import Reply, stream
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.rollout.sampler import sample
from rl_reasoner.types import Rollout
from support.commands import Cli

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "<think>7*8=56</think><answer>6</answer>",
            ("<think>7*8=56</think>", "<answer>6</answer>"),
        ),
        ("<think>7*8=", ("<think>7*8=", "")),
        ("[THINK]7*8=", ("[THINK]7*8=", "")),
        ("<thinking>7*8=56</thinking>6", ("<thinking>7*8=56</thinking>", "6")),
        ("the answer is 6", ("", "the answer is 6")),
        ("a</think>b</think>c", ("a</think>b</think>", "c")),
    ],
)
def test_thinking_is_apart_from_the_answer(text: str, parts: tuple[str, str]) -> None:
    assert Reply("a", text).parts() == parts


def test_a_prompt_that_opens_the_thinking_is_heeded() -> None:
    assert Reply("a", "7*8=", opened=True).parts() == ("7*8=", "")
    assert Reply("a", "7*8=56</think>6", opened=True).parts() == ("7*8=56</think>", "6")


def test_an_answer_that_only_a_tool_printed_is_none(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Rollout("f()\n<answer>2</answer>\nso", 9, False, policy_text="f()\n\nso")
    monkeypatch.setattr("rl_reasoner.cli.chat.stream", lambda *given: reply)
    ended = cli("chat", "run", "--answer", "2", "--json", stdin="1+1=\n/answer 2\n")
    told = [json.loads(line) for line in ended.out.splitlines()]
    assert [reply["score"] for reply in told] == [0.0, 0.0]
    assert all("<answer>2</answer>" in reply["answer"] for reply in told)


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_streamed_is_what_an_evaluation_samples(
    temperature: float, engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the same prompt and seed, by the engine and by `generate` where that cannot run."""
    policy = open_policy("scratch:dense-tiny", device="cpu")
    if not engine:
        monkeypatch.setattr("rl_reasoner.rollout.sampler.engine_runs", lambda model: False)
    replies = []
    for seed in (1, 2):
        heard: list[str] = []
        told = stream(policy, "1+1=", temperature, 12, seed, heard.append)
        text, cut = told.text, told.truncated
        several = sample(
            policy, ["2+2=", "1+1="], samples=2, temperature=temperature, max_tokens=12, seed=seed
        )
        assert (text, cut) == (several[1][0].text, several[1][0].truncated)
        assert "".join(heard) == text
        assert len(heard) > 4
        replies.append(text)
    assert (replies[0] != replies[1]) == bool(temperature)


def test_two_policies_answer_the_same_problem(here: Path, cli: Cli) -> None:
    both = ("chat", "run", "scratch:dense-tiny", "--max-tokens", "3")
    lines = cli(*both, stdin="1+1=\n").out.splitlines()
    assert lines[0] == "run"
    assert "scratch:dense-tiny" in lines
    [row] = map(json.loads, cli(*both, "--json", stdin="1+1=\n").out.splitlines())
    assert [reply["policy"] for reply in row["replies"]] == ["run", "scratch:dense-tiny"]


def test_replies_are_verified(here: Path, cli: Cli) -> None:
    ask = ("chat", "run", "--max-tokens", "3")
    assert "wrong: " in cli(*ask, "--answer", "2", stdin="1+1=\n").out
    [row] = map(json.loads, cli(*ask, "--answer", "2", "--json", stdin="1+1=\n").out.splitlines())
    assert row["score"] == 0.0
    assert row["reason"]
    lines = cli(*ask, stdin="1+1=\n/answer 2\n").out.splitlines()
    assert lines[-1].startswith("wrong: ")
    rows = [*map(json.loads, cli(*ask, "--json", stdin="1+1=\n/answer 2\n").out.splitlines())]
    assert ["score" in row for row in rows] == [False, True]


@pytest.mark.parametrize("typed", ["/answer 2\n", "1+1=\n/answer\n"])
def test_a_verdict_needs_a_reply_and_an_answer(here: Path, cli: Cli, typed: str) -> None:
    ended = cli("chat", "run", "--max-tokens", "3", stdin=typed)
    assert ended.code == 2
    assert "/answer ANSWER comes after a problem" in ended.err


def test_hostile_replies_move_no_cursor() -> None:
    reply = Reply(
        "a", "<think>\x1b[2J\x1b]0;title\x07</think>__import__('os').system('id') \u202e[red]"
    )
    shown = reply.shown().plain
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "[red]" in shown


def on_terminal(*argv: str, typed: str, folder: Path) -> str:
    """What a terminal of 100 columns shows of the command, to which `typed` is typed."""
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rl_reasoner.cli", *argv],
        cwd=folder,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env=ENVIRONMENT,
        close_fds=True,
    )
    os.close(inner)
    shown = b""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if select.select([outer], [], [], 0.2)[0]:
            try:
                shown += os.read(outer, 65536)
            except OSError:
                break
            if typed and b"problem>" in shown:
                os.write(outer, typed.encode())
                typed = ""
    process.wait(20)
    os.close(outer)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


def test_on_a_terminal_replies_stream_and_stand_side_by_side(here: Path) -> None:
    argv = ("chat", "run", "--max-tokens", "3", "--answer", "2")
    shown = on_terminal(*argv, typed="1+1=\n\n", folder=here)
    assert "wrong" in shown
    argv = ("chat", "run", "scratch:dense-tiny", "--max-tokens", "3")
    shown = on_terminal(*argv, typed="1+1=\n\n", folder=here)
    assert any("run" in line and "scratch:dense-tiny" in line for line in shown.splitlines())


class Typed(io.StringIO):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_ctrl_c_ends_a_reply_and_not_the_talk(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = iter([KeyboardInterrupt, Rollout("<answer>2</answer>", 9, False)])

    def answer(*given: Any) -> Rollout:
        reply = next(replies)
        if not isinstance(reply, Rollout):
            raise reply
        return reply

    monkeypatch.chdir(here)
    monkeypatch.setattr("rl_reasoner.cli.chat.stream", answer)
    monkeypatch.setattr("sys.stdin", Typed("9+9=\n/answer 18\n1+1=\n/answer 2\n"))
    assert main(["chat", "run"]) == 0
    ended = capsys.readouterr()
    assert "the reply was stopped" in ended.err and "comes after a problem" in ended.err
    assert "right: " in ended.out
    replies = iter([KeyboardInterrupt])
    monkeypatch.setattr("sys.stdin", io.StringIO("9+9=\n1+1=\n"))
    assert main(["chat", "run"]) == 130, "of a pipe it ends all"


def test_bytes_that_are_no_text_are_told_by_their_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    given = io.BytesIO(b"1+1=\n\n2\xff+2=\n3+3=\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(given, encoding="utf-8"))
    assert main(["chat", "run", "--max-tokens", "3", "--json"]) == 2
    ended = capsys.readouterr()
    assert [json.loads(line)["problem"] for line in ended.out.splitlines()] == ["1+1="]
    assert "standard input, line 3: not UTF-8 (byte 0xff)" in ended.err


def test_a_prompt_beyond_the_policys_positions_is_told_before_it_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe ends with it, a talk goes on."""
    typed = "1+" * 600 + "1=\n1+1=\n"
    monkeypatch.chdir(here)
    for given, code, replies in ((io.StringIO(typed), 2, 0), (Typed(typed), 0, 1)):
        monkeypatch.setattr("sys.stdin", given)
        assert main(["chat", "run", "--max-tokens", "3", "--json"]) == code
        ended = capsys.readouterr()
        assert "tokens, more than the 1024 positions of" in " ".join(ended.err.split())
        assert ended.out.count('"truncated": true') == replies


def test_unknown_commands_are_answered_and_not_sent_to_the_policy(here: Path, cli: Cli) -> None:
    ask = ("chat", "run", "--max-tokens", "4", "--json")
    ended = cli(*ask, stdin="/help\n/anwser 2\n/home/me is a path\n")
    assert ended.code == 0
    [reply] = map(json.loads, ended.out.splitlines())
    assert reply["problem"] == "/home/me is a path"
    told = ended.err.splitlines()
    assert told[0].startswith("there is no /help. Type a problem; /answer 9 checks")
    assert told[1].startswith("there is no /anwser. Did you mean '/answer'?")


def test_an_unfinished_run_offers_its_last_finished_stage(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "run").mkdir()
    for name, text in ((".lock", ""), ("recipe.yaml", "name: run\n")):
        (tmp_path / "run" / name).write_text(text)
    ended = cli("chat", tmp_path / "run")
    assert ended.code == 2
    assert "has no policy/ yet: continue it (rl-reasoner train --resume" in ended.err
    assert "stage" not in ended.err
    for stage in ("1-form", "2-grpo", "10-more", "11-half"):  # which was killed in its save
        policy = tmp_path / "run" / "stages" / stage / "policy"
        policy.mkdir(parents=True)
        (policy / "config.json").write_text("{}")
        (policy.parent / "done.json").write_text("{}")
    (policy.parent / "done.json").unlink()
    last = tmp_path / "run/stages/10-more/policy"
    told = cli("chat", tmp_path / "run").err
    assert f"take that of its last finished stage: {last}" in told


def test_the_first_line_shows_a_problem_of_the_runs_data(here: Path) -> None:
    rows = (here / "run" / "evals" / "after.rows.jsonl").read_text().splitlines()
    shown = on_terminal("chat", "run", "--max-tokens", "3", typed="/answer 2\n\n", folder=here)
    assert " ANSWER comes after a problem" in shown, "and the conversation goes on"
    assert f"for example: {json.loads(rows[0])['problem']}" in shown
