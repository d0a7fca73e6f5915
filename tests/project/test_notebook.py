"""The notebook runs from its first cell to its last, with few steps; and is kept small."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from support.documents import FULL, ROOT

FILE = ROOT / "docs/tutorial.ipynb"
SMALL = "SFT_STEPS, HABIT_STEPS, GRPO_STEPS, PROBLEMS = 8, 2, 2, 4"


@pytest.fixture(scope="module")
def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


@pytest.mark.slow
def test_it_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [sizes] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if not FULL:
        names = [line.partition(" =")[0] for line in sizes.source.splitlines()]
        assert SMALL.startswith(", ".join(names) + " = ")
        sizes.source = SMALL
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=where).execute()
    assert (tmp_path / notebook.cells[-1].outputs[0].text.strip()).is_file()
    assert "<polyline" in shown(notebook) and "whose verdict changed" in shown(notebook)


def shown(notebook: Any) -> str:
    """The HTML of its outputs."""
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return "".join(o.data.get("text/html", "") for o in outputs if "data" in o)


def test_it_shows_the_run_and_is_small() -> None:
    """Outputs in the repository are those of a run at full size: no error, no script."""
    stored = nbformat.read(FILE, as_version=4)
    outputs = [o for c in stored.cells if c.cell_type == "code" for o in c.outputs]
    assert {output.output_type for output in outputs} == {"stream", "execute_result"}
    for part in ("<polyline", "advantage", "paired difference", "whose verdict changed"):
        assert part in shown(stored)
    assert "<script" not in shown(stored)
    assert FILE.stat().st_size < 80_000
