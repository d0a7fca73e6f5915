"""Checks that run code of the run, in a process of their own: it can change no finding but its own.

The process has the rights of the user, and his files, as any program that he starts. It is asked by
a line of JSON, and answers with its findings.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, get_args

from rl_reasoner.audit.checks import Checks, Replay, make_checks
from rl_reasoner.audit.findings import AuditFinding, FindingStatus, unchecked
from rl_reasoner.foreign import json_value
from rl_reasoner.policy.opening import quiet_libraries
from rl_reasoner.trust import decided, untyped
from rl_reasoner.workers import print_as_errors

_MOST_H, _WHOLE_H = 2.0, 48.0  # for checks with one step made again, and with the whole run
_MOST_BYTES = 1 << 26  # of the reply


def checks_apart(run: Path, replay: Replay, only: Sequence[str]) -> dict[str, list[AuditFinding]]:
    """What the checks `only` come to where code of the run is run, each with its findings."""
    request = json.dumps({"run": str(run), "replay": asdict(replay), "only": [*only]})
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    with decided():  # the process decides for itself
        environment = {**os.environ, "PYTHONPATH": paths}
    limit_s = (_WHOLE_H if replay.whole else _MOST_H) * 3600
    why = "the process that runs the run's own code ended without findings"
    try:
        with TemporaryFile() as reply:  # what the code starts may keep it open, and holds up nobody
            subprocess.run(
                [sys.executable, "-P", "-m", "rl_reasoner.audit.apart"],
                input=request.encode(),
                stdout=reply,
                env=environment,
                check=False,
                timeout=limit_s,
            )
            reply.seek(0)
            told = json_value(reply.read(_MOST_BYTES).decode("utf-8", "replace"))
        return {what: [_finding(one) for one in told[what]] for what in only}
    except subprocess.TimeoutExpired:
        why = f"the process that runs the run's own code was ended after {limit_s / 3600:g} hours"
    except (ValueError, TypeError, LookupError):
        pass
    return {what: [unchecked("code", f"{what}: {why}")] for what in only}


def _finding(value: Any) -> AuditFinding:
    """A finding of the reply, which the run's code may have written: raises where it is none."""
    made = AuditFinding(**value)
    texts = all(isinstance(part, str) for part in asdict(made).values())
    if not texts or made.status not in get_args(FindingStatus):
        raise ValueError("no finding")
    return made


def main() -> None:
    """Make the checks that standard input asks for; the findings go to standard output."""
    request = json.load(sys.stdin)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    print_as_errors()
    quiet_libraries()
    with untyped(code=True, asks=False):
        checks: Checks = make_checks(
            Path(request["run"]), Replay(**request["replay"]), lambda text: None, request["only"]
        )
    found = {what: [asdict(one) for one in own] for what, own in checks.found.items()}
    replies.write(json.dumps(found))
    replies.flush()
    os._exit(0)  # what the run's code has started does not hold it up


if __name__ == "__main__":
    main()
