"""The answer of a completion that is not in the form asked for, put into that form.

A strict judge wants a final answer as asked, and a policy learns that form early. How much of a
gain is form shows beside a lenient judge, which takes the answer from where a person would read
it: of maths the last value (a number, or the formula it stands in), and what an unfinished form
(reasoning, box or tag that never closes; tags of one's own left out) marks; of code the last block,
closed or not, the last that defines something, all blocks as one program, or the code of a
completion without a fence. Each reading is written as the reward
wants it and judged by the same reward (`judging`): so the two judges differ in form alone. A few
places are looked at, never all: a list of guesses counts by its last one. What numbers an item or
a step is no answer.

Pure text, bounded: maths reads the end of a completion, code goes once over its lines.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rl_reasoner.answers.extraction.boxes import last_boxes
from rl_reasoner.answers.extraction.extract import (
    TAIL,
    answer_of,
    last_formula,
    spoken,
    thought_and_spoken,
)
from rl_reasoner.answers.extraction.phrases import readable
from rl_reasoner.answers.parsing.statements import SCALES
from rl_reasoner.language.fences import fenced_blocks, python_blocks
from rl_reasoner.language.thinking import (
    CLOSE_ANSWER,
    OPEN_ANSWER,
    split_chain,
    without_answer_tags,
)
from rl_reasoner.rewards.code_tests import program_of

_TEX = (
    r"\\[dt]?frac\s?\{[^{}]{1,40}\}\s?\{[^{}]{1,40}\}|\\sqrt\{[^{}]{1,40}\}|\\pi(?![a-z])"
    r"|√\d{1,60}|[¼-¾⅐-⅞]"
)
_POWER = r"(?:\^\{?-?\d{1,6}\}?|\*\*-?\d{1,6}|[⁻⁰¹²³⁴-⁹]{1,6})"
_TIMES_TEN = rf"\s?(?:×|·|\*|\\times|\\cdot)\s?10{_POWER}"
_SCALE = (
    rf"\s?(?:{'|'.join(word for word in SCALES if word.isascii())}|percent)(?![a-z])"
    r"|[十百万亿]|千(?![克米瓦卡])|[eE][-+]?\d{1,4}(?![\w.])"
)
_VALUE = re.compile(
    r"(?:(?<![\w)\]}])[-−])?(?:"  # a sign, where it is no difference
    r"(?<![A-Za-z_\d.^])(?<![A-Za-z]/)(?:\d{1,3}(?:,\d{3}){1,9}(?!,?\d)|\d{1,60}(?!\d))"
    rf"(?:\.\d{{1,60}})?(?:{_TIMES_TEN}|{_POWER}|\s?/\s?\d{{1,60}}|[ ]\d{{1,3}}/\d{{1,60}})?"
    rf"|(?<![\w.])\.\d{{1,60}}|{_TEX})(?:{_TEX})?(?:{_SCALE}|\s?\\?%)?"
)
_RELATION = re.compile(r"=|≈|\\approx(?![a-z])|\\(?:[Rr]ightarrow|implies|to)(?![a-z])")
_ITEM = re.compile(r"[.)]\**[ \t]+\S")
_STEP = re.compile(r"\b(?:[Ss]tep|[Pp]art|[Cc]ase) $")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|(?![a-zA-Z]))")
_BEGINS = re.compile(r"(?:async )?def \w+\(|class \w+ ?[(:]|import \w|from [\w.]+ import |@\w")
_DEFINED = re.compile(r"^(?:(?:async )?def|class) (\w+)", re.MULTILINE)
_SET = re.compile(r"^(\w+) ?(?::[^=\n]*)?=(?!=)", re.MULTILINE)
_TEST = re.compile(r"[Tt]est|main$")
_STATEMENT = re.compile(
    r"(?:if|elif|for|while|with|try|except|else|finally)\b.*:[ \t]*(?:#.*)?$"
    r"|(?:return|raise|assert)\b|print\(|[)\]}#]"
    r"|[\w.]+(?:\[[^\]]*\])?(?:, ?\w+)* ?(?:[-+*/|&]|//)?=(?!=)|[\w.]+\(.*\)[ \t]*$"
)

PlacedAnswer = tuple[str, str]
"""Where an answer stands, and the completion that says it in the form asked for."""


def has_form(reward: str) -> bool:
    """Whether answer and form are two things to the shipped reward of this name.

    Not to `instructions`, where the form is what is asked, nor to a reward of one's own.
    """
    return reward in _KINDS


def readings(reward: str, options: Mapping[str, Any], completion: str) -> list[PlacedAnswer]:
    """The places of `completion` in which a person would read its answer, beyond the form asked.

    `reward` is one that `has_form`, `options` are its options, as it accepts them. A handful at
    most; empty where nothing more is to be read. Never raises on strings.
    """
    return list(dict.fromkeys(_KINDS[reward](completion, options)))


# ---------------------------------------------------------------------- maths


def _answers(completion: str, options: Mapping[str, Any]) -> Iterator[PlacedAnswer]:
    """The unfinished mark and the last value of a maths completion."""
    before, after = options.get("tags") or (OPEN_ANSWER, CLOSE_ANSWER)
    answered = spoken(completion)
    finished = answered is not None and any(map(str.isalnum, answered))
    text = (answered if finished and answered else thought_and_spoken(completion))[-TAIL:]
    as_asked = finished and not options.get("tags")
    if inside := _unclosed_box(text):
        yield "unfinished form", f"{before}{inside}{after}"
        return
    found: list[PlacedAnswer] = [("unfinished form", value) for value in _marked(text, as_asked)]
    for place, value in [*found, *_last_values(text)]:
        yield place, f"{before}{value.strip()}{after}"


def _unclosed_box(text: str) -> str:
    """What a last box that never closes holds, closed; empty where there is no such box."""
    boxes = last_boxes(text)
    if boxes is None or boxes.closed:
        return ""
    inside = _BOX.split(text)[-1].partition("\n")[0].strip()
    return inside and inside + "}" * max(0, inside.count("{") - inside.count("}"))


def _marked(text: str, as_asked: bool) -> tuple[str, ...]:
    """What `text` marks as its answer, unless the strict judge has seen it so (`as_asked`)."""
    if found := answer_of(text).texts:
        return () if as_asked else found
    closed = answer_of(text + CLOSE_ANSWER)
    return closed.texts if closed.rule == "answer tag" else ()


def _last_values(text: str) -> Iterator[PlacedAnswer]:
    """The last number of `text`, or what the formula around it comes to; a formula behind it."""
    number, formula = None, last_formula(text)
    for match in _VALUE.finditer(text):
        number = number if _numbers_an_item(text, match) else match
    value = ""
    if formula is not None:
        value = _RELATION.split(formula[2])[-1].strip(" .,;")
        value = value if readable(value) else ""
    if number is not None and formula is not None and number.start() < formula[0] and value:
        yield "last formula", value
    if number is None:
        if value:
            yield "last formula", value
    elif formula is not None and formula[0] <= number.start() < formula[1] and value:
        yield "last formula", value
    else:
        yield "last number", number[0]


def _numbers_an_item(text: str, number: re.Match[str]) -> bool:
    """Whether a number is that of a list's item or a step ("2. We add", "Step 3")."""
    before = text[max(0, number.start() - 12) : number.start()]
    line_start = not before.rpartition("\n")[2].strip(" \t*#>(")
    at_start = line_start and ("\n" in before or number.start() <= len(before))
    return bool((at_start and _ITEM.match(text, number.end())) or _STEP.search(before))


