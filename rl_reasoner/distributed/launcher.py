"""Starting a run in several processes, and naming the one that died.

`launch` puts torch's launcher, or accelerate's for a file of its settings, underneath
`rl-reasoner train`, and reports once which process ended a job.

torch's launcher kills the processes 30 s after it has passed a signal on to them. Here a signal is
passed on and then waited for, as long as the step takes. A second Ctrl-C stops the processes at
once; a third kills them. torch's waiting is `start` and `close` of its `SubprocessContext`, under
`torchrun` and `accelerate launch` alike.
"""

import ctypes
import importlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError
from types import FrameType
from typing import Any

from rl_reasoner.distributed.processes import LOST, is_main, leave_terminal, note_run
from rl_reasoner.distributed.threads import share_cores
from rl_reasoner.errors import RunStopped, UserError, first_line
from rl_reasoner.paths import LAUNCH

INTERRUPTED = 130
"""Exit code of a process that was asked to stop."""
_RUN_FILE = "RL_REASONER_JOB"  # the file in which the main process writes where the run is
_LAUNCHER = "RL_REASONER_LAUNCHER"  # its process
_OF_TORCH = "TORCHELASTIC_RUN_ID"  # what torch's launcher gives its processes
_ASKED = "asked"  # the file in the job's folder that says: its launcher was sent a signal
_AGAIN = "again"  # and: Ctrl-C came once more, stop at once
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_STOPPED = {LOST, INTERRUPTED, -signal.SIGTERM, -signal.SIGHUP}  # codes of who was asked to
_LOOK_S = 0.1  # between two looks at whether the processes have ended
_PR_SET_PDEATHSIG = 1
_parent: list[int] = []  # the process that started this one, where `follow_launcher` was called


class JobEnded(RunStopped):
    """A process of the job was killed, and with it the run."""

    title = "the job ended"


class JobInterrupted(KeyboardInterrupt):
    """The job was asked to stop, and has.

    `folder` is the run to resume, where there is one, and `launch` the `--launch` to do it with.
    """

    folder: str | None = None
    launch: str | None = None


def tell_launcher(folder: Path) -> None:
    """Tell the launcher where the run is, so that it can print how to resume it.

    This process keeps it as well: launchers of others print no such thing.
    """
    note_run(folder)
    if is_main() and (file := os.environ.get(_RUN_FILE)):
        Path(file).write_text(str(folder), encoding="utf-8")


def follow_launcher() -> None:
    """Stop this process, with a checkpoint, when the launcher that started it is gone (Linux).

    Nobody else would: it is in a session of its own.
    """
    if sys.platform != "linux" or not {_RUN_FILE, _OF_TORCH} <= os.environ.keys():
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    _parent[:] = [parent]
    if os.getppid() != parent or not _is_there(int(os.environ[_LAUNCHER])):
        os.kill(os.getpid(), signal.SIGTERM)  # it was gone before the kernel was asked


def _is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def has_launcher() -> bool:
    """Whether `launch` started this process and is there to print which one ended the job."""
    if not {_RUN_FILE, _OF_TORCH} <= os.environ.keys():
        return False  # for one process accelerate has no launcher of torch's underneath
    return not _parent or os.getppid() == _parent[0]


def peer_ended() -> bool:
    """Whether a SIGTERM means that torch's launcher ends the job: nobody has asked `launch`."""
    return has_launcher() and not Path(os.environ[_RUN_FILE]).with_name(_ASKED).exists()


def interrupted_again() -> bool:
    """Whether `launch` was interrupted a second time: stop at once."""
    return has_launcher() and Path(os.environ[_RUN_FILE]).with_name(_AGAIN).exists()


def launch(how: str, arguments: Sequence[str]) -> int:
    """Run `rl-reasoner ARGUMENTS` in several processes and return the exit code.

    `how`: a number of processes on this machine, or the file of an `accelerate config`.
    Raises `UserError` where it is neither, `JobInterrupted` where it was asked to stop, `JobEnded`
    where a process was killed, or where the hosts in the file do not reach each other.
    """
    if not how.isdigit() and not Path(how).is_file():
        raise UserError(
            f"--launch {how}: a number of processes, or a file of accelerate's settings"
        )
    if how.isdigit() and int(how) < 1:
        raise UserError("--launch 0: there must be at least one process")
    with tempfile.TemporaryDirectory(prefix="rl-reasoner-") as folder_of_job:
        file = Path(folder_of_job) / "run"
        os.environ.update({_RUN_FILE: str(file), LAUNCH: how, _LAUNCHER: str(os.getpid())})
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # advice, once in every process
        try:
            return _exit_code(_ends(how, ["rl_reasoner.cli", *arguments], file.parent))
        except (JobEnded, JobInterrupted) as ended:
            ended.folder = file.read_text(encoding="utf-8") if file.is_file() else None
            ended.launch = how
            raise
        finally:
            for name in (_RUN_FILE, LAUNCH, _LAUNCHER):
                del os.environ[name]


