"""The READMEs: their examples run as they stand, only smaller, and the two languages say the same.

Everything is run to the letter, in a folder of its own, in the order in which a reader meets it.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.documents import ROOT, blocks, run_document, run_shell

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder: what the README's commands need, they make themselves."""
    folder = tmp_path_factory.mktemp("readme")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.slow
def test_every_command_runs_in_its_order(place: Path) -> None:
    run_document(ENGLISH, place, typed="((3+4)*2-5)%10=\n")
    assert [*place.glob("runs/quickstart-*/report.html")]
    assert "short.py:short" in (place / "runs/mine/recipe.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("document", "most"), [(ENGLISH, 900), (CHINESE, 900)])
def test_it_is_read_in_a_few_minutes(document: str, most: int) -> None:
    """Chinese is counted by its text without spaces: some two characters a word."""
    text = read(document)
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= most
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) <= 2 * most


def shown_interval(figures: dict[str, Any], *, sign: str = "") -> str:
    low, high = (f"{100 * end:{sign}.1f}" for end in figures["interval"])
    return f"[{low}, {high}]" if sign else f"[{low}%, {high}%]"


def rows_of_real_runs(*, lenient: bool) -> Iterator[str]:
    """The table's rows, made of the files of results; `lenient`: with the lenient judge's gain."""
    for file in sorted((ROOT / "benchmarks/real/results").glob("word_problems_smollm2-[0-9].json")):
        results = json.loads(file.read_text(encoding="utf-8"))
        for name, decoding in (
            ("word_problems_test", "greedy"),
            ("word_problems_test@sampled", "sampled"),
        ):
            sides = [results["evals"][when][name] for when in ("before", "after")]
            cells = [f"{100 * side['accuracy']:.1f}% {shown_interval(side)}" for side in sides]
            paired = results["paired_with_before"]["after"][name]
            moved = [
                f"{100 * one['difference']:+.1f} {shown_interval(one, sign='+')}"
                for one in (paired, paired["lenient"])
            ]
            p = "p < 0.001" if paired["p"] < 0.001 else f"p {paired['p']:.3f}"
            cells = [str(results["seed"]), decoding, *cells, f"{moved[0]}, {p}"]
            cells += [moved[1]] if lenient else []
            yield f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("document", [ENGLISH, "docs/real-models.md"])
def test_the_table_of_the_real_model_is_that_of_the_results(document: str) -> None:
    table = [line for line in read(document).splitlines() if "p < 0.001" in line or ", p 0" in line]
    shown = [line for line in table if re.match(r"\| \d+ \| (greedy|sampled)", line)]
    assert shown == [*rows_of_real_runs(lenient=document != ENGLISH)]


def test_the_quickstart_has_the_figures_of_the_recipes_page() -> None:
    [row] = re.findall(
        r"^\| quickstart \| 0 \| greedy \|.*$", read("recipes/README.md"), re.MULTILINE
    )
    before, after = re.findall(r"(\d+\.\d%) \[", row)
    for document in (ENGLISH, CHINESE):
        assert f"{before} → {after}" in read(document)


def test_the_command_is_there_in_a_process_of_its_own(place: Path) -> None:
    listed = run_shell([sys.executable, "-m", "rl_reasoner.cli", "list", "recipes"], place)
    assert "quickstart" in listed


def test_the_reward_of_the_rewards_guide_runs(tmp_path: Path) -> None:
    [example] = [b for b in blocks("rewards/README.md") if b.language == "python"]
    (tmp_path / "shouting.py").write_text(example.text)
    (tmp_path / "rows.jsonl").write_text('{"completion": "LOUD"}\n{"completion": "soft"}\n')
    command = [sys.executable, "-m", "rl_reasoner.cli"]
    run_shell([*command, "score", "shouting.py:calm", "rows.jsonl"], tmp_path)
    scores = (tmp_path / "rows.jsonl.scores.jsonl").read_text().splitlines()
    assert [json.loads(s)["shouting.py:calm"]["value"] for s in scores] == [0.0, 1.0]


# --------------------------------------------------------------------------- two languages


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def prose(document: str) -> str:
    return re.sub(r"^```.*?^```\n", "", read(document), flags=re.DOTALL | re.MULTILINE)


def code(text: str) -> str:
    """A block without its comments, which are translated."""
    return re.sub(r"\s+# .*", "", text)


def test_both_have_the_same_headings() -> None:
    levels = [re.findall(r"^#+", prose(name), re.MULTILINE) for name in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


def test_both_have_the_same_blocks() -> None:
    of = [[(b.language, code(b.text)) for b in blocks(name)] for name in (ENGLISH, CHINESE)]
    assert of[0] == of[1]


def test_both_link_to_the_same_places() -> None:
    places = [re.findall(r"\]\(([^)]+)\)", prose(name)) for name in (ENGLISH, CHINESE)]
    other = {ENGLISH, CHINESE}
    kept = [[link for link in found if link not in other] for found in places]
    assert kept[0] == kept[1]
    assert CHINESE in places[0]
    assert ENGLISH in places[1]


def test_both_have_the_same_figures_row_by_row() -> None:
    """Tables have as many rows, and the same numbers in each; prose has the same code words."""
    rows = [[line for line in prose(n).splitlines() if "|" in line] for n in (ENGLISH, CHINESE)]
    assert len(rows[0]) == len(rows[1])
    for english, chinese in zip(*rows, strict=True):
        assert english.count("|") == chinese.count("|")
        number = r"\d+(?:\.\d+)?%?"
        assert re.findall(number, english) == re.findall(number, chinese), english
    words = [sorted(re.findall(r"`([^`]+)`", prose(name))) for name in (ENGLISH, CHINESE)]
    assert words[0] == words[1]
