"""Where the sibling rooms (`rewards`, `recipes`, `data`) lie, in a clone and in a wheel; the cache.

In a wheel they are sub-packages of `rl_reasoner`; in a clone they are folders beside it.
"""

import os
import shlex
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def room(name: str) -> Path:
    """The folder of the room `name`: one of "rewards", "recipes", "data".

    Raises `FileNotFoundError` when the installation lacks it.
    """
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the installation of rl_reasoner is missing its folder {name!r}")


def resume_command(run: Path | str) -> str:
    """The command that continues a run, as a shell takes it."""
    return shlex.join(["rl-reasoner", "train", "--resume", str(run)])


def cache_folder() -> Path:
    """Where what was made once is kept: `$RL_REASONER_CACHE`, else `~/.cache/rl-reasoner`.

    Raises `FileNotFoundError` for a user without a home folder, as in some containers.
    """
    folder = Path(os.environ.get("RL_REASONER_CACHE", "~/.cache/rl-reasoner"))
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{folder}: {error} Set RL_REASONER_CACHE to a folder.") from error
