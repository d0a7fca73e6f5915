"""The page in a real browser: no error, no request, and what a reader does with it works."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.evaluation.formatting import percent, short_number
from rl_reasoner.report import write_evaluation, write_report
from support.report_runs import lines, make_run, rollout

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.slow  # a browser is opened
EXPONENTS = (-9, -5, -4, -2, 0, 2, 5, 9, 13)
HOSTILE = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@dataclass
class Opened:
    """An open page, with what went wrong in it and what it asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def found(self, count: int, of: int) -> None:
        told = re.compile(rf"^{count} of {of} completions")
        playwright.expect(self.page.locator("#found")).to_have_text(told)


@pytest.fixture
def visit(chromium: Any) -> Iterator[Any]:
    opened: list[Opened] = []

    def go(address: Path | str, **options: Any) -> Opened:
        page = chromium.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        now = Opened(page)
        opened.append(now)
        page.on("pageerror", lambda error: now.errors.append(str(error)))
        page.on("console", lambda said: now.errors.append(said.text) if said.type == "error" else 0)
        page.on("dialog", lambda dialog: now.errors.append(dialog.message))
        page.on("request", lambda asked: now.requests.append(asked.url))
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        page.wait_for_selector("html[data-ready]")
        return now

    yield go
    for now in opened:
        now.page.close()
        assert now.errors == []
        assert all(
            url.startswith(("file:", "data:", "about:", "http://127.0.0.1:"))
            for url in now.requests
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("run")))


def test_the_page_asks_for_itself_alone(visit: Any, run: Path) -> None:
    opened = visit(run)
    assert [url for url in opened.requests if not url.startswith("data:")] == [run.as_uri()]
    opened.found(120, 120)


def test_filters_find_by_outcome_reward_step_and_text(visit: Any, run: Path) -> None:
    opened = visit(run)
    page = opened.page
    page.select_option("[name=outcome]", "fault")
    opened.found(12, 120)
    assert "timed out after 5 s" in opened.text(".detail")
    page.click("#filters [type=reset]")
    page.fill("[name=from]", "60")
    opened.found(40, 120)
    page.fill("[name=low]", "1")
    page.fill("[name=text]", "7 * 8 + 3")  # the prompt of one group
    opened.found(6, 120)
    page.fill("[name=text]", "EXPECTED 6, GOT 3")
    opened.found(0, 120)
    page.fill("[name=low]", "")
    opened.found(9, 120)


def test_keys_move_between_completions_and_prompts(visit: Any, run: Path) -> None:
    opened = visit(run)
    keys, label = opened.page.keyboard, opened.page.locator(".detail .label")
    playwright.expect(label).to_contain_text("step 1 · 1 of 10")
    keys.press("j")
    playwright.expect(label).to_contain_text("step 1 · 2 of 10")
    keys.press("k")
    playwright.expect(label).to_contain_text("step 1 · 1 of 10")
    opened.page.locator(".list").focus()
    keys.press("ArrowDown")
    playwright.expect(label).to_contain_text("step 1 · 2 of 10")
    keys.press("ArrowUp")
    keys.press("n")
    playwright.expect(opened.page.locator(".detail .prompt")).to_contain_text("7 * 8 + 1")
    keys.press("d")
    playwright.expect(opened.page.locator(".detail pre ins")).to_have_count(2)
    keys.press("/")
    keys.type("nothing has j k ? in it")
    opened.found(0, 120)
    keys.press("Escape")
    keys.press("?")
    assert opened.page.locator("#help").is_visible()
    keys.press("Escape")
    assert not opened.page.locator("#help").is_visible()


def test_a_completion_has_an_address(visit: Any, run: Path) -> None:
    opened = visit(f"{run.as_uri()}#completion=stage-2-rollouts/57")
    playwright.expect(opened.page.locator(".detail .label")).to_contain_text("step 2 · 8 of 10")


def test_experts_of_the_step_are_shown_with_the_completion(visit: Any, run: Path) -> None:
    opened = visit(run)
    opened.page.click(".detail summary")
    assert opened.page.locator(".load").count() == 2
    assert opened.page.locator(".load >> nth=0").locator(".columns i").count() == 8


