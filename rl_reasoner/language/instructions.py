"""Instructions that a program can check, in the manner of IFEval (arXiv 2311.07911): the checkers.

A row's column `instructions` is a list such as

    [{"name": "words", "at_least": 3, "at_most": 5}, {"name": "upper_case"}]

`parsed` reads it, and says what is wrong with it; `verdicts` checks a response by it.
`KINDS` are all kinds with their arguments; docs/rewards-language.md says what counts as what.
Checkers take any text, take time linear in it, and raise nothing. Knows nothing of rewards.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.language.fences import fenced_blocks
from rl_reasoner.language.identification import check_language, language_share
from rl_reasoner.language.units import (
    UNSPACED,
    bullets,
    comparable,
    has_word,
    ideographs,
    normalised,
    numbered,
    one_line_end,
    paragraphs,
    sentences,
    words_of,
)

MOST_READ = 200_000
"""Of a response; a longer one follows nothing."""
MOST_INSTRUCTIONS = 20
_LIMITS = ("at_least", "at_most", "exactly")
_IN_LANGUAGE = 0.9  # share of a response's words that makes it one in the language
Followed = tuple[bool, str]
Args = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of instruction: `check(text, args)`, and its arguments.

    Each argument has a reader, which returns the value as it is used or raises ValueError with
    what was expected; those in `optional` have a value for where they are left out. The text is
    `normalised`, or for a kind that reads it `as_written` has one kind of line end alone.
    """

    check: Callable[[str, Args], Followed]
    arguments: Mapping[str, Callable[[Any], Any]]
    optional: Mapping[str, Any]
    as_written: bool = False


@dataclass(frozen=True)
class Instruction:
    """One instruction of a row, its arguments read."""

    name: str
    args: Args

    def check(self, text: str) -> Followed:
        """Whether `text`, the whole response as its kind reads it, follows it; and why."""
        return KINDS[self.name].check(text, self.args)


# ------------------------------------------------------------------------------------ verdicts


def verdicts(response: str, instructions: Sequence[Instruction], loose: bool) -> list[Followed]:
    """For each instruction whether the response follows it, and why.

    Loosely, one also counts as followed where the response follows it without its first line, its
    last line or both, or without asterisks (IFEval, section 2.3). A response without anything to
    be seen follows nothing, nor does one of more than `MOST_READ` characters.
    """
    if len(response) > MOST_READ:
        return [(False, f"{len(response)} characters, {MOST_READ} are read")] * len(instructions)
    text = normalised(response).strip()
    if not text:
        return [(False, "there is no response")] * len(instructions)
    written = one_line_end(response).strip().strip("\ufeff\u200b\u2060").strip()  # seen by nobody
    read = [written if KINDS[one.name].as_written else text for one in instructions]
    strict = [one.check(own) for one, own in zip(instructions, read, strict=True)]
    if not loose or all(followed for followed, _ in strict):
        return strict
    others = {own: list(_variants(own)) for own in {*read}}
    return [
        one if one[0] else next((v for v in map(instruction.check, others[own]) if v[0]), one)
        for instruction, own, one in zip(instructions, read, strict, strict=True)
    ]


def _variants(text: str) -> Iterator[str]:
    lines = text.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    for cut in cuts:
        for variant in ("\n".join(cut).strip(), "\n".join(cut).replace("*", "").strip()):
            if variant and variant != text:
                yield variant


# ------------------------------------------------------------------------------------- reading


