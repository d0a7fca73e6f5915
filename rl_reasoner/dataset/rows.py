"""The rows that a recipe's data describes: loaded, given their columns, and linted.

Rows are plain dicts with `problem` and `answer`, or `tests` for programs (and what else the file
holds), from the task generators, or from a file or named set (`sets.read_rows`). Every bad row is
named. Knows nothing of models.
"""

import json
import logging
import math
import random
import re
import shutil
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from rl_reasoner.answers import verify
from rl_reasoner.dataset.code_rows import code_row, columns_of
from rl_reasoner.dataset.conversations import plain_row
from rl_reasoner.dataset.readers import ending
from rl_reasoner.dataset.sets import check_set, find_set, read_rows
from rl_reasoner.dataset.tasks.generate import TASKS, careless, generate_problems
from rl_reasoner.dataset.tasks.mixed_language import put_into_words
from rl_reasoner.errors import UserError, did_you_mean, nearest
from rl_reasoner.files import write_jsonl
from rl_reasoner.language.instructions import parsed
from rl_reasoner.language.thinking import with_tags
from rl_reasoner.paths import told_apart
from rl_reasoner.recipe.data import (
    AnyData,
    FileData,
    MadeData,
    MixData,
    StageData,
    TaskData,
    data_sources,
)
from rl_reasoner.sandbox.columns import are_known
from rl_reasoner.tools.calculator import calculator
from rl_reasoner.tools.formats import call_format
from rl_reasoner.tools.tool import ToolCall
from rl_reasoner.types import Row

ROW_COLUMNS = (
    *("problem", "answer", "prompt", "messages", "system", "context", "completion", "instructions"),
    *("tests", "entry_point", "start", "chain", "solution", "id", "task", "level", "subject"),
    *("rewards", "template", "max_tokens"),
)
"""The columns that mean something to the package, whatever the reward."""

# What rows may be judged by instead of an answer, or learned from.
_INSTEAD = ("tests", "instructions", "completion", "start")
_LONGEST = 1_000_000  # characters of a text: more is a mistake in the file, or no memory is enough
_TEXTS = ("problem", "answer", "system", "completion", "chain", "solution")
_PICTURES = ("image", "images")  # trl takes these columns for pictures of the prompt
_SHOWN = 10  # bad rows named in a message; the others are counted
_NO_COLUMN = "no column"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?")
_Answers = dict[tuple[str, ...], tuple[str, int]]
_log = logging.getLogger(__name__)


def load_rows(data: AnyData) -> list[Row]:
    """Load and lint the rows that `data` describes.

    What a source says of its rows stands in their columns `rewards`, `template` and `max_tokens`.
    The rows of a mix all have the same columns (None where a source has none), and a `task`. Raises
    `UserError` for a missing or unreadable file, a column that `columns` names and the file
    lacks, for rows of a stage, which only a run has (`lineage.data_in`), and for bad rows, unless
    they are skipped: then they are named in a warning. Bad is, too, a row of a mix whose problem
    has another answer in an earlier file.
    """
    if isinstance(data, MixData):
        return _mixed(data)
    if isinstance(data, StageData):
        raise UserError(f"the rows of stage {data.stage!r} are made by its run")
    rows = _task_rows(data) if isinstance(data, TaskData) else _file_rows(data)
    rewards = None if data.rewards is None else list(data.rewards)
    settings = {"rewards": rewards, "template": data.template, "max_tokens": data.max_tokens}
    kept = {name: value for name, value in settings.items() if value is not None}
    return [row | kept for row in rows] if kept else rows


def check_source(data: AnyData) -> None:
    """Raise `UserError` where `data` names no file, set or task; reads no row and asks no hub."""
    for source in data_sources(data):
        if isinstance(source, FileData):
            check_set(source.path)
        elif isinstance(source, TaskData):
            generate_problems(source.task, split=source.split, count=0, levels=_levels(source))


def check_trained_on(data: AnyData) -> None:
    """Raise `UserError` where `data` names NAME and means NAME_test.jsonl: that is evaluated."""
    for source in data_sources(data):
        if not isinstance(source, FileData):
            continue
        file = find_set(source.path)
        if file is not None and file.stem == f"{source.path}_test":
            task = f"{{task: {source.path}}}, or " if source.path in TASKS else ""
            raise UserError(
                f"{source.path} means {file.name}, rows to evaluate on: train on "
                f"{task}a file of other rows; or name that file itself"
            )


def copy_as_jsonl(file: Path, target: Path) -> None:
    """Copy a file of rows to `target` byte by byte; one that is no JSON, as JSON lines.

    Raises `UserError` where that one is empty or broken.
    """
    if ending(file) in (".jsonl", ".json"):
        shutil.copyfile(file, target)
    else:
        rows = read_rows(str(file))
        write_jsonl(target, ({name: _plain(value) for name, value in row.items()} for row in rows))


