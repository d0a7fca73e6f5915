"""A stage's forecast beside what happened, on the report page."""

import json
from pathlib import Path
from typing import Any

from rl_reasoner.report import write_report
from support.report_runs import Parsed, make_run

FORECAST: dict[str, Any] = {
    "sentence": "likely to learn: 40% of groups flat, pass@1 30%, pass@8 80%",
    "direction": "up",
    "of": "the first 4 steps",
    "completions": 128,
    "useful_completions": 76.8,
    "last_length": 43.25,
    "minutes": {"stage": 2.0, "steps": 1.5},
    "detectable": {"modular_test": 0.045},
}
OUTCOME = {"minutes": 2.5, "minutes_of_steps": 2.4, "reward": "rose"}


def page(folder: Path, forecast: object) -> Parsed:
    run = make_run(folder)
    (run / "stages" / "2-grpo" / "forecast.json").write_text(json.dumps(forecast))
    return Parsed(write_report(run).read_text(encoding="utf-8"))


def test_a_forecast_stands_beside_its_outcome(tmp_path: Path) -> None:
    parsed = page(tmp_path, {**FORECAST, "outcome": OUTCOME})
    for shown in (
        "Forecast and outcome",
        "Likely to learn: 40% of groups flat",
        "learns",
        "the reward rose",
        "2 min 00 s",
        "2 min 30 s, 1.25 of the forecast",
        "76.8",
        "Least gain that the evaluations can show: 4.5 points on modular_test.",
    ):
        assert shown in parsed.text, shown
    cells = [text for text in parsed.texts if text.strip()]
    _, expected, became = cells[(at := cells.index("Tokens of a completion at the end")) : at + 3]
    assert expected == "43.2" and 30 < float(became) < 70


def test_of_a_stage_that_was_interrupted_its_steps_are_compared(tmp_path: Path) -> None:
    parsed = page(tmp_path, {**FORECAST, "outcome": {**OUTCOME, "minutes": None}})
    assert "1 min 30 s" in parsed.text and "2 min 24 s, 1.60 of the forecast" in parsed.text


def test_while_it_trains_there_is_no_outcome(tmp_path: Path) -> None:
    parsed = page(tmp_path, FORECAST)
    assert "learns" in parsed.text and "the reward rose" not in parsed.text


def test_a_file_of_another_kind_is_no_forecast(tmp_path: Path) -> None:
    for i, given in enumerate([[], {"sentence": 3}, {**FORECAST, "sentence": None}]):
        assert "Forecast and outcome" not in page(tmp_path / str(i), given).text
    torn = {**FORECAST, "minutes": "2", "outcome": [], "detectable": {"a": "b"}, "completions": {}}
    parsed = page(tmp_path / "torn", torn)
    assert "Forecast and outcome" in parsed.text and "of the forecast" not in parsed.text


def test_a_hostile_sentence_stays_text(tmp_path: Path) -> None:
    parsed = page(tmp_path, {**FORECAST, "sentence": "<script>alert(1)</script>", "of": "<b>x"})
    assert "<script>alert(1)</script>." in parsed.text and parsed.open == []
