"""Pictures of all that people meet first: `python docs/faces.py OUT RUN [CODE] [--only KIND …]`.

OUT is a folder for the pictures, RUN the folder of a finished quickstart, which is copied first.
Pages (README, report, evaluation, comparison, live) are taken at 1280 and 390 px, light and dark;
commands (a short quickstart, list, check, why, a mistake) in terminals of 80 and 120 columns. CODE
is another checkout, for pictures of what it was: `git worktree add ../old COMMIT`. What that one
does not have is named and left out. Takes some minutes; look at every picture. `--only` takes
some of them (`--only check quickstart`).
"""

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import markdown
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import TimeoutError as Timeout
from terminal import screens, svg

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
COLUMNS, ROWS = (80, 120), 44
SMALL = "--chains.steps 8 --habit.steps 4 --grpo.steps 4 --evals.limit 8 --evals.samples 1"
COMMANDS = {
    "list": "list",
    "list-recipes": "list recipes",
    "why": "why runs/quickstart",
    "error": "train quickstart --grup.size 4 --trainer.sed 3",
    "check": "check quickstart",
    "quickstart": f"train quickstart --run.folder runs/{{columns}} {SMALL}",
}
PAGES = ("readme", "report", "evaluation", "comparison", "live")
PATIENCE = 600_000  # ms; a busy machine draws slowly
STYLE = """:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:880px;margin:32px auto;padding:0 16px}
table{display:block;overflow-x:auto;border-collapse:collapse}
td,th{border:1px solid #8886;padding:6px 13px}
pre{background:#8882;padding:16px;overflow-x:auto;border-radius:6px}img{max-width:100%}"""


def main() -> None:
    """Take all pictures that the command line asks for."""
    parser = argparse.ArgumentParser()
    for name in ("out", "run"):
        parser.add_argument(name, type=lambda word: Path(word).resolve())
    parser.add_argument("code", type=lambda word: Path(word).resolve(), nargs="?", default=ROOT)
    kinds = (*PAGES, *COMMANDS)
    parser.add_argument("--only", nargs="+", metavar="KIND", choices=kinds, default=kinds)
    given = parser.parse_args()
    out, run, code = given.out, given.run, given.code
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as started:
        place = Path(name)
        shutil.copytree(run, place / "runs" / "quickstart")
        os.chdir(place)
        os.environ["PYTHONPATH"] = str(code)
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = started.chromium.launch(
            executable_path=program, args=["--no-sandbox"], timeout=PATIENCE
        )
        for kind, page in pages(code, place, given.only):
            for size in SIZES:
                for scheme in ("light", "dark"):
                    target = out / f"{kind}-{size}-{scheme}.png"
                    picture(browser, page, size, scheme, ready=kind != "readme").save(target)
                    print(target, flush=True)
        for kind in (kind for kind in COMMANDS if kind in given.only):
            for columns in COLUMNS:
                command = COMMANDS[kind]
                target = out / f"{kind}-{columns}.png"
                terminal(browser, command.format(columns=columns), columns).save(target)
                print(target, flush=True)
        browser.close()


def ours(command: str) -> list[str]:
    """A command of ours as a process is started with it."""
    return [sys.executable, "-m", "rl_reasoner.cli", *command.split()]


def pages(code: Path, place: Path, only: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(what it is, its address) of each page; the live one is served as long as it is used."""
    if "readme" in only:
        yield "readme", readme_page(code, place)
    evals = "runs/quickstart/evals"
    for kind, command, page in (
        ("report", "report runs/quickstart", "runs/quickstart/report.html"),
        ("evaluation", f"report {evals}/after.json", f"{evals}/after.html"),
        (
            "comparison",
            f"compare {evals}/before.json {evals}/after.json --out both.html",
            "both.html",
        ),
    ):
        if kind not in only:
            continue
        (place / page).unlink(missing_ok=True)
        done = subprocess.run(ours(command), capture_output=True, text=True)
        if (place / page).is_file():
            yield kind, (place / page).as_uri()
        else:
            print(f"no {kind}: {done.stderr.strip()[-200:]}")
    if "live" in only:
        yield from live_page()


def live_page() -> Iterator[tuple[str, str]]:
    """The address of a run's live page, served for as long as it is used."""
    served = subprocess.Popen(ours("report runs/quickstart --live"), stdout=subprocess.PIPE)
    try:
        if address := (served.stdout or io.BytesIO()).readline().decode().strip():
            yield "live", address
    finally:
        served.terminate()
        served.wait()


def readme_page(code: Path, place: Path) -> str:
    """The address of the README as a page that looks about as GitHub's."""
    text = markdown.markdown(
        (code / "README.md").read_text(encoding="utf-8"), extensions=["tables", "fenced_code"]
    )
    readme = place / "README.html"
    base = f'<base href="{code.as_uri()}/"><meta name="viewport" content="width=device-width">'
    readme.write_text(f"<!doctype html>{base}<style>{STYLE}</style>{text}", encoding="utf-8")
    return readme.as_uri()


def picture(browser: Browser, page: str, size: str, scheme: str, *, ready: bool) -> Image.Image:
    """The first screen of a page; a `ready` one says when it has drawn what is on it."""
    width, height = SIZES[size]
    shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    shown.set_default_timeout(PATIENCE)
    shown.goto(page)
    if ready:
        with contextlib.suppress(Timeout):
            shown.wait_for_selector("html[data-ready]", timeout=20_000)
    wide = shown.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        print(f"{page} is {wide} px wide at {width}")
    drawn = Image.open(io.BytesIO(shown.screenshot()))
    shown.close()
    return drawn


def terminal(browser: Browser, command: str, columns: int) -> Image.Image:
    """The last screen of a command of ours."""
    *_, last = screens(ours(command), columns, ROWS, f"rl-reasoner {command}")
    drawn = browser.new_page(viewport={"width": 9 * columns + 40, "height": 18 * ROWS + 40})
    drawn.set_default_timeout(PATIENCE)
    drawn.set_content(f"<body style='margin:0'>{svg([last])}")
    shot = Image.open(io.BytesIO(drawn.locator("svg").screenshot()))
    drawn.close()
    return shot


main()
