"""Two makings of the same steps held against each other: where they first differ, and by how much.

Equal are completions, scores, every figure of a step but those of the clock, and weights. Where
something else rounds the sums (another number of threads, another machine), figures and weights may
differ in their last digits, and after some steps a completion may be another one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rl_reasoner.audit.findings import AuditFinding, counted, differs, held, unchecked
from rl_reasoner.audit.hashes import same_tensors, tensor_files
from rl_reasoner.files import read_jsonl
from rl_reasoner.training.checkpointing.checkpoints import steps_in

TOLERANCE = 1e-3
"""Of figures, relative, where something else rounds the sums."""
DRIFT = 0.05
"""Of weights: the share of what the steps moved them by that the two may lie apart."""
_CLOCK = ("time", "timing/", "tokens_per_second")
_UNHELD = ("alarms", "eval/", "hacking/")  # a replay evaluates nothing, and may lack a window


@dataclass(frozen=True)
class Steps:
    """The steps `first` to `last` of a stage of `of` steps, in the run and made again."""

    run: Path
    again: Path
    first: int
    last: int
    of: int


@dataclass
class Likeness:
    """How far two makings agree.

    `hard`: a difference that rounding does not make; `sampled_apart`: (step, words) of the first
    completion that is another; `soft`: the first figure or weight that differs; `apart`: the
    largest relative difference of figures; `drift`: of weights, see `DRIFT`, None where there are
    none to compare.
    """

    hard: str = ""
    sampled_apart: tuple[int, str] | None = None
    soft: str = ""
    apart: float = 0.0
    drift: float | None = None
    completions: int = 0
    figures: int = 0


def compare_steps(steps: Steps) -> Likeness:
    """Compare step by step, up to the first completion that is another; then the weights."""
    found = Likeness()
    sides = (steps.run, steps.again)
    rollouts = [_by_step(side / "rollouts.jsonl", steps) for side in sides]
    metrics = [_by_step(side / "metrics.jsonl", steps) for side in sides]
    for step in range(steps.first, steps.last + 1):
        sampled, again = (side.get(step, []) for side in rollouts)
        _compare_completions(step, sampled, again, found)
        if found.hard or found.sampled_apart:
            return found
        then, now = ((side.get(step) or [{}])[-1] for side in metrics)
        _compare_figures(step, then, now, found)
    _compare_weights(steps, found)
    return found


def _by_step(file: Path, steps: Steps) -> dict[int, list[dict[str, Any]]]:
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in read_jsonl(file):
        if isinstance(at := row.get("step"), int) and steps.first <= at <= steps.last:
            rows.setdefault(at, []).append(row)
    return rows


def _compare_completions(
    step: int, then: list[dict[str, Any]], now: list[dict[str, Any]], found: Likeness
) -> None:
    for i, (a, b) in enumerate(zip_longest(then, now), 1):
        at = f"step {step}, row {i}"
        if a is None or b is None:
            found.hard = f"step {step}: {len(then)} completions in the run, {len(now)} made again"
        elif a.get("prompt") != b.get("prompt"):
            found.hard = f"{at}: another prompt"
        elif a.get("completion") != b.get("completion"):
            found.sampled_apart = step, f"{at}: another completion"
        elif a.get("scores") != b.get("scores"):
            found.hard = f"{at}: the same completion, and another score"
        else:
            found.completions += 1
            _compare_figures(step, _numbers(a), _numbers(b), found, f"row {i} ")
            continue
        return


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("reward", "advantage")}


def _compare_figures(
    step: int, then: Mapping[str, Any], now: Mapping[str, Any], found: Likeness, of: str = ""
) -> None:
    for name in {**then, **now}:
        if any(part in name for part in _CLOCK) or name.startswith(_UNHELD):
            continue
        found.figures += not of
        for a, b in _pairs(then.get(name), now.get(name)):
            if a != b and not (a != a and b != b):
                found.apart = max(found.apart, _apart(a, b))
                found.soft = found.soft or f"step {step}: {of}{name} {a} in the run, {b} made again"


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(a, list) and isinstance(b, list):
        yield from zip_longest(a, b)
    else:
        yield a, b


def _apart(a: Any, b: Any) -> float:
    """The relative difference of two figures; tiny ones, as a mean advantage of 0, count as 1e-3.

    Infinite for what are not two numbers.
    """
    if not (isinstance(a, int | float) and isinstance(b, int | float)):
        return math.inf
    size = max(abs(a), abs(b), 1e-3)
    return abs(a - b) / size if math.isfinite(size) else math.inf


def _compare_weights(steps: Steps, found: Likeness) -> None:
    """The weights after the last step, where both makings have them."""
    if steps.last == steps.of:
        sides = [side / "policy" for side in (steps.run, steps.again)]
    else:
        name = f"checkpoint-{steps.last}"
        sides = [side / "checkpoints" / name for side in (steps.run, steps.again)]
    begun = steps_in(steps.again / "checkpoints").get(steps.first - 1)
    then, now = map(tensor_files, sides)
    if not then or not now:
        return
    if then.keys() != now.keys():
        found.hard = f"after step {steps.last}: other tensors"
        return
    start = tensor_files(begun) if begun is not None else {}
    apart, moved = 0.0, 0.0
    for name in then:
        a, b = (_tensor(files[name], name) for files in (then, now))
        if not same_tensors(a, b):
            found.soft = found.soft or f"after step {steps.last}: the weights {name}"
        apart += _square(a - b)
        moved += _square(a - _tensor(start[name], name)) if name in start else _square(a) * 1e-6
    found.drift = math.sqrt(apart / moved) if moved else (math.inf if apart else 0.0)


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(str(file), "pt") as tensors:
        found: torch.Tensor = tensors.get_tensor(name)
    return found


def _square(values: torch.Tensor) -> float:
    return float(values.double().square().sum())


def verdict_of(found: Likeness, steps: Steps, because: list[str], stage: str) -> AuditFinding:
    """What is said of steps that were made again: bit-equal, equal within, or where they part."""
    what = f"stage {stage}, step{'s' * (steps.first < steps.last)} {steps.first}"
    what += f" to {steps.last}" if steps.first < steps.last else ""
    parts = [counted(found.completions, "completion")] * bool(found.completions)
    parts += [counted(found.figures, "figure")] + ["the weights"] * (found.drift is not None)
    compared = ", ".join(parts)
    why = "; ".join(because)
    within = f"figures within {found.apart:.1e}"
    if found.drift is not None:
        within += f", weights within {found.drift:.1e} of what the steps moved"
    if found.hard:
        return differs("replay", f"{what}: first differs at {found.hard}")
    if not found.soft and found.sampled_apart is None:
        beside = f", with {why}" if why else ""
        return held("replay", f"{what}: bit-equal{beside} ({compared})")
    first = found.sampled_apart[1] if found.sampled_apart else found.soft
    too_far = found.apart > TOLERANCE or (found.drift or 0.0) > DRIFT
    if not because or too_far:
        beside = f", more than {why} explains" if because else ""
        return differs("replay", f"{what}: first differs at {found.soft or first}{beside}")
    if found.sampled_apart is not None:
        step = found.sampled_apart[0]
        said = f"equal up to step {step - 1}, {within}; from {first}"
        return unchecked("replay", f"{what}: {said}, which rounding can do, because {why}")
    return held("replay", f"{what}: equal, {within}, because {why} ({compared})")