def load_problems(data: FileData) -> list[Row]:
    """Load the rows of a file that have a `problem`, whatever else they lack, to find overlaps.

    `columns` may name what only other files have. Raises `UserError` where no row has a problem.
    """
    rows = read_rows(data.path, data.config, data.split)
    named = [{k: v for k, v in data.columns.items() if v in row} for row in rows]
    renamed = (_renamed(row, columns) for row, columns in zip(rows, named, strict=True))
    problems = [row for row in map(_asked, renamed) if isinstance(row.get("problem"), str)]
    if not problems:
        raise UserError(f"{data.path}: no row has a problem. It has: {', '.join(rows[0])}.")
    return problems


def _asked(row: Row) -> Row:
    """The row with its conversation as a problem, where it is one."""
    with suppress(ValueError):
        return plain_row(row)
    return row


def _mixed(data: MixData) -> list[Row]:
    """Mix the rows of all sources by their shares; their total number stays."""
    parts = _agreeing(data, [load_rows(source) for source in data.mix])
    total, weights = sum(map(len, parts)), [source.share for source in data.mix]
    counts = [len(part) for part in parts]
    if all(weights):
        counts = _counts(total, [weight or 0.0 for weight in weights])
    files = {Path(source.path) for source in data.mix if isinstance(source, FileData)}
    rows: list[Row] = []
    for number, (source, part, count) in enumerate(zip(data.mix, parts, counts, strict=True)):
        name = told_apart(Path(source.path), files) if isinstance(source, FileData) else ""
        rest = random.Random(f"mix|{number}").sample(part, count % len(part))
        drawn = (*part * (count // len(part)), *rest)
        named = [row | {"task": name} if _is_blank(row.get("task")) else row for row in drawn]
        rows += named if name else drawn
    names = dict.fromkeys(name for row in rows for name in row)
    return [dict.fromkeys(names) | row for row in rows]


def _counts(total: int, weights: Sequence[float]) -> list[int]:
    """`total` by its weights: whole numbers of at least 1, whose sum is `total`."""
    sizes = [total * weight / sum(weights) for weight in weights]
    counts = [max(1, round(size)) for size in sizes]
    while (off := total - sum(counts)) != 0:
        over = [count - size for count, size in zip(counts, sizes, strict=True)]
        if off > 0:
            counts[over.index(min(over))] += 1
        else:
            counts[max((i for i, n in enumerate(counts) if n > 1), key=over.__getitem__)] -= 1
    return counts


def _agreeing(data: MixData, parts: Sequence[list[Row]]) -> list[list[Row]]:
    """The rows of each source without those whose problem has another answer in an earlier file.

    Within a file they are found already, and files may write one answer in two ways. Rows of tasks
    and of the run itself are right.
    """
    answers: dict[tuple[str, ...], tuple[str, str]] = {}
    kept = []
    for source, part in zip(data.mix, parts, strict=True):
        if not isinstance(source, FileData) or isinstance(source, MadeData):
            kept.append(part)
            continue
        good, problems = [], []
        for row in part:
            answer = row.get("answer")
            key = (*_asked_as(row, row.get("template")), str(row.get("rewards")))
            first, file = answers.setdefault(key, (answer, source.path)) if answer else (answer, "")
            if first == answer or verify(f"\\boxed{{{answer}}}", str(first)).value != 0.0:
                good.append(row)
            else:
                problems.append(
                    f"{source.path}: the problem {row['problem']!r:.60} has another answer than in "
                    f"{file} ({answer!r:.40} against {first!r:.40})"
                )
        _tell_bad(source, good, problems)
        kept.append(good)
    return kept


def _file_rows(data: FileData) -> list[Row]:
    rows = read_rows(data.path, data.config, data.split)
    _check_columns(rows, data)
    named = [_renamed(row, data.columns) for row in rows]
    one_answer = not isinstance(data, MadeData)
    good, problems = lint(named, data.path, data.template, one_answer=one_answer)
    reasons = {text.removeprefix(f"{data.path}, row ").partition(": ")[2] for text in problems}
    if not good and len(reasons) == 1 and (reason := next(iter(reasons))).startswith(_NO_COLUMN):
        raise UserError(f"{data.path}: {_with_columns(reason, data.columns)}")
    _tell_bad(data, good, problems)
    return good[: data.limit]


def _with_columns(reason: str, columns: Mapping[str, str]) -> str:
    """Why a file has no good row, for want of a column; and what to do about it."""
    lacking = reason.removeprefix(f"{_NO_COLUMN} '").partition("'")[0]
    own = [name for name in columns if name not in ROW_COLUMNS]
    if (wrong := nearest(lacking, own)) is not None:
        there = f"{_NO_COLUMN} {lacking!r}, and `columns` names one {wrong!r}"
        return f"{there}. Did you mean {lacking!r}?"
    return (
        f"{reason} Set `columns` (--columns) to the one that holds it; the sets of a recipe's "
        "`evals` have no such setting: rename it in the file."
    )


def _tell_bad(data: FileData, good: Sequence[Row], problems: Sequence[str]) -> None:
    """Warn of a file's bad rows; raise `UserError` unless they are skipped and good ones left."""
    shown = list(problems[:_SHOWN])
    if problems[_SHOWN:]:
        shown.append(f"and {len(problems) - _SHOWN} more")
    if problems and data.on_bad_row == "stop":
        raise UserError(*shown, "fix the rows, or (in a recipe's data) set on_bad_row to 'skip'")
    if not good:
        raise UserError(*shown, f"{data.path}: no good row is left")
    if problems:
        _log.warning("\n".join([*shown, f"{data.path}: {len(problems)} bad rows are skipped"]))


def _task_rows(data: TaskData) -> list[Row]:
    problems = generate_problems(
        data.task, split=data.split, count=data.count, seed=data.seed, levels=_levels(data)
    )
    rng = random.Random(f"{data.seed}")
    rows = []
    for problem in problems:
        row = problem.row()
        if data.noise:
            row |= careless(problem, data.noise, rng)
        if data.chinese is not None:
            row |= _in_words(row, data.chinese, rng)
        if data.direct and not problem.chain:
            raise UserError(f"task {data.task!r} has no chain of thought: direct must be 0")
        if rng.random() < data.direct:
            row["completion"] = with_tags("", row["answer"])
        elif data.called and rng.random() < data.called:
            row["completion"] = with_tags(_called(row), row["answer"])
        rows.append(row)
    return rows


def _levels(data: TaskData) -> range | None:
    return range(data.levels[0], data.levels[1] + 1) if data.levels else None


def _called(row: Row) -> str:
    """The row's chain with each step calculated by a call, as the format `tags` writes them."""
    written = call_format("tags", [calculator])
    chain = ""
    for step in str(row.get("chain", "")).split(";"):
        left, _, result = step.partition("=")
        told = ""
        with suppress(ValueError, ArithmeticError):
            told = calculator(left)
        if told != result or not told:
            raise UserError(
                f"task {row['task']!r}: the calculator does not do the steps of its chains, such "
                f"as {step!r}: called must be 0"
            )
        call = written.write(ToolCall(calculator.name, {"expression": left}))
        chain += call + "".join(written.turn(told))
    return chain


def _in_words(row: Row, chinese: float, rng: random.Random) -> Row:
    """The columns of a row with its chain of thought in words."""
    try:
        chain = put_into_words(row.get("chain", ""), chinese, rng)
    except ValueError as error:
        raise UserError(f"task {row['task']!r} has no chains in words: {error}") from None
    if not chain:
        raise UserError(f"task {row['task']!r} has no chain of thought to write out in words")
    whole = row.get("completion", "")
    return {"chain": chain, **({"completion": whole.replace(row["chain"], chain)} if whole else {})}


def lint(
    rows: Sequence[Row], source: str, template: str | None = None, *, one_answer: bool = True
) -> tuple[list[Row], list[str]]:
    """(good rows, one message for each bad one): missing columns, empty and contradicting answers.

    With `one_answer`, where one problem stands with different answers under one template
    (`template`, else the row's own), the rows after the first are bad. A row with
    `tests` (see `code_rows`), `instructions` or a `start` (of an environment) needs no answer, and
    a blank one, or NaN, counts as none; instructions have to be known ones. An answer is one text
    or number, or a list of one.
    """
    good: list[Row] = []
    problems = []
    answers: _Answers = {}
    for number, given in enumerate(rows, 1):
        try:
            row = _checked(given)
            if one_answer:
                _check_answer(row, number, template or row.get("template"), answers)
            good.append(row)
        except (ValueError, UserError) as error:
            problems.append(f"{source}, row {number}: {error}")
    return good, problems


def _asked_as(row: Row, template: object) -> tuple[str, ...]:
    """What a policy is asked with a row: rows that are alike in it have one answer."""
    return str(row.get("system") or ""), str(template or ""), " ".join(row["problem"].split())


def _check_answer(row: Row, number: int, template: object, answers: _Answers) -> None:
    """Raise ValueError where the row's problem has another answer in an earlier row.

    `answers` has the answer to each problem so far and its row's number; this row's is added.
    """
    if (answer := row.get("answer")) is None:
        return
    first, at = answers.setdefault(_asked_as(row, template), (answer, number))
    if _number(first) != _number(answer):
        raise ValueError(
            f"the same problem as row {at}, "
            f"but a different answer ({answer!r:.40} against {first!r:.40})"
        )


def _number(answer: object) -> object:
    """The value of an answer that is a plain number, as `2` and `2.0` are; else the answer."""
    return Decimal(answer) if isinstance(answer, str) and _NUMBER.fullmatch(answer) else answer


def _checked(given: Row) -> Row:
    """The row as it is used; raises ValueError or `UserError` with what is wrong with it."""
    row = plain_row(_read(given))
    if "answer" in row:
        row["answer"] = _one_answer(row["answer"])
    row = _without_pictures(_with_tests(row))
    others = [name for name in _INSTEAD if row.get(name)] if _is_blank(row.get("answer")) else []
    judged_by = others[0] if others else "answer"
    if missing := [name for name in ("problem", judged_by) if name not in row]:
        names = [str(name) for name in row]
        hint = did_you_mean(missing[0], names) or f" It has: {', '.join(names)}."
        raise ValueError(f"{_NO_COLUMN} {missing[0]!r}.{hint}")
    for name in _TEXTS:
        if isinstance(text := row.get(name), str) and len(text) > _LONGEST:
            raise ValueError(f"the {name} has {len(text):,} characters, more than {_LONGEST:,}")
    for name in ("task", "level"):  # figures and curricula are by them
        if isinstance(row.get(name), (list, Mapping)):
            raise ValueError(f"the {name} is {row[name]!r:.40}: expected one text or number")
    if isinstance(row["problem"], Mapping):
        raise ValueError(f"the problem is {row['problem']!r:.40}: expected a text")
    problem, answer = (
        "" if row[name] is None else str(row[name]) for name in ("problem", judged_by)
    )
    answer = answer.strip()
    for name, value in row.items():
        try:
            f"{name}{value if isinstance(value, str) else ''}".encode()
        except UnicodeEncodeError:  # JSON may hold it
            said = f"the column {name!r} has half of a surrogate pair: not text"
            raise ValueError(said) from None
    if not answer or not problem.strip():
        raise ValueError(f"the {'problem' if answer else 'answer'} is empty")
    if row.get("instructions"):
        parsed(row["instructions"])
    if others:
        none = {"answer": None} if "answer" in row else {}
        return {**row, "problem": problem, **none}
    return {**row, "problem": problem, "answer": answer}


def _with_tests(row: Row) -> Row:
    """`code_row` of the row; beside an answer, tests in a form of one's own stay as they are."""
    try:
        return code_row(row)
    except (ValueError, UserError):
        if _is_blank(row.get("answer")) or are_known(row["tests"]):
            raise
        return row


def _read(given: Row) -> Row:
    """The row with its settings as JSON has them: cells of a CSV are texts, and gaps may be NaN."""
    row = {name: None if _is_nan(value) else _plain(value) for name, value in given.items()}
    for name in ("rewards", "max_tokens"):
        value = row.get(name)
        if isinstance(value, str):
            row[name] = value = None if not value.strip() else _from_json(value)
        if name == "max_tokens" and isinstance(value, float) and value.is_integer():
            row[name] = int(value)  # a column with gaps holds no whole numbers
    return row


def _plain(value: Any) -> Any:
    """A value as JSON has one: Parquet's dates and decimals become texts.

    Bytes are the text that they hold, else their base64.
    """
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
        return b64encode(value).decode("ascii")
    return str(value) if isinstance(value, (Decimal, timedelta)) else value


def _from_json(cell: str) -> Any:
    """What a cell holds as JSON; a text that is none, such as a name, as it is."""
    with suppress(ValueError, RecursionError):
        return json.loads(cell)
    return cell


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _one_answer(value: Any) -> Any:
    """The answer, out of a list of one; raises ValueError for several, and for an object."""
    if isinstance(value, (list, tuple)) and len(value) < 2:
        value = value[0] if value else None
    if isinstance(value, (list, tuple, Mapping)):
        raise ValueError(f"the answer is {value!r:.40}: expected one text or number")
    return None if _is_nan(value) else value


def _is_blank(value: object) -> bool:
    return value is None or not str(value).strip()


def _without_pictures(row: Row) -> Row:
    """The row without its empty columns of pictures; raises ValueError where one is not empty.

    Problems are asked as text: a policy would answer without having seen the picture.
    """
    for name in _PICTURES:
        value = row.get(name)
        if any(value) if isinstance(value, (list, tuple)) else value:
            raise ValueError(f"the column {name!r} has a picture, and problems are asked as text")
    return {name: value for name, value in row.items() if name not in _PICTURES}


def _check_columns(rows: Sequence[Row], data: FileData) -> None:
    there = [str(name) for name in columns_of(rows)]
    lacking = [name for name in data.columns.values() if name not in there]
    if lacking:
        hint = did_you_mean(lacking[0], there) or f" It has: {', '.join(there)}."
        raise UserError(f"{data.path}: no column {lacking[0]!r}, which columns names.{hint}")


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    kept = {name: value for name, value in row.items() if name not in columns}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
