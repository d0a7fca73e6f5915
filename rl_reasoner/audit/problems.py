"""What was asked: the problems of evaluations and of completions, held against the data.

A forger who may write an answer beside a completion needs no other score. So every row of an
evaluation has to be the row of its set that stands in its place, and all of them together have the
hash that the evaluation wrote down; a completion was sampled for the problem of its row.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rl_reasoner.audit.findings import AuditFinding, as_finding, counted, differs, held, unchecked
from rl_reasoner.dataset.conversations import TURNS
from rl_reasoner.dataset.templates import with_system
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import load_set
from rl_reasoner.evaluation.manifest import digest_of
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.provenance import code_hash
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.report.gain import split_mode
from rl_reasoner.rollout.episodes.opening import open_rows
from rl_reasoner.types import Row


def result_files(run: Path) -> list[Path]:
    """The evaluations of a run and of its control arms."""
    return sorted([*run.glob("evals/*.json"), *run.glob("controls/*/evals/*.json")])


def check_problems(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """Every evaluation: of the recipe's sets, and of each the problems that the set has."""
    known: dict[str, list[Row]] = {}
    for name in dict.fromkeys(recipe.evals.sets):
        try:
            rows = open_rows(
                recipe.environment, load_set(name, recipe.evals.limit), recipe.run.seed
            )
            known[name] = with_system(rows, recipe.system)
        except UserError as error:
            yield unchecked("data", f"the problems of {name}: {'; '.join(error.messages)}")
    same_code = json_object(run / "lock.json").get("code") == code_hash()
    for file in result_files(run):
        found: list[AuditFinding] = []
        with as_finding("results", found):
            name = str(file.relative_to(run))
            found += _of_result(EvalResult.load(file), name, recipe, known, same_code)
        yield from found


def _of_result(
    saved: EvalResult,
    name: str,
    recipe: Recipe,
    known: dict[str, list[Row]],
    same_code: bool,
) -> Iterator[AuditFinding]:
    measured = {split_mode(label)[0] for label in saved.sets}
    if left_out := [one for one in recipe.evals.sets if one not in measured]:
        yield differs("results", f"{name} has no figures of {left_out[0]}, which the recipe names")
    count = 0
    for label, rows in saved.rows.items():
        wanted = known.get(split_mode(label)[0])
        if wanted is None:  # said of the set, or told as a set that was not measured
            continue
        if other := _first_other(rows, wanted):
            yield differs("results", f"{name}, {label}: {other}")
            return
        count += len(rows)
    for base, facts in mapping(saved.manifest.get("sets")).items():
        hashed = mapping(facts).get("rows_sha256")
        if base in known and hashed is not None and hashed != digest_of(known[base]):
            said = f"{name}: it was measured on other problems of {base}, by their hash"
            yield differs("results", said) if same_code else unchecked("results", said)
            return
    if count:
        yield held("results", f"{name}: {counted(count, 'problem')} as the sets have them")


def _first_other(rows: Sequence[Row], wanted: Sequence[Row]) -> str:
    """The first row that is not the set's, in words; empty for none."""
    if len(rows) != len(wanted):
        return f"{counted(len(rows), 'problem')}, of {len(wanted):,} in the set"
    for at, (row, given) in enumerate(zip(rows, wanted, strict=True), 1):
        own = json.loads(json.dumps(given, default=str))
        keys = [key for key in row if key in own and key != "overlap" and row[key] != own[key]]
        if keys:
            there, here = (f"{one[keys[0]]!r:.60}" for one in (row, own))
            return f"row {at}: {keys[0]} is {there}, in the set {here}"
    return ""


def is_asked(prompt: Any, row: Row) -> bool:
    """Whether a prompt asks for the problem of a row; of conversations nothing is held against."""
    problem = row.get("problem")
    if not isinstance(problem, str) or row.get(TURNS):
        return True
    chat = prompt if isinstance(prompt, list) else [{"content": prompt}]
    texts = [str(mapping(message).get("content")) for message in chat]
    return any(problem.strip() in text for text in texts)
