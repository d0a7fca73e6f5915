"""What a set's figures are called: its name, and behind it the mode and the part they are of.

"modular_test" is greedy, or of all samples; "modular_test@sampled" was sampled,
"modular_test@sampled@clean" is the part of that which no training row overlaps.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from rl_reasoner.paths import told_apart

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


def set_title(name: str, among: Iterable[str] = ()) -> str:
    """A set's name for a heading: of a file, its name alone.

    Where that is another's name, too, `among` the sets that are shown, its folders stand before it.
    """
    base, mode = split_label(name)
    others = {split_label(other)[0] for other in among}
    short = told_apart(Path(base), {*map(_file, others)}) if _is_file(base) else base
    return f"{short}@{mode}" if mode else short


def _is_file(base: str) -> bool:
    return Path(base).suffix in (".jsonl", ".json", ".csv", ".parquet")


def _file(base: str) -> Path:
    """The set as a file, whose name may have dots: a named one has no ending to leave out."""
    return Path(base if _is_file(base) else f"{base}.set")