def test_what_tools_gave_stands_apart_from_what_the_policy_wrote(
    visit: Any, tmp_path: Path
) -> None:
    folder = make_run(tmp_path)
    wrote, gave = "I ask 🧮 <calculator>7*8</calculator>", "\n<output>\n56\n</output>\n"
    row = rollout(1, 0, 0, True)
    row["completion"] = f"{wrote}{gave}so 6"
    turn = {"tool": "calculator", "kind": "ok", "at": 30, "given": 8}
    row["turns"] = [{**turn, "text": [len(wrote), len(wrote) + len(gave)]}]
    wrong = rollout(1, 0, 1, False)
    refused = "\nmalformed call: no"
    wrong["completion"] = HOSTILE + refused
    place = [len(HOSTILE), len(HOSTILE) + len(refused)]
    wrong["turns"] = [{"tool": "", "kind": "malformed", "at": 9, "given": 5, "text": place}]
    stage = folder / "stages" / "2-grpo"
    lines(stage / "rollouts.jsonl", [row, wrong])
    call = {"tool": "calculator", "kind": "ok", "seconds": 0.0123}
    score = {"step": 1, "group": 0, "index": 0, "reward": "math_answer", "calls": [call]}
    lines(stage / "ledger.jsonl", [score])
    opened = visit(write_report(folder))
    assert opened.page.locator(".turns > pre").all_inner_texts() == [wrote, "so 6"]
    assert opened.text(".given p") == "calculator · ok · 12.3 ms"
    assert opened.text(".given pre") == "<output>\n56\n</output>"
    opened.page.locator(".rows .row").nth(1).click()
    playwright.expect(opened.page.locator(".given p.failed")).to_have_text(
        "unreadable call · malformed"
    )
    assert opened.text(".turns > pre") == HOSTILE


def test_a_curve_tells_its_values_and_leads_to_its_step(visit: Any, run: Path) -> None:
    opened = visit(run)
    plot = opened.page.locator("figure[data-chart='stage-2/Reward'] .plot")
    plot.scroll_into_view_if_needed()
    plot.locator("svg").wait_for()
    box = plot.bounding_box()
    plot.hover(position={"x": box["width"] - 12, "y": 60})
    tip = plot.locator(".tip")
    assert tip.is_visible()
    assert "step 60" in tip.inner_text()
    assert "math_answer" in tip.inner_text()
    plot.focus()
    opened.page.keyboard.press("ArrowLeft")
    assert "step 59" in tip.inner_text()
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("Enter")
    opened.found(40, 120)


def test_every_chart_is_drawn(visit: Any, run: Path) -> None:
    opened = visit(run)
    page = opened.page
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    for figure in page.locator("figure.chart").all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg").wait_for()
        drawing = figure.locator("svg").inner_html()
        assert "NaN" not in drawing
        assert "undefined" not in drawing


def test_on_paper_every_chart_is_drawn_too(visit: Any, run: Path) -> None:
    page = visit(run).page
    drawn = "[...document.querySelectorAll('figure.chart')].map(f => !!f.querySelector('svg'))"
    before = page.evaluate(drawn)
    assert not all(before), "some are out of view"
    page.pdf()
    assert all(page.evaluate(drawn))


