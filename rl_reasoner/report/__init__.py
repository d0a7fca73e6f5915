"""`report.html` from a run folder: one self-contained page, readable offline and on a phone.

`read` takes the folder apart, `gain` words what the figures support, `charts` draws inline SVG,
`html` builds escaped elements, `text` writes figures, `page` and `stages` put the page together
and `style` is its style sheet. Knows nothing of torch. A part that the folder lacks (an interrupted
run, a run without GRPO) is absent from the page; the same folder always gives the same bytes.
"""

from pathlib import Path

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run `folder` and return its path.

    Raises `UserError` when `folder` is not a run folder, or cannot be written to.
    """
    from rl_reasoner.report.page import page  # matplotlib: not for those who only want `text`
    from rl_reasoner.report.read import read_run
    from rl_reasoner.runs import write_text

    target = folder / "report.html"
    write_text(target, page(read_run(folder)))
    return target
