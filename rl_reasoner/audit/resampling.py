"""Evaluations sampled again: some problems of each greedy set, others at each audit.

Figures that follow from their rows, and rows that are those of the sets, say nothing of who wrote
the completions. So the policy that answered is asked again, without randomness.
"""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from rl_reasoner.audit.findings import AuditFinding, counted, differs, held, unchecked
from rl_reasoner.audit.hashes import stage_folders
from rl_reasoner.audit.records import is_of_run, result_files, saved_result
from rl_reasoner.audit.replaying import unlike_here
from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.evaluation.evaluate import FORCES
from rl_reasoner.evaluation.labels import split_label
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.foreign import json_object
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.policy.lora import merge_adapter
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.rollout.sampler import sample
from rl_reasoner.types import Row

_PROBLEMS = 16  # of each set
_ROUNDED = 8  # of so many completions one may be another: batches of another size round otherwise


def not_made_again(run: Path, recipe: Recipe) -> Iterator[AuditFinding]:
    """One line of what stands as it was written: meters, forecasts, what was sampled by chance."""
    kept = [
        f"{file} of stage {stage}"
        for stage, folder in stage_folders(run, recipe).items()
        for file in ("hacking.jsonl", "forecast.json")
        if (folder / file).is_file()
    ]
    for file, name in _evaluations(run, recipe):
        with suppress(ValueError):  # said where its figures are checked
            drawn = [label for label in saved_result(file).sets if label not in _greedy(file)]
            if recipe.tools or recipe.environment or _source(run, recipe, name) is None:
                kept.append(f"the completions of {name}")
            elif drawn:
                kept.append(f"{counted(len(drawn), 'set')} of {name} sampled by chance")
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


def _greedy(file: Path) -> list[str]:
    """The labels of what was sampled without chance, one completion for each row."""
    sets = saved_result(file).sets
    return [label for label, of in sets.items() if not of.get("temperature")]


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
    saved, placement = saved_result(file), choose_placement(recipe)
    chosen = {label: _some(saved.rows[label]) for label in _greedy(file)}
    with Threads() as threads:
        policy = open_policy(source, seed=recipe.run.seed, device=placement.device)
        merge_adapter(policy)
        threads.suit(policy.model)
        others = {
            label: other
            for label, rows in chosen.items()
            if (other := [*_others(policy, recipe, saved, label, rows)])
        }
        because = unlike_here(json_object(run / "lock.json"), placement, torch.get_num_threads())
    all_of, other_of = (sum(map(len, found.values())) for found in (chosen, others))
    said = f"{name}: {counted(all_of, 'greedy completion')} sampled again"
    if other_of * _ROUNDED <= all_of:
        yield held("results", f"{said}{f', {other_of} of them other' if other_of else ', as kept'}")
        return
    label, first = next((label, rows[0]) for label, rows in others.items())
    said += f", {other_of} of them other; first {label}, {first['problem']!r:.60}"
    if because:
        yield unchecked("results", f"{said}, because {'; '.join(because)}")
    else:
        yield differs("results", said)


def _some(rows: list[Row]) -> list[Row]:
    """Problems that nobody could have known beforehand."""
    return random.SystemRandom().sample(rows, min(_PROBLEMS, len(rows)))


def _others(
    policy: Policy, recipe: Recipe, saved: EvalResult, label: str, rows: list[Row]
) -> Iterator[Row]:
    """The rows that the policy answers otherwise."""
    template = saved.settings_of(label).get("template", recipe.template)
    made = sample(
        policy,
        [prompt_of(row, template, policy.tokenizer) for row in rows],
        samples=1,
        temperature=0.0,
        max_tokens=max(row["tokens"][0] for row in rows),
        seed=recipe.run.seed,
        force=FORCES[split_label(label)[1] or "greedy"],
        weights=recipe.evals.weights,
    )
    for row, [now] in zip(rows, made, strict=True):
        then = row["completions"][0]
        if not (now.text.startswith(then) if row["truncated"][0] else now.text == then):
            yield row
