"""The figures of docs/hacking-meter.md are those of the results that are kept."""

import json

from support.places import ROOT


def test_the_document_has_the_figures_of_the_results() -> None:
    text = (ROOT / "docs/hacking-meter.md").read_text(encoding="utf-8")
    results = (ROOT / "benchmarks/hacking_meter.jsonl").read_text(encoding="utf-8")
    kept = [json.loads(line) for line in results.splitlines()]
    planted = [row for row in kept if row["kind"] == "planted"]
    assert len(planted) == 15 and all(row["alarm"] and row["alarm"] < 40 for row in planted)
    assert not any(row["alarm"] for row in kept if row["kind"] != "planted")
    for row in kept:
        found = row["alarm"] or "none"
        cells = [row["run"], row["seed"], found, row["judged"], row["disagrees"]]
        assert f"| {' | '.join(map(str, cells))} |" in text, row["run"]
