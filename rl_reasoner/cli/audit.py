"""The verb `audit`: is a run what it says it is?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Count, Flag, Json, Quiet, RunsItsCode, StageName
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.errors import UserError
from rl_reasoner.paths import check_run
from rl_reasoner.report.console import emit, err, new_table

_STYLE = {"held": "green", "differs": "bold red", "unchecked": "yellow"}


@dataclass
class AuditVerb:
    """Check that a run is what it says it is: hashes, scores, figures, and a step made again.

    The exit code is 0 where everything that could be checked held, else 1.
    """

    run_folder: Positional[Annotated[Path, arg(metavar="RUN")]]
    """the run's folder"""
    step: Count = None
    """make this step again, from the checkpoint before it (default: the last one)"""
    stage: StageName = None
    """of this stage (default: the last one that was trained)"""
    whole: Annotated[Flag, arg(name="all", help_behavior_hint="")] = False
    """make the whole run again"""
    no_replay: Flag = False
    """make no step again: check files, scores and figures alone"""
    run_its_code: RunsItsCode = False
    quiet: Quiet = False
    json: Json = False

    def run(self) -> None:
        """Audit, and print the findings."""
        if self.whole and (self.step is not None or self.stage is not None):
            raise UserError("--all makes every step again: leave out --step and --stage")
        if self.no_replay and (self.whole or self.step is not None):
            raise UserError("--no-replay makes no step again: leave out --step and --all")
        check_run(self.run_folder)
        err.print("loading torch and transformers", style="dim")
        load_for_good("rl_reasoner.audit")
        from rl_reasoner.audit import audit_run

        audit = audit_run(
            self.run_folder,
            stage=self.stage,
            step=self.step,
            whole=self.whole,
            replays=not self.no_replay,
            quiet=self.quiet,
            run_its_code=self.run_its_code,
            note=lambda text: err.print(text, style="dim"),
        )
        table = new_table("", "part", "")
        for finding in audit.findings:
            status = Text(finding.status, _STYLE[finding.status])
            table.add_row(status, finding.part, Text(finding.said))
        table.caption, table.caption_justify = Text(f"\n{audit.summary()}"), "left"
        table.caption_style = ""
        emit(self.json, audit.to_json(), table)
        if not audit.holds:
            raise SystemExit(1)
