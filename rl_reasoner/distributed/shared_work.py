"""Work that the main process decides on and all processes of a job do: the sampling of evaluations.

The main process says for which object (a policy) the others stand ready (`shared`), and shares out
jobs (`share`); each of the others opens the same and helps (`help_with`) until there is no more.
Where the main process fails meanwhile it ends, and its job with it. Knows nothing of the work.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rl_reasoner.distributed import processes

Request = TypeVar("Request")
Job = TypeVar("Job")
Done = TypeVar("Done")

_for: list[object] = []


@contextmanager
def shared(subject: object) -> Iterator[None]:
    """The others help with `subject` inside: they are in `help_with`. A single process is alone."""
    if processes.world_size() == 1:
        yield
        return
    _for.append(subject)
    try:
        yield
    finally:
        _for.pop()
    processes.broadcast(None)


def is_shared(subject: object) -> bool:
    """Whether other processes stand ready to help with `subject`, the same object."""
    return any(subject is one for one in _for)


def share(
    request: Request, jobs: Sequence[Job], work: Callable[[Request, Sequence[Job]], Done]
) -> list[Done]:
    """What `work` makes of `jobs` in all processes, each of which takes every n-th; by rank."""
    processes.broadcast((request, jobs))
    return processes.gather(work(request, _part(jobs)))


def help_with(work: Callable[[Request, Sequence[Job]], Done]) -> None:
    """Do this process's part of what the main one shares out, until it has no more."""
    while asked := processes.broadcast(None):
        request, jobs = asked
        processes.gather(work(request, _part(jobs)))


def _part(jobs: Sequence[Job]) -> Sequence[Job]:
    return jobs[processes.rank() :: processes.world_size()]
