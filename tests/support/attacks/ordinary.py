"""Starting a command as an ordinary user, from root, wherever Python is installed."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rl_reasoner.sandbox import linux

NOBODY = 65534


def become_ordinary(needed: Sequence[Path]) -> None:
    """Turn this process, which is root's, into an ordinary user's that can still reach `needed`.

    Where the way to one of them leads through a folder closed to others, a mount namespace of this
    process's own puts an empty open folder with that one thing in it in its place.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    for closed in sorted({c for path in needed if (c := _closed(path))}):
        below = [path for path in needed if closed in path.parents]
        handles = [os.open(path, os.O_PATH) for path in below]
        linux.mount("none", str(closed), "tmpfs", options="mode=755")
        for path, handle in zip(below, handles, strict=True):
            path.mkdir(parents=True, exist_ok=True)
            linux.mount(f"/proc/self/fd/{handle}", str(path), flags=linux.MS_BIND | linux.MS_REC)
            os.close(handle)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _closed(path: Path) -> Path | None:
    """The first folder on the way to `path` that others may not pass."""
    return next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None)


def main() -> None:
    """`python ordinary.py FOLDER,FOLDER COMMAND ...`: the command as an ordinary user."""
    become_ordinary([Path(folder) for folder in sys.argv[1].split(",")])
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
