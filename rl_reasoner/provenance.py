"""What a result depends on beside its inputs: versions, machine, this project's commit and code."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from rl_reasoner.version import __version__

_SOURCES = (".py", ".cpp", ".h")
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "sympy")


def versions() -> dict[str, str]:
    """The versions of the libraries that results depend on, by name."""
    return {name: _version(name) for name in _PACKAGES}


# Asked for by every evaluation and stage, and the same while the process lives: what it has loaded.
_version = cache(importlib.metadata.version)


@cache
def untested() -> str:
    """The packages that are not in the version that the tests passed with, in words; or ""."""
    lines = (Path(__file__).parent / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    moved = [
        f"{name} {here} (tested with {tested[name]})"
        for name, here in versions().items()
        if tested.get(name, here) != here
    ]
    return ", ".join(moved)


def made_with() -> dict[str, Any]:
    """Versions, machine and commit, as JSON values."""
    return {
        "rl_reasoner": __version__,
        "python": platform.python_version(),
        "versions": versions(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "commit": git_commit(),
        "code": code_hash(),
    }


@cache
def code_hash() -> str:
    """SHA-256 over the sources of this package as they lie here: a commit may not be what runs.

    The shipped rewards are not in it: a run keeps the hash of each reward that it uses.
    """
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*")):
        name = file.relative_to(package)
        if file.suffix in _SOURCES and name.parts[0] not in ("rewards", "recipes", "data"):
            digest.update(f"{name.as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def git_commit() -> str | None:
    """The git commit of the project's checkout, with `+` when it is changed; None outside one."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        if commit.returncode:
            return None
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:
        return None
    return commit.stdout.strip() + ("+" if changed.returncode else "")
