"""Runs of several processes, each started by the command line."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.tiny import TRAPPED, grpo, recipe

# The trapped reward, in the second process alone.
SECOND = TRAPPED.replace("if str(CALLS)", 'if os.environ.get("RANK") == "1" and str(CALLS)')


def written(
    folder: Path, *stages: dict[str, Any], policy: Any = "scratch:moe-tiny", **run: Any
) -> Path:
    """The file of a tiny recipe, whose run is `folder`/run."""
    folder.mkdir()
    fields = {"folder": str(folder / "run"), "device": "cpu", **run}
    given = {"run": fields, "evals": {"sets": []}, "policy": policy}
    made = recipe(folder, *stages, source=SECOND, **given)
    (folder / "recipe.yaml").write_text(made.to_yaml(), encoding="utf-8")
    return folder / "recipe.yaml"


def ran(*arguments: Any, trap: str = "", sends: int = 0) -> subprocess.CompletedProcess[str]:
    """`rl-reasoner train ...` in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRAP_AT": trap, "TRAP_SIGNAL": str(sends)}
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", "--quiet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)


STEPS = grpo(steps=4, save_every=2)
