"""An audit with the run's own code, in this process: what the one apart does, without its start."""

from pathlib import Path
from typing import Any

from rl_reasoner.audit import Audit
from rl_reasoner.audit.checks import Replay, make_checks
from rl_reasoner.trust import untyped


def audit_run(run: Path, *, replays: bool = True, **asked: Any) -> Audit:
    """As `rl_reasoner.audit.audit_run` with `run_its_code`, each check made once."""
    with untyped(code=True, asks=False):
        checks = make_checks(run, Replay(wanted=replays, **asked), lambda text: None)
    return Audit(run, checks.findings)
