"""What a set's figures are called: its name, and behind it the mode and the part they are of.

"modular_test" is greedy, or of all samples; "modular_test@sampled" was sampled,
"modular_test@sampled@clean" is the part of that which no training row overlaps.
"""

from pathlib import PurePosixPath
from typing import Literal, get_args

Mode = Literal["greedy", "sampled", "chain-forced", "direct-forced"]
MODES: tuple[Mode, ...] = get_args(Mode)
CLEAN = "@clean"
_SUFFIXES = (*(f"@{mode}" for mode in MODES if mode != "greedy"), CLEAN)


def label_of(name: str, mode: Mode) -> str:
    """The label of the set `name` in a mode."""
    return name if mode == "greedy" else f"{name}@{mode}"


def split_label(label: str) -> tuple[str, str]:
    """A label as (set, the rest): "s@sampled@clean" is ("s", "sampled@clean").

    A set may have an @ in its own name.
    """
    name = label
    while suffix := next((one for one in _SUFFIXES if name.endswith(one)), ""):
        name = name.removesuffix(suffix)
    return name, label.removeprefix(name).removeprefix("@")


def set_title(name: str) -> str:
    """A set's name for a heading: of a file, its name alone."""
    base, mode = split_label(name)
    path = PurePosixPath(base)
    short = path.stem if path.suffix in (".jsonl", ".json", ".csv", ".parquet") else base
    return f"{short}@{mode}" if mode else short