def _ends(how: str, command: Sequence[str], folder: Path) -> dict[int, int]:
    """Run the module in `command` to its end: number -> exit code of what failed, first to last.

    `folder` is the job's. Raises `JobInterrupted` and `JobEnded` as `launch` does.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    _silence()
    with _Supervision(folder) as supervision:
        try:
            _run(how, command)
        except SignalException as signalled:
            if killed := supervision.killed():
                return killed
            raise JobInterrupted from signalled
        except ChildFailedError as failed:
            first = sorted(failed.failures.items(), key=lambda item: item[1].timestamp)
            ends = {number: failure.exitcode for number, failure in first}
            if supervision.asked and {*ends.values()} <= _STOPPED:
                raise JobInterrupted from failed
            return ends
        except CalledProcessError as failed:  # accelerate's one process, which has said why
            sys.exit(failed.returncode)
        except (RendezvousError, DistError) as error:
            raise JobEnded(f"its hosts do not reach each other: {first_line(error)}") from error
    return {}


def _silence() -> None:
    """Keep torch's launcher from logging: what ended a job is said once, by us."""
    importlib.import_module("torch.distributed.run")  # its loggers come with their own levels
    for name in ("torch.distributed.elastic", *logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.run")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


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


def _exit_code(ends: Mapping[int, int]) -> int:
    """The job's exit code from its failed processes, which have printed why.

    Raises `JobEnded` where one was killed and could not, here or on another host, and
    `JobInterrupted` where they were asked to stop.
    """
    if not ends:
        return 0
    own = {number: code for number, code in ends.items() if code != LOST}
    if killed := {n: -code for n, code in own.items() if code < 0 and -code != signal.SIGTERM}:
        number, cause = next(iter(killed.items()))
        raise JobEnded(f"process {number} was killed by {signal.Signals(cause).name}")
    if not own:
        raise JobEnded("a process on another host ended early")
    code = next((code for code in own.values() if code not in (INTERRUPTED, -signal.SIGTERM)), 0)
    if not code and INTERRUPTED in own.values():
        raise JobInterrupted
    return code or 1


class _Supervision:
    """Signals and processes of one job, as a context manager around torch's launcher."""

    def __init__(self, folder: Path) -> None:
        self.asked = False
        self._folder = folder  # of the job
        self._interrupts = 0
        self._contexts: list[Any] = []
        self._before: dict[int, Any] = {}
        self._methods: tuple[Any, Any] | None = None

    def __enter__(self) -> "_Supervision":
        watched = _context_class()
        start, close = self._methods = watched.start, watched.close

        def started(context: Any) -> None:
            if self.asked:  # processes that have stopped are not to be started again
                raise _signalled(signal.SIGTERM)
            self._contexts.append(context)
            start(context)
            self._listen()

        def closed(context: Any, *args: Any, **options: Any) -> None:
            if self.asked:
                self._wait()
            close(context, *args, **options)

        for number in _SIGNALS:
            self._before[number] = signal.getsignal(number)
        watched.start, watched.close = started, closed
        return self

    def __exit__(self, *exc: object) -> None:
        watched = _context_class()
        assert self._methods is not None
        watched.start, watched.close = self._methods
        for number, handler in self._before.items():
            with suppress(ValueError, TypeError):  # another thread; a handler that C has set
                signal.signal(number, handler)

    def killed(self) -> dict[int, int]:
        """Number on this host -> signal, of the processes that SIGKILL has ended."""
        codes = {n: process.poll() for context in self._contexts for n, process in _all(context)}
        return {n: -code for n, code in codes.items() if code == -signal.SIGKILL}

    def _listen(self) -> None:
        """Take the signals back from torch, which has just set its own handlers."""
        for number in _SIGNALS:
            ignored = self._before[number] is signal.SIG_IGN  # by nohup, which torch overrides
            with suppress(ValueError):  # not the main thread: the caller's own handlers hold
                signal.signal(number, signal.SIG_IGN if ignored else self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            leave_terminal()
        self._interrupts += number == signal.SIGINT
        if self.asked and number == signal.SIGINT:
            (self._folder / _AGAIN).touch()
        self.asked = True
        (self._folder / _ASKED).touch()
        running = [*self._running()]
        if not running:  # torch waits for other hosts
            raise _signalled(number)
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL if self._interrupts > 2 else number)

    def _wait(self) -> None:
        """Wait until the processes have ended; torch's limit holds after a second Ctrl-C.

        Likewise where one has failed: the others would wait for it.
        """
        while self._interrupts < 2 and not self._failed() and any(True for _ in self._running()):
            time.sleep(_LOOK_S)

    def _failed(self) -> bool:
        codes = [process.poll() for context in self._contexts for _, process in _all(context)]
        return not {*codes} <= {None, 0, -signal.SIGINT, *_STOPPED}

    def _running(self) -> Iterator[Any]:
        for context in self._contexts:
            yield from (process for _, process in _all(context) if process.poll() is None)


def _signalled(number: int) -> Exception:
    """What torch's launcher ends a job with when a signal comes."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    signalled = signal.Signals(number)
    return SignalException(f"the launcher was sent {signalled.name}", signalled)


def _context_class() -> Any:
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    return SubprocessContext


def _all(context: Any) -> list[tuple[int, Any]]:
    """(number, process) of a context; those that it has started so far."""
    return [(number, handler.proc) for number, handler in context.subprocess_handlers.items()]
