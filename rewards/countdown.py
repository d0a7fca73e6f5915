"""Countdown: any expression that reaches the target out of the given numbers is right.

An example of a reward for a task with many right answers: it checks the answer instead of comparing
it with one. The answer is read by a small parser, bounded in length and depth, in exact fractions;
nothing a model writes is ever evaluated as code.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from typing import Any

from rl_reasoner import Score, reward
from rl_reasoner.answers.extraction.extract import turn_of
from rl_reasoner.language.thinking import CLOSE_ANSWER, OPEN_ANSWER, behind_chain

MAX_CHARS = 200
MAX_OPEN = 30
_OPENED = re.compile(rf"{OPEN_ANSWER}|\\boxed\s*\{{")
_BRACE = re.compile(r"[{}]")
_NUMBER = re.compile(r"[0-9]+")
_TOKEN = re.compile(r"[0-9]+|\S")
_FRACTION = "\0"  # what \frac is while it is read: no text that is shown has it
_COMMAND = re.compile(r"\\(times|cdot|ast|div|left|right|[dt]?frac)(?![a-zA-Z])")
_SIGNS = {"times": "*", "cdot": "*", "ast": "*", "div": "/", "left": "", "right": ""}
_SIGNS |= dict.fromkeys(("frac", "dfrac", "tfrac"), _FRACTION)
_ASCII = str.maketrans("×·⋅∗÷−", "****/-")
_VALUE = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_MARKS = (("**", "**"), ("$$", "$$"), ("$", "$"), ("`", "`"), (r"\(", r"\)"), (r"\[", r"\]"))


@reward(policy_text=True)
def countdown(completion: str, numbers: list[int], target: int) -> Score:
    """1.0 when the answer, an expression with + - * / of `numbers`, has the value `target`.

    Each number may be used as often as it is given, at most. The answer stands behind the
    reasoning: the content of the last `<answer>...</answer>` or `\\boxed{...}`, or else the last
    line with text. It may be in one pair of `$`, `**` or backticks, have × ÷ or `\\times` as signs,
    have `\\frac`, and end with `= target` and a full stop. Columns that are text, as in CSV, are
    read as JSON.
    """
    given, aim = Counter(_numbers(numbers)), _number(target, "target")
    said = behind_chain(turn_of(completion))
    if said is None:
        return Score(0.0, "no final answer: the reasoning never ends")
    marked, lines = _last_marked(said), said.strip().splitlines()
    text = (marked if marked is not None else lines[-1] if lines else "").strip()
    if len(text) > MAX_CHARS:
        return Score(0.0, f"the answer has {len(text)} characters, at most {MAX_CHARS} are read")
    expression, equals, said_value = _plain(text).partition("=")
    try:
        value, used = _Expression(expression).read()
        if equals and not _VALUE.fullmatch(said_value.strip()):
            raise ValueError(f"unexpected {'='!r}")
    except ValueError as error:
        return Score(0.0, f"{text!r} is not an expression: {error}")
    for number, times in Counter(used).items():
        if times > (most := given[Fraction(number)]):
            return Score(0.0, f"{text} uses {number} {times}x, it is given {most}x")
    if value != aim:
        return Score(0.0, f"{text} is {value}, the target is {aim}")
    if equals and Fraction(said_value.strip()) != value:
        return Score(0.0, f"{text} is {value}, which it calls {said_value.strip()}")
    return Score(1.0, f"{text} is the target {aim}")


def _last_marked(text: str) -> str | None:
    """The content of the last answer tag or box that is closed; None where there is none.

    A box may have braces in it.
    """
    last_tag, closed = text.rfind(CLOSE_ANSWER), _closed_braces(text)
    for opened in reversed([*_OPENED.finditer(text)]):
        start = opened.end()
        if opened[0] == OPEN_ANSWER:
            if start <= last_tag:
                return text[start : text.index(CLOSE_ANSWER, start)]
        elif start - 1 in closed:
            return text[start : closed[start - 1]]
    return None


def _closed_braces(text: str) -> dict[int, int]:
    """Where each brace that opens and is closed is closed."""
    closed: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            closed[opened.pop()] = brace.start()
    return closed


def _plain(text: str) -> str:
    """`text` with the signs + - * / alone, and without what marks it as mathematics or code."""
    text = text.removesuffix(".")
    for opener, closer in _MARKS:
        inside = text.removeprefix(opener).removesuffix(closer)
        if len(text) - len(inside) == len(opener + closer):
            text = inside
            break
    return _COMMAND.sub(lambda command: _SIGNS[command[1]], text.translate(_ASCII)).strip()


def _number(value: Any, name: str) -> Fraction:
    """A column's number, or that of its text; raises ValueError for anything else."""
    try:
        return Fraction(json.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(f"the {name} is {value!r:.40}: expected a number") from None


def _numbers(value: Any) -> list[Fraction]:
    """A column's list of numbers, or that of its JSON; raises ValueError for anything else."""
    with suppress(ValueError, RecursionError):
        value = json.loads(value) if isinstance(value, str) else value
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"numbers are {value!r:.40}: expected a list of them, such as [4, 6]")
    return [_number(one, "number in numbers") for one in value]


class _Expression:
    """Recursive descent: a sum of products of numbers and of sums in parentheses."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = [*_TOKEN.findall(text), ""]  # the empty token is the end
        self.at = 0
        self.depth = 0
        self.used: list[int] = []

    def read(self) -> tuple[Fraction, list[int]]:
        """The value and the numbers used; raises ValueError if the text is not an expression."""
        value = self.sum()
        if token := self.tokens[self.at]:
            raise ValueError(f"unexpected {token!r}")
        return value, self.used

    def take(self, allowed: str) -> str:
        """The next token, passed over, if it is one of the characters `allowed`, or else ''."""
        token = self.tokens[self.at]
        if not token or token not in allowed:
            return ""
        self.at += 1
        return token

    def sum(self) -> Fraction:
        """Products that are added and subtracted."""
        value = self.product()
        while operator := self.take("+-"):
            term = self.product()
            value += term if operator == "+" else -term
        return value

    def product(self) -> Fraction:
        """Factors that are multiplied and divided."""
        value = self.factor()
        while operator := self.take("*/"):
            factor = self.factor()
            value = value * factor if operator == "*" else _quotient(value, factor)
        return value

    def braced(self) -> Fraction:
        r"""A part of a \frac, in its braces."""
        if not self.take("{"):
            raise ValueError(r"a \frac has no braces")
        return self.until("}", "a brace is not closed")

    def until(self, closer: str, lacking: str) -> Fraction:
        """A sum that `closer` ends; raises ValueError with `lacking` where that is not there."""
        self.depth += 1
        if self.depth > MAX_OPEN:
            raise ValueError(f"more than {MAX_OPEN} parentheses are open")
        value = self.sum()
        if not self.take(closer):
            raise ValueError(lacking)
        self.depth -= 1
        return value

    def factor(self) -> Fraction:
        """A number, a fraction, or a sum in parentheses."""
        if self.take("("):
            return self.until(")", "a parenthesis is not closed")
        if self.take(_FRACTION):
            return _quotient(self.braced(), self.braced())
        token = self.tokens[self.at]
        if not _NUMBER.fullmatch(token):
            raise ValueError(f"where a number should be there is {token or 'nothing'!r}")
        self.at += 1
        self.used.append(int(token))
        return Fraction(self.used[-1])


def _quotient(top: Fraction, bottom: Fraction) -> Fraction:
    if not bottom:
        raise ValueError("it divides by zero")
    return top / bottom
