"""benchmarks/gpu.py without a card: every part at tiny size, and parts that cannot be measured."""

import argparse
import importlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.places import ROOT
from support.ready import Ready

_MAIN = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import gpu
sys.exit(gpu.main(sys.argv[1:]))
"""


def test_every_part_runs_on_a_cpu_and_is_measured_once(tmp_path: Path) -> None:
    done = Ready(tmp_path, _MAIN, "out", "--dry-run").wait()
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    why = {row["part"]: row["why"] for row in report["parts"] if "why" in row}
    assert list(why) == ["sampling: generate_batch", "sampling: vLLM"]
    assert "vLLM is not installed" in why["sampling: vLLM"]
    figures = {row["part"]: row["figures"] for row in report["parts"] if "figures" in row}
    assert len(figures) == 9 and all(figures.values())
    ours, trl = figures["training: this project"], figures["training: trl"]
    assert ours["gradient norm"] == pytest.approx(trl["gradient norm"], rel=0.05)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "# no card (a dry run on a CPU)" in text and "x)" in text
    assert "| sampling: vLLM | not measured: vLLM is not installed" in text
    again = Ready(tmp_path, _MAIN, "out", "--dry-run").wait()
    assert again.stdout.count("there already") == 9


def works(count: Path) -> dict[str, float]:
    with count.open("a") as file:
        file.write("once\n")
    return {"rate": 2.0}


def raises() -> dict[str, float]:
    raise ValueError("a long text\nthe last line of which says why")


def dies() -> dict[str, float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs(then: Callable[[], Any] = lambda: None) -> dict[str, float]:
    then()
    time.sleep(3600)
    return {}


def stops_the_parent() -> None:
    os.kill(os.getppid(), signal.SIGINT)  # what Ctrl-C does


@pytest.mark.slow
def test_what_fails_is_a_row_that_says_why_and_ctrl_c_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu = importlib.import_module("gpu")
    (tmp_path / "logs").mkdir()
    asked = {"folder": tmp_path, "dry_run": True, "policy": "tiny", "data": None}
    given = argparse.Namespace(**asked, minutes=40.0)
    first = gpu.Part("first", 600.0, works, {"count": tmp_path / "count"})
    parts = [
        first,
        gpu.Part("raises", 600.0, raises, {}, "first"),
        gpu.Part("dies", 600.0, dies, {}),
        gpu.Part("hangs", 0.2, hangs, {}),
        gpu.Part("stopped", 600.0, hangs, {"then": stops_the_parent}),
        gpu.Part("last", 600.0, works, {"count": tmp_path / "count"}, "first"),
    ]
    about = {"card": "H100", "torch": "2"}
    assert not gpu.run_all(given, about, parts)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    for line in (
        "| first | rate 2 |",
        "| raises | not measured: ValueError: the last line of which says why |",
        "| dies | not measured: ended by signal 9 |",
        "| hangs | not measured: not done in 0 s |",
        "| stopped | not measured: not done |",
        "| last | not measured: not done |",
    ):
        assert line in report
    assert gpu.run_all(given, about, [first, parts[-1]])
    assert "| last | rate 2 (1.00x) |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (tmp_path / "count").read_text().count("once") == 2  # the first part was there
    other = argparse.Namespace(**{**asked, "policy": "another"}, minutes=40.0)
    assert gpu.run_all(other, about, [first])
    assert (tmp_path / "count").read_text().count("once") == 3
    assert gpu.run_all(given, {**about, "missing": "no card"}, [first])  # another machine's rows
    assert "| first | not measured: no card |" in (tmp_path / "report.md").read_text()
    alone = gpu.Part("alone", 600.0, dict, {"rate": 3.0})  # as on a card: no fork of this process
    assert gpu.measured(alone, tmp_path, 600.0, fork=False)["figures"] == {"rate": 3.0}
    late = argparse.Namespace(**asked, minutes=0.0)
    assert gpu.run_all(late, {"card": "A100"}, [first])
    assert "the 0 minutes are over" in (tmp_path / "report.md").read_text(encoding="utf-8")
