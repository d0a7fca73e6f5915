"""The processes of a run: which one this is, and how they meet, wait for each other and end.

A process finds out from its environment that it is one of several (`RANK`, `WORLD_SIZE`), so
`torchrun`, `accelerate launch` and `rl-reasoner train --launch` all do. The main process makes the
run's folder, evaluates, logs and writes; the others wait for it as long as it takes, in a process
group of their own that has no time limit; a host that is lost meanwhile is seen by `hosts`. torch
is imported only when there are several processes.
"""

import atexit
import logging
import os
import sys
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rl_reasoner.distributed.hosts import take_leave, watch_hosts

T = TypeVar("T")
LOST = 75
"""Exit code of a process that ended because another one of its job was lost, without a word."""
_PATIENCE = timedelta(days=365)
_run: list[Path] = []  # the folder of the run, as soon as it is known


def world_size() -> int:
    """The number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among them, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that makes folders, evaluates and writes."""
    return rank() == 0


def is_local_main() -> bool:
    """Whether this process is the one of its machine that prints errors."""
    return world_size() == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def note_run(folder: Path) -> None:
    """Keep the folder of the run, for `resume_hint`."""
    _run[:] = [folder]


def resume_hint() -> str:
    """A line that says how to continue the run of this job; empty before there is one."""
    return f"\ncontinue with: rl-reasoner train --resume {_run[0]}" if _run else ""


# ---------------------------------------------------------------------------------- together


def join(device: str) -> None:
    """Join the process group, on `device` ("cpu" or "cuda"); a single process has none."""
    import torch

    if world_size() == 1 or torch.distributed.is_initialized():
        return
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    torch.distributed.init_process_group("gloo" if device == "cpu" else "cuda:nccl,cpu:gloo")
    _patient()
    watch_hosts(broadcast, resume_hint)
    if not is_main():
        logging.getLogger("rl_reasoner").setLevel(logging.ERROR)


@cache
def _patient() -> Any:
    import torch

    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)


def wait() -> None:
    """Wait until every process is here, as long as it takes."""
    if world_size() > 1:
        import torch

        torch.distributed.barrier(group=_patient())


def broadcast(value: T) -> T:
    """Return the main process's `value` in every process; wait for it as long as it takes."""
    if world_size() == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, group=_patient())
    return box[0]


def lost_peer(error: BaseException) -> bool:
    """Whether `error` means that another process of the job is gone."""
    if world_size() == 1:
        return False
    import torch

    message = str(error)
    known = ("gloo", "onnection closed by peer", "onnection reset by peer", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(part in message for part in known)
    )


def has_joined() -> bool:
    """Whether this process is in a process group."""
    torch = sys.modules.get("torch")
    return world_size() > 1 and torch is not None and bool(torch.distributed.is_initialized())


def exit_process(code: int) -> NoReturn:
    """Run the exit handlers and end this process of several, without the interpreter's shutdown.

    Threads of gloo abort a process whose interpreter ends before them, even after the group is
    destroyed, while anything (DistributedDataParallel) still holds it.
    """
    if code == 0:
        with suppress(RuntimeError):  # another one failed, and has printed why
            wait()
        take_leave()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
