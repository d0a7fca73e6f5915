"""Tools that do what tools should not, each in its way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rl_reasoner import tool

COUNT = 0
KEPT = []


@tool
def good(text: str, times: int = 1) -> str:
    """Repeat."""
    return text * times


@tool
def counts() -> int:
    """Count the calls of this process."""
    global COUNT
    COUNT += 1
    return COUNT


@tool
def keeps() -> str:
    """Keep 200 MB of each call."""
    KEPT.append(bytearray(200 << 20))
    return "kept"


@tool
def raises(text: str) -> str:
    """Raise."""
    raise KeyError(text)


@tool
def hangs(seconds: float = 600) -> str:
    """Hang."""
    time.sleep(seconds)
    return "late"


@tool
def leaves(code: int) -> str:
    """Leave."""
    os._exit(code)


@tool
def quits() -> str:
    """Quit as scripts do."""
    sys.exit("enough")


@tool
def dies(number: int) -> str:
    """Die by a signal."""
    os.kill(os.getpid(), number)
    return "alive"


@tool
def huge() -> str:
    """Return 10 MB."""
    return "0123456789" * 1_000_000


@tool
def chatters() -> str:
    """Print much, and close what it prints on."""
    os.write(1, b"x" * 1000)
    os.close(1)
    return "done"


@tool
def shouts() -> str:
    """Write on every pipe that there is, without end."""
    for _ in range(1000):
        for descriptor in range(3, 20):
            try:
                os.write(descriptor, b"x" * 65536)
            except OSError:
                continue
    return "done"


@tool
def forks() -> str:
    """Come back twice."""
    return "parent" if os.fork() else "child"


@tool
def spawns(note: str) -> str:
    """Leave processes behind, in sessions of their own, their numbers in the file `note`."""
    code = (
        "import os, subprocess, sys, time; from pathlib import Path; os.fork() and os._exit(0); "
        "os.setsid(); Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    )
    subprocess.Popen([sys.executable, "-c", code, note], start_new_session=True)
    while not (Path(note).exists() and Path(note).read_text()):
        time.sleep(0.01)
    return "started"


@tool
def spawns_and_hangs(note: str) -> str:
    """As `spawns`, and hang."""
    spawns(note)
    time.sleep(600)
    return "late"


@tool
def spawns_and_dies(note: str) -> str:
    """As `spawns`, and be killed."""
    spawns(note)
    os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@tool
def returns(kind: str) -> Any:
    """Return what is no text."""
    return {"bytes": b"x", "none": None, "object": object(), "set": {1}, "list": [1, {"a": None}]}[
        kind
    ]


@tool
def eats() -> str:
    """Take more memory than there is."""
    return str(len(bytearray(1 << 40)))


@tool
def dirty() -> str:
    """Return characters that nobody can show."""
    return "a\0b\x1b\ud800c\r\nd"
