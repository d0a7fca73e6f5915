"""Starting a run in several processes, and naming the one that died.

`launch` puts torch's launcher, or accelerate's for a file of its settings, underneath
`rl-reasoner train`, and reports once which process ended a job.
"""

import logging
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_reasoner.distributed.processes import LOST, is_main, note_run
from rl_reasoner.distributed.threads import share_cores
from rl_reasoner.errors import RunStopped, UserError, first_line

_RUN_FILE = "RL_REASONER_JOB"  # the file in which the main process writes where the run is


class JobEnded(RunStopped):
    """A process of the job was killed, and with it the run."""

    title = "the job ended"


def tell_launcher(folder: Path) -> None:
    """Tell the launcher where the run is, so that it can print how to resume it.

    This process keeps it as well: launchers of others print no such thing.
    """
    note_run(folder)
    if is_main() and (file := os.environ.get(_RUN_FILE)):
        Path(file).write_text(str(folder), encoding="utf-8")


def has_launcher() -> bool:
    """Whether `launch` started this process, and so prints which one ended the job."""
    return _RUN_FILE in os.environ


def launch(how: str, arguments: Sequence[str]) -> int:
    """Run `rl-reasoner ARGUMENTS` in several processes and return the exit code.

    `how`: a number of processes on this machine, or the file of an `accelerate config`.
    Raises `UserError` where it is neither, `JobEnded` where a process was killed, or where the
    hosts in the file do not reach each other.
    """
    if not how.isdigit() and not Path(how).is_file():
        raise UserError(
            f"--launch {how}: a number of processes, or a file of accelerate's settings"
        )
    if how.isdigit() and int(how) < 1:
        raise UserError("--launch 0: there must be at least one process")
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="rl-reasoner-") as folder_of_job:
        file = Path(folder_of_job) / "run"
        os.environ[_RUN_FILE] = str(file)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice, once in every process
        try:
            _run(how, ["rl_reasoner.cli", *arguments])
        except SignalException as signalled:
            return 130 if signalled.sigval in (signal.SIGINT, signal.SIGTERM) else 1
        except ChildFailedError as failed:
            folder = file.read_text(encoding="utf-8") if file.is_file() else ""
            ends = {number: failure.exitcode for number, failure in failed.failures.items()}
            return _exit_code(ends, folder)
        except (RendezvousError, DistError) as error:
            ended = JobEnded(f"its hosts do not reach each other: {first_line(error)}")
            ended.folder = file.read_text(encoding="utf-8") if file.is_file() else None
            raise ended from error
        finally:
            del os.environ[_RUN_FILE]
    return 0


def _run(how: str, command: Sequence[str]) -> None:
    """Run the module in `command` under torch's launcher; raises its `ChildFailedError`."""
    if how.isdigit():
        import torch.distributed.run

        runner: Any = torch.distributed.run

        share_cores(int(how))
        given = ["--standalone", f"--nproc-per-node={how}", "--module", *command]
        runner.run(runner.parse_args(given))
        return
    from accelerate.commands.launch import launch_command, launch_command_parser

    given = ["--config_file", how, "--module", *command]
    launch_command(launch_command_parser().parse_args(given))


def _exit_code(ends: dict[int, int], folder: str) -> int:
    """The job's exit code from its failed processes, which have printed why.

    Raises `JobEnded` where one was killed and could not, here or on another host.
    """
    own = {number: code for number, code in ends.items() if code != LOST}
    killed = {n: -code for n, code in own.items() if code < 0 and -code != signal.SIGTERM}
    if not killed and own:
        return next((code for code in own.values() if code > 0), 1)
    if killed:
        number, cause = min(killed.items())
        ended = JobEnded(f"process {number} was killed by {signal.Signals(cause).name}")
    else:
        ended = JobEnded("a process on another host ended early")
    ended.folder = folder
    raise ended
