"""docs/status.md: what `make test` does not install is said to be run by hand, with its day."""

import re
import tomllib

from support.documents import ROOT

PAGE = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
BY_HAND = re.compile(r"by hand, 20\d\d-\d\d-\d\d", re.IGNORECASE)
ASKED = re.compile(r"""(?:importorskip\("|find_spec\(")(\w+)""")
HERE = {"numpy", "IPython", "pty"}  # of torch, of ipykernel, of Python


def test_what_is_skipped_by_default_is_by_hand() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    installed = {re.split(r"[\[<>=~!]", one)[0].replace("-", "_").lower() for one in wanted}
    asked = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in ASKED.findall(file.read_text(encoding="utf-8"))
        if name != "nowhere"
    }
    skipped = {name for name in asked - HERE if name.lower() not in installed}
    assert {"vllm", "deepspeed", "ray", "torchao", "verl"} <= skipped
    for name in skipped:
        word = re.compile(rf"\b{name.replace('_', '[-_]')}\b", re.IGNORECASE)
        assert any(word.search(row) and BY_HAND.search(row) for row in ROWS), name


def test_a_day_is_told_where_the_word_stands() -> None:
    for row in ROWS:
        assert len(re.findall("by hand", row, re.IGNORECASE)) == len(BY_HAND.findall(row)), row


def test_planned_figures_are_headed_so() -> None:
    scaling = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    [heading] = re.findall(r"^### .*H100.*$", scaling, re.MULTILINE)
    assert "planned, not run" in heading
