"""Which checkpoint a run continues from.

A checkpoint that was cut off while it was written (killed, disk full) or damaged is passed over,
with a word about it, and the one before is used. Knows nothing of rewards.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

_ZIPPED = ("optimizer.pt", "scheduler.pt")


def last_checkpoint(folder: Path, note: Callable[[str], None]) -> tuple[Path, int] | None:
    """The newest whole checkpoint in `folder` and its step, or None. `note` hears of damaged ones.

    Whole means: weights whose every tensor lies inside the file, optimizer and scheduler files that
    pass their checksums, and a readable trainer state (the file that is written last).
    """
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in folder.glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    for step, path in sorted(found, reverse=True):
        damage = _damage(path)
        if damage is None:
            return path, step
        note(f"checkpoint {path.name} is damaged ({damage}): going back to the one before")
    return None


def _damage(path: Path) -> str | None:
    try:
        json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        weights = list(path.glob("*.safetensors"))
        if not weights:
            return "no weights"
        for file in weights:
            with safe_open(str(file), "pt") as tensors:
                names = tensors.keys()
                if not names:
                    return f"{file.name} is empty"
        for name in _ZIPPED:
            broken = zipfile.ZipFile(path / name).testzip()
            if broken:
                return f"{name}: {broken} fails its checksum"
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        return f"{type(error).__name__}: {error}"
    return None
