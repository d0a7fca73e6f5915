"""Every regular expression of the project, and texts that are hard for it.

A pattern is hard-pressed by what it repeats: for each open repetition in it, `texts` repeats what
the repetition takes, what stands before it, and both together.
"""

import ast
import importlib
import re
import re._constants as sre  # type: ignore[import-not-found]
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from support.places import ROOT

METHODS = ("search", "match", "fullmatch", "finditer", "findall", "sub", "subn", "split")
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT)
_OPEN = 30  # repeated more often than that, a part counts as without an end
_CATEGORIES = {
    sre.CATEGORY_SPACE: " \n",
    sre.CATEGORY_DIGIT: "1",
    sre.CATEGORY_WORD: "a1",
    sre.CATEGORY_NOT_SPACE: "a",
    sre.CATEGORY_NOT_WORD: "- ",
    sre.CATEGORY_NOT_DIGIT: "a",
}


@dataclass(frozen=True)
class Used:
    """A pattern, where it stands, and the methods by which it is used there."""

    place: str
    pattern: re.Pattern[str]
    methods: tuple[str, ...]

    def run(self, text: str) -> None:
        """Use it on `text`, to the end."""
        for method in self.methods:
            if method in ("search", "match", "fullmatch"):
                getattr(self.pattern, method)(text)
            else:
                for _ in self.pattern.finditer(text):
                    pass


def used() -> tuple[list[Used], set[str]]:
    """The patterns of the project; and the functions, by module, that make patterns themselves."""
    found, makers = [], set()
    for folder in ("rl_reasoner", "rewards"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "rl_reasoner/rewards" not in path.as_posix():
                more, making = _used_in(path)
                found += more
                makers |= making
    return found, makers


def _used_in(path: Path) -> tuple[list[Used], set[str]]:
    source, found, makers = path.read_text(), [], set()
    if not re.search(r"^import re$", source, re.M):
        return [], set()
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name.replace("rewards.", "rl_reasoner.rewards."))
    for variable, value in vars(module).items():
        for number, pattern in enumerate(_patterns(value)):
            own = re.findall(rf"\b{variable}\.({'|'.join(METHODS)})\(", source)
            methods = tuple(dict.fromkeys(own)) or ("search", "fullmatch")
            found.append(Used(f"{name}.{variable}[{number}]", pattern, methods))
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for call in ast.walk(function):
                if (one := _inline(call, f"{name}.{function.name}")) is not None:
                    found.append(one)
                elif _is_of_re(call):
                    makers.add(f"{name}.{function.name}")
    return found, makers


def _patterns(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _patterns(each)
    elif isinstance(value, dict):
        yield from _patterns([*value.values()])


def _is_of_re(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="re"), attr=attr)):
            return attr in (*METHODS, "compile")
    return False


def _inline(node: ast.AST, place: str) -> Used | None:
    match node:
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="re"), attr=attr),
            args=[ast.Constant(value=str(text)), *rest],
            keywords=keywords,
        ) if attr in METHODS:
            given = [*rest, *(word.value for word in keywords)]
            names = [n.attr for each in given for n in ast.walk(each) if _is_flag(n)]
            flags = sum(getattr(re, name) for name in names)
            return Used(f"{place}: {text}", re.compile(text, flags), (attr,))
    return None


def _is_flag(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr.isupper() and hasattr(re, node.attr)


# ---------------------------------------------------------------------------- hard texts


@cache
def texts(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """(beginning, what to repeat behind it) for each way to press `pattern`; the short ones."""
    pairs = set()
    for befores, bodies in _pumps(parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE), [""]):
        for before in befores:
            pairs |= {("", before), ("", before + " "), ("", before + "\n")}
            for body in bodies:
                pairs |= {(before, body), ("", before + body), ("", body + " "), (before, body * 2)}
                pairs |= {(before, body + other) for other in bodies[:3]}
    return sorted((p for p in pairs if p[1]), key=lambda p: (len(p[0] + p[1]), p))[:60]


def ends(pattern: re.Pattern[str]) -> list[str]:
    """What a text may end with to make `pattern` fail there: also what its classes leave out."""
    left_out = re.findall(r"\[\^\\?(.)", pattern.pattern)
    return list(dict.fromkeys(["", "\0", *left_out]))[:5]


def _pumps(sequence: Any, before: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """For each open repetition: what may stand before it, and what it takes."""
    sequence = list(sequence)
    for index, (kind, value) in enumerate(sequence):
        ahead = [a + b for a in before for b in _samples(sequence[:index], 3)][:4]
        if kind in _REPEATS:
            if value[1] > _OPEN:
                yield ahead, _samples(value[2], 8)
            yield from _pumps(value[2], ahead)
        elif kind is sre.BRANCH:
            for branch in value[1]:
                yield from _pumps(branch, ahead)
        elif kind in (sre.SUBPATTERN, sre.ATOMIC_GROUP):
            yield from _pumps(value[3] if kind is sre.SUBPATTERN else value, ahead)
        elif kind in (sre.ASSERT, sre.ASSERT_NOT):
            yield from _pumps(value[1], ahead if value[0] > 0 else before)


def _samples(sequence: Any, most: int) -> list[str]:
    """Some short texts that `sequence` takes."""
    found = [""]
    for kind, value in sequence:
        more = list(dict.fromkeys(_one(kind, value)))
        found = [head + tail for head in found for tail in more][:most]
    return found


def _one(kind: Any, value: Any) -> list[str]:
    if kind is sre.LITERAL:
        return [chr(value)]
    if kind is sre.IN:
        return _of_class(value)
    if kind in (sre.ANY, sre.NOT_LITERAL):
        return [each for each in "a -" if ord(each) != value]
    if kind in _REPEATS:
        return [each * value[0] for each in _samples(value[2], 6)] if value[0] else [""]
    if kind is sre.BRANCH:
        return [each for branch in value[1] for each in _samples(branch, 2)]
    if kind is sre.SUBPATTERN:
        return _samples(value[3], 6)
    if kind is sre.ATOMIC_GROUP:
        return _samples(value, 6)
    return [""]


def _of_class(items: Any) -> list[str]:
    given = ""
    for kind, value in items:
        if kind is sre.LITERAL:
            given += chr(value)
        elif kind is sre.RANGE:
            given += chr(value[0])
        elif kind is sre.CATEGORY:
            given += _CATEGORIES[value]
    if items[0][0] is sre.NEGATE:
        return [each for each in "a1 -\n({$\\" if each not in given][:4] or ["\u4e00"]
    return list(given if len(given) <= 4 else given[:2] + given[-2:])
