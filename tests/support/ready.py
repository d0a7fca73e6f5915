"""Processes of their own that have torch, transformers and trl loaded when they start.

A server, of this test process, has loaded them and run nothing; each process is forked from it. It
has a memory, signals and an end of its own, as one from a shell, five seconds earlier. What a test
says of starting itself (imports, threads, descriptors) needs a real start: `subprocess`.
"""

import atexit
import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from unittest import mock

_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(
    ["rl_reasoner.pipeline.train", "rl_reasoner.cli", "rl_reasoner.report.page"]
)


class Ready:
    """A running process that executes `code`, with `argv` as its arguments, in `folder`.

    It has the environment of now, and what is `said` besides.
    """

    def __init__(self, folder: Path, code: str, *argv: str, stdin: str = "", **said: str) -> None:
        self._argv = argv
        self._streams = tempfile.TemporaryDirectory()
        streams = Path(self._streams.name)
        (streams / "0").write_text(stdin, encoding="utf-8")
        told = {**os.environ, "OMP_NUM_THREADS": "1", **said}
        given = (str(folder), code, argv, str(streams), told)
        self._process = _SERVED.Process(target=_execute, args=given)
        pytest = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # nothing that has to be loaded there
        try:
            with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # threads are not forked
                self._process.start()
        finally:
            sys.modules["__main__"] = pytest

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """Kill it by signal 9, and wait until it is gone."""
        self._process.kill()
        self._process.join()
        self._streams.cleanup()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """How it ended, with what it wrote."""
        self._process.join()
        assert self._process.exitcode is not None
        streams = Path(self._streams.name)
        out, err = ((streams / name).read_text(encoding="utf-8") for name in "12")
        self._streams.cleanup()
        return subprocess.CompletedProcess([*self._argv], self._process.exitcode, out, err)


def _execute(
    folder: str, code: str, argv: tuple[str, ...], streams: str, told: dict[str, str]
) -> None:
    """The life of such a process."""
    gc.freeze()  # what is loaded stays
    for number, mode in enumerate(("r", "w", "w")):
        with (Path(streams) / str(number)).open(mode) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(told)
    os.chdir(folder)
    sys.argv = ["rl-reasoner", *argv]
    try:
        exec(code, {"__name__": "__main__"})  # noqa: S102 (a test's own)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends a child without
