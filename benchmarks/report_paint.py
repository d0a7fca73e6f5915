"""How soon the report of a large run is there: bytes, first paint, and when it can be worked with.

    python benchmarks/report_paint.py [ROLLOUTS]

A run of 10,000 rollouts of some 1,200 characters each is made up, its report written and opened in
headless Chromium, several times with an empty cache. Times are the browser's own, from the start of
navigation: the first contentful paint, and the moment that list and filters answer. Needs
playwright and Chromium.
"""

import json
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from rl_reasoner.report import write_report

TIMES = 5
GROUP = 8
WORDS = (
    "the",
    "sum",
    "of",
    "both",
    "numbers",
    "is",
    "seven",
    "hence",
    "we",
    "add",
    "three",
    "then",
)


def make_run(folder: Path, rollouts: int) -> None:
    """A run folder with that many rollouts, in steps of 64."""
    rng = random.Random(0)
    stage = folder / "stages" / "1-grpo"
    stage.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: large\npolicy: {source: 'scratch:moe-tiny'}\n")
    steps = rollouts // 64
    with (stage / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            names = ("reward", "loss", "kl", "entropy", "grad_norm", "tokens_per_second")
            row = {"step": step, **{name: rng.random() for name in names}, "step_time": 1.0}
            row["experts/load/layer0"] = [1 / 64] * 64
            file.write(json.dumps(row) + "\n")
    with (stage / "rollouts.jsonl").open("w") as file:
        for i in range(rollouts):
            step, group = i // 64 + 1, i % 64 // GROUP
            right = rng.random() < step / steps
            said = {"value": float(right), "reason": "expected 10, got 9", "outcome": "score"}
            row = {
                "step": step,
                "group": group,
                "prompt": f"What is {step} + {group}? " + " ".join(rng.choices(WORDS, k=30)),
                "completion": " ".join(
                    f"{w}{rng.randrange(99)}" for w in rng.choices(WORDS, k=200)
                ),
                "answer": str(step + group),
                "reward": float(right),
                "scores": {"math_answer": said},
                "advantage": rng.gauss(0, 1),
                "truncated": False,
            }
            file.write(json.dumps(row) + "\n")


def main() -> None:
    """Make, open, print."""
    rollouts = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        make_run(folder, rollouts)
        raw = (folder / "stages" / "1-grpo" / "rollouts.jsonl").stat().st_size
        began = time.perf_counter()
        report = write_report(folder)
        print(f"{rollouts:,} rollouts, {raw / 1e6:.1f} MB; written in", end=" ")
        print(f"{time.perf_counter() - began:.1f} s, {report.stat().st_size / 1e6:.1f} MB")
        paints, ready, searches = [], [], []
        for _ in range(TIMES):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(report.as_uri())
            page.wait_for_selector("html[data-ready]")
            ready.append(page.evaluate("performance.now()"))
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            paints.append(page.evaluate(paint))
            began = time.perf_counter()
            page.fill("[name=text]", "nothing like this")
            expect(page.locator("#found")).to_have_text(re.compile("^0 of "))
            searches.append(1000 * (time.perf_counter() - began))
            browser.close()
    for what, values in (
        ("first contentful paint", paints),
        ("list and filters answer", ready),
        ("all texts searched", searches),
    ):
        print(f"{what}: median {statistics.median(values):.0f} ms, worst {max(values):.0f} ms")


if __name__ == "__main__":
    main()