def test_charts_round_as_tables_do(visit: Any, run: Path) -> None:
    values = [
        n / 2**m * 10.0**e for n in (1, 3, 5, 9.995, 12345) for m in (0, 4, 7) for e in EXPONENTS
    ]
    values += [-value for value in values] + [0.0]
    values += [1.125, 1.375, 100.5, 101.5]  # as near to the one as to the other
    shares = [n / 1024 for n in range(1025)]
    source = (Path(write_report.__code__.co_filename).parent / "charts.js").read_text()
    opened = visit(run)
    opened.page.goto("about:blank")
    written = opened.page.evaluate(
        source + ";([a, b]) => [a.map(short), b.map(percent)]", [values, shares]
    )
    assert written == [[short_number(v) for v in values], [percent(s) for s in shares]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_until_it_is_switched(visit: Any, run: Path, scheme: str) -> None:
    opened = visit(run, color_scheme=scheme)
    light = {"rgb(251, 251, 250)": True, "rgb(19, 21, 25)": False}

    def is_light() -> bool:
        shown = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return light[str(shown)]

    assert is_light() == (scheme == "light")
    opened.page.click("#theme")
    assert is_light() == (scheme == "dark")
    opened.page.keyboard.press("t")
    assert is_light() == (scheme == "light")


def test_nothing_is_wider_than_a_phone(visit: Any, run: Path) -> None:
    opened = visit(run, viewport={"width": 390, "height": 844}, has_touch=True)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    tables = "[...document.querySelectorAll('.scroll')]"
    assert page.evaluate(f"{tables}.filter((e) => e.scrollWidth > e.clientWidth).length") == 0
    assert not page.locator(".detail").is_visible()
    page.tap(".row >> nth=1")
    playwright.expect(page.locator(".detail .label")).to_contain_text("2 of 10")
    page.tap(".detail .back")
    assert not page.locator(".detail").is_visible()


def test_hostile_texts_are_shown_and_nothing_else(visit: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    score = {HOSTILE: {"value": None, "reason": HOSTILE, "outcome": "fault"}}
    row = rollout(3, 0, 0, False) | {"prompt": HOSTILE, "completion": HOSTILE, "scores": score}
    lines(folder / "stages" / "2-grpo" / "rollouts.jsonl", [row, row | {"completion": "x"}])
    metrics = [{"step": s, "reward": s, f"rewards/{HOSTILE}/faults": s, HOSTILE: s} for s in (1, 3)]
    lines(folder / "stages" / "2-grpo" / "metrics.jsonl", metrics)
    opened = visit(write_report(folder))
    detail = opened.page.locator(".detail")
    playwright.expect(detail.locator("pre.prompt")).to_have_text(HOSTILE)
    playwright.expect(detail.locator(".verdicts")).to_contain_text(HOSTILE)
    opened.page.click("[data-show]")  # the fault's reason
    opened.found(2, 2)
    opened.page.keyboard.press("d")
    playwright.expect(detail.locator("pre ins")).not_to_have_count(0)
    assert opened.page.locator("img").count() == 0


def test_evaluations_are_browsed_before_beside_after(visit: Any, run: Path, tmp_path: Path) -> None:
    opened = visit(run)
    opened.page.select_option("[name=source]", label="Evaluation · modular_test")
    opened.found(2, 2)
    assert not opened.page.locator("[name=from]").is_visible()
    opened.page.select_option("[name=outcome]", "mixed")
    opened.found(2, 2)
    playwright.expect(opened.page.locator(".detail .label")).to_contain_text("before · 1 of 2")


def test_on_paper_every_chart_is_drawn_and_no_column_is_cut_off(visit: Any, run: Path) -> None:
    page = visit(run, viewport={"width": 720, "height": 1000}).page
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    charts, drawn = (page.locator(f"figure[data-chart]{inside}").count() for inside in ("", " svg"))
    assert charts == drawn > 3
    cut = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert page.evaluate(f"{cut}.length") == 0
    assert not page.locator(".browser").is_visible()


def test_two_results_are_held_against_each_other(visit: Any, tmp_path: Path) -> None:
    from rl_reasoner.evaluation.metrics import compute_figures
    from rl_reasoner.evaluation.result import EvalResult

    files = []
    for name, score in (("a", 0.0), ("b", 1.0)):
        rows = [
            {
                "problem": f"{i} + {i} =",
                "answer": str(2 * i),
                "completions": ["yes"],
                "scores": [score if i < 60 else 1.0],
                "reasons": ["so"],
                "outcomes": ["score"],
                "tokens": [3],
                "truncated": [False],
            }
            for i in range(80)
        ]
        result = EvalResult(name, rows={"sums": rows}, sets={"sums": compute_figures(rows)})
        files.append(result.save(tmp_path / f"{name}.json"))
    opened = visit(write_evaluation(files, tmp_path / "both.html"))
    opened.found(160, 160)
    assert "60 rows better in b, 0 worse" in opened.text("#comparison")
    opened.page.click("#comparison [data-show]")
    opened.found(120, 160)


def test_the_page_tells_where_a_browser_is_too_old(chromium: Any, run: Path) -> None:
    page = chromium.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(run.as_uri())
    page.wait_for_selector(".warning")
    assert "browser of 2023" in page.inner_text(".warning")
    page.close()


def test_a_live_page_shows_what_comes(visit: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=8)
    command = [sys.executable, "-m", "rl_reasoner.cli", "report", str(folder), "--live"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as told:
        try:
            follow(visit(told.readline().strip()), folder)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def follow(opened: Any, folder: Path) -> None:
    """What is written into the run comes to the open page; the reader stays where they were."""
    opened.found(120, 120)
    opened.page.keyboard.press("j")
    path = folder / "stages" / "2-grpo"
    with (path / "rollouts.jsonl").open("a") as file:
        file.writelines(json.dumps(rollout(9, 0, i, True)) + "\n" for i in range(4))
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 9, "reward": 0.125}) + "\n")
    opened.found(124, 124)
    assert "2 of 10" in opened.text(".detail .label")
    assert "9 grpo" in opened.text("#facts")
    (folder / "evals" / "after.json").unlink()
    playwright.expect(opened.page.locator("#gain")).to_have_count(0)  # loaded anew
    opened.page.goto("about:blank")
