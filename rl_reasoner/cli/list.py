"""The verb `list`: what recipes can name."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json
from rl_reasoner.cli.progress import told_if_long
from rl_reasoner.errors import unknown
from rl_reasoner.paths import room
from rl_reasoner.report.console import COLUMNS, emit, new_table, out, wrapped

_Rows = Mapping[str, Sequence[str]]
"""Name -> what it is, then what stands in columns beside that."""
_LEGEND = "time; sampled accuracy before → after GRPO, seed 0"
_HEADINGS = {"policies": "policies of random weights"}


@dataclass
class ListVerb:
    """List recipes, rewards, sets, policies and tasks, or print the schema of recipe files."""

    kind: Positional[Annotated[str | None, arg(metavar="[KIND]", help_behavior_hint="")]] = None
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
            emit(self.json, {**shown, "cards": facts}, _cards(names["sets"], cards))
            return
        if self.kind == "policies":
            with told_if_long("loading torch to count parameters"):
                from rl_reasoner.policy.opening import open_policy

                sizes = {
                    n: open_policy(n, device="cpu").parameter_counts for n in names["policies"]
                }
            counts = {n: {"parameters": a, "active_parameters": b} for n, (a, b) in sizes.items()}
            table = new_table("policy", "parameters", "active per token")
            for name, (total, active) in sizes.items():
                table.add_row(name, f"{total:,}", f"{active:,}")
            emit(self.json, {**shown, "sizes": counts}, table)
            return
        about: dict[str, _Rows] = {
            "recipes": _recipes(),
            "rewards": {row[0]: row[1:2] for line in _guide("rewards") if (row := _cells(line))},
            "sets": {name: [card.about] for name in names["sets"] if (card := card_of(name))},
            "policies": {f"scratch:{name}": [about] for name, about in SCRATCH_NAMES.items()},
            "tasks": {name: [task.about] for name, task in TASKS.items()},
        }
        texts = {
            kind: {name: about[kind][name] for name in known if name in about[kind]}
            for kind, known in shown.items()
        }
        emit(self.json, {**shown, "about": texts}, _grouped(shown, about))


def _grouped(shown: Mapping[str, Sequence[str]], about: Mapping[str, _Rows]) -> Text:
    """What is named, a line each, under the heading of its kind; recipes by machine."""
    groups: dict[str, _Rows] = {}
    for kind, names in shown.items():
        rows = {name: about[kind].get(name) or ["–"] for name in names}
        heading = _HEADINGS.get(kind, kind)
        groups |= _by_machine(about[kind], rows) if kind == "recipes" else {heading: _folded(rows)}
    return _described(groups)


def _by_machine(order: Iterable[str], rows: _Rows) -> dict[str, _Rows]:
    """Heading -> recipes for one kind of machine, in the guide's order, with time and gain."""
    groups: dict[str, dict[str, Sequence[str]]] = {}
    for name in dict.fromkeys([*(n for n in order if n in rows), *rows]):
        about, hardware, gain = [*rows[name], "", ""][:3]
        machine, _, time = hardware.partition(", ")
        groups.setdefault(machine, {})[name] = [about, time, gain]
    return {
        f"recipes{machine and f' for {machine}'}"
        f"{': ' + _LEGEND if any(gain for *_, gain in members.values()) else ''}": members
        for machine, members in groups.items()
    }


def _folded(rows: _Rows) -> _Rows:
    """The same, with one line for the splits of one task (modular_test, …)."""
    from rl_reasoner.dataset.sets import generated_words

    lines: dict[str, Sequence[str]] = {}
    splits: dict[str, list[str]] = {}
    for name, texts in rows.items():
        stem, _, split = name.rpartition("_")
        if texts[0] == generated_words(stem):
            splits.setdefault(stem, []).append(split)
            lines[f"{stem}_*"] = [f"generated by its task: {', '.join(splits[stem])}"]
        else:
            lines[name] = texts
    return lines


