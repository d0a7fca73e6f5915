"""Work of more than a few seconds says how far it is, on standard error alone."""

import json
from pathlib import Path

import pytest

from rl_reasoner.cli.progress import ProgressBars
from support.commands import Cli, lines


def test_without_a_terminal_a_line_now_and_then_has_the_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = iter([0.0, 0.0, 2.0, 6.0, 7.0, 12.0])
    with ProgressBars(quiet=False, clock=lambda: next(seconds)) as step:
        for done in (0, 100, 300, 350, 600):
            step("sums", done, 900)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "sums: 300/900, about 12.0 s left",
        "sums: 600/900, about 6.0 s left",
    ]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBars(quiet=True, clock=iter(range(0, 1000, 100)).__next__) as step:
        step("sums", 1, 900)
        step("sums", 2, 900)
    assert capsys.readouterr().err == ""


def test_json_has_standard_output_to_itself(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(lines({"completion": "\\boxed{2}", "answer": "2", "problem": "1+1="}))
    ended = cli("score", "math_answer", file, "--json")
    assert json.loads(ended.out)["mean"] == 1.0
    assert "scoring 1 rows" in ended.err


def test_json_is_alone_where_a_file_of_the_users_prints(tmp_path: Path, cli: Cli) -> None:
    body = "def loud(completions, **columns):\n    return [1.0 for one in completions]\n"
    (tmp_path / "loud.py").write_text(f"print('read the table')\n{body}")
    (tmp_path / "rows.jsonl").write_text(lines({"completion": "a", "problem": "1+1="}))
    ended = cli("score", "loud.py:loud", "rows.jsonl", "--json")
    assert json.loads(ended.out)["mean"] == 1.0 and "read the table" in ended.err
    assert "read the table" in cli("score", "loud.py:loud", "rows.jsonl").out
