"""Is a run what it says it is? Its hashes held, its completions judged again, its steps made again.

`audit_run` goes through a run folder and gives findings (`findings`): `hashes` compares files with
what the run kept of them, `records` a stage's completions, ledger and metrics with each other and
what was asked with the data, `rejudging` stored completions with what the rewards say now and what
readers are shown with what it is made of, and `replaying` trains steps again from their checkpoint,
which `likeness` compares. `counterfactual` asks what one step would have been under another reward.
Nothing in the run folder is written, no code of the run is run (`known`; unless it is asked for: in
a process of its own, `apart`), and no address is asked. Stands above the pipeline, which makes the
steps again.
"""

from collections.abc import Callable
from pathlib import Path

from rl_reasoner.audit.apart import checks_apart
from rl_reasoner.audit.checks import Replay, make_checks
from rl_reasoner.audit.findings import Audit, AuditFinding
from rl_reasoner.paths import check_run, no_links
from rl_reasoner.policy.opening import quiet_libraries
from rl_reasoner.trust import untyped

__all__ = ["Audit", "AuditFinding", "audit_run"]


def audit_run(
    run: Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    whole: bool = False,
    replays: bool = True,
    quiet: bool = False,
    run_its_code: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Audit:
    """Check the run in `run` in every way that this machine can.

    `step` of `stage` is made again (by default the last step of the last trained stage), or with
    `whole` all of the run; nothing where `replays` is False. `quiet`: replays show no progress;
    `note` hears of each check before it is made. What needs code that the run brings is unchecked;
    with `run_its_code` it is checked last, in another process, and takes back no other finding.
    Raises `UserError` where `run` is no run, or has no such stage or step.
    """
    quiet_libraries()
    check_run(run)
    no_links(run)
    replay = Replay(stage, step, whole, replays, quiet)
    with untyped(asks=False):
        checks = make_checks(run, replay, note)
    if run_its_code and (left := checks.behind_code()):
        note("what needs the run's own code, in a process of its own")
        checks.add(checks_apart(run, replay, left))
    return Audit(run, checks.findings)
