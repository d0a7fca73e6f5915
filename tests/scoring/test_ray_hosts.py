"""Rewards on a Ray cluster of two hosts: the second one is killed half-way, or its link is cut.

The hosts are network namespaces (support.hosts). The first has Ray's head, one processor and the
program that scores; the second has one processor.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from support.hosts import ADDRESSES, Hosts, two_hosts
from support.places import free_port

pytest.importorskip("ray", reason="the extra rl-reasoner[ray] is not installed")
pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
TESTS = Path(__file__).resolve().parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
JUDGES = """
import sys
from pathlib import Path

from scoring.test_ray_cluster import judged
from rl_reasoner.scoring import ray_cluster

taken = ray_cluster._of

def of(*call):
    found = taken(*call)
    Path(sys.argv[1]).touch()  # some blocks are back, the others are on their way
    return found

ray_cluster._of = of
judged(int(sys.argv[2]))
print("every verdict is right")
"""


class Cluster:
    """Ray on both hosts."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.address = f"{ADDRESSES[0]}:{free_port()}"
        head = ["--head", f"--port={self.address.rpartition(':')[2]}", f"--temp-dir={folder}"]
        head += ["--include-dashboard=false"]
        for host, asked in ((0, head), (1, [f"--address={self.address}"])):
            placed = ["--num-cpus=1", f"--node-ip-address={ADDRESSES[host]}"]
            self.ran(host, [*RAY, "start", *asked, *placed, "--disable-usage-stats"])

    def ran(self, host: int, command: list[str]) -> None:
        """A command on a host, which has to succeed."""
        said: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        running = self.hosts.start(host, command, {}, **said)
        text, _ = running.communicate(timeout=300)
        assert running.returncode == 0, text

    def judging(self, count: int) -> subprocess.Popen[str]:
        """The program that scores, when the first blocks are back."""
        back = self.folder / "back"
        env = {"RAY_ADDRESS": self.address, "PYTHONPATH": f"{TESTS}", "OMP_NUM_THREADS": "1"}
        said: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [sys.executable, "-c", JUDGES, str(back), str(count)]
        running = self.hosts.start(0, command, env, **said)
        while not back.exists():
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.05)
        return running


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    short = TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
    with short as folder, two_hosts() as hosts:  # short: as the paths of Ray's sockets have to be
        yield Cluster(hosts, Path(folder))


def all_right(running: subprocess.Popen[str]) -> float:
    """The seconds until the program says that every verdict is right."""
    begun = time.monotonic()
    said, _ = running.communicate(timeout=900)
    assert running.returncode == 0 and said.endswith("every verdict is right\n"), said
    return time.monotonic() - begun


def test_a_host_is_killed_and_every_verdict_is_right(cluster: Cluster) -> None:
    running = cluster.judging(200)
    cluster.hosts.signal(1, signal.SIGKILL)
    print(f"killed: {all_right(running):.0f} s later")


def test_a_link_is_cut_and_every_verdict_is_right(cluster: Cluster) -> None:
    running = cluster.judging(200)
    cluster.hosts.cut()
    print(f"cut: {all_right(running):.0f} s later")
