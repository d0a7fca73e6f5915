"""The READMEs: their examples run as they stand, only smaller, and the two languages say the same.

Everything is run to the letter, in a folder of its own, in the order in which a reader meets it.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.documents import ROOT, blocks, run_document, run_shell

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files that the README's examples speak of."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(8)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    saved = [{"completion": "4", "answer": "4"}, {"completion": "5" * 300, "answer": "5"}]
    (folder / "completions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in saved))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.mark.slow
def test_the_examples_run(place: Path) -> None:
    run_document(ENGLISH, place, typed="((3+4)*2-5)%10=\n")
    for run in ("mine", "own"):
        assert (place / "runs" / run / "report.html").is_file()


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
