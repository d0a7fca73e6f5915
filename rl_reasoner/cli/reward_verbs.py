"""The verbs about rewards and what is checked before and after a run: `score`, `why`, `check`.

As all verbs: dataclasses of their arguments with a `run`; nothing heavy is imported before it is
needed, results go to standard output, all else to standard error.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json, Quiet, quiet, writable
from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.report.console import emit, err, new_table

_SHOWN = 50  # rows of a table
_STYLE = {"passed": "green", "warned": "yellow", "failed": "red", "skipped": "dim"}


@dataclass
class Score:
    """Run a reward on saved completions: FILE.jsonl with `completion` and the reward's columns.

    With --rescore RUN the completions are those of a run, and the scores are held against its own.
    """

    reward: Positional[str]
    """a reward's name, MODULE:FUNCTION or FILE.py:FUNCTION"""
    file: Positional[Annotated[str | None, arg(metavar="FILE")]] = None
    """JSON, CSV, TSV or Parquet"""
    rescore: Annotated[Path | None, arg(metavar="RUN")] = None
    """score what this run sampled: what would have changed"""
    stage: str | None = None
    """with --rescore: the stage (default: the last that sampled)"""
    disagree: str | None = None
    """a second reward: list only the rows where the two differ"""
    out: Path | None = None
    """where all scores are written (default: FILE.scores.jsonl)"""
    json: Json = False

    def run(self) -> None:
        """Score every row, print a table, write all scores."""
        if (self.file is None) == (self.rescore is None):
            raise UserError("score what? Give a FILE of completions, or --rescore RUN")
        if self.rescore is not None:
            self._rescore(self.rescore)
        elif self.file is not None:
            self._score(self.file)

    def _rescore(self, run: Path) -> None:
        from rl_reasoner.pipeline.hindsight import rescored

        target = writable(self.out) if self.out else None
        found = rescored(run, self.reward, self.stage)
        if target is not None:
            _write_rows(target, found.flips)
        summary = {"reward": self.reward, "run": str(run), **found.summary()}
        table = new_table("step", "then", "now", "reason", "completion")
        table.caption = "\n".join(f"{key}: {_short(value)}" for key, value in summary.items())
        table.caption_justify = "left"
        for row in found.flips[:_SHOWN]:
            values = [str(row["step"]), f"{row['then']:g}", f"{row['now']:g}"]
            table.add_row(*values, Text(row["reason"]), Text(row["completion"][-80:]))
        emit(self.json, summary, table)

    def _score(self, file: str) -> None:
        from rl_reasoner.dataset.rows import read_rows
        from rl_reasoner.scoring.reward import load_reward

        names = [self.reward, *([self.disagree] if self.disagree else [])]
        loads = [partial(load_reward, name) for name in names]
        rows, *functions = _all(partial(read_rows, file), *loads)
        target = writable(self.out or Path(f"{file}.scores.jsonl"))
        if target.resolve() == Path(file).resolve():
            raise UserError(f"--out {target}: this is the file that is scored; give another one")
        found = [_scores(*pair, rows, file) for pair in zip(functions, names, strict=True)]
        mine, other = found[0], found[1] if self.disagree else None
        entries = []
        for index, row in enumerate(rows):
            entry = {"row": index + 1, "id": row.get("id"), self.reward: mine[index]}
            if other is not None and self.disagree:
                entry[self.disagree] = other[index]
                if mine[index]["value"] == other[index]["value"]:
                    continue
            entries.append(entry)
        _write_rows(target, entries)
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


