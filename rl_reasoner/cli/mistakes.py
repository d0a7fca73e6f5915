"""Mistakes in the arguments of a verb, each told in one line that names the right argument.

The arguments are compared with the verb's own fields before tyro parses them, so that a flag that
is misspelled, unknown, of another tool, or without its value is told as every other mistake is.
Imports nothing that a verb needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise, takewhile
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional, Suppress

from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.recipe.flag_habits import RECIPE_HABITS

_POLICY = "the policy stands without a flag: rl-reasoner {verb} POLICY"
_BATCHES = "batches are as large as the memory allows: leave it out"
# what other tools call it -> our flag, or a sentence
_HABITS: Mapping[str, Sequence[str]] = {
    "--max-tokens": ("max_new_tokens", "max_completion_length", "max_length", "max_gen_toks"),
    "--samples": ("num_generations", "num_samples", "n_samples", "num_return_sequences", "n", "k"),
    "--sets": ("dataset", "datasets", "dataset_name", "data", "task", "tasks", "benchmark", "set"),
    "--limit": ("max_samples", "num_examples", "max_examples", "max_problems"),
    "--out": ("output", "output_dir", "output_path", "output_file", "save", "save_path"),
    "--server": ("base_url", "api_base", "url"),
    "--template": ("prompt_template", "chat_template"),
    "--system": ("system_prompt",),
    "--temperature": ("temp",),
    "--weights": ("dtype", "precision"),
    _POLICY: ("model", "model_name", "model_name_or_path", "model_path", "policy", "pretrained"),
    _BATCHES: ("batch_size", "bs", "eval_batch_size", "per_device_eval_batch_size"),
    "the prompts of rows are fixed: see --template": ("num_fewshot", "few_shot"),
}
_OURS = {theirs: ours for ours, names in _HABITS.items() for theirs in names}
_KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Argument:
    """One argument of a verb, as its field describes it."""

    name: str  # the field's, or as `arg(name=...)` says; dashes for underscores
    positional: bool
    required: bool
    kind: Any  # bool, int, float, str, Path, or a Literal
    metavar: str

    @property
    def shown(self) -> str:
        """The argument as a message names it."""
        return self.metavar or self.name.upper() if self.positional else f"--{self.name}"


def arguments_of(verb: type[Any]) -> list[Argument]:
    """The arguments of a verb's class, in order."""
    hints = get_type_hints(verb, include_extras=True)
    found = []
    for field in fields(verb):
        kind, extras = _unwrapped(hints[field.name])
        if any(extra is Suppress for extra in extras):
            continue
        named = [extra for extra in extras if hasattr(extra, "metavar")]
        name = next((e.name for e in named if e.name), field.name).replace("_", "-")
        metavar = next((e.metavar for e in named if e.metavar), "")
        required = field.default is MISSING and field.default_factory is MISSING
        positional = any(extra is Positional for extra in extras)
        found.append(Argument(name, positional, required, kind, metavar))
    return found


def _unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """The type of a field without None, and what it is annotated with."""
    extras: list[Any] = []
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            extras += more
            continue
        inner = [kind for kind in get_args(hint) if kind is not NoneType]
        if get_origin(hint) is not Literal and len(inner) == 1 and hint is not inner[0]:
            hint = inner[0]
            continue
        return hint, extras


def check_arguments(verb: str, of: type[Any], given: Sequence[str]) -> None:
    """Raise `UserError` with every mistake in the arguments `given` to a verb.

    `of` is its class. A value that only the verb itself can judge passes.
    """
    known = arguments_of(of)
    flags = {argument.name: argument for argument in known if not argument.positional}
    places = [argument for argument in known if argument.positional]
    problems: list[str] = []
    words: list[str] = []
    met: set[str] = set()
    for name, text in _split(given, flags):
        if name is None:
            words.append(str(text))
            continue
        argument = flags.get(name.replace("_", "-"))
        met.add(name.replace("_", "-"))
        problems += [_unknown(verb, name, flags)] if argument is None else _wrong(argument, text)
    if not problems:
        if surplus := words[len(places) :]:
            problems.append(_too_much(verb, surplus[0], places, given))
        for place, word in zip(places, words, strict=False):
            problems += _wrong(place, word)
        needed = [place for place in places[len(words) :] if place.required]
        needed += [flag for name, flag in flags.items() if flag.required and name not in met]
        if needed:
            names = " and ".join(argument.shown for argument in needed)
            problems.append(f"{verb} needs {names}. See: rl-reasoner {verb} --help")
    if problems:
        raise UserError(*problems)


def _too_much(verb: str, word: str, places: Sequence[Argument], given: Sequence[str]) -> str:
    """What is said of a word that has no place; a list written with spaces is told as one."""
    for start, (before, after) in enumerate(pairwise(given)):
        if after == word and before.endswith(","):
            more = takewhile(lambda pair: pair[0].endswith(","), pairwise(given[start:]))
            whole = before + "".join(after for _, after in more)
            return f"{word!r} is too much: write the list without spaces, {whole}"
    takes = ", ".join(place.shown for place in places) or "nothing"
    return f"{word!r} is too much: {verb} takes {takes} and flags"


def _split(
    given: Sequence[str], flags: Mapping[str, Argument]
) -> Iterator[tuple[str | None, str | None]]:
    """(the flag's name, its value) in order; a word that belongs to no flag has no name."""
    rest = list(given)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-") or token == "-" or _is_number(token):
            yield None, token
            continue
        name, equals, text = token.lstrip("-").partition("=")
        flag = flags.get(name.replace("_", "-"))
        if equals:
            yield name, text
        elif flag is not None and flag.kind is bool:
            yield name, None
        elif rest and (not rest[0].startswith("-") or _is_number(rest[0])):
            yield name, rest.pop(0)
        else:
            yield name, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unknown(verb: str, name: str, flags: Mapping[str, Argument]) -> str:
    """What is wrong with a flag that the verb does not have."""
    theirs = name.replace("-", "_").lower()
    ours = _OURS.get(theirs, "")
    if ours.startswith("--") and ours.removeprefix("--") in flags:
        return f"--{name}: {verb} has no such flag. Did you mean {ours!r}?"
    if ours and not ours.startswith("--") and verb in ("eval", "chat"):
        return f"--{name}: {ours.format(verb=verb)}"
    near = did_you_mean(f"--{name}", [f"--{flag}" for flag in flags])
    if not near and theirs in RECIPE_HABITS:
        flag = RECIPE_HABITS[theirs][0][0]
        return (
            f"--{name}: {verb} has no such flag. It is one of training: rl-reasoner train, {flag}"
        )
    near = near or f" It has: {', '.join(f'--{flag}' for flag in flags)}."
    return f"--{name}: {verb} has no such flag.{near}"


def _wrong(argument: Argument, text: str | None) -> list[str]:
    """What is wrong with an argument's value, if anything."""
    kind, shown = argument.kind, argument.shown
    if kind is bool:
        return [f"{shown} takes no value"] if text is not None else []
    if text is None:
        return [f"{shown}: expected a value after it"]
    if get_origin(kind) is Literal and text not in get_args(kind):
        choices = [str(choice) for choice in get_args(kind)]
        return [f"{shown} {text}: expected {', '.join(choices)}.{did_you_mean(text, choices)}"]
    if kind in _KINDS:
        try:
            kind(text)
        except ValueError:
            return [f"{shown} {text}: expected {_KINDS[kind]}"]
    if kind is Path and not text:
        return [f"{shown}: expected a path"]
    return []
