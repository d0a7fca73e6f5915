"""The card of a published policy: what it is, what it was trained on, and what its gain is.

Every figure is one of the run's own results, with its interval; nothing is said that they do not
support (`report.gain`). In the form that model hubs show: front matter, then Markdown.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from rl_reasoner.audit import Audit
from rl_reasoner.evaluation.formatting import percent, short_number, signed, span
from rl_reasoner.evaluation.labels import split_label
from rl_reasoner.files import sha256_of
from rl_reasoner.foreign import json_object, mapping, printable
from rl_reasoner.hub import is_name
from rl_reasoner.pipeline.run_folder import HASHES
from rl_reasoner.recipe.data import FileData, RowSource, StageData, TaskData, data_sources
from rl_reasoner.recipe.origin import published_origin, stages_in_words, teachers
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.report.controls import control_sentences, read_controls
from rl_reasoner.report.first_screen import ends_of, gains, other_models
from rl_reasoner.report.gain import mode_name, paired_words
from rl_reasoner.report.hacking import hacking_alarms_of, verdicts_in_words
from rl_reasoner.report.paired import add_paired_tests
from rl_reasoner.report.run_data import RunData, SetResult, read_run

_ENDS = "Accuracy with its 95% interval, before and after training.\n"
_DIFFERENCE = "It is one between two models (see Results): no gain of either is claimed."
_NOTHING = "The run was not evaluated: nothing is claimed."


def write_card(
    run: Path,
    recipe: Recipe,
    audit: Audit,
    title: str,
    weights: Sequence[Path],
    *,
    records: bool,
) -> str:
    """The card of the run in `run` as Markdown; `weights` are the files that are published.

    `records`: the run's own files are published too, under run/.
    """
    found = add_paired_tests(read_run(run))
    lock = json_object(run / "lock.json")
    two = other_models(found)
    parts = [
        _front_matter(recipe),
        f"# {printable(title)}",
        _what(recipe, lock, weights),
        "## Results",
        "\n".join(_results(found, two)) or _NOTHING,
        "## What the difference is" if two else "## What the gain is",
        _DIFFERENCE
        if two
        else "\n".join(_gain(found)) or "The run was not evaluated at both ends: nothing is known.",
        "\n".join(_hacking(found)) or "No hacking meter watched what the rewards paid for.",
        "## Controls",
        _controls(recipe, run),
        "## Trained on",
        "\n".join(_data(recipe, run)),
        "## Use",
        _use(recipe),
        "## How to get it again",
        _again(lock, records=records),
        "## Hashes and audit",
        "\n".join(_hashes(run, audit, weights, records=records)),
    ]
    return "\n\n".join(parts) + "\n"


def _controls(recipe: Recipe, run: Path) -> str:
    if told := [f"- {text}" for text in control_sentences(read_controls(run))]:
        return "\n".join(told)
    unknown = "how much of a gain any reward gives is not known"
    if recipe.controls:
        arms = ", ".join(map(str, recipe.controls))
        return f"Its control arms ({arms}) have not been compared with it: {unknown}."
    return f"No control arm was trained: {unknown}."


def _front_matter(recipe: Recipe) -> str:
    origin = published_origin(recipe)
    kinds = {stage.kind for stage in origin.stages}
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rl-reasoner", "reasoning", *sorted(kinds & {"grpo", "sft", "distill"})],
    }
    on_hub = is_name(origin.source) and not Path(origin.source).expanduser().exists()
    if on_hub and not origin.reused:
        fields["base_model"] = origin.source
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _what(recipe: Recipe, lock: Mapping[str, Any], weights: Sequence[Path]) -> str:
    steps, others = stages_in_words(recipe)
    told = [
        f"{published_origin(recipe).name}, {short_number(_parameters(weights))} parameters, "
        "trained with "
        f"[rl-reasoner](https://pypi.org/project/rl-reasoner/) {lock.get('rl_reasoner')} by the "
        f"recipe `{printable(recipe.name)}`: {steps}; seed {recipe.run.seed}.",
        *teachers(recipe),
    ]
    if others:
        told.append(f"Other stages of the recipe: {others}.")
    return " ".join(told)


def _parameters(weights: Sequence[Path]) -> int:
    """The numbers in files of weights; their tensors are not read."""
    count = 0
    for file in weights:
        with safe_open(str(file), "pt") as tensors:
            names = list(tensors.keys())
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in names)
    return count


def _results(run: RunData, two: str) -> Iterator[str]:
    """A row for each set and mode: before, after, the change on the same problems.

    `two`: what to say first where these are two models.
    """
    before, after = ends_of(run)
    if not before and not after:
        return
    yield f"Accuracy with its 95% interval. {two}\n" if two else _ENDS
    yield "| set | problems | before | after | on the same problems |"
    yield "|---|---|---|---|---|"
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name), after.get(name)
        yield _row(_title(name, b or a), a, b)
        lenient = [each and each.lenient for each in (a, b)]
        if any(lenient):
            yield _row(f"{_title(name, b or a)}, lenient", *lenient)


def _title(name: str, result: SetResult | None) -> str:
    base, mode = split_label(name)
    return printable(base) if result is None else f"{printable(base)}, {mode_name(mode, result)}"


def _row(title: str, a: SetResult | None, b: SetResult | None) -> str:
    ends = [
        "–" if each is None else f"{percent(each.accuracy)} [{span(each.interval)}]"
        for each in (a, b)
    ]
    tested = ""
    if b is not None and b.paired is not None:
        points = signed(100 * b.paired.difference)
        tested = f"{points} points {', '.join(paired_words(b.paired))}"
    known = b or a
    count = "–" if known is None or known.problems is None else f"{known.problems:,}"
    return f"| {title} | {count} | {ends[0]} | {ends[1]} | {tested} |"


def _gain(run: RunData) -> Iterator[str]:
    for base, words in gains(run):
        yield f"- {printable(base)}: {words}"


def _hacking(run: RunData) -> Iterator[str]:
    """Whether what was paid most was right by a judge that did not pay it."""
    for stage in (one for one in run.stages if one.hacking):
        told = " ".join(hacking_alarms_of(stage)) or "No alarm was raised."
        yield printable(f"- hacking meter, stage {stage.name}: {verdicts_in_words(stage)} {told}")


def _data(recipe: Recipe, run: Path) -> Iterator[str]:
    """Rows, rewards, and what training and tests have in common."""
    hashes = mapping(json_object(run / "lock.json").get("data"))
    for stage in recipe.stages:
        if stage.reuse is not None:  # the rows that it would have had were not read
            instead = f"`{printable(stage.reuse)}` is in its place"
            yield f"- stage {stage.name}: it was not run, {instead}"
            continue
        for source in data_sources(recipe.data_of(stage)):
            yield f"- stage {stage.name}: {_source(source, hashes)}"
    weights = ", ".join(f"`{printable(n)}` × {s.weight:g}" for n, s in recipe.rewards.items())
    if any(isinstance(stage, GrpoStage) and not stage.reuse for stage in recipe.stages):
        yield f"- rewards: {weights}"
    file = run / "contamination.json"
    for name, counts in (json_object(file) if file.is_file() else {}).items():
        shared, of = mapping(counts).get("contaminated", 0), mapping(counts).get("rows", 0)
        yield f"- {shared:,} of the {of:,} problems of {printable(name)} are in the training data"


def _source(source: RowSource, hashes: Mapping[str, Any]) -> str:
    match source:
        case FileData(path=path):
            digest = str(hashes.get(path, "unknown"))
            known = f"SHA-256 {digest[:16]}…" if len(digest) == 64 else digest
            return f"`{printable(path)}`, {known}"
        case StageData(stage=name):
            return f"what stage {name} made"
        case TaskData(task=task, count=count, seed=seed):
            return f"the task `{task}`, {count:,} rows, seed {seed}"
    return "rows of a kind that this card does not know"


def _use(recipe: Recipe) -> str:
    how = f"The prompts of its training have the template {recipe.template!r}"
    how += f" and the system prompt {recipe.system!r}." if recipe.system else "."
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

```text
{printable(how)}
```"""


