"""The processes of a run: which one this is, how they meet, wait, share work and end.

A process finds out from its environment that it is one of several (`RANK`, `WORLD_SIZE`), so
`torchrun`, `accelerate launch` and `rl-reasoner train --launch` all do. The main process makes the
run's folder, judges, logs and writes; the others wait for it as long as it takes, in a process
group of their own that has no time limit. torch is imported only when there are several processes.

A process that ends closes its connections, and its peers see it. A host without power or network
closes nothing: gloo waits half an hour for it, NCCL ten minutes, and what waits as long as it takes
waits for ever. So the job's first process holds a connection to the first process of each other
host, on which the kernels ask each other every few seconds whether they are there (TCP keepalive).
They answer for a host whose processes are slow or stopped: only one that is gone is given up.
Then the process says so and ends; its launcher ends the others of its host. Which hosts there are
is known from what torch's launcher sets, which accelerate's uses too (`GROUP_WORLD_SIZE`); a job on
one host has none of this.
"""

import atexit
import logging
import os
import secrets
import selectors
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn, TypeVar

from rl_reasoner.errors import UserError
from rl_reasoner.paths import resume_command

T = TypeVar("T")
_Asked = TypeVar("_Asked")
_Each = TypeVar("_Each")
LOST = 75
"""Exit code of a process that ended because another one of its job was lost, without a word."""
SILENCE_S = 30
"""Seconds without an answer from a host's kernel after which the host is given up."""
MEET_S = 120.0
"""Seconds that the hosts have to connect to the first process; the process group stands by then."""
_NOTICE_S = 10.0  # within which the work itself sees that a peer has ended, and says it
_ASK_S = 5  # between two questions of a kernel
_BYE = b"."  # of a process whose work is done

_connections: list[socket.socket] = []
_PATIENCE = timedelta(days=365)
_run: list[Path] = []  # the folder of the run, as soon as it is known
_shared: list[object] = []  # what the others stand ready to help with


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
    return f"\ncontinue with: {resume_command(_run[0])}" if _run else ""


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


def gather(value: T) -> list[T]:
    """Every process's `value`, by rank, in the main process; in the others nothing."""
    if world_size() == 1:
        return [value]
    import torch

    box: list[Any] | None = [None] * world_size() if is_main() else None
    torch.distributed.gather_object(value, box, dst=0, group=_patient())
    return box or []


# ------------------------------------------------------------------------------- shared work
# The main process says for which object (a policy) the others stand ready (`shared`), and shares
# out pieces of work (`share`); each of the others opens the same and helps (`help_with`) until
# there is no more. Where the main process fails meanwhile it ends, and its job with it.


@contextmanager
def shared(subject: object) -> Iterator[None]:
    """The others help with `subject` inside: they are in `help_with`. A single process is alone."""
    if world_size() == 1:
        yield
        return
    _shared.append(subject)
    try:
        yield
    finally:
        _shared.pop()
    broadcast(None)


def is_shared(subject: object) -> bool:
    """Whether other processes stand ready to help with `subject`, the same object."""
    return any(subject is one for one in _shared)


def share(
    request: _Asked, jobs: Sequence[_Each], work: Callable[[_Asked, Sequence[_Each]], T]
) -> list[T]:
    """What `work` makes of `jobs` in all processes, each of which takes every n-th; by rank."""
    broadcast((request, jobs))
    return gather(work(request, _part(jobs)))


def help_with(work: Callable[[_Asked, Sequence[_Each]], T]) -> None:
    """Do this process's part of what the main one shares out, until it has no more."""
    while asked := broadcast(None):
        request, jobs = asked
        gather(work(request, _part(jobs)))


def _part(jobs: Sequence[_Each]) -> Sequence[_Each]:
    return jobs[rank() :: world_size()]


# ------------------------------------------------------------------------------------- the end


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
    else:
        _connections.clear()  # closed, without a word
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_terminal() -> None:
    """Write nowhere from now on, where it was to a terminal: one that is gone fails each write."""
    with Path(os.devnull).open("wb") as nowhere:
        for stream in (1, 2):
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(stream).st_mode):
                    os.dup2(nowhere.fileno(), stream)


def leave_errors() -> None:
    """Write errors nowhere from now on: whoever read them has gone, and each write would fail."""
    with Path(os.devnull).open("wb") as nowhere, suppress(OSError):
        os.dup2(nowhere.fileno(), 2)


