"""The verb `report`: the page of a run or of a saved evaluation, written or served."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Flag, Json, Whole, check_writable
from rl_reasoner.cli.progress import told_if_long
from rl_reasoner.errors import UserError
from rl_reasoner.paths import check_run
from rl_reasoner.report.console import emit, err, wrapped


@dataclass
class ReportVerb:
    """Write report.html of a run, or the page of a saved evaluation.

    With --live, serve the page while the run trains, and keep it up to date.
    """

    source: Positional[Annotated[Path, arg(metavar="RUN")]]
    """the run's folder, or the JSON file of an evaluation"""
    live: Flag = False
    """serve the page on 127.0.0.1, at an address with a token, until Ctrl-C"""
    port: Whole = 0
    """with --live: the port (0: any free one)"""
    json: Json = False

    def run(self) -> None:
        """Write the page and print its path, or serve it and print its address."""
        from rl_reasoner.report import serve_report, write_evaluation, write_report

        if self.port and not self.live:
            raise UserError("--port: only with --live")
        if self.live:
            check_run(self.source)
            serve_report(self.source, self.port, self._ready)
            return
        if self.source.suffix == ".json":
            target = check_writable(self.source.with_suffix(".html"))
            with told_if_long("writing the page"):
                path = write_evaluation([self.source], target)
        else:
            check_run(self.source)
            check_writable(self.source / "report.html")
            with told_if_long("writing the page"):
                path = write_report(self.source)
        emit(self.json, {"report": str(path)}, str(path))

    def _ready(self, url: str) -> None:
        """Say where the page is, what to do with the address, and how to end it."""
        emit(self.json, {"live": url}, url)
        port = url.split(":")[2].partition("/")[0]
        err.print(
            wrapped(
                "Open this address in a browser on this machine; it shows the run as it trains, "
                f"steps and time left. From another machine: ssh -L {port}:127.0.0.1:{port} "
                "THIS_MACHINE, then the same address there. Ctrl-C ends the page; the run goes on."
            ),
            style="dim",
            soft_wrap=True,
        )