def _again(lock: Mapping[str, Any], *, records: bool) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in mapping(lock.get("versions")).items())
    code = f"rl-reasoner {lock.get('rl_reasoner')} (commit {lock.get('commit') or 'unknown'})"
    place = f"{lock.get('machine')}, device {lock.get('device')}, {lock.get('precision')}"
    how = (
        "`rl-reasoner train run/recipe.yaml --run.folder NEW`"
        if records
        else "The run's recipe (it is not here)"
    )
    threads = "1 thread" if lock.get("threads") == 1 else f"{lock.get('threads')} threads"
    return (
        f"{how}, with {code}, {versions}. Made on {place}, "
        f"{threads}. On the same machine every weight comes out the same bit by bit; elsewhere "
        "sums are rounded otherwise."
    )


def _hashes(run: Path, audit: Audit, weights: Sequence[Path], *, records: bool) -> Iterator[str]:
    yield "| file | SHA-256 |"
    yield "|---|---|"
    for file in weights:
        yield f"| {file.name} | `{sha256_of(file)}` |"
    if records and (run / HASHES).is_file():
        yield f"| run/{HASHES}, which has all others | `{sha256_of(run / HASHES)}` |"
    yield f"\nWhen this was written, {len(audit.of('held'))} checks of the run held"
    if left := audit.of("unchecked"):
        yield f"and {len(left)} could not be made (`audit.json`)."
    else:
        yield "and none was left out (`audit.json`)."
    if not records:
        yield "Nobody else can make them: the run's own files are not here."
        return
    yield "`rl-reasoner audit run --no-replay` makes them again; `rl-reasoner audit run --all` also"
    yield "trains the whole run again, and compares every completion, figure and result."
