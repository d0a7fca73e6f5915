"""The folder of a handover: written whole or not at all, checked by opening what was written.

It holds verl's files, `recipe.yaml` with the files of the recipe's own rewards, and a README
that says how to start, what was mapped, and what has no counterpart.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.files import whole_folder
from rl_reasoner.handover import verl
from rl_reasoner.handover.fields import OURS, settings, warnings
from rl_reasoner.handover.own_files import with_own_files
from rl_reasoner.handover.rewards import RecipeRewards
from rl_reasoner.handover.subject import Subject, not_given, subject_of
from rl_reasoner.recipe.recipe import Recipe


@dataclass(frozen=True)
class Handover:
    """What was written."""

    folder: Path
    subject: Subject
    warnings: Sequence[str]
    """what verl does otherwise than this recipe says"""
    start: Sequence[str]
    """the commands that start it there"""

    @property
    def without(self) -> list[str]:
        """The fields of a recipe that have no counterpart in verl."""
        return [one.ours for one in verl.FIELDS if not one.theirs and not one.note]


def hand_over(recipe: Recipe, folder: Path, stage: str | None = None) -> Handover:
    """Write `recipe`'s grpo stage (default: the last) for verl into `folder`.

    `folder` must not be there. Raises `UserError` for a recipe that cannot be handed over; then
    nothing is written.
    """
    whole = folder.absolute()
    with whole_folder(whole) as partial:
        return _write(recipe, partial, whole, stage)


def _write(recipe: Recipe, partial: Path, whole: Path, stage: str | None) -> Handover:
    written, names = with_own_files(recipe, partial)
    (partial / "recipe.yaml").write_text(written.to_yaml(), encoding="utf-8")
    rewards = RecipeRewards(partial / "recipe.yaml")
    subject = subject_of(recipe, stage, rewards, names)
    for name, content in verl.files(subject, str(whole)).items():
        file = partial / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    place = shlex.quote(str(whole))
    start = [line.format(folder=place) for line in verl.START_LINES]
    lost = [*warnings(verl.FIELDS, subject), *not_given(rewards)]
    made = Handover(whole, subject, lost, start)
    (partial / "README.md").write_text(_readme(made), encoding="utf-8")
    return made


def _readme(made: Handover) -> str:
    subject = made.subject
    given = settings(verl.FIELDS, subject)
    mapped = [
        f"| `{one.ours}` | `{name}` | `{_cell(given[name])}` |"
        for one in verl.FIELDS
        for name in one.theirs
        if name in given
    ]
    told = {one.ours: one.note for one in verl.FIELDS if one.note and not one.theirs}
    noted = [f"- `{name}`: {told[name]}" for name in OURS if name in told]
    lost = [f"- {line}" for line in made.warnings] or ["- nothing that this recipe uses"]
    return "\n".join(
        [
            f"# {subject.recipe.name} for verl",
            "",
            f"Stage `{subject.stage.name}` with {len(subject.tasks):,} rows, for verl "
            f"{verl.VERSION}, written by rl-reasoner. To start it there:",
            "",
            "```text",
            *made.start,
            "```",
            "",
            f"Rewards run in rl-reasoner, in processes of their own: {verl.OUTCOMES}.",
            "Evaluate what comes out as the recipe does, with the same prompts and judge:",
            "",
            "```text",
            _evaluation(subject),
            "```",
            "",
            "## Otherwise than the recipe says",
            "",
            *lost,
            "",
            "## Mapped",
            "",
            "| recipe | there | value |",
            "|---|---|---|",
            *mapped,
            "",
            "## Elsewhere",
            "",
            *noted,
            "",
            "## No counterpart",
            "",
            ", ".join(f"`{name}`" for name in made.without) + ".",
            "",
        ]
    )


def _cell(value: Any) -> str:
    """A value in a table of Markdown, which a bar would end, in code too."""
    return str(value).replace("|", "\\|")


def _evaluation(subject: Subject) -> str:
    """The command for a policy of which only its folder is known."""
    recipe, evals = subject.recipe, subject.recipe.evals
    options = dict(evals.reward_options)
    flags: dict[str, Any] = {
        "--sets": ",".join(evals.sets) or "SET",
        "--template": recipe.template,
        "--system": recipe.system,
        "--reward": evals.reward,
        "--reward-options": json.dumps(options) if options else None,
        "--max-tokens": evals.longest,
        "--samples": evals.samples or None,
        "--temperature": evals.temperature if evals.samples > 1 else None,
        "--weights": None if evals.weights == "own" else evals.weights,
        "--limit": evals.limit,
    }
    given = [part for name, value in flags.items() if value is not None for part in (name, value)]
    return shlex.join(["rl-reasoner", "eval", "POLICY", *map(str, given)])
