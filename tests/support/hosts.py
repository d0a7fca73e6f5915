"""Two hosts of one machine: network namespaces with a link between them, which can be cut."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

ADDRESSES = ("10.213.7.1", "10.213.7.2")


class Hosts:
    """Two namespaces, each with an address of `ADDRESSES` on the link `net`."""

    def __init__(self) -> None:
        self.names = [f"rl{os.getpid()}-{number}" for number in (1, 2)]

    def start(
        self, host: int, command: Sequence[str], env: dict[str, str], **given: Any
    ) -> subprocess.Popen[str]:
        """A command on a host (0 or 1)."""
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "net", **env}
        there = ["ip", "netns", "exec", self.names[host], *command]
        return subprocess.Popen(there, env=environment, text=True, **given)

    def cut(self) -> None:
        """Take the link away: what is sent from now on is lost, and nobody is told."""
        _ip("-n", self.names[1], "link", "set", "net", "down")

    def mend(self) -> None:
        """Put the link back."""
        _ip("-n", self.names[1], "link", "set", "net", "up")

    def signal(self, host: int, number: signal.Signals) -> None:
        """Send a signal to all processes of a host."""
        for pid in self.processes(host):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, number)

    def processes(self, host: int) -> list[int]:
        """The processes of a host, by number."""
        return [int(pid) for pid in _ip("netns", "pids", self.names[host]).split()]

    def __enter__(self) -> "Hosts":
        for name in self.names:
            _ip("netns", "add", name)
        there = ["type", "veth", "peer", "name", "net", "netns", self.names[1]]
        _ip("link", "add", "net", "netns", self.names[0], *there)
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "net")
            for link in ("lo", "net"):
                _ip("-n", name, "link", "set", link, "up")
        return self

    def __exit__(self, *ended: object) -> None:
        for host, name in enumerate(self.names):
            self.signal(host, signal.SIGKILL)
            _ip("netns", "del", name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def why_not() -> str:
    """Why there can be no two hosts here; empty where there can."""
    if shutil.which("ip") is None:
        return "two hosts need `ip` (iproute2)"
    if os.geteuid() != 0:
        return "two hosts need root, to make network namespaces"
    try:
        with Hosts():
            return ""
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two hosts with a link; skips the test, with the reason, where there can be none."""
    import pytest

    if reason := why_not():
        pytest.skip(reason)
    with Hosts() as made:
        yield made