def _all(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls give; where some fail, the mistakes of all of them at once."""
    given: list[Any] = []
    problems: list[str] = []
    for call in calls:
        try:
            given.append(call())
        except UserError as error:
            problems += error.messages
    if problems:
        raise UserError(*problems)
    return given


def _write_rows(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from rl_reasoner.pipeline.run_folder import write_text

    write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _scores(
    function: Callable[..., Any], reward: str, rows: Sequence[dict[str, Any]], source: str
) -> list[dict[str, Any]]:
    from rl_reasoner.scoring.reward import Reward, described, score_batch

    needed = function.columns if isinstance(function, Reward) else ()
    for number, row in enumerate(rows, 1):
        for name in ("completion", *needed):
            if row.get(name) is None and name != "prompt":
                by = "" if name == "completion" else f", which the reward {reward} needs"
                said = f"no column {name!r}{by}.{did_you_mean(name, row)}"
                if name in row:
                    said = f"the value of {name!r}{by}{',' if by else ''} is null"
                raise UserError(f"{source}, row {number}: {said}")
    columns: dict[str, list[Any]] = {key: [row.get(key) for row in rows] for key in rows[0]}
    columns["prompts"] = columns.get("prompt", columns.get("problem", [""] * len(rows)))
    scores = score_batch(function, columns.pop("completion"), columns)
    return [described(score) for score in scores]


def _score_table(
    entries: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], summary: Mapping[str, Any]
) -> Table:
    names = [key for key in entries[0] if key not in ("row", "id")] if entries else []
    table = new_table("row", *names, "reason", "completion")
    table.caption = ", ".join(f"{key}: {value}" for key, value in summary.items())
    for entry in entries[:_SHOWN]:
        values = [str(entry[name]["value"]) for name in names]
        reasons = "; ".join(entry[name]["reason"] for name in names)
        end = str(rows[entry["row"] - 1]["completion"])[-80:]
        table.add_row(str(entry["row"]), *values, Text(reasons), Text(end))
    return table


@dataclass
class Why:
    """Why a step of a run was as it was: a prompt, its group's completions, scores, advantages."""

    run_folder: Positional[Path]
    """the run's folder"""
    step: int
    """the step, from 1"""
    row: int | None = None
    """a completion of the step, from 1 (default: the one with the largest advantage)"""
    stage: str | None = None
    """the stage (default: the last that sampled)"""
    json: Json = False

    def run(self) -> None:
        """Print the row's group and the step's figures."""
        from rl_reasoner.pipeline.hindsight import by_reward, step_of

        step = step_of(self.run_folder, self.step, self.stage)
        index = step.row(self.row)
        group = step.group(index)
        asked = step.rollouts[index]
        value = {
            "stage": step.stage,
            "step": step.number,
            "row": index + 1,
            "prompt": asked["prompt"],
            "answer": asked.get("answer"),
            "group": [{"number": number, **rollout} for number, rollout in group],
            "batch": step.metrics,
            "seconds": step.seconds,
        }
        table = new_table("row", "reward", "advantage", "scores", "completion")
        for number, rollout in group:
            mark = f"{number} *" if number == index + 1 else str(number)
            out = ", ".join(rollout.get("left_out_by", ()))
            reward = f"{rollout['reward']:g}" if rollout["reward"] is not None else "none"
            reward = f"out: {out}" if out else reward
            scores = "\n".join(f"{name}: {said}" for name, said in by_reward(rollout))
            end = " (cut off)" if rollout["truncated"] else ""
            cells = (Text(scores), Text(f"{rollout['completion']}{end}"))
            table.add_row(mark, reward, f"{rollout['advantage']:+.3g}", *cells)
        head = f"stage {step.stage}, step {step.number}\nprompt: {asked['prompt']}\n"
        head += f"answer: {asked.get('answer')}\n"
        table.title, table.title_justify, table.title_style = Text(head), "left", ""
        table.caption, table.caption_justify = Text(_figures(step)), "left"
        emit(self.json, value, table)


def _figures(step: Any) -> str:
    """The batch's numbers, a line each."""
    kept = [(k, v) for k, v in step.metrics.items() if isinstance(v, (int, float))]
    kept += [(f"seconds of {name}", seconds) for name, seconds in step.seconds.items()]
    return "\n" + "\n".join(f"{name}: {_short(value)}" for name, value in kept)


@dataclass
class Check:
    """Before a run: check a recipe on this machine, or test a reward.

    A recipe: data, rewards, room, tokens, prompts, a few sampled groups. A reward: types, repeats,
    hostile completions, completions that ask for a reward they have not earned.
    """

    target: Positional[str]
    """a recipe (name, script, YAML) or a reward (name, MODULE:FUNCTION, FILE.py:FUNCTION)"""
    data: Annotated[str | None, arg(metavar="FILE")] = None
    """rows to test a reward on (default: rows of a task that has its columns)"""
    quiet: Quiet = False
    json: Json = False

    def run(self) -> None:
        """Print the table; raises `UserError` where something failed."""
        from rl_reasoner.recipe.load import shipped_recipes
        from rl_reasoner.scoring.reward import load_reward, shipped_rewards

        path = self.target.endswith((".yaml", ".yml", ".py")) or self.target in shipped_recipes()
        if path or self.target.removesuffix(".yaml") in shipped_recipes():
            self._recipe()
            return
        try:
            fn = load_reward(self.target)
        except UserError as error:
            if ":" in self.target:
                raise
            names = [*shipped_recipes(), *shipped_rewards()]
            near = did_you_mean(self.target, names)
            raise UserError(f"{self.target!r} is neither recipe nor reward.{near}") from error
        self._reward(fn)

    def _reward(self, fn: Any) -> None:
        from rl_reasoner.testing.kit import examine

        report = examine(fn, self.data)
        table = new_table("", "check", "found", "completion")
        for found in report.findings:
            status = Text(found.status, _STYLE[found.status])
            shown = Text(f"{found.completion!r:.100}" if found.completion else "")
            table.add_row(status, found.check, Text(found.message), shown)
        findings = [asdict(finding) for finding in report.findings]
        emit(self.json, {"reward": report.reward, "findings": findings}, table)
        if report.failed:
            failed = ", ".join(finding.check for finding in report.failed)
            raise UserError(f"reward {report.reward} fails: {failed}")

    def _recipe(self) -> None:
        from rl_reasoner.recipe.load import load_recipe, place_of

        if self.data is not None:
            raise UserError("--data is for rewards: a recipe has its own")
        recipe = load_recipe(self.target)
        err.print("loading torch and transformers", style="dim")
        quiet()
        notices = list(_notices(recipe, place_of(self.target)))
        table = new_table("", "check", "found", "mend")
        for notice in notices:
            status = Text(notice.status, _STYLE[notice.status])
            table.add_row(status, notice.check, Text(notice.message), Text(notice.mend))
        found = [asdict(notice) for notice in notices]
        emit(self.json, {"recipe": recipe.name, "notices": found}, table)
        failed = [str(notice) for notice in notices if notice.status == "failed"]
        if failed:
            raise UserError(*failed)


def _notices(recipe: Any, where: Any) -> Iterator[Any]:
    """Everything that can be found out about a recipe without training."""
    from rl_reasoner.distributed.threads import Threads
    from rl_reasoner.pipeline.preflight import Notice, inspected, prepared
    from rl_reasoner.pipeline.rehearsal import rehearsed
    from rl_reasoner.pipeline.run_folder import made_with
    from rl_reasoner.policy.opening import choose_device, merge_adapter, open_policy

    work = prepared(recipe, where)
    rows = ", ".join(f"{len(found):,}" for found in work.rows)
    yield Notice("data", "passed", f"rows by stage: {rows}")
    versions = made_with()["versions"]
    yield Notice("versions", "passed", ", ".join(f"{k} {v}" for k, v in versions.items()))
    device = choose_device(recipe.run.device)
    policy = open_policy(recipe.policy.source, seed=recipe.run.seed, device=device)
    merge_adapter(policy)
    with Threads() as threads:
        yield Notice("threads", "passed", threads.suit(policy))
        yield from inspected(recipe, work, policy, Path(recipe.run.folder or "runs"))
        yield from rehearsed(recipe, work, policy)