def _described(groups: Mapping[str, _Rows]) -> Text:
    """The rows of each group under its heading, a line each, at whatever width there is."""
    blocks = [
        Text("\n").join([Text(heading, "bold"), *map(Text, _lines(rows))])
        for heading, rows in groups.items()
    ]
    return Text("\n\n").join(blocks)


def _lines(rows: _Rows) -> list[str]:
    """Name, description and what stands beside it, in columns."""
    beside = {name: list(cells) for name, (_, *cells) in rows.items()}
    sizes = [max(map(len, cells)) for cells in zip(*beside.values(), strict=True)]
    named = max(map(len, rows))
    room = max(out.width, COLUMNS) - named - 4 - sum(size + 2 for size in sizes if size)
    fitted = {name: _fitted(texts[0], room) for name, texts in rows.items()}
    widths = [named, max(map(len, fitted.values())), *sizes]
    return [
        "  "
        + "  ".join(
            cell.ljust(width)
            for cell, width in zip((name, text, *beside[name]), widths, strict=True)
            if width
        ).rstrip()
        for name, text in fitted.items()
    ]


def _fitted(text: str, room: int) -> str:
    """A description in `room` columns: as many of the parts between its semicolons as fit."""
    while len(text) > room and ";" in text:
        text = text.rpartition(";")[0]
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _recipes() -> _Rows:
    """Recipe -> what it shows, machine and time, and the measured accuracy before and after.

    Of samples, seed 0, where it was measured: in the table of all recipes, or in the first one of
    the part that begins with the recipe's name.
    """
    gains: dict[str, str] = {}
    shows: dict[str, Sequence[str]] = {}
    part = ""
    for line in _guide("recipes"):
        if named := re.match(r"(?:#[^`]{0,99})?`(\w+)`", line):
            part = named[1]
        row = _cells(line)
        if len(row) == 3:
            shows[row[0]] = [row[1], row[2].partition(";")[0]]
        name, *measured = row if len(row) > 1 and row[1] == "0" else [part, *row]
        if len(measured) > 3 and measured[0] == "0" and measured[1].endswith("sampled"):
            before, after = (text.partition("%")[0] for text in measured[2:4])
            gains.setdefault(name, f"{before}→{after}%")
    return {name: [*texts, gains.get(name, "")] for name, texts in shows.items()}


def _guide(kind: str) -> list[str]:
    """The lines of the README of the shipped `kind`."""
    return (room(kind) / "README.md").read_text(encoding="utf-8").splitlines()


def _cells(line: str) -> list[str]:
    """The cells of a table's row, without marks of Markdown; none of another line."""
    if not line.startswith("| "):
        return []
    plain = re.sub(r" ?\(\[[^]]{0,99}\]\([^)]{0,199}\)\)|`", "", line)
    plain = re.sub(r"\[([^]]{0,99})\]\([^)]{0,199}\)", r"\1", plain)
    return [cell.strip() for cell in plain.strip("|").split("|")]


def _cards(names: Sequence[str], cards: Mapping[str, Any]) -> Text:
    """A line for each set: what it is, how many problems, where its rows are.

    Below stand the licence and the known defects of those that others have published.
    """
    from rl_reasoner.dataset.sets import CARDS, find_set

    groups: dict[str, dict[str, Sequence[str]]] = {}
    notes = []
    for name in names:
        card, here = cards.get(name), find_set(name) is not None
        if card is None:
            groups.setdefault("your own", {})[name] = ["–"]
        elif name in CARDS:
            place = "here" if here else "hub" if card.hub else "not here"
            row = [card.about, f"{card.size:,}", place]
            groups.setdefault("published by others: problems; where the rows are", {})[name] = row
            note = "; ".join(filter(None, [card.licence, card.defects]))
            notes.append(wrapped(note, " " * 4, f"  {name}: ", columns=out.width))
        else:
            row = [card.about, f"{card.size:,}"]
            groups.setdefault("shipped: problems", {})[name] = row
    heading = Text("licences and known defects of what others have published\n", "bold")
    return Text("\n\n").join([_described(groups), heading + Text("\n".join(notes))])
