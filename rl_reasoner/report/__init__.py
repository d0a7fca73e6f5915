"""`report.html` from a run folder: one self-contained page, readable offline and on a phone.

`read` takes the folder apart, `gain` words what the figures support, `charts` draws inline SVG,
`html` builds escaped elements, `page` puts the page together and `style` holds its style sheet.
Knows nothing of torch. A part that the folder lacks (an interrupted run, a run without GRPO) is
absent from the page; the same folder always gives the same bytes.
"""

from pathlib import Path

from rl_reasoner.report.page import page
from rl_reasoner.report.read import read_run

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run `folder` and return its path.

    Raises `UserError` when `folder` is not a run folder.
    """
    target = folder / "report.html"
    target.write_text(page(read_run(folder)), encoding="utf-8", newline="\n")
    return target
