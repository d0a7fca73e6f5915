"""Checkpoints as files: their seals, and which one a run continues from.

A checkpoint is sealed with the checksums of its files when it is complete. One that was cut off
while it was written (killed, disk full) or damaged since, even by one bit, is passed over with a
note, and the one before is used. Knows nothing of rewards.
"""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals

from rl_reasoner.errors import UserError
from rl_reasoner.foreign import json_object

# Zip files with checksums. The random states are one file a process (rng_state.pth, rng_state_0.pth
# …); without them transformers would go on with other random numbers, and say so only in its log.
_ZIPPED = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
# Weights and optimizer of a job with sharded weights (`distributed.sharding`): folders whose index
# is written when all processes have written their parts.
_SHARDS = ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata")
# DeepSpeed's weights and optimizer: zip files of each process, in the folder that `latest` names.
_LATEST = "latest"
_DEEPSPEED = ("*_model_states.pt", "*_optim_states.pt")
_SEAL = "checksums.json"


def seal(checkpoint: Path) -> None:
    """Write the checksums (BLAKE2b) of a complete checkpoint's files into it, in one go."""
    sums = {
        str(file.relative_to(checkpoint)): _checksum(file)
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != _SEAL
    }
    partial = checkpoint / f".{_SEAL}.part"
    partial.write_text(json.dumps(sums, indent=1), encoding="utf-8")
    partial.replace(checkpoint / _SEAL)


def is_sealed(checkpoint: Path) -> bool:
    """Whether a checkpoint is there, and as it was sealed; one that cannot be read is not."""
    try:
        return (checkpoint / _SEAL).is_file() and broken_seal(checkpoint) is None
    except (OSError, UserError):
        return False


def drop_damaged(folder: Path) -> None:
    """Remove the checkpoints in `folder` that are not whole: they take room and are of no use."""
    for path in folder.glob("checkpoint-*"):
        if _damage(path) is not None:
            shutil.rmtree(path, ignore_errors=True)


def steps_in(folder: Path) -> dict[int, Path]:
    """The checkpoints in `folder` by their step, whole or not."""
    names = {path.name.removeprefix("checkpoint-"): path for path in folder.glob("checkpoint-*")}
    return {int(step): path for step, path in names.items() if step.isdigit()}


def _checksum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()


def last_checkpoint(folder: Path, note: Callable[[str], None]) -> tuple[Path, int] | None:
    """The newest whole checkpoint in `folder` and its step, or None. `note` hears of damaged ones.

    Whole means: every file as it was sealed; weights whose every tensor lies inside the file;
    optimizer, scheduler and random states that pass their own checksums; a readable trainer state.
    A checkpoint without a seal (killed right before it, or of trl's own) has to pass all but the
    first. One of the model alone (`save_only_model`) is whole too; `note` hears what it lacks.
    """
    for step, path in sorted(steps_in(folder).items(), reverse=True):
        damage = _damage(path)
        if damage is None:
            if _of_model_alone(path):
                note(
                    f"checkpoint {path.name} holds only the model: its step is resumed, but "
                    "the optimizer, learning-rate schedule and random states start fresh"
                )
            return path, step
        note(f"checkpoint {path.name} is damaged ({damage}): using the one before it")
    return None


def _damage(path: Path) -> str | None:
    try:
        if found := broken_seal(path):
            return found
        json_object(path / "trainer_state.json")
        elsewhere = True  # weights and optimizer are not where transformers writes them
        if (path / _LATEST).is_file():
            if found := _broken_deepspeed(path):
                return found
        elif (path / _SHARDS[0]).parent.is_dir():
            for index in _SHARDS:
                if not (path / index).is_file():
                    return f"no {index}"
        elif found := _broken_weights(path):
            return found
        else:
            elsewhere = False
        wanted = () if _of_model_alone(path) else _ZIPPED[elsewhere:]
        for pattern in wanted:  # an optimizer elsewhere is looked at above
            files = sorted(path.glob(pattern))
            if not files:
                return f"no {pattern}"
            for file in files:
                if damage := _zip_damage(file):
                    return f"{file.name}: {damage}"
    except (OSError, ValueError, UserError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _of_model_alone(path: Path) -> bool:
    """Whether nothing but weights was saved: of a cut-off checkpoint one state or more is there."""
    shards = [str(Path(index).parent) for index in _SHARDS]
    states = (*_ZIPPED, *shards, _LATEST)
    return not any(found for pattern in states for found in path.glob(pattern))


def _broken_weights(path: Path) -> str | None:
    """What is wrong with the weights; None where every file can be read."""
    weights = list(path.glob("*.safetensors"))
    if not weights:
        return "no weights"
    for file in weights:
        with safe_open(str(file), "pt") as tensors:
            if not tensors.keys():
                return f"{file.name} is empty"
    return None


def _broken_deepspeed(path: Path) -> str | None:
    """What is wrong with the states that DeepSpeed wrote.

    By their checksums alone: they hold objects of DeepSpeed's own, which only it may open.
    """
    name = (path / _LATEST).read_text(encoding="utf-8").strip()
    processes = max(1, len([*path.glob("rng_state*.pth")]))
    for pattern, least in zip(_DEEPSPEED, (1, processes), strict=True):
        files = sorted((path / Path(name).name).glob(pattern))
        if len(files) < least:
            return f"{len(files)} of {least} {name}/{pattern}"
        for file in files:
            if damage := _zip_damage(file, opened=False):
                return f"{file.name}: {damage}"
    return None


def broken_seal(path: Path) -> str | None:
    """The first file that is not as it was sealed; None where there is no seal."""
    if not (path / _SEAL).is_file():
        return None
    for name, checksum in json_object(path / _SEAL).items():
        if not (path / name).is_file():
            return f"no {name}"
        if _checksum(path / name) != checksum:
            return f"{name} fails its checksum"
    return None


def _zip_damage(file: Path, opened: bool = True) -> str | None:
    """What is wrong with a file of `torch.save`: by its checksums, and by opening it as torch does.

    One reader passes over damage that stops the other.
    """
    try:
        if broken := zipfile.ZipFile(file).testzip():
            return f"{broken} fails its checksum"
        if opened:
            with safe_globals():
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file makes both readers raise nearly anything
        return f"{type(error).__name__}: {str(error).partition('.')[0]}"
    return None
