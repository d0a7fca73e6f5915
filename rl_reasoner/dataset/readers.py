"""Readers of row files in all their forms; an error names the line.

JSON, one object a line or one list of them; CSV with commas, semicolons or tabs; Parquet; folders
that datasets' `save_to_disk` wrote. Each row is a plain dict; what must be in it is `rows`' part.
"""

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError, did_you_mean, first_line
from rl_reasoner.files import json_lines
from rl_reasoner.foreign import not_utf8
from rl_reasoner.types import Row

FORMS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_GZIP = b"\x1f\x8b"
_BETWEEN = ",;\t"  # what values of a line are parted by
_SAVED = ("state.json", "dataset_dict.json")  # in a folder of `save_to_disk`
_LONGEST_VALUE = 1 << 30  # characters in CSV, whose own limit is lower; lint names long texts
_WANTED = "expected a list of objects, or one object per line"


def saved_folder(path: Path) -> bool:
    """Whether a folder is one that datasets' `save_to_disk` wrote."""
    return any((path / name).is_file() for name in _SAVED)


def ending(path: Path) -> str:
    """The ending of a file's name, by which its form is known: `.CSV` is `.csv`."""
    return path.suffix.lower()


def file_rows(path: Path, split: str) -> Iterator[Row]:
    """Read the rows of a file or saved folder; `split` chooses one of a folder's splits.

    Raises `UserError` with the line where it is broken.
    """
    if path.is_dir():
        yield from _saved_rows(path, split)
    elif ending(path) in (".csv", ".tsv"):
        yield from _csv_rows(path)
    elif ending(path) == ".parquet":
        yield from _parquet_rows(path)
    elif _is_list(path):
        yield from _json_list(path)
    else:
        yield from _json_lines(path)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_VALUE)
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a mark
        try:
            between = "\t" if ending(path) == ".tsv" else _between(file.readline())
            file.seek(0)
            reader = csv.DictReader(file, strict=True, delimiter=between)
            counts = Counter(filter(str.strip, reader.fieldnames or ()))  # some have no name
            if twice := [name for name, times in counts.items() if times > 1]:
                place = f"{path}, line {reader.line_num}"
                raise UserError(f"{place}: two columns {twice[0]!r}, expected one of each name")
            for row in reader:
                if None in row:
                    raise UserError(f"{path}, line {reader.line_num}: more values than columns")
                yield row
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num + 1}: not CSV: {error}") from error
        except UnicodeDecodeError as error:
            byte = error.object[error.start]  # its place is one in a block of the file
            raise UserError(f"{path}: not UTF-8 (byte 0x{byte:02x}): save it as UTF-8") from error


def _between(head: str) -> str:
    """The delimiter of a CSV file: the one that splits its first line into most names."""
    return max(_BETWEEN, key=lambda mark: len(next(csv.reader([head], delimiter=mark), [])))


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            narrow = _narrow_columns(file.schema_arrow)
            for batch in file.iter_batches():
                yield from (_as_written(row, narrow) for row in batch.to_pylist())
    except (pa.ArrowException, ValueError, OverflowError) as error:  # dates beyond Python's
        raise UserError(f"{path}: not Parquet: {first_line(error)}") from error


def _saved_rows(path: Path, split: str) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"{path}: not a saved data set: {first_line(error)}") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            near = did_you_mean(split, saved) or f" It has: {', '.join(saved)}."
            raise UserError(f"{path}: no split {split!r}.{near}")
        saved = saved[split]
    narrow = _narrow_columns(saved.features.arrow_schema)
    yield from (_as_written(row, narrow) for row in saved)


def _narrow_columns(schema: Any) -> dict[str, Any]:
    """numpy's type of each column of numbers of 16 or 32 bits, by name."""
    import numpy as np

    narrow = {"float": np.float32, "halffloat": np.float16}
    return {field.name: narrow[str(field.type)] for field in schema if str(field.type) in narrow}


def _as_written(row: Row, narrow: Mapping[str, Any]) -> Row:
    """The row with its narrow numbers as they are written: 0.1 of 32 bits is 0.100000001 in 64."""
    found = {name: kind(row[name]) for name, kind in narrow.items() if row.get(name) is not None}
    return {**row, **{name: float(str(value)) for name, value in found.items()}}


def _is_list(path: Path) -> bool:
    """Whether a file holds one JSON list: its first character opens it."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
        return first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _json_list(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {not_utf8(error)}") from error
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}, line {line}: not JSON: {error}") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}, entry {number}: expected a JSON object, got {row!r:.40}")
        yield row


def _json_lines(path: Path) -> Iterator[Row]:
    for line in json_lines(path, parse=json.loads):  # numbers of any length: answers may be large
        place = f"{path}, line {line.number}"
        if line.error is not None:
            if line.text.startswith(_GZIP):
                raise UserError(f"{path} is compressed: gunzip it first") from line.error
            if line.number == 1 and ending(path) not in (*FORMS, ".ndjson"):
                raise UserError(
                    f"{path}: no form of rows that is known: expected {', '.join(FORMS)}; save a "
                    "spreadsheet as CSV"
                ) from line.error
            if line.number == 1 and line.text.strip() == b"{":
                reason = "one object over several lines"
                raise UserError(f"{path}: {reason}; {_WANTED}") from line.error
            if isinstance(line.error, UnicodeDecodeError):
                raise UserError(f"{place}: {not_utf8(line.error)}") from line.error
            raise UserError(f"{place}: not JSON: {line.error}") from line.error
        if line.row is None:
            raise UserError(f"{place}: expected a JSON object, got {line.value!r:.40}")
        yield line.row
