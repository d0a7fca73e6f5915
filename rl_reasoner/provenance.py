"""What a result depends on beside its inputs: versions, machine, and the commit of this project."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from rl_reasoner.version import __version__

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "sympy")


def versions() -> dict[str, str]:
    """The versions of the libraries that results depend on, by name."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def made_with() -> dict[str, Any]:
    """Versions, machine and commit, as JSON values."""
    return {
        "rl_reasoner": __version__,
        "python": platform.python_version(),
        "versions": versions(),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "commit": git_commit(),
    }


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
