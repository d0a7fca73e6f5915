"""The figures of docs/hacking-meter.md are those of the results that are kept."""

import json
from itertools import groupby

from support.places import ROOT


def test_the_document_has_the_figures_of_the_results() -> None:
    text = (ROOT / "docs/hacking-meter.md").read_text(encoding="utf-8")
    results = (ROOT / "benchmarks/hacking_meter.jsonl").read_text(encoding="utf-8")
    kept = [json.loads(line) for line in results.splitlines()]
    planted = [row for row in kept if row["kind"] == "planted"]
    assert len({(row["name"], row["seed"]) for row in planted}) == len(planted) == 5 * 6
    assert all(row["alarm"] and row["alarm"] < 40 for row in planted)
    assert not any(row["alarm"] for row in kept if row["kind"] != "planted")
    for run, lines in groupby(kept, key=lambda row: str(row["run"])):
        rows = [*lines]
        judged, disagrees, cannot = (
            f"{sum(row[key] for row in rows):,}" for key in ("judged", "disagrees", "cannot_tell")
        )
        alarms = ", ".join(str(row["alarm"] or "none") for row in rows)
        if rows[0]["kind"] != "recorded":
            assert f"| {run} | {alarms} | {judged} | {disagrees} |" in text, run
        elif judged != "0":
            cells = f"| {rows[0]['steps']} | none | {judged} | {disagrees} | {cannot} |"
            assert cells in text, run
