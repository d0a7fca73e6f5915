"""Evaluations sampled again: some problems of each greedy set, others at each audit.

Figures that follow from their rows, and rows that are those of the sets, say nothing of who wrote
the completions. So the policy that answered is asked again, without randomness.
"""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from rl_reasoner.audit.findings import AuditFinding, counted, differs, held, listed, unchecked
from rl_reasoner.audit.hashes import stage_folders
from rl_reasoner.audit.records import is_of_run, result_files, rows_of_set, saved_result
from rl_reasoner.audit.replaying import unlike_here
from rl_reasoner.audit.versions import moved_sets
from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import FORCES
from rl_reasoner.evaluation.labels import split_label
from rl_reasoner.foreign import json_object
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.policy.lora import merge_adapter
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.rollout.sampler import sample
from rl_reasoner.types import Row

_Asked = tuple[Row, Row]  # as the set has it, and as it was answered
_PROBLEMS = 16  # of each set
_ROUNDED = 8  # of so many in a set one may be another: batches of another size round otherwise


def not_made_again(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """One line of what stands as it was written: meters, forecasts, what was sampled by chance."""
    kept = [
        f"{file} of stage {stage}"
        for stage, folder in stage_folders(run, recipe).items()
        for file in ("hacking.jsonl", "forecast.json")
        if (folder / file).is_file()
    ]
    known = {} if recipe.environment else _known_sets(run, recipe)
    for file, name in _evaluations(run, recipe):
        with suppress(ValueError):  # said where its figures are checked
            saved = saved_result(file)
            drawn = [label for label in saved.rows if not _is_greedy(label)]
            away = [
                label
                for label in saved.rows
                if _is_greedy(label) and split_label(label)[0] not in known
            ]
            if recipe.tools or recipe.environment or _source(run, recipe, name) is None:
                kept.append(f"the completions of {name}")
                continue
            if drawn:
                kept.append(f"{counted(len(drawn), 'set')} of {name} sampled by chance")
            if away:
                kept.append(f"the completions of {name} on {listed(away)}, changed here")
    if kept:
        yield unchecked("again", f"as written, not made again: {', '.join(kept)}")


def check_sampled(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """Each evaluation of the run itself, by the policy that it is of."""
    if recipe.tools or recipe.environment:
        return
    for file, name in _evaluations(run, recipe):
        if (source := _source(run, recipe, name)) is not None:
            yield from _of_file(run, recipe, file, name, source)


def _evaluations(run: Path, recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """The files of the run's own evaluations, and their names in its folder."""
    named = ((file, file.relative_to(run).as_posix()) for file in result_files(run))
    return ((file, name) for file, name in named if is_of_run(name, recipe))


def _is_greedy(label: str) -> bool:
    """Whether it is sampled without chance, by its mode: not by what the result says of it."""
    mode = split_label(label)[1] or "greedy"
    return mode in FORCES and mode != "sampled"


def _known_sets(run: Path, recipe: Recipe) -> dict[str, list[Row]]:
    """The recipe's sets that are here as they were in the run."""
    known, moved = dict[str, list[Row]](), moved_sets(run)
    for name in dict.fromkeys(recipe.evals.sets):
        if name not in moved:
            with suppress(UserError):  # said where problems are compared
                known[name] = rows_of_set(recipe, name)
    return known


def _source(run: Path, recipe: Recipe, name: str) -> str | None:
    """The policy that an evaluation is of; None where the run does not keep it by a name."""
    kept = {stage: folder / "policy" for stage, folder in stage_folders(run, recipe).items()}
    first = next((s for s in recipe.stages if s.kind == "grpo"), recipe.stages[0])
    start = recipe.start_of(first)
    base = getattr(first, "policy", None) or recipe.policy.source
    before = kept[start] if start else base
    sources = {**kept, "after": run / "policy", "before": before, "base": recipe.policy.source}
    source = sources.get(Path(name).stem) if name.startswith("evals/") else None
    return (
        None
        if source is None or (isinstance(source, Path) and not source.is_dir())
        else str(source)
    )


def _of_file(
    run: Path, recipe: Recipe, file: Path, name: str, source: str
) -> Iterator[AuditFinding]:
    saved, placement, known = saved_result(file), choose_placement(recipe), _known_sets(run, recipe)
    chosen: dict[str, list[_Asked]] = {}
    for label in filter(_is_greedy, saved.rows):
        if (written := saved.sets[label].get("temperature")) not in (None, 0):
            said = f"temperature is {written!r:.40}, and greedy completions have none"
            yield differs("results", f"{name}, {label}: {said}")
        if pairs := [*zip(known.get(split_label(label)[0], ()), saved.rows[label], strict=False)]:
            chosen[label] = _some(pairs)
    if not chosen:
        return
    with Threads() as threads:
        policy = open_policy(source, seed=recipe.run.seed, device=placement.device)
        merge_adapter(policy)
        threads.suit(policy.model)
        others = {
            label: [*_others(policy, recipe, label, asked)] for label, asked in chosen.items()
        }
        because = unlike_here(json_object(run / "lock.json"), placement, torch.get_num_threads())
    all_of, other_of = (sum(map(len, found.values())) for found in (chosen, others))
    said = f"{name}: {counted(all_of, 'greedy completion')} sampled again"
    apart = (one for one, rows in others.items() if len(rows) * _ROUNDED > len(chosen[one]))
    if (most := next(apart, None)) is None:
        yield held("results", f"{said}{f', {other_of} of them other' if other_of else ', as kept'}")
        return
    first = others[most][0]
    said += f", {other_of} of them other; first {most}, {first['problem']!r:.60}"
    if because:
        yield unchecked("results", f"{said}, because {'; '.join(because)}")
    else:
        yield differs("results", said)


def _some(pairs: list[_Asked]) -> list[_Asked]:
    """Problems that nobody could have known beforehand."""
    return random.SystemRandom().sample(pairs, min(_PROBLEMS, len(pairs)))


def _others(policy: Policy, recipe: Recipe, label: str, asked: list[_Asked]) -> Iterator[Row]:
    """The rows that the policy answers otherwise."""
    name, mode = split_label(label)
    own = recipe.evals.overrides.get(name)
    template = (own and own.template) or recipe.template
    made = sample(
        policy,
        [prompt_of(given, template, policy.tokenizer) for given, _ in asked],
        samples=1,
        temperature=0.0,
        max_tokens=max(1, *(row["tokens"][0] for _, row in asked)),
        seed=recipe.run.seed,
        force=FORCES[mode or "greedy"],
        weights=recipe.evals.weights,
    )
    for (given, row), [now] in zip(asked, made, strict=True):
        then, *more = row["completions"]
        if more or not (now.text.startswith(then) if row["truncated"][0] else now.text == then):
            yield given
