"""The verb `report`: the page of a run or of a saved evaluation, written or served."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Flag, Json, check_writable
from rl_reasoner.foreign import check_run
from rl_reasoner.report.console import emit


@dataclass
class ReportVerb:
    """Write report.html of a run, or the page of a saved evaluation.

    With --live, serve the page while the run trains, and keep it up to date.
    """

    source: Positional[Annotated[Path, arg(metavar="RUN")]]
    """the run's folder, or the JSON file of an evaluation"""
    live: Flag = False
    """serve the page on 127.0.0.1, at an address with a token, until Ctrl-C"""
    port: int = 0
    """with --live: the port (0: any free one)"""
    json: Json = False

    def run(self) -> None:
        """Write the page and print its path, or serve it and print its address."""
        from rl_reasoner.report import serve_report, write_evaluation, write_report

        if self.live:
            check_run(self.source)
            serve_report(self.source, self.port, lambda url: emit(self.json, {"live": url}, url))
            return
        if self.source.suffix == ".json":
            target = check_writable(self.source.with_suffix(".html"))
            path = write_evaluation([self.source], target)
        else:
            check_run(self.source)
            check_writable(self.source / "report.html")
            path = write_report(self.source)
        emit(self.json, {"report": str(path)}, str(path))
