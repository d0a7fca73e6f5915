"""A tool and an environment in a module that is slow to import, where `SLOW_FOLDER` says so."""

import os
import time
from pathlib import Path

if folder := os.environ.get("SLOW_FOLDER"):
    Path(folder, "loading").touch()
    time.sleep(30)
    Path(folder, "loaded").touch()


def echo(text: str) -> str:
    """Say a text back."""
    return text


class Silent:
    """Says nothing."""

    def reset(self, row: dict[str, object]) -> None:
        """Nothing to begin with."""

    def step(self, completion: str) -> tuple[str, float, bool]:
        return "", 0.0, True
