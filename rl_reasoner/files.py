"""Files of a run: written whole or not at all, and JSONL, which may end in a torn line.

What says that something is finished is written to a temporary name and renamed, so that a run that
is killed at any moment holds only whole files. JSONL files only grow; a kill may tear their last
line, and readers may meet it while it is written. Every value is read within the bounds of
`foreign`. Knows nothing of what is in the rows.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rl_reasoner.errors import UserError
from rl_reasoner.foreign import json_value, number

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a write for which a disk, a quota or `ulimit -f` has no room."""
_ESCAPED = "backslashreplace"  # lone surrogates, which UTF-8 lacks, become JSON's own \ud800


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary name, synced, then renamed."""
    _partial(path, text).replace(path)


def write_together(texts: Mapping[Path, str]) -> None:
    """Write files that belong together: none of them is ever beside an older one of another.

    The last one says that all are there: it is taken away until they are.
    """
    partials: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            partials[path] = _partial(path, text)
    except BaseException:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
    [*partials][-1].unlink(missing_ok=True)
    for path, partial in partials.items():
        partial.replace(path)


def _partial(path: Path, text: str) -> Path:
    """The temporary file of `path`, written and synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)  # of a write that was killed, or a link to anywhere
    try:
        with partial.open("x", encoding="utf-8", errors=_ESCAPED) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        _name_file(error, path)
        raise
    return partial


def _name_file(error: BaseException, path: Path) -> None:
    """Have an error of the system that names no file name `path`."""
    if isinstance(error, OSError) and error.errno and error.filename is None:
        error.filename = str(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, whole or not at all."""
    write_text(path, as_json(value))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file whole or not at all."""
    write_text(path, as_jsonl(rows))


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside the new `folder`, which becomes it at the end: whole or none.

    Raises `UserError` where another process writes it, or has meanwhile.
    """
    partial = folder.with_name(f".{folder.name}.part")
    if partial.is_symlink() or partial.is_file():
        partial.unlink()
    partial.mkdir(parents=True, exist_ok=True)
    with _held(partial, folder):
        try:
            for left in partial.iterdir():  # by a write that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield partial
            if os.path.lexists(folder):
                raise UserError(f"{folder} exists already; give a new folder")
            partial.rename(folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            _name_file(error, folder)
            raise


@contextmanager
def _held(partial: Path, folder: Path) -> Iterator[None]:
    """Hold the folder in which `folder` is written, where its file system has locks of folders."""
    held = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # one that has none
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = flock_holder(partial)
                who = f"another process ({holder})" if holder else "another process"
                raise UserError(f"{who} is writing {folder}") from None
        if not (partial.is_dir() and os.path.samestat(os.fstat(held), partial.lstat())):
            raise UserError(f"another process has just written {folder}")  # and let go of it
        yield
    finally:
        os.close(held)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder. Raises the OSError of the first file that fails, not shutil's of them all."""
    failed: list[OSError] = []

    def copy(file: str, place: str) -> None:
        try:
            shutil.copy2(file, place)
        except OSError as error:
            failed.append(error)
            raise

    try:
        shutil.copytree(source, target, copy_function=copy, dirs_exist_ok=True)
    except shutil.Error as error:
        raise (failed or [error])[0] from error


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Append rows to a JSONL file, one write for all of them; returns the file's size in bytes.

    Raises OSError where that is a link.
    """
    text = as_jsonl(rows)
    with open(path, "a", encoding="utf-8", errors=_ESCAPED, opener=no_link) as file:
        file.write(text)
        return file.tell()


def no_link(path: str, flags: int) -> int:
    """An opener that raises OSError for a path whose last part is a link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


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


def as_json(value: Any) -> str:
    """A JSON value as a file of a run has it, indented."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def as_jsonl(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as the text of a JSONL file."""
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
