"""The documents: every block runs, every name they use is there, the site is built whole."""

import ast
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import rl_reasoner.recipe.recipe as schema
from rl_reasoner.recipe.load import shipped_recipes
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.scoring.registry import shipped_rewards
from support.documents import LANGUAGES, ROOT, blocks, run_document, run_shell
from support.readability import readability

DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "docs", "docs/tutorials", "docs/reference", "recipes", "rewards", "data")
    for path in (ROOT / folder).glob("*.md")
)
FIRST = "docs/tutorials/first-run.md"
READ_MOST = [
    "README.md",
    "CONTRIBUTING.md",
    "recipes/README.md",
    "data/DATASHEET.md",
    *(
        f"docs/{page}.md"
        for page in (
            "evaluation",
            "forecasts",
            "grpo",
            "moe",
            "r1",
            "real-models",
            "reliability",
            "sandbox",
            "scaling",
            "trainer",
            "verifier",
            "hacking-meter",
            "judges",
            "audit",
        )
    ),
]
WITH_BLOCKS = [
    name for name in DOCUMENTS if blocks(name) and not name.startswith("README") and name != FIRST
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first tutorial was followed, as all others take for granted."""
    folder = tmp_path_factory.mktemp("docs")
    sys.path.insert(0, str(folder))  # as for a script that lies there
    run_document(FIRST, folder, typed="((3+4)*2-5)%10=\n")
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.slow
def test_the_first_tutorial_gives_a_run(place: Path) -> None:
    assert (place / "runs/first/report.html").is_file()
    assert (place / "runs/first/stages/3-grpo/ledger.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("document", WITH_BLOCKS)
def test_every_block_runs(document: str, place: Path) -> None:
    run_document(document, place)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_block_is_run_or_marked_as_output(document: str) -> None:
    assert {block.language for block in blocks(document)} <= LANGUAGES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s#]+)", text):
        if "://" not in link:
            assert (ROOT / document).parent.joinpath(link).exists(), link


def test_the_concepts_name_functions_that_are_there() -> None:
    """On the page about GRPO, what is named in a paragraph lies in a file that is linked there."""
    text = (ROOT / "docs/grpo.md").read_text(encoding="utf-8")
    places = 0
    for paragraph in text.split("\n\n"):
        files = re.findall(r"\]\(\.\./(rl_reasoner/[\w/]+\.py)\)", paragraph)
        defined = {
            node.name
            for file in files
            for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        }
        for name in re.findall(r"`([a-z_]+)` (?:in|of) \[", paragraph):
            places += 1
            assert name in defined, name
    assert places >= 6


def test_the_table_of_names_is_true_of_the_recipe_and_of_trl() -> None:
    from trl import GRPOConfig

    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    table = text.partition("## Names")[2].partition("## Rewards")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    stage, whole = GrpoStage(data="x"), schema.Recipe.model_fields
    for ours, theirs, *_ in rows:
        for name in re.findall(r"`([a-z_.]+)", ours):
            head, _, rest = name.partition(".")
            holders = {"policy": schema.PolicySpec, "evals": schema.Evals, "run": schema.RunSpec}
            if head in holders:
                assert not rest or rest.partition(".")[0] in holders[head].model_fields, name
            elif hasattr(stage, head):
                assert not rest or hasattr(getattr(stage, head), rest), name
            else:
                assert head in whole, name
        for name in re.findall(r"`([a-z_]+)`", theirs):
            assert name in GRPOConfig.__dataclass_fields__, name
    assert len(rows) >= 25


@pytest.mark.parametrize(
    ("document", "names"),
    [("recipes/README.md", shipped_recipes()), ("rewards/README.md", shipped_rewards())],
)
def test_every_shipped_file_has_a_row(document: str, names: list[str]) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / document).read_text(), re.MULTILINE)
    assert sorted(set(listed)) == sorted(names)


def test_the_command_line_page_has_every_verb() -> None:
    from typing import get_args

    from rl_reasoner.cli.dispatch import Verb

    text = (ROOT / "docs/reference/commands.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)|, `(\w+) ", text, re.MULTILINE))
    assert {get_args(verb)[1].name for verb in get_args(Verb)} <= {a or b for a, b in listed}


def test_a_recording_is_a_picture_that_moves_and_asks_for_nothing(tmp_path: Path) -> None:
    """Of a command with colours: one frame and more, the text as it was, valid, no script."""
    pytest.importorskip("pty", reason="there are no pseudo-terminals here")
    target, shown = (
        tmp_path / "t.svg",
        "import time; print('\\x1b[31mred & <new>'); time.sleep(1.2)",
    )
    recorder = [sys.executable, str(ROOT / "docs/terminal.py"), str(target), "--"]
    run_shell([*recorder, sys.executable, "-c", shown], tmp_path)
    text = target.read_text(encoding="utf-8")
    assert len(ElementTree.fromstring(text).findall(".//{*}use")) > 1
    assert "<script" not in text
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@keyframes" in text
    assert "red &amp; &lt;new&gt;" in text


class _Outside(HTMLParser):
    """What a page would fetch from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        fetched = facts.get("src") if tag in ("script", "img", "iframe") else None
        if tag == "link" and facts.get("rel") not in ("canonical", "prev", "next"):
            fetched = facts.get("href")
        if fetched and "//" in fetched:
            self.found.append(fetched)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_the_site_fetches_nothing_and_its_formulas_need_no_script(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = _Outside()
        parser.feed(page.read_text(encoding="utf-8"))
        assert not parser.found, page
    assert "arithmatex" not in (site / "grpo.html").read_text(encoding="utf-8")
    assert "<math" in (site / "grpo.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.html", "tutorials/resume.html"])
def test_search_works_in_pages_opened_from_a_folder(page: str, site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        opened = browser.new_page()
        opened.set_default_timeout(120_000)  # a busy machine types slowly
        opened.goto((site / page).as_uri())
        opened.locator("[data-md-component=search-query]").press_sequentially("router replay")
        first = opened.locator(".md-search-result__link").first
        first.wait_for()
        assert "moe.html" in str(first.get_attribute("href"))
        browser.close()


@pytest.mark.parametrize("document", READ_MOST)
def test_sentences_are_short(document: str) -> None:
    found = readability((ROOT / document).read_text(encoding="utf-8"))
    assert found.words_a_sentence <= 18
    assert found.long_sentences <= 0.13  # of more than 30 words
    assert found.flesch >= 60  # plain English


def test_readability_counts_what_is_read_aloud() -> None:
    text = (
        "# Not this\n\n| nor | this |\n\nThe cat sat. It *slept* [here](x.md).\n\n- One `x` more.\n"
    )
    found = readability(text + "\n```sh\nnot this either\n```\n")
    assert (found.words, found.sentences) == (9, 3)


def test_the_glossary_has_twenty_words_and_the_questions_are_thirty() -> None:
    words = re.findall(r"^\| \*\*", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    asked = re.findall(r"^\*\*(\d+)\. ", (ROOT / "docs/faq.md").read_text(), re.MULTILINE)
    assert len(words) == 20
    assert asked == [str(n) for n in range(1, 31)]
