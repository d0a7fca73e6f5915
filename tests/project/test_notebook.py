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


def test_what_is_shown_of_a_run_is_text_and_small() -> None:
    """Outputs in the repository are those of a run at full size: printed lines, no error."""
    stored = nbformat.read(FILE, as_version=4)
    outputs = [o for c in stored.cells if c.cell_type == "code" for o in c.outputs]
    assert outputs
    assert {output.output_type for output in outputs} == {"stream"}
    assert FILE.stat().st_size < 30_000
