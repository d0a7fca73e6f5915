"""On a terminal of 80 columns no line of a result is longer, and nothing that matters is cut."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.cli.compare import comparison_table
from rl_reasoner.evaluation.formatting import NAME_WIDTH
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.evaluation.result import EvalResult, compare
from support.commands import Cli, lines

LONG = ".cache/real/splits/word_problems_test.jsonl"
PLAIN = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}


def result(name: str, right: int) -> EvalResult:
    """A result on a short and a long name, of 40 problems with 4 samples each."""
    rows = [
        {
            "problem": f"{i} apples and {i} more: how many are there in all, in the basket?",
            "answer": str(2 * i),
            "completions": [f"\\boxed{{{i}}}"] * 4,
            "scores": [float(i < right)] * 4,
            "lenient": [float(i < right + 2)] * 4,
            "reasons": [f"last box '{i}', gold '{2 * i}': a reason of some length"] * 4,
            "outcomes": ["score"] * 4,
            "tokens": [3] * 4,
            "truncated": [i == 0] * 4,
        }
        for i in range(40)
    ]
    sets = {"sums": compute_figures(rows), f"{LONG}@sampled": compute_figures(rows)}
    return EvalResult(name, rows=dict.fromkeys(sets, rows), sets=sets)


def fits(text: str) -> list[str]:
    shown = [line.rstrip() for line in text.splitlines()]
    assert [line for line in shown if len(line) > 80] == []
    return shown


def on_terminal(*argv: str, folder: Path) -> str:
    """What a terminal of 80 columns shows of the command, without colours."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    command = [sys.executable, "-m", "rl_reasoner.cli", *argv]
    environment = {**PLAIN, "TERM": "xterm"}
    process = subprocess.Popen(
        command, cwd=folder, stdin=inner, stdout=inner, stderr=inner, env=environment
    )
    os.close(inner)
    shown = b""
    while True:
        try:
            piece = os.read(outer, 65536)
        except OSError:  # its other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(60) == 0, shown.decode()
    os.close(outer)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", shown.decode())


def test_the_figures_of_an_evaluation_fit() -> None:
    """They are what train and eval end with."""
    shown = fits(result("a", 8).table())
    assert f"{LONG}@sampled" in shown, "a long name has a line of its own"
    assert "…" not in "".join(shown)
    assert len(shown[0]) > NAME_WIDTH


def test_a_comparison_fits_and_ends_with_its_sentence(tmp_path: Path) -> None:
    results = [result("a", 8), result("b", 30)]
    shown = fits(comparison_table(compare(*results)))
    assert any(line.startswith("  pass@4") for line in shown)
    files = [str(r.save(tmp_path / f"{r.policy}.json")) for r in results]
    told = on_terminal("compare", *map(os.path.basename, files), folder=tmp_path)
    last = " ".join(fits(told)).rpartition("sums: b is better than a: +55.0 points, p ")[2]
    assert " after Holm's correction; of +55.0 points strict, 55.0 are also there leniently" in last
    assert "jsonl@sampled: b is better than a" in last


def test_a_difference_that_is_not_shown_is_told_with_what_could_be(tmp_path: Path) -> None:
    for name, right in (("a", 8), ("b", 9)):
        result(name, right).save(tmp_path / f"{name}.json")
    told = " ".join(on_terminal("compare", "a.json", "b.json", folder=tmp_path).split())
    assert "no difference is shown (+2.5 points, p 1 after Holm's correction); this many" in told


def test_the_list_fits(tmp_path: Path, cli: Cli) -> None:
    shown = " ".join(" ".join(fits(on_terminal("list", folder=tmp_path))).split())
    about = json.loads(cli("list", "--json").out)["about"]
    for texts in (parts for names in about.values() for parts in names.values()):
        assert not texts or texts[0] in shown, "a description is there in full"
    assert "](" not in shown, "a link of a document"


@pytest.mark.slow
def test_a_step_and_a_rewards_checks_fit(tmp_path: Path) -> None:
    stage = tmp_path / "run" / "stages" / "1-grpo"
    stage.mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("name: run\n")
    score = {"outcome": "score", "value": 1.0, "reason": "last box '24', gold '24': same text"}
    row: dict[str, Any] = {
        "step": 1,
        "group": 0,
        "prompt": "Twelve apples and twelve more, " * 6,
        "answer": "24",
        "completion": "<think>12 + 12 = 24</think>\n\\boxed{24} " * 4,
        "reward": 1.0,
        "advantage": 0.5,
        "truncated": False,
        "scores": {"math_answer": score},
    }
    (stage / "rollouts.jsonl").write_text(lines(row, {**row, "advantage": -0.5}))
    metrics = {"step": 1, "completions/mean_terminated_length": 12.0}
    (stage / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    assert "\\boxed{24}" in "".join(fits(on_terminal("why", "run", folder=tmp_path)))
    shown = fits(on_terminal("check", "boxed", folder=tmp_path))
    assert shown[-1].endswith("."), "the verdict is the last line"
    assert " ".join(shown[-3:]).count("boxed: ") == 1
