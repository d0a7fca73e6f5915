"""Which checkpoint a run continues from.

A checkpoint that was cut off while it was written (killed, disk full) or damaged is passed over,
with a word about it, and the one before is used. Knows nothing of rewards.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

# Zip files with checksums. The random states are one file a process (rng_state.pth, rng_state_0.pth
# …); without them transformers would go on with other random numbers, and say so only in its log.
_ZIPPED = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")


def last_checkpoint(folder: Path, note: Callable[[str], None]) -> tuple[Path, int] | None:
    """The newest whole checkpoint in `folder` and its step, or None. `note` hears of damaged ones.

    Whole means: weights whose every tensor lies inside the file; optimizer, scheduler and random
    states that pass their checksums; a readable trainer state (the file that is written last).
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
        for pattern in _ZIPPED:
            files = sorted(path.glob(pattern))
            if not files:
                return f"no {pattern}"
            for file in files:
                if damage := _zip_damage(file):
                    return f"{file.name}: {damage}"
    except (OSError, ValueError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _zip_damage(file: Path) -> str | None:
    """What is wrong with a file of `torch.save`: by its checksums, and by opening it as torch does.

    One reader passes over damage that stops the other.
    """
    try:
        if broken := zipfile.ZipFile(file).testzip():
            return f"{broken} fails its checksum"
        with safe_globals():
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes both readers raise nearly anything
        return f"{type(error).__name__}: {str(error).partition('.')[0]}"
    return None