# ------------------------------------------------------------------------------- other hosts


def watch_hosts(
    spread: Callable[[tuple[int, str]], tuple[int, str]], hint: Callable[[], str]
) -> None:
    """Connect to the other hosts and watch them in a thread, where the job has several.

    All processes call it. `spread` gives the first one's value to all; `hint` says how to continue.
    Raises `UserError` where the hosts cannot reach the first one.
    """
    if (hosts := int(os.environ.get("GROUP_WORLD_SIZE", "1"))) == 1:
        return
    first = os.environ["RANK"] == "0"
    with socket.socket(_family(), socket.SOCK_STREAM) as door:
        if first:
            door.bind(("", 0))
            door.listen(hosts)
        port, token = spread((door.getsockname()[1], secrets.token_hex(16)))
        if first:
            found = _accept(door, token, hosts - 1)
        else:
            found = [_connect(port, token)] if os.environ["LOCAL_RANK"] == "0" else []
    for connection in found:
        _keep_asking(connection)
    _connections[:] = found
    atexit.register(take_leave)  # of a program of one's own, which ends in its own way
    Thread(target=_watch, args=(found, hint), daemon=True, name="hosts").start()


def take_leave() -> None:
    """Tell the other hosts that this process has done its work, and does not just vanish."""
    for connection in _connections:
        with suppress(OSError):
            connection.sendall(_BYE)


def _family() -> int:
    """IPv4 or IPv6, as the first process's address is."""
    return socket.getaddrinfo(os.environ["MASTER_ADDR"], None, type=socket.SOCK_STREAM)[0][0]


def _accept(door: socket.socket, token: str, count: int) -> list[socket.socket]:
    """The connections of `count` hosts that know the token; of anybody else's nothing is kept."""
    found: list[socket.socket] = []
    until = time.monotonic() + MEET_S
    while len(found) < count:
        door.settimeout(max(0.1, until - time.monotonic()))
        try:
            connection, _ = door.accept()
        except TimeoutError:
            raise UserError(
                f"{count - len(found)} of {count} other hosts did not connect to "
                f"{os.environ['MASTER_ADDR']} within {MEET_S:.0f} s: the hosts of a job have to "
                "reach each other at all ports"
            ) from None
        connection.settimeout(5.0)
        said = b""
        with suppress(OSError):
            said = connection.recv(len(token), socket.MSG_WAITALL)
        if secrets.compare_digest(said, token.encode()):
            found.append(connection)
        else:
            connection.close()
    return found


def _connect(port: int, token: str) -> socket.socket:
    address = os.environ["MASTER_ADDR"]
    try:
        connection = socket.create_connection((address, port), timeout=MEET_S)
        connection.sendall(token.encode())
    except OSError as error:
        raise UserError(
            f"{address}, port {port}, the first process of the job, is not reached: "
            f"{error.strerror or error}. The hosts of a job have to reach each other at all ports"
        ) from error
    return connection


def _keep_asking(connection: socket.socket) -> None:
    """Have the kernel ask the other side while nothing is said, and give up after SILENCE_S."""
    connection.settimeout(None)
    options = {"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": _ASK_S, "TCP_KEEPINTVL": _ASK_S}
    options["TCP_KEEPCNT"] = SILENCE_S // _ASK_S - 1
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # macOS lacks one of them
            level = socket.SOL_SOCKET if name.startswith("SO_") else socket.IPPROTO_TCP
            connection.setsockopt(level, option, value)


def _watch(connections: list[socket.socket], hint: Callable[[], str]) -> None:
    """End this process when the first of the other hosts is lost; return when all have left."""
    names = {connection: connection.getpeername()[0] for connection in connections}
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                connection = next(one for one in connections if one is key.fileobj)
                selector.unregister(connection)
                try:
                    said = connection.recv(1)
                except ConnectionResetError:
                    said = b""
                except OSError:
                    _end(f"host {names[connection]} has not answered for {SILENCE_S} s", hint())
                if said != _BYE:
                    time.sleep(_NOTICE_S)
                    _end(f"a process on host {names[connection]} ended early", hint())


def _end(why: str, hint: str) -> NoReturn:
    """Say why, and end this process, wherever its work stands: as kill -9 would."""
    with suppress(OSError, ValueError):
        print(f"the job ended: {why}{hint}", file=sys.stderr, flush=True)
    os._exit(1)
