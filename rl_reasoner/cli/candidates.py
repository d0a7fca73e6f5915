"""What a shell may put in place of the word that is being typed: verbs, flags, names, run folders.

The shells' scripts (`completion`) ask with the words typed so far. An answer is a list of texts,
and what kind of path fits besides; the shell completes paths itself. Loads what a recipe is made
of only where a recipe's own fields are asked for; never torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from rl_reasoner.cli.check import takes_fields
from rl_reasoner.cli.mistakes import Argument, arguments_of
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.flags import choices_of, flags_of

if TYPE_CHECKING:
    from rl_reasoner.recipe.recipe import Recipe

Paths = Literal["", "files", "folders"]
# where a place takes a name of a kind: (verb, place) or a flag -> kinds
_PLACES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("train", "recipe"): ("recipes", "files"),
    ("check", "target"): ("recipes", "rewards", "files"),
    ("eval", "policy"): ("runs", "policies", "folders", "files"),
    ("chat", "policy"): ("runs", "policies", "folders", "files"),
    ("chat", "other"): ("runs", "policies", "folders", "files"),
    ("export", "policy"): ("runs", "recipes", "folders"),
    ("filter", "policy"): ("runs", "policies", "folders"),
    ("filter", "data"): ("sets", "files"),
    ("score", "reward"): ("rewards", "files"),
    ("why", "run-folder"): ("runs", "folders"),
    ("report", "source"): ("runs", "files"),
    ("copy", "name"): ("recipes", "copied rewards"),
    ("list", "kind"): ("kinds",),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {
    "--sets": ("sets", "files"),
    "--evals.sets": ("sets", "files"),
    "--data": ("sets", "files"),
    "--reward": ("rewards", "files"),
    "--disagree": ("rewards", "files"),
    "--rewards": ("rewards", "files"),
    "--resume": ("runs", "folders"),
    "--rescore": ("runs", "folders"),
    "--policy": ("runs", "policies", "folders", "files"),
    "--policy.source": ("runs", "policies", "folders", "files"),
    "--launch": ("files",),
    "--plan": ("recipes", "files"),
    "--gpu": ("gpus",),
    "--dtype": ("types",),
}
_METAVARS: Mapping[str, tuple[str, ...]] = {
    "FILE": ("files",),
    "FILE.jsonl": ("files",),
    "FOLDER": ("folders",),
    "RUN": ("runs", "folders"),
    "[TO]": ("files",),
}


@dataclass
class Candidates:
    """Texts for the word being typed, and which paths fit besides."""

    texts: list[str] = field(default_factory=list)
    paths: Paths = ""

    def lines(self) -> list[str]:
        """For a shell: the kind of path first, then a text a line."""
        return [f":{self.paths}", *self.texts]


def complete(verbs: Mapping[str, type[Any]], words: Sequence[str]) -> Candidates:
    """What can stand in place of the last of `words` (those behind the program's name).

    `verbs` are the classes of the verbs. A mistake in what is typed gives nothing, never an error.
    """
    *before, now = list(words) or [""]
    if not before:
        return Candidates(_fitting([*verbs, "--help", "--version"], now))
    verb, *given = before
    if verb not in verbs:
        return Candidates()
    arguments = arguments_of(verbs[verb])
    flags = {f"--{a.name}": a for a in arguments if not a.positional}
    with suppress(UserError, OSError):
        if now.startswith("-") and "=" in now:
            name, _, value = now.partition("=")
            found = _value(verb, name, given, flags, value)
            return Candidates([f"{name}={text}" for text in found.texts], found.paths)
        if given and given[-1].startswith("-") and _takes_value(given[-1], flags):
            return _value(verb, given[-1], given, flags, now)
        if now.startswith("-"):
            own = flags_of(_recipe(given)) if takes_fields([verb, *given]) else []
            return Candidates(_fitting([*flags, *own, "--help"], now))
        return _place(verb, [a for a in arguments if a.positional], given, flags, now)
    return Candidates()


def _value(
    verb: str, flag: str, given: Sequence[str], flags: Mapping[str, Argument], now: str
) -> Candidates:
    """What can stand behind a flag."""
    if flag in flags:
        kinds = _FLAGS.get(flag) or _METAVARS.get(flags[flag].metavar, ("files",))
        return _of_kinds(kinds, _literals(flags[flag]), now)
    if not takes_fields([verb, *given]):
        return Candidates()
    kinds = ("sets", "files") if flag.endswith((".path", ".data")) else ("files",)
    choices = choices_of(_recipe(given), flag.removeprefix("--"))
    return _of_kinds(_FLAGS.get(flag, kinds), choices, now)


def _place(
    verb: str,
    places: Sequence[Argument],
    given: Sequence[str],
    flags: Mapping[str, Argument],
    now: str,
) -> Candidates:
    """What stands without a flag: the first place that has no word yet."""
    taken, rest = 0, list(given)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            taken += 1
        elif "=" not in word and _takes_value(word, flags) and rest:
            rest.pop(0)
    if taken >= len(places):
        return Candidates()
    place = places[taken]
    kinds = _PLACES.get((verb, place.name)) or _METAVARS.get(place.metavar, ("files",))
    choices = _literals(place)
    return _of_kinds(() if choices else kinds, choices, now)


def _takes_value(flag: str, flags: Mapping[str, Argument]) -> bool:
    """Whether a word belongs to the flag; those of a recipe's fields all take one."""
    return "=" not in flag and (flag not in flags or flags[flag].kind is not bool)


def _literals(argument: Argument) -> list[str]:
    return [*map(str, get_args(argument.kind))] if get_origin(argument.kind) is Literal else []


def _of_kinds(kinds: Sequence[str], choices: Sequence[str], now: str) -> Candidates:
    """Names of these kinds that begin as `now` does; of a list with commas its last part."""
    if choices:
        return Candidates(_fitting(choices, now))
    start, comma, last = now.rpartition(",")
    names = [name for kind in kinds for name in _names(kind, last)]
    paths: Paths = "files" if "files" in kinds else "folders" if "folders" in kinds else ""
    texts = [f"{start}{comma}{name}" for name in _fitting(names, last)]
    return Candidates(texts, "" if comma else paths)


def _names(kind: str, now: str) -> Iterator[str]:
    """The names of a kind. Run folders are those beside what is typed, and in runs/."""
    if kind == "recipes":
        from rl_reasoner.recipe.load import shipped_recipes

        yield from shipped_recipes()
    elif kind in ("rewards", "copied rewards"):
        from rl_reasoner.scoring.registry import shipped_rewards

        yield from (f"rewards/{n}" if kind != "rewards" else n for n in shipped_rewards())
    elif kind == "sets":
        from rl_reasoner.dataset.sets import set_names

        yield from set_names()
    elif kind == "policies":
        from rl_reasoner.policy.names import SCRATCH_NAMES

        yield from (f"scratch:{name}" for name in SCRATCH_NAMES)
    elif kind == "kinds":
        yield from ("recipes", "rewards", "sets", "policies", "tasks", "schema")
    elif kind == "gpus":
        from rl_reasoner.planning.gpus import GPUS

        yield from (*GPUS, "cpu")
    elif kind == "types":
        yield from ("fp32", "bf16")
    elif kind == "runs":
        from rl_reasoner.paths import is_run

        folder = Path(now.rpartition("/")[0] or "/") if "/" in now else Path("runs")
        yield from sorted(str(path) for path in folder.glob("*") if is_run(path))


def _recipe(given: Sequence[str]) -> "Recipe":
    """The recipe that is named or resumed; any where none is.

    A script is a program of the user's: completing a word does not run it.
    """
    from rl_reasoner.recipe.load import load_recipe, shipped_recipes

    resumed = [f"{run}/recipe.yaml" for flag, run in pairwise(given) if flag == "--resume"]
    named = [
        word for word in given if word in shipped_recipes() or word.endswith((".yaml", ".yml"))
    ]
    return load_recipe([*named, *resumed, "quickstart"][0])


def _fitting(names: Sequence[str], start: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(start)]
