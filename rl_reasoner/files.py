"""Files of a run: written whole or not at all, and JSONL, which may end in a torn line.

What says that something is finished is written to a temporary name and renamed, so that a run that
is killed at any moment holds only whole files. JSONL files only grow; a kill may tear their last
line, and readers may meet it while it is written. Every value is read within the bounds of
`foreign`. Knows nothing of what is in the rows.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rl_reasoner.foreign import json_value, number

_ESCAPED = "backslashreplace"  # lone surrogates, which UTF-8 lacks, become JSON's own \ud800


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)  # of a write that was killed, or a link to anywhere
    with partial.open("x", encoding="utf-8", errors=_ESCAPED) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file whole or not at all."""
    write_text(path, _jsonl(rows))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the new `folder` to write in, which becomes it at the end: whole or none."""
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a write that was killed
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Append rows to a JSONL file, one write for all of them; returns the file's size in bytes."""
    text = _jsonl(rows)
    with path.open("a", encoding="utf-8", errors=_ESCAPED) as file:
        file.write(text)
        return file.tell()


class Line(NamedTuple):
    """A line of a JSONL file: its number from 1, its place in bytes, its value or its error."""

    number: int
    start: int
    end: int
    text: bytes
    value: Any
    error: Exception | None

    @property
    def row(self) -> dict[str, Any] | None:
        """The JSON object of the line; None where it is none."""
        return self.value if isinstance(self.value, dict) else None

    @property
    def whole(self) -> bool:
        """Whether the line has its end: the last one of a file may be torn."""
        return self.text.endswith(b"\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_lines(
    path: Path, start: int = 0, parse: Callable[[bytes], Any] = json_value
) -> Iterator[Line]:
    """The lines of a JSONL file from the byte `start` on, one at a time, without blank ones.

    Lines that cannot be parsed are among them, a torn last one as well. Raises OSError where there
    is no file.
    """
    with path.open("rb") as file:
        file.seek(start)
        for at, text in enumerate(file, 1):  # lines end at b"\n" only: U+2028 is text
            if text.strip():
                value, error = None, None
                try:
                    value = parse(text)
                except (ValueError, RecursionError) as caught:
                    error = caught
                yield Line(at, start, start + len(text), text, value, error)
            start += len(text)


def read_jsonl(
    path: Path, on_unreadable: Callable[[int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """The JSON objects in a JSONL file, one at a time; none where there is no file.

    Other lines are left out; `on_unreadable` is called with their number, if there are any.
    """
    unreadable = 0
    for line in json_lines(path) if path.is_file() else ():
        if line.row is None:
            unreadable += 1
        else:
            yield line.row
    if unreadable and on_unreadable is not None:
        on_unreadable(unreadable)


def keep_rows_until(path: Path, step: int) -> None:
    """Drop the rows after `step`, and all from a torn line on, from a file that is continued."""
    if not path.is_file():
        return
    kept = []
    for line in json_lines(path):
        if line.error is not None:
            break
        if line.row is not None and (number(line.row.get("step")) or 0) <= step:
            kept.append(line.text.decode(errors="replace").rstrip("\n") + "\n")
    write_text(path, "".join(kept))


def _jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def flock_holder(file: Path) -> int | None:
    """The process that holds the `flock` of `file`; None where it is not to be found out.

    Linux lists locks by the number of a file. Whether it is this one, the open files of a process
    say: those of other users are not shown.
    """
    try:
        meant = file.stat()
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in locks:
        words = line.split()
        if words[1:2] != ["FLOCK"] or words[5].rpartition(":")[2] != str(meant.st_ino):
            continue
        with suppress(OSError):
            for opened in Path(f"/proc/{words[4]}/fd").iterdir():
                with suppress(OSError):  # it is closed meanwhile
                    if os.path.samestat(opened.stat(), meant):
                        return int(words[4])
    return None
