"""What another version of this package explains: its sets and tasks are no longer the run's.

A run keeps the hash of the code that made it, and of each set. Where the code here is other, a
shipped set that has changed with it says nothing about the run: checks that need the set cannot be
made, and say so. Knows hashes alone; who forges a lock turns these checks off, and the audit tells
that they were not made.
"""

from pathlib import Path

from rl_reasoner.dataset.sets import find_set
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.paths import room
from rl_reasoner.pipeline.lineage import hash_of_set
from rl_reasoner.provenance import code_hash


def same_code(run: Path) -> bool:
    """Whether the run in `run` was made with the code of this package as it lies here."""
    return json_object(run / "lock.json").get("code") == code_hash()


def maker_of(run: Path) -> str:
    """The version that made a run, in words: "rl-reasoner 0.1.0, commit 7ae6299"."""
    lock = json_object(run / "lock.json")
    return f"rl-reasoner {lock.get('rl_reasoner')}, commit {lock.get('commit') or 'unknown'}"


def moved_sets(run: Path) -> frozenset[str]:
    """The shipped sets of a run that are others here, because another version made the run."""
    if same_code(run):
        return frozenset()
    kept = mapping(json_object(run / "lock.json").get("data"))
    shipped = room("data").resolve()
    return frozenset(
        name
        for name, value in kept.items()
        if (file := find_set(name)) is not None
        and file.resolve().is_relative_to(shipped)
        and hash_of_set(name) != value
    )
