"""The watch over the other hosts of a job: a link is cut for real, a host killed or stopped.

Two network namespaces of this machine are the hosts; their processes do nothing but be watched, so
that the faults are those of the network alone. Whole runs: tests/distributed/test_two_hosts.py.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.distributed.processes import SILENCE_S
from support.hosts import ADDRESSES, Hosts, two_hosts

pytestmark = pytest.mark.matrix
PROCESS = """
import ast, sys, time
from pathlib import Path
from rl_reasoner.distributed import processes

def spread(value):
    file = Path(sys.argv[1])
    if processes.os.environ["RANK"] == "0":
        file.with_suffix(".part").write_text(repr(value))
        file.with_suffix(".part").replace(file)
    while not file.exists():
        time.sleep(0.05)
    return ast.literal_eval(file.read_text())

processes.MEET_S = float(sys.argv[2])
processes.watch_hosts(spread, lambda: "\\ncontinue with: RUN")
print("watches", flush=True)
sys.stdin.read()
processes.take_leave()
"""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with two_hosts() as made:
        yield made


def environment(rank: int, address: str = ADDRESSES[0]) -> dict[str, str]:
    """What a launcher tells one of two processes, each on a host of its own."""
    numbers = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "GROUP_WORLD_SIZE": 2}
    return {"MASTER_ADDR": address, **{name: str(number) for name, number in numbers.items()}}


def started(hosts: Hosts, host: int, file: Path, meet: float = 120) -> subprocess.Popen[str]:
    """A process of the job on a host."""
    command = [sys.executable, "-c", PROCESS, str(file), str(meet)]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return hosts.start(host, command, environment(host), **pipes)


@pytest.fixture
def pair(hosts: Hosts, tmp_path: Path) -> list[subprocess.Popen[str]]:
    """The two processes, which watch each other."""
    both = [started(hosts, host, tmp_path / "met") for host in (0, 1)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "watches\n"
    return both


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a process ends and what it says."""
    assert process.stderr is not None
    said = process.stderr.read()
    return process.wait(4 * SILENCE_S), said


def test_a_link_that_is_cut_ends_both_with_one_message(
    hosts: Hosts, pair: list[subprocess.Popen[str]]
) -> None:
    hosts.cut()
    for process, other in zip(pair, reversed(ADDRESSES), strict=True):
        said = f"the job ended: host {other} has not answered for {SILENCE_S} s"
        assert ended(process) == (1, f"{said}\ncontinue with: RUN\n")


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_killed_ends_the_other_with_one_message(
    lost: int, hosts: Hosts, pair: list[subprocess.Popen[str]]
) -> None:
    hosts.signal(lost, signal.SIGKILL)
    said = f"the job ended: a process on host {ADDRESSES[lost]} ended early\ncontinue with: RUN\n"
    assert ended(pair[1 - lost]) == (1, said)


def test_a_host_that_is_stopped_for_a_while_is_waited_for(
    hosts: Hosts, pair: list[subprocess.Popen[str]]
) -> None:
    hosts.signal(1, signal.SIGSTOP)
    time.sleep(1.5 * SILENCE_S)
    assert pair[0].poll() is None
    hosts.signal(1, signal.SIGCONT)
    for process in pair:
        assert process.stdin is not None
        process.stdin.close()
    assert [ended(process) for process in pair] == [(0, ""), (0, "")]


def test_a_link_that_is_back_soon_is_no_loss(
    hosts: Hosts, pair: list[subprocess.Popen[str]]
) -> None:
    hosts.cut()
    time.sleep(SILENCE_S / 3)
    hosts.mend()
    time.sleep(1.2 * SILENCE_S)
    for process in pair:
        assert process.stdin is not None
        process.stdin.close()
    assert [ended(process) for process in pair] == [(0, ""), (0, "")]


def test_one_that_leaves_when_its_work_is_done_is_not_lost(
    pair: list[subprocess.Popen[str]],
) -> None:
    first, second = pair
    assert first.stdin is not None and second.stdin is not None
    first.stdin.close()
    assert ended(first) == (0, "")
    time.sleep(12)  # longer than work is given to see that a peer has ended
    assert second.poll() is None
    second.stdin.close()
    assert ended(second) == (0, "")


def test_a_host_that_never_comes_is_said_and_a_stranger_does_not_stand_in_for_it(
    hosts: Hosts, tmp_path: Path
) -> None:
    process = started(hosts, 0, tmp_path / "met", meet=15)
    while not (tmp_path / "met").exists():
        time.sleep(0.05)
    port = int((tmp_path / "met").read_text().split(",")[0].strip("("))
    knock = f"import socket; socket.create_connection(('{ADDRESSES[0]}', {port})).send(b'x' * 32)"
    assert hosts.start(1, [sys.executable, "-c", knock], {}).wait(60) == 0
    code, said = ended(process)
    assert code == 1 and "1 of 1 other hosts did not connect to 10.213.7.1 within 15 s" in said


def test_a_first_process_that_is_not_reached_is_said(hosts: Hosts, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        (tmp_path / "met").write_text(repr((closed.getsockname()[1], "0" * 32)))
        code, said = ended(started(hosts, 1, tmp_path / "met"))
    assert code == 1 and f"{ADDRESSES[0]}, port" in said and "is not reached" in said