# ---------------------------------------------------------------------- code


def _programs(completion: str, options: Mapping[str, Any]) -> Iterator[PlacedAnswer]:
    """The programs of a completion, whose blocks may be open; without any, the code that it has.

    A block may only use or test what one before it defines: so it is the last block, the last that
    defines something, and all together.
    """
    extract = options.get("extract", "last")
    text = without_answer_tags(split_chain(completion)[1])
    python, all_ = (
        [block.code for block in found(text, unclosed=True) if block.code.strip()]
        for found in (python_blocks, fenced_blocks)
    )
    blocks = python or all_ or [_bare(text)]
    places = {program_of(completion, extract): ""}  # the strict judge has seen it
    places.setdefault(blocks[-1], "last block" if all_ else "code without a fence")
    places.setdefault(_defining(blocks), "last block that defines something")
    places.setdefault("\n\n".join(blocks), "all blocks together")
    for program, place in places.items():
        if place and program and program.strip():
            fence = "~~~" if "```" in program else "```"
            whole = program if extract == "whole" else f"{fence}python\n{program}\n{fence}\n"
            yield place, whole


def _defining(blocks: Sequence[str]) -> str | None:
    """The last block with a definition that is no test; None where a later one sets its names."""
    names: set[str] = set()
    for at in reversed(range(len(blocks))):
        if names := {name for name in _DEFINED.findall(blocks[at]) if not _TEST.match(name)}:
            later = {name for block in blocks[at + 1 :] for name in _SET.findall(block)}
            return None if names & later else blocks[at]
    return None


def _bare(text: str) -> str:
    """The code in a text without fences: from the first line of code to the next line of prose."""
    lines = text.split("\n")
    starts = [at for at, line in enumerate(lines) if _BEGINS.match(line)]
    starts = starts or [at for at, line in enumerate(lines) if _STATEMENT.match(line)]
    if not starts:
        return ""
    ends = (at for at, line in enumerate(lines) if at > starts[0] and not _is_code(line))
    return "\n".join(lines[starts[0] : next(ends, len(lines))])


def _is_code(line: str) -> bool:
    """Whether a line may go on with a program: an empty, an indented or a written statement."""
    return not line[:1].strip() or bool(_BEGINS.match(line) or _STATEMENT.match(line))


_KINDS: Mapping[str, Callable[[str, Mapping[str, Any]], Iterator[PlacedAnswer]]] = {
    "math_answer": _answers,
    "code_tests": _programs,
}
