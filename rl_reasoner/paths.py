"""Where the sibling rooms (`rewards`, `recipes`, `data`) lie: in a clone and in a wheel.

In a wheel they are sub-packages of `rl_reasoner`; in a clone they are folders beside it.
"""

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
