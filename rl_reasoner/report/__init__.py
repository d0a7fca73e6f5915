"""Pages to look at: `report.html` of a run folder, and pages of evaluations.

One self-contained file each, readable offline and on a phone. `run_data` and `rollouts` take a
folder apart, `gain` words what the figures support, `charts` says what is drawn, `browse` and
`sources` what is browsed, `html` builds escaped elements, `formatting` writes figures; `page` and
`stages` put a run's page together, `evaluation` that of saved results, and `shell` what all pages
have. `page.css` and the scripts `charts.js`, `browser.js`, `page.js` are written into the page;
`server` shows a run while it trains, `terminal` and `dashboards` elsewhere than in a page. Knows
nothing of torch (but the callbacks of `dashboards`). May import `evaluation` and what is below it.
A part that is lacking (an interrupted run, a run without GRPO) is absent from the page; the same
files always give the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["serve_report", "write_evaluation", "write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into the run `folder` and return its path.

    Raises `UserError` when `folder` is not a run folder, or cannot be written to.
    """
    from rl_reasoner.files import write_text
    from rl_reasoner.report.page import build_page
    from rl_reasoner.report.run_data import read_run

    target = folder / "report.html"
    write_text(target, build_page(read_run(folder)))
    return target


def serve_report(folder: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page of the run in `folder`, which may still train, until interrupted.

    On this machine alone; `ready` gets the address. Raises `UserError` when `folder` is not a run
    folder, or the port (0 for any) is taken.
    """
    from rl_reasoner.report.server import serve_folder

    serve_folder(folder, port, ready)


def write_evaluation(files: Sequence[Path], target: Path) -> Path:
    """Write the page of one saved evaluation, or of two compared, to `target`.

    Raises `UserError` when a file is not an evaluation result.
    """
    from rl_reasoner.evaluation.result import EvalResult
    from rl_reasoner.files import write_text
    from rl_reasoner.report.evaluation import build_evaluation_page

    results = [EvalResult.load(file) for file in files]
    write_text(target, build_evaluation_page(results, [file.name for file in files]))
    return target
