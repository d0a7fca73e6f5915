"""What models and strangers wrote, on a terminal: text, whatever stands in it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rl_reasoner.evaluation.formatting import short_number
from rl_reasoner.foreign import printable
from rl_reasoner.report.console import emit, err
from support.commands import Cli, lines

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x08\u202e[red][/nothing] 4"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
REWARD = """
from rl_reasoner import Score, reward


@reward
def echo(completion: str, answer: str) -> Score:
    return Score(float(answer in completion), "it says " + completion)


@reward
def picky(completion: str, answer: str) -> float:
    raise ValueError("not this: " + completion)
"""


@pytest.fixture
def hostile(here: Path) -> Path:
    """A run, its evaluations and a file of completions, all with controls in every text."""
    (here / "echo.py").write_text(REWARD)
    rows = [{"problem": f"2+2{HOSTILE}", "answer": "4", "completion": HOSTILE}] * 2
    (here / "saved.jsonl").write_text(lines(*rows))
    for file in [*here.glob("run/stages/*/rollouts.jsonl"), *here.glob("run/evals/*.rows.jsonl")]:
        found = [json.loads(line) for line in file.read_text().splitlines()]
        for row in found:
            for name in ("prompt", "problem", "completion"):
                if name in row:
                    row[name] = HOSTILE + row[name]
            for score in row.get("scores", {}).values() if "completion" in row else ():
                score["reason"] = HOSTILE
            if "reasons" in row:
                row |= {"reasons": [HOSTILE], "completions": [HOSTILE]}
                row["scores"] = [float("after" in file.name)]
        file.write_text(lines(*found))
    return here


@pytest.mark.parametrize(
    "verb",
    [
        ("score", "echo.py:echo", "saved.jsonl"),
        ("score", "echo.py:picky", "saved.jsonl"),
        ("score", "echo.py:echo", "saved.jsonl", "--disagree", "rewards.py:fine"),
        ("score", "echo.py:echo", "--rescore", "run"),
        ("why", "run", "--step", "1"),
        ("check", "echo.py:echo"),
        ("compare", "run/evals/before.json", "run/evals/after.json"),
        ("eval", "--replay", "run/evals/after.json", "--reward", "echo.py:picky"),
        ("train", f"nothing{HOSTILE}.yaml"),
        ("report", f"nothing{HOSTILE}"),
    ],
    ids=lambda verb: "-".join(printable(word) for word in verb[:3]),
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_control_character_of_a_foreign_text_reaches_the_screen(
    verb: tuple[str, ...], form: tuple[str, ...], hostile: Path, cli: Cli
) -> None:
    done = cli(*verb, *form)
    assert done.code in (0, 2, 3)
    assert not CONTROLS.search(done.out) and not CONTROLS.search(done.err)
    if form and done.code == 0:
        assert isinstance(json.loads(done.out), dict)


def test_json_says_what_the_text_was(hostile: Path, cli: Cli) -> None:
    asked = json.loads(cli("why", "run", "--step", "1", "--json").out)
    assert asked["group"][0]["completion"].startswith(HOSTILE)


def test_markup_in_a_completion_is_shown_as_it_is(
    hostile: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(err, "width", 200)  # no cell is broken, whatever the terminal
    assert "[red][/nothing]" in cli("why", "run", "--step", "1").out
    told = cli("compare", "run/evals/before.json", "run/evals/after.json")
    assert "[red][/nothing]" in told.err


def test_a_path_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    emit(False, {}, "runs/a:b:c/ratio:100:3 :x:")
    assert capsys.readouterr().out == "runs/a:b:c/ratio:100:3 :x:\n"


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    emit(True, {"a": [float("nan"), 1.5], "b": {"c": float("inf")}}, "")
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}}
    assert [short_number(x) for x in (float("nan"), float("-inf"))] == ["nan", "-inf"]


LIVE = """
import os
from rl_reasoner.report.console import err
from rl_reasoner.report.terminal import LiveView

with LiveView() as view:
    view.start_stage("one", 1, 1, 3)
    os.write(1, b"ready\\n")
    input()
    for step in (1, 2, 3):
        view.update({"reward": 1.0}, step)
    view.note("a note")
err.print("interrupted")
os.write(1, b"done\\n")
"""


@pytest.mark.slow
@pytest.mark.parametrize("opened", [os.openpty, os.pipe])
def test_a_reader_that_is_gone_ends_nothing(opened: Callable[[], tuple[int, int]]) -> None:
    """What is written to a terminal fails then (EIO), be it before its signal; to a pipe, too."""
    outer, inner = opened()
    process = subprocess.Popen(
        [sys.executable, "-c", LIVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=inner,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    os.close(inner)
    os.close(outer)
    assert process.communicate(b"\n", timeout=60)[0] == b"done\n"
    assert process.returncode == 0
