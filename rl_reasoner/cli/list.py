"""The verb `list`: what recipes can name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from rich.table import Table
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json
from rl_reasoner.errors import unknown
from rl_reasoner.report.console import emit, new_table


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
        from rl_reasoner.recipe.load import shipped_recipes
        from rl_reasoner.scoring.registry import shipped_rewards

        names = {
            "recipes": shipped_recipes(),
            "rewards": shipped_rewards(),
            "sets": set_names(),
            "policies": ["scratch:deepseek-tiny", "scratch:dense-tiny", "scratch:moe-tiny"],
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
        table = new_table("kind", "names")
        for kind, known in shown.items():
            table.add_row(kind, ", ".join(known))
        emit(self.json, shown, table)


def _card_table(names: Sequence[str], cards: Mapping[str, Any]) -> Table:
    from rl_reasoner.dataset.sets import find_set

    table = new_table("set", "problems", "about", "licence", "from", "defects")
    for name in names:
        card = cards.get(name)
        place = "here" if find_set(name) else "hub" if card and card.hub else "not here"
        facts = (str(card.size), card.about, card.licence) if card else ("", "", "")
        table.add_row(name, *facts, place, card.defects if card else "")
    return table
