"""Files of one name in two folders: titles that differ, and each chart with its own set's curve."""

import re
from pathlib import Path
from typing import Any

from rl_reasoner import EvalResult
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.report.charts import Chart
from rl_reasoner.report.evaluation import build_evaluation_page
from rl_reasoner.report.html import section
from rl_reasoner.report.page import build_page
from rl_reasoner.report.run_data import read_run
from rl_reasoner.report.shell import shell
from rl_reasoner.report.stages import figures
from support.report_runs import packs


def both() -> EvalResult:
    """Nine completions of ten are right on the one set, one on the other."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for folder, right in (("easy", 9), ("hard", 1)):
        rows[f"{folder}/test.jsonl"] = [
            {
                "problem": f"{folder} {n}",
                "answer": "1",
                "completions": ["x"] * 2,
                "scores": [float(n < right)] * 2,
                "reasons": ["r"] * 2,
                "outcomes": ["score"] * 2,
                "tokens": [2 + n] * 2,
                "truncated": [False] * 2,
            }
            for n in range(10)
        ]
    sets = {name: {**compute_figures(own), "temperature": 1.0} for name, own in rows.items()}
    return EvalResult("p", sets=sets, rows=rows)


def drawn(page: str, wanted: str) -> dict[str, Any]:
    """The charts whose keys begin so, by the rest; each has a figure, and each figure a chart."""
    charts = packs(page)["about"]["charts"]
    assert sorted(charts) == sorted(re.findall(r'data-chart="([^"]*)"', page))
    return {key.removeprefix(wanted): charts[key] for key in charts if key.startswith(wanted)}


def test_a_page_of_results_tells_them_apart() -> None:
    page = build_evaluation_page([both(), both()])
    curves = drawn(page, "curves/pass@k and maj@k on ")
    assert {key: chart["lines"][0]["y"] for key, chart in curves.items()} == {
        "easy/test": [0.9, 0.9],
        "hard/test": [0.1, 0.1],
    }
    assert [*drawn(page, "curves/Right answers by length on ")] == ["easy/test", "hard/test"]
    assert "easy/test: no difference is shown" in page and "<span>hard/test</span>" in page
    assert re.search(r"<h3>easy/test \(.+?\) at k<", page) and not re.search(r">test\b", page)


def test_a_run_s_report_tells_them_apart(tmp_path: Path) -> None:
    for name in ("before", "after"):
        both().save(tmp_path / "evals" / f"{name}.json")
    page = build_page(read_run(tmp_path))
    curves = drawn(page, "evaluations/pass@k on ")
    assert {key: chart["lines"][0]["y"] for key, chart in curves.items()} == {
        "easy/test": [0.9, 0.9],
        "hard/test": [0.1, 0.1],
    }
    assert "easy/test · accuracy" in page and not re.search(r">test\b", page)


def test_charts_of_one_title_keep_their_own_curves() -> None:
    charts = [Chart("Loss", {"kind": "curve", "lines": [{"x": [n]}]}) for n in range(3)]
    page = shell("a page", [section("s", "S", figures(charts, "s"))], "")
    assert [chart["lines"][0]["x"] for chart in drawn(page, "s/Loss").values()] == [[0], [1], [2]]
    assert re.findall(r'data-chart="([^"]*)"', page) == ["s/Loss", "s/Loss (2)", "s/Loss (3)"]
