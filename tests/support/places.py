"""Where things lie: the project's root, the material beside it, and a port that is free."""

import itertools
import os
import socket
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
DATA = SHARED / "data"
_TURNS = itertools.count()


def free_port() -> int:
    """A port of this machine that nobody listens at; another process is given others. No outgoing
    connection is given it either: theirs begin at 32768."""
    while True:
        port = 20_000 + (20 * os.getpid() + next(_TURNS) % 20) % 12_000
        with socket.socket() as free, suppress(OSError):
            free.bind(("", port))
            return port
