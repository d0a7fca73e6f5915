"""The verb `list`: what recipes can name."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json
from rl_reasoner.errors import unknown
from rl_reasoner.paths import room
from rl_reasoner.report.console import emit, new_table, out, wrapped

_WIDE = 140  # columns from which a name, its description, machine and gain fit one line


@dataclass
class ListVerb:
    """List recipes, rewards, sets, policies and tasks, or print the schema of recipe files."""

    kind: Positional[Annotated[str | None, arg(metavar="KIND", help_behavior_hint="")]] = None
    """only this kind; or `schema`: the JSON schema of YAML recipes, for editors"""
    json: Json = False

    def run(self) -> None:
        """Print the names, by kind."""
        if self.kind == "schema":
            from rl_reasoner.recipe.json_schema import recipe_schema, schema_text

            emit(self.json, recipe_schema(), schema_text().rstrip())
            return
        from rl_reasoner.dataset.sets import card_of, set_names
        from rl_reasoner.dataset.tasks.generate import TASKS
        from rl_reasoner.policy.names import SCRATCH_NAMES
        from rl_reasoner.recipe.load import shipped_recipes
        from rl_reasoner.scoring.registry import shipped_rewards

        names = {
            "recipes": shipped_recipes(),
            "rewards": shipped_rewards(),
            "sets": set_names(),
            "policies": [f"scratch:{name}" for name in SCRATCH_NAMES],
            "tasks": sorted(TASKS),
        }
        if self.kind is not None and self.kind not in names:
            raise unknown("kind", self.kind, [*names, "schema"])
        shown: dict[str, Any] = {self.kind: names[self.kind]} if self.kind else names
        if self.kind == "sets":
            cards = {name: card for name in names["sets"] if (card := card_of(name))}
            facts = {n: {**asdict(c), "hub": c.hub and c.hub.path} for n, c in cards.items()}
            emit(self.json, {**shown, "cards": facts}, _card_table(names["sets"], cards))
            return
        if self.kind == "policies":
            from rl_reasoner.policy.opening import open_policy

            sizes = {n: open_policy(n, device="cpu").parameter_counts for n in names["policies"]}
            counts = {n: {"parameters": a, "active_parameters": b} for n, (a, b) in sizes.items()}
            table = new_table("policy", "parameters", "active per token")
            for name, (total, active) in sizes.items():
                table.add_row(name, f"{total:,}", f"{active:,}")
            emit(self.json, {**shown, "sizes": counts}, table)
            return
        about: dict[str, Mapping[str, Sequence[str]]] = {
            "recipes": _recipes(),
            "rewards": {row[0]: row[1:2] for row in _guide_rows("rewards")},
            "sets": {name: [card.about] for name in names["sets"] if (card := card_of(name))},
            "policies": {
                name: ["small and random, to try things out"] for name in names["policies"]
            },
            "tasks": {name: [task.about] for name, task in TASKS.items()},
        }
        texts = {
            kind: {name: about[kind][name] for name in known if name in about[kind]}
            for kind, known in shown.items()
        }
        emit(self.json, {**shown, "about": texts}, _described(shown, about))


def _described(shown: Mapping[str, Any], about: Mapping[str, Mapping[str, Sequence[str]]]) -> Text:
    """A line for each name under the heading of its kind, where a line has room for all of it.

    On a narrow terminal a description goes on in the next line, and machine, time and measured
    gain stand under it.
    """
    if out.width < _WIDE:
        return _narrow(shown, about)
    lines: list[Sequence[str]] = []
    for kind, names in shown.items():
        lines += [[kind], *([f"  {name}", *about[kind].get(name, ())] for name in names), []]
    rows = [line for line in lines if len(line) > 1]
    sizes = [max((len(row[i]) for row in rows if len(row) > i), default=0) for i in range(4)]
    gaps = 2 * sum(size > 0 for size in sizes[1:])
    sizes[1] = max(24, min(sizes[1], out.width - sizes[0] - sizes[2] - sizes[3] - gaps))
    texts = []
    for line in lines:
        cells = [Text(cell) for cell in line]
        for cell, size in zip(cells, sizes, strict=False):
            cell.truncate(size, overflow="ellipsis", pad=len(line) > 1)
        texts.append(Text("  ").join(cells) if len(line) > 1 else Text("".join(line), "bold"))
    return Text("\n").join(texts[:-1])


def _narrow(shown: Mapping[str, Any], about: Mapping[str, Mapping[str, Sequence[str]]]) -> Text:
    """As `_described`, in 80 columns."""
    every = [name for names in shown.values() for name in names]
    size = max(map(len, every), default=0) + 4
    texts = []
    for kind, names in shown.items():
        texts.append(Text(kind, "bold"))
        for name in names:
            meaning, *more = about[kind].get(name, [""])
            texts.append(Text(wrapped(meaning or "–", " " * size, f"  {name}".ljust(size))))
            if facts := ", ".join(filter(None, more)):
                texts.append(Text(wrapped(facts, " " * size), "dim"))
        texts.append(Text())
    return Text("\n").join(texts[:-1])


def _recipes() -> dict[str, Sequence[str]]:
    """Recipe -> what it shows, machine and time, and the measured accuracy before and after.

    Of samples, seed 0, where it was measured.
    """
    gains: dict[str, str] = {}
    shows: dict[str, Sequence[str]] = {}
    for row in _guide_rows("recipes"):
        if len(row) == 3:
            shows[row[0]] = [row[1], row[2].partition(";")[0]]
        elif len(row) == 6 and row[1] == "0" and row[2] == "sampled":
            before, after = (text.partition(" ")[0] for text in row[3:5])
            gains[row[0]] = f"{before} → {after}"
    return {name: [*texts, gains.get(name, "")] for name, texts in shows.items()}


def _guide_rows(kind: str) -> Iterator[list[str]]:
    """The rows of the tables in the README of the shipped `kind`, without marks of Markdown."""
    for line in (room(kind) / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| "):
            plain = re.sub(r" ?\(\[[^]]{0,99}\]\([^)]{0,199}\)\)|`", "", line)
            plain = re.sub(r"\[([^]]{0,99})\]\([^)]{0,199}\)", r"\1", plain)
            yield [cell.strip() for cell in plain.strip("|").split("|")]


def _card_table(names: Sequence[str], cards: Mapping[str, Any]) -> Table:
    from rl_reasoner.dataset.sets import find_set

    table = new_table("set", "problems", "about", "licence", "from", "defects")
    for name in names:
        card = cards.get(name)
        place = "here" if find_set(name) else "hub" if card and card.hub else "not here"
        facts = (str(card.size), card.about, card.licence) if card else ("", "", "")
        table.add_row(name, *facts, place, card.defects if card else "")
    return table