def parsed(value: Any) -> list[Instruction]:
    """The instructions of a row's column: a list of objects, or its JSON.

    Raises `UserError` naming the instruction, what was expected, and the nearest right spelling.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"instructions are not JSON: {error}") from None
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= MOST_INSTRUCTIONS:
        raise UserError(
            f"instructions must be a list of 1 to {MOST_INSTRUCTIONS} objects, got {value!r:.60}"
        )
    return [_instruction(item) for item in value]


def _instruction(item: Any) -> Instruction:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise UserError(f"an instruction is an object with a name, got {item!r:.60}")
    name = item["name"]
    if name not in KINDS:
        raise unknown("instruction", name, KINDS)
    kind, args = KINDS[name], {}
    given = {key: value for key, value in item.items() if key != "name" and value is not None}
    for key, value in given.items():
        if key not in kind.arguments:
            raise unknown("argument", key, kind.arguments, owner=f"instruction {name}")
        try:
            args[key] = kind.arguments[key](value)
        except ValueError as error:
            raise UserError(
                f"instruction {name}: {key} must be {error}, got {value!r:.60}"
            ) from None
    if lacking := [key for key in kind.arguments if key not in {*args, *kind.optional, *_LIMITS}]:
        raise UserError(f"instruction {name}: the argument {lacking[0]!r} is missing")
    if "at_least" in kind.arguments:
        _check_limits(name, args)
    return Instruction(name, {**kind.optional, **args})


def _check_limits(name: str, args: Args) -> None:
    given = [limit for limit in _LIMITS if limit in args]
    if not given or ("exactly" in given and len(given) > 1):
        raise UserError(f"instruction {name}: give exactly, or at_least, at_most or both of them")
    if args.get("at_least", 0) > args.get("at_most", args.get("at_least", 0)):
        raise UserError(f"instruction {name}: at_least is more than at_most")


def _count(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # as Parquet and pandas give it
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1_000_000:
        raise ValueError("a whole number from 0")
    return value


def _number(value: Any) -> int:
    if _count(value) == 0:
        raise ValueError("a whole number from 1")
    return _count(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not normalised(value).strip():
        raise ValueError("a text that is not empty")
    return normalised(value).strip()


def _texts(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("a list of texts")
    return [_text(item) for item in value]


def _letter(value: Any) -> str:
    if not isinstance(value, str) or len(normalised(value)) != 1 or not normalised(value).isalnum():
        raise ValueError("one letter")
    return normalised(value).casefold()


def _language(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("the code of a language, such as en or zh")
    return check_language(value)


def _marker(value: Any) -> str:
    text = _text(value)
    if text.count("{n}") != 1:
        raise ValueError("a text with {n} in it, such as 'Section {n}'")
    return text


# ---------------------------------------------------------------------------------- the counts


def _counted(count: Callable[..., int], unit: str, text: str, args: Args) -> Followed:
    others = {key: value for key, value in args.items() if key not in _LIMITS}
    number = count(text, **others)
    least, most = args.get("at_least", 0), args.get("at_most", number)
    least, most = (args["exactly"],) * 2 if "exactly" in args else (least, most)
    wanted = ", ".join(f"{name.replace('_', ' ')} {args[name]}" for name in _LIMITS if name in args)
    return least <= number <= most, f"{number} {unit}, expected: {wanted}"


def _characters(text: str) -> int:
    """Letters and digits of any script; neither blanks nor punctuation."""
    return sum(map(str.isalnum, text))


def _in_order(numbers: Sequence[int]) -> int:
    """How many items a list has; 0 where they are not numbered 1, 2, 3 and so on."""
    return len(numbers) if list(numbers) == list(range(1, len(numbers) + 1)) else 0


def _sections(text: str, marker: str) -> int:
    before, _, after = marker.partition("{n}")
    line = re.compile(
        rf"[ \t]{{0,8}}(?:#{{1,6}}[ \t]|\*\*)?{re.escape(before.strip())}[ \t]{{0,8}}"
        rf"(\d{{1,3}}|[一二三四五六七八九十]{{1,3}}){re.escape(after.rstrip())}(?!\w)",
        re.IGNORECASE,
    )
    if after.strip():  # 第一部分介绍: what follows the mark may stand close to it
        line = re.compile(line.pattern.removesuffix(r"(?!\w)"), re.IGNORECASE)
    marks = (line.match(row) for row in text.split("\n"))
    return _in_order([_value(match[1]) for match in marks if match])


def _value(numeral: str) -> int:
    """The number that Arabic digits or Chinese numerals up to 99 write."""
    if numeral.isdecimal():
        return int(numeral)
    tens, ten, ones = numeral.rpartition("十")
    digits = "〇一二三四五六七八九"
    high = (digits.find(tens) if tens else 1) if ten else 0
    return high * 10 + (digits.find(ones) if ones else 0)


_PLACEHOLDER = re.compile(r"\[([^\[\]\n]{1,80})\](?!\()")
_HIGHLIGHT = re.compile(
    r"(?<!\*)\*\*(?=[^*\s])[^*\n]{1,2000}\*\*(?!\*)"
    rf"|(?<!\*)(?<![^\W{UNSPACED}])\*(?=[^*\s])[^*\n]{{0,2000}}(?<=[^\s*])\*(?![^\W{UNSPACED}]|\*)"
)


def _placeholders(text: str) -> int:
    """Texts such as [name] or [地址]; not [1], [x], and not the texts of links."""
    inner = (match[1].strip() for match in _PLACEHOLDER.finditer(text))
    return sum(len(name) > 1 and not name.isdecimal() for name in inner)


def _capital_words(text: str) -> int:
    """Words of two letters or more, all of them capitals."""
    return sum(word.isupper() and sum(map(str.isalpha, word)) > 1 for word in words_of(text))


_COUNTS: dict[str, tuple[Callable[..., int], dict[str, Callable[[Any], Any]], dict[str, Any]]] = {
    "words": (lambda text: len(words_of(text)), {}, {}),
    "sentences": (lambda text: len(sentences(text)), {}, {}),
    "paragraphs": (lambda text: len(paragraphs(text)), {}, {}),
    "characters": (_characters, {}, {}),
    "ideographs": (lambda text: len(ideographs(text)), {}, {}),
    "bullets": (lambda text: len(bullets(text)), {}, {}),
    "numbered": (lambda text: _in_order(numbered(text)), {}, {}),
    "sections": (_sections, {"marker": _marker}, {"marker": "Section {n}"}),
    "placeholders": (_placeholders, {}, {}),
    "highlights": (lambda text: len(_HIGHLIGHT.findall(text)), {}, {}),
    "capital_words": (_capital_words, {}, {}),
    "keyword": (lambda text, word: has_word(text, word), {"word": _text}, {}),
    "letter": (lambda text, letter: text.casefold().count(letter), {"letter": _letter}, {}),
}


# ----------------------------------------------------------------------------- yes or no


def _include(text: str, args: Args) -> Followed:
    lacking = [word for word in args["words"] if not has_word(text, word)]
    return not lacking, f"lacks {lacking[0]!r}" if lacking else "has all words"


def _exclude(text: str, args: Args) -> Followed:
    there = [word for word in args["words"] if has_word(text, word)]
    return not there, f"has {there[0]!r}" if there else "has none of the words"


def _upper(text: str, args: Args) -> Followed:
    small = [c for c in text if c.islower()]
    cased = any(c.isupper() for c in text)
    return cased and not small, f"has {small[0]!r}" if small else "" if cased else "no letters"


def _lower(text: str, args: Args) -> Followed:
    large = [c for c in text if c.isupper()]
    cased = any(c.islower() for c in text)
    return cased and not large, f"has {large[0]!r}" if large else "" if cased else "no letters"


def _starts(text: str, args: Args) -> Followed:
    return text.casefold().startswith(args["text"].casefold()), f"begins with {text[:30]!r}"


def _ends(text: str, args: Args) -> Followed:
    return text.casefold().endswith(args["text"].casefold()), f"ends with {text[-30:]!r}"


def _no_comma(text: str, args: Args) -> Followed:
    comma = re.search("[,，،﹐]", text)
    return comma is None, f"has {comma[0]!r}" if comma else "no comma"


_QUOTES = ('""', "“”", "「」", "『』", "«»", "„“")


def _quoted(text: str, args: Args) -> Followed:
    pair = text[0] + text[-1]
    whole = len(text) > 2 and pair in _QUOTES and bool(text[1:-1].strip())
    return whole, f"begins with {text[0]} and ends with {text[-1]}"


def _title(text: str, args: Args) -> Followed:
    title = re.search(r"<<([^\S\n]*+[^<>\s][^<>\n]*+)>>", text)
    return title is not None, f"title {title[1][:40]!r}" if title else "no <<title>>"


def _postscript(text: str, args: Args) -> Followed:
    marker = args["marker"].casefold()
    parts = text.casefold().rpartition(f"\n{marker}")
    if not parts[1] or not parts[0].strip():
        return False, f"no line begins with {args['marker']}"
    return bool(re.search(r"\w", parts[2])), "a postscript" if parts[2].strip() else "it is empty"


def _repeats(text: str, args: Args) -> Followed:
    wanted = " ".join(args["text"].casefold().split())
    begun = " ".join(text.casefold().split())
    if not begun.startswith(wanted):
        return False, "does not begin with the prompt"
    return bool(re.search(r"\w", begun[len(wanted) :])), "the prompt, then a response"


def _two_answers(text: str, args: Args) -> Followed:
    parts = [part.strip() for part in text.split("******")]
    right = len(parts) == 2 and all(parts) and parts[0] != parts[1] and "*" not in parts[1][:1]
    return right, f"{len(parts)} parts"


def _choice(text: str, args: Args) -> Followed:
    chosen = text.casefold().rstrip(".。!！")
    right = chosen in {option.casefold().rstrip(".。!！") for option in args["options"]}
    return right, "one of the options" if right else "none of the options alone"


def _paragraph_starts(text: str, args: Args) -> Followed:
    blocks = paragraphs(text)
    if len(blocks) < args["paragraph"]:
        return False, f"{len(blocks)} paragraphs"
    first = comparable(blocks[args["paragraph"] - 1].lstrip(" \t\"'“‘*#(["))
    wanted = comparable(args["word"])
    return first.startswith(wanted) and has_word(first[: len(wanted) + 1], wanted) > 0, first[:30]


def _in_language(text: str, args: Args) -> Followed:
    share = language_share(text, args["language"]).value
    reason = "no words" if share is None else f"{share:.0%} of the words"
    return share is not None and share >= _IN_LANGUAGE, reason


# -------------------------------------------------------------------------------------- JSON


_TYPES: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_DEEPEST = 5  # of a schema


def _schema(value: Any, depth: int = 0) -> Any:
    """A type's name, a list with the schema of its items, or an object of keys and schemas."""
    if isinstance(value, str) and value in _TYPES:
        return value
    if isinstance(value, list) and len(value) == 1 and depth < _DEEPEST:
        return [_schema(value[0], depth + 1)]
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {str(key): _schema(inner, depth + 1) for key, inner in value.items()}
    raise ValueError(f"a type ({', '.join(_TYPES)}), [schema of the items] or {{key: schema}}")


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _json(text: str, args: Args) -> Followed:
    try:
        value = json.loads(_without_fence(text), parse_constant=_refused, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return False, f"not JSON: {error}"[:100]
    wrong = _against(value, args["schema"], args["only"], "it")
    return not wrong, wrong or "JSON as asked"


def _without_fence(text: str) -> str:
    """What is in the fence of a text that is one block, of JSON or of no language; else `text`."""
    for block in fenced_blocks(text)[:1]:
        whole = text.count("\n", 0, block.start) == 1 and "\n" not in text[block.end :]
        if whole and block.language.lower() in ("json", ""):
            return block.code
    return text


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key occurs twice")
    return made


def _against(value: Any, schema: Any, only: bool, where: str) -> str:
    """What in `value` breaks the schema, to the schema's depth; empty if nothing does."""
    if isinstance(schema, str):
        return "" if _TYPES[schema](value) else f"{where} is no {schema}"
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{where} is not an array"
        items = (_against(item, schema[0], only, f"{where}[{i}]") for i, item in enumerate(value))
        return next(filter(None, items), "")
    if not isinstance(value, dict):
        return f"{where} is not an object"
    for key, inner in schema.items():
        if key not in value:
            return f"{where} lacks the key {key!r}"
        if wrong := _against(value[key], inner, only, f"{where}.{key}"):
            return wrong
    more = [key for key in value if key not in schema]
    return f"{where} has the key {more[0]!r:.40}" if only and more else ""


# ------------------------------------------------------------------------------------ the kinds


KINDS: dict[str, Kind] = {
    **{
        name: Kind(
            partial(_counted, count, name.replace("_", " ")),
            {**arguments, **dict.fromkeys(_LIMITS, _count)},
            optional,
        )
        for name, (count, arguments, optional) in _COUNTS.items()
    },
    "include": Kind(_include, {"words": _texts}, {}),
    "exclude": Kind(_exclude, {"words": _texts}, {}),
    "upper_case": Kind(_upper, {}, {}),
    "lower_case": Kind(_lower, {}, {}),
    "starts_with": Kind(_starts, {"text": _text}, {}),
    "ends_with": Kind(_ends, {"text": _text}, {}),
    "no_comma": Kind(_no_comma, {}, {}),
    "quoted": Kind(_quoted, {}, {}),
    "title": Kind(_title, {}, {}),
    "postscript": Kind(_postscript, {"marker": _text}, {"marker": "P.S."}),
    "repeat_prompt": Kind(_repeats, {"text": _text}, {}),
    "two_answers": Kind(_two_answers, {}, {}),
    "choice": Kind(_choice, {"options": _texts}, {}),
    "paragraph_starts": Kind(_paragraph_starts, {"paragraph": _number, "word": _text}, {}),
    "language": Kind(_in_language, {"language": _language}, {}),
    "json": Kind(_json, {"schema": _schema, "only": _flag}, {"schema": "any", "only": False}, True),
}
"""Every kind of instruction by name."""
