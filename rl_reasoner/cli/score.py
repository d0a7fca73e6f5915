"""The verb `score`: a reward on saved completions, or on those of a run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import (
    File,
    Json,
    Options,
    RunOption,
    RunsItsCode,
    StageName,
    cell,
    check_writable,
    reward_options_of,
)
from rl_reasoner.cli.progress import ProgressBars, told_if_long
from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.files import write_jsonl
from rl_reasoner.report.console import emit, err, excerpt, new_table

_log = logging.getLogger(__name__)
_PIECE = 256  # rows that are scored at once
_SHOWN = 50  # rows of a table


@dataclass
class ScoreVerb:
    """Run a reward on saved completions: FILE.jsonl with `completion` and the reward's columns.

    With --rescore RUN, score a run's completions and compare with the scores it gave.
    """

    reward: Positional[Annotated[str, arg(metavar="REWARD")]]
    """a reward's name, MODULE:FUNCTION or FILE.py:FUNCTION"""
    file: Positional[Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")]] = None
    """JSON, CSV, TSV or Parquet"""
    rescore: RunOption = None
    """score what this run sampled, and show what would have changed"""
    stage: StageName = None
    """with --rescore: the stage (default: the last one that sampled)"""
    disagree: Annotated[str | None, arg(metavar="REWARD", help_behavior_hint="")] = None
    """a second reward: list only the rows where the two differ"""
    reward_options: Options = ""
    """its options: extract=whole,timeout_s=2 or a JSON object (--rescore: by default the run's)"""
    out: File = None
    """write all scores here (default: FILE.scores.jsonl)"""
    run_its_code: RunsItsCode = False
    json: Json = False

    def run(self) -> None:
        """Score every row, print a table, write all scores."""
        if self.file is not None and self.rescore is not None:
            raise UserError("score what? Give FILE or --rescore RUN, not both")
        if self.stage is not None and self.rescore is None:
            raise UserError("--stage: only with --rescore RUN")
        if self.disagree is not None and self.rescore is not None:
            raise UserError("--disagree: only with a FILE of completions")
        if self.rescore is not None:
            self._rescore(self.rescore)
        elif self.file is not None:
            self._score(self.file)
        else:
            raise UserError("score what? Give a FILE of completions, or --rescore RUN")

    def _rescore(self, run: Path) -> None:
        from rl_reasoner.pipeline.rescore import rescore

        target = check_writable(self.out) if self.out else None
        if target is not None and target.resolve().is_relative_to((run / "stages").resolve()):
            raise UserError(f"--out {target}: there lie the run's own files; give another place")
        options = reward_options_of(self.reward_options, self.reward, run)
        with told_if_long(f"scoring the completions of {run} again"):
            rescoring = rescore(run, self.reward, self.stage, options)
        if target is not None:
            write_jsonl(target, rescoring.flips)
        summary = {"reward": self.reward, "run": str(run), **rescoring.summary()}
        if rescoring.faults:
            summary["first_fault"] = excerpt(rescoring.first_fault)
        table = new_table("step", "then", "now", "reason", "completion")
        table.caption = "\n".join(f"{key}: {cell(value)}" for key, value in summary.items())
        table.caption_justify = "left"
        for row in rescoring.flips[:_SHOWN]:
            values = [str(row["step"]), f"{row['then']:g}", f"{row['now']:g}"]
            table.add_row(*values, Text(excerpt(row["reason"])), Text(row["completion"][-80:]))
        emit(self.json, summary, table)
        if rescoring.faults and rescoring.faults == rescoring.asked:
            raise _every_row_failed(self.reward, rescoring.first_fault)

    def _score(self, file: str) -> None:
        from rl_reasoner.dataset.sets import read_rows
        from rl_reasoner.scoring.registry import load_reward

        names = [self.reward, *([self.disagree] if self.disagree else [])]
        options = reward_options_of(self.reward_options, self.reward)
        loads = [partial(load_reward, name, {}) for name in names]
        loads[0] = partial(load_reward, self.reward, options)
        rows, *functions = _call_all(partial(read_rows, file), *loads)
        target = check_writable(self.out or Path(f"{file}.scores.jsonl"))
        if target.resolve() == Path(file).resolve():
            raise UserError(f"--out {target}: this is the file that is scored; give another name")
        scores = [_score_rows(*pair, rows, file) for pair in zip(functions, names, strict=True)]
        mine, other = scores[0], scores[1] if self.disagree else None
        entries = []
        for index, row in enumerate(rows):
            entry = {"row": index + 1, "id": row.get("id"), self.reward: mine[index]}
            if other is not None and self.disagree:
                entry[self.disagree] = other[index]
                if mine[index]["value"] == other[index]["value"]:
                    continue
            entries.append(entry)
        write_jsonl(target, entries)
        values = [s["value"] for s in mine if s["value"] is not None]
        summary = {
            "rows": len(rows),
            "mean": sum(values) / len(values) if values else None,
            "abstained": sum(s["outcome"] == "abstain" for s in mine),
            "faults": sum(s["outcome"] == "fault" for s in mine),
            "written": str(target),
        }
        if self.disagree:
            summary["disagree"] = len(entries)
        emit(self.json, summary, _score_table(entries, rows, summary))
        for name, marks in zip(names, scores, strict=True):
            if marks and all(mark["outcome"] == "fault" for mark in marks):
                raise _every_row_failed(name, marks[0]["reason"])


def _is_completion(value: Any) -> bool:
    """Whether `value` is a text or a list of messages."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(message, Mapping) for message in value)
    return isinstance(value, str)


def _every_row_failed(reward: str, reason: str) -> Exception:
    from rl_reasoner.scoring.circuit_breaker import RewardsFailed

    return RewardsFailed(f"{reward}: the reward failed on every row: {excerpt(reason)}")


def _call_all(*calls: Callable[[], Any]) -> list[Any]:
    """Make the calls and return their values; if some fail, raise the mistakes of all at once."""
    values: list[Any] = []
    problems: list[str] = []
    for call in calls:
        try:
            values.append(call())
        except UserError as error:
            problems += error.messages
    if problems:
        raise UserError(*problems)
    return values


def _score_rows(
    function: Callable[..., Any], reward: str, rows: Sequence[dict[str, Any]], source: str
) -> list[dict[str, Any]]:
    from rl_reasoner.dataset.code_rows import columns_of, continuing
    from rl_reasoner.scoring.batch import POLICY_TEXT, score_batch
    from rl_reasoner.scoring.outcome import outcome_json
    from rl_reasoner.scoring.reward import Reward
    from rl_reasoner.scoring.trial_call import column_not_given

    needed = function.columns if isinstance(function, Reward) else ()
    for number, row in enumerate(rows, 1):
        for name in ("completion", *needed):
            told = name == "prompt" and row.get("problem") is not None
            if row.get(name) is None and not told and name != POLICY_TEXT:
                by = "" if name == "completion" else f", which the reward {reward} needs"
                mistake = f"no column {name!r}{by}.{did_you_mean(name, row)}"
                if name in row:
                    mistake = f"the value of {name!r}{by}{',' if by else ''} is null"
                raise UserError(f"{source}, row {number}: {mistake}")
        if not _is_completion(value := row["completion"]):
            expected = "expected a text, or a list of messages with role and content"
            raise UserError(f"{source}, row {number}: 'completion' is {value!r:.60}: {expected}")
        if not isinstance(own_text := row.get(POLICY_TEXT), str | None):
            mistake = f"{POLICY_TEXT!r} is {own_text!r:.40}, not the text that the policy wrote"
            raise UserError(f"{source}, row {number}: {mistake}")
    if "tests" in needed:
        rows = [_code_row(row) for row in rows]
        function = continuing(function, rows)
    columns: dict[str, list[Any]] = {n: [row.get(n) for row in rows] for n in columns_of(rows)}
    if isinstance(function, Reward):  # that of programs to be continued reads more
        more = [name for name in function.columns if name not in (*needed, *columns)]
        columns |= {name: [None] * len(rows) for name in more}
    asked = [row.get("problem") for row in rows]  # before `prompt`, as in training
    columns["prompts"] = [
        row.get("prompt", "") if problem is None else problem
        for row, problem in zip(rows, asked, strict=True)
    ]
    if "prompt" in columns:
        columns["prompt"] = columns["prompts"]
    if said := column_not_given(function, columns):
        _log.warning(said)
    err.print(f"{reward}: scoring {len(rows):,} rows", style="dim")
    completions = columns.pop("completion")
    alone = isinstance(function, Reward) and not function.group  # others may see the whole batch
    piece = _PIECE if alone else len(rows)
    found: list[dict[str, Any]] = []
    with ProgressBars(err.quiet) as progress:
        for at in range(0, len(rows), piece):
            own = {name: values[at : at + piece] for name, values in columns.items()}
            scores = score_batch(function, completions[at : at + piece], own)
            found += map(outcome_json, scores)
            progress(reward, len(found), len(rows))
    return found


def _code_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row as training and evaluation have it; unchanged where its tests cannot run.

    What is wrong with them is for the reward to say: a fault of this row, not of the others.
    """
    from rl_reasoner.dataset.code_rows import code_row

    try:
        return code_row(row)
    except (ValueError, UserError):
        return row


def _score_table(
    entries: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], summary: Mapping[str, Any]
) -> Table:
    names = [key for key in entries[0] if key not in ("row", "id")] if entries else []
    table = new_table("row", *names, "reason", "completion")
    table.caption = "\n".join(f"{key}: {cell(value)}" for key, value in summary.items())
    table.caption_justify = "left"
    for entry in entries[:_SHOWN]:
        values = [str(entry[name]["value"]) for name in names]
        reasons = "; ".join(excerpt(entry[name]["reason"]) for name in names)
        end = str(rows[entry["row"] - 1]["completion"])[-80:]
        table.add_row(str(entry["row"]), *values, Text(reasons), Text(end))
    return table
