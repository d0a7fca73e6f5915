"""The ledger: one line for every score that a run gave, with its reason.

    {"step": 3, "row": 17, "group": 0, "index": 2, "seed": 0, "hash": "9f…", "reward": "near",
     "value": 1.0, "outcome": "score", "reason": "…", "parts": {…}, "seconds": 0.001}

`row` is the data's row, `group` and `index` say where in the step's batch the completion stands,
`hash` is the completion's (BLAKE2b, 8 bytes). The file only grows, one write a batch; a line that
was torn by a kill is taken off when it is opened again. What tools did in a completion stands in
the line of its first score: `"calls": [{"tool": "python", "kind": "ok", "seconds": 0.02}]`. Full
files are put aside as `ledger-0001.jsonl` and so on; the oldest go when there are too many. Knows
nothing of models.
"""

import hashlib
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rl_reasoner.files import append_rows, json_lines, no_link, read_jsonl

FILE_BYTES = 64 << 20
FILES = 32
"""A ledger is at most `FILES` files of about `FILE_BYTES`: 2 GiB, some ten million scores."""
_REASON = 300  # characters
_PARTS = 32
_ASIDE = re.compile(r"ledger-(\d+)\.jsonl")


class Ledger:
    """The ledger of one stage, in its folder; opened with `Ledger.open`."""

    def __init__(self, folder: Path, file_bytes: int = FILE_BYTES, files: int = FILES) -> None:
        self.path = folder / "ledger.jsonl"
        self.file_bytes = file_bytes
        self.files = files

    @classmethod
    def open(cls, folder: Path, step: int, **sizes: int) -> "Ledger":
        """The ledger in `folder`, to be continued after `step`: later rows and a torn line go.

        Raises OSError for a file that is a link: what it leads to is not the run's.
        """
        ledger = cls(folder, **sizes)
        for path in reversed(files_of(folder)):
            with open(path, "r+b", opener=no_link) as file:
                kept = _kept_bytes(path, step)
                if kept < os.fstat(file.fileno()).st_size:
                    file.truncate(kept)
            if kept:
                break
            path.unlink()
        return ledger

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, in one go. Raises OSError where the disk is full."""
        if append_rows(self.path, rows) >= self.file_bytes:
            self._put_aside()

    def sync(self) -> None:
        """Have the disk hold what was written: a checkpoint is about to count on it."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _put_aside(self) -> None:
        aside = files_of(self.path.parent)[:-1]
        last = _ASIDE.fullmatch(aside[-1].name) if aside else None
        number = int(last[1]) + 1 if last else 1
        self.path.rename(self.path.with_name(f"ledger-{number:04d}.jsonl"))
        for old in aside[: max(0, len(aside) + 2 - self.files)]:
            old.unlink()


def files_of(folder: Path) -> list[Path]:
    """The files of the ledger in `folder`, the oldest first."""
    aside = [p for p in folder.glob("ledger-*.jsonl") if _ASIDE.fullmatch(p.name)]
    current = folder / "ledger.jsonl"
    files = sorted(aside, key=lambda p: int(p.stem[7:]))
    return [*files, current] if current.is_file() else files


def entries(folder: Path) -> Iterator[dict[str, Any]]:
    """Every row of the ledger in `folder`, in order; lines that cannot be read are passed over."""
    for path in files_of(folder):
        yield from (row for row in read_jsonl(path) if isinstance(row.get("step"), int))


def seconds_of_calls(folder: Path, steps: Set[int]) -> dict[tuple[int, str], deque[list[Any]]]:
    """The seconds of tools' calls at `steps`, in the ledger in `folder`: by step and group.

    A list for each completion that called, in the order of the rollouts.
    """
    found: dict[tuple[int, str], deque[list[Any]]] = {}
    for entry in entries(folder):
        calls = entry.get("calls")
        if entry["step"] in steps and isinstance(calls, list):
            seconds = [call.get("seconds") for call in calls if isinstance(call, dict)]
            place = entry["step"], str(entry.get("group"))
            found.setdefault(place, deque()).append(seconds)
    return found


def _kept_bytes(path: Path, step: int) -> int:
    """How much of a file is whole and not after `step`; its rows stand in the order of steps."""
    kept = 0
    for line in json_lines(path):
        if line.whole and line.row is not None and isinstance(at := line.row.get("step"), int):
            if at > step:
                break
            kept = line.end
    return kept


def completion_hash(completion: str) -> str:
    """The hash under which a completion stands in the ledger."""
    data = completion.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def scores_of(rollouts: Sequence[Mapping[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """The ledger's rows for the rollouts of one batch, as the trainer gives them.

    Reasons and parts are cut to a bounded size.
    """
    indices: dict[int, int] = {}
    for rollout in rollouts:
        group = rollout["group"]
        index = indices[group] = indices.get(group, -1) + 1
        place = {
            "step": rollout["step"],
            "row": rollout.get("row"),
            "group": group,
            "index": index,
            "seed": seed,
            "hash": completion_hash(rollout["completion"]),
        }
        calls = _calls(rollout)
        for name, score in rollout["scores"].items():
            row = {**place, "reward": name, **score, "reason": score["reason"][:_REASON]}
            if "parts" in score:
                row["parts"] = dict(list(score["parts"].items())[:_PARTS])
            yield {**row, "seconds": round(rollout["seconds"][name], 6), **calls}
            calls = {}


def _calls(rollout: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What is kept of a completion's calls, each with its seconds; empty where there were none."""
    calls = [
        {"tool": turn["tool"], "kind": turn["kind"], "seconds": round(seconds, 6)}
        for turn, seconds in zip(
            rollout.get("turns", ()), rollout.get("call_seconds", ()), strict=True
        )
    ]
    return {"calls": calls} if calls else {}
