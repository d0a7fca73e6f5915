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
from rl_reasoner.evaluation.comparison import sentence_of
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
    shown = "no difference is shown (+2.5 points, p 1 after Holm's correction); a true difference"
    assert shown in told


def test_a_loss_of_pass_at_k_is_told_in_the_sentence_of_its_set() -> None:
    at_k = {"k": 4, "difference": -0.092, "p_holm": 0.0003}
    entry = {"difference": -0.002, "p_holm": 1.0, "detectable": 0.03, "pass_at_k": at_k}
    told = sentence_of("modular_ood@sampled", entry)
    assert "no difference is shown" in told
    assert told.endswith("; pass@4 is worse: −9.2 points, p 0.0003.")
    assert "pass@4" not in sentence_of("s", {**entry, "pass_at_k": {**at_k, "p_holm": 0.4}})


def test_the_list_is_a_line_for_each_name(tmp_path: Path, cli: Cli) -> None:
    shown = fits(on_terminal("list", folder=tmp_path))
    listed = [line.partition("  ")[::2] for line in map(str.strip, shown)]
    for names in json.loads(cli("list", "--json").out)["about"].values():
        for name, (text, *_) in names.items():
            folded = text == f"problems of the task {name.rpartition('_')[0]}"
            said = [line for listed_name, line in listed if listed_name == name]
            assert folded or any(text.split(";")[0] in line for line in said), "what it is"
    assert ("modular_*", "generated by its task: ood, test, train, validation") in [
        (name, line.strip()) for name, line in listed
    ]
    assert not re.search(r"\]\(|…(?!})", "".join(shown)), "neither a link nor a text that is cut"
    kinds = [line for line in shown if line and not line.startswith("  ")]
    assert len(kinds) == 7, "no description goes on in a second line"
    sets = fits(on_terminal("list", "sets", folder=tmp_path))
    [card] = [line for line in sets if line.startswith("  svamp ")]
    assert card.split()[-2:] == ["1,000", "hub"]
    assert "…" not in "".join(sets)
    assert "chal-680 has a wrong gold" in " ".join(sets)


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
