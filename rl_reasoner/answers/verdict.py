"""The verdict on one answer: gold and completion read, compared, and the reason in words.

`fast_verdict` never leaves this process and is bounded by construction. Where only sympy could
settle equality it says so in `AnswerVerdict.undecided`; `second_opinion` then asks sympy.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from numbers import Number

from rl_reasoner.answers.equality.arithmetic import TooLarge, one_budget
from rl_reasoner.answers.equality.compare import TreeComparison
from rl_reasoner.answers.equality.shapes import Inconsistent, without_domain, without_integers
from rl_reasoner.answers.extraction.extract import Extracted, answer_of, gold_of
from rl_reasoner.answers.extraction.wording import (
    choice,
    choice_letters,
    dated,
    has_ordered_letters,
    is_wordy,
    meant,
    name_list,
    number_word,
    time_of_day,
    unstyled,
    words,
)
from rl_reasoner.answers.parsing.lexer import Token
from rl_reasoner.answers.parsing.statements import CACHED_LENGTH, Reading, read_answer
from rl_reasoner.answers.tree import Node, is_worked_out

SHOWN = 80
CACHED_GOLD = 20_000
_QUANTIFIERS = frozenset({"forall", "exists", "nexists"})  # their order counts
_BOLD = re.compile(r"^\*\*([^*]+)\*\*$")
_LETTERS = "ABCDEFGHIJ"  # all from the first on are a name or an order rather than choices
_COMMA = re.compile(r",\s+")  # 101, 103 and 101,103 are one list


@dataclass(frozen=True, slots=True)
class AnswerVerdict:
    """1.0, 0.0 or None with its reason; `undecided` are pairs that sympy may still find equal."""

    value: float | None
    reason: str
    undecided: tuple[tuple[Node, Node], ...] = ()


Equality = tuple[str, tuple[tuple[Node, Node], ...], str]
"""How two texts are equal (empty: not), the pairs only sympy may settle, the trouble if any."""


def gold_text(answer: object) -> str:
    """A gold answer as text: data sets have numbers, too. Empty for what is neither."""
    return answer if isinstance(answer, str) else str(answer) if isinstance(answer, Number) else ""


def fast_verdict(completion: str, answer: str) -> AnswerVerdict:
    """The verdict that needs no other process. Never raises on strings."""
    try:
        return _verdict(completion, answer)
    except Exception as error:  # the promise to callers; a fault of this package, never expected
        return AnswerVerdict(0.0, f"fault: {type(error).__name__}: {error}")


def _verdict(completion: str, answer: str) -> AnswerVerdict:
    gold = _gold(answer)
    if gold.trouble:
        return AnswerVerdict(None, f"abstained: {gold.trouble}")
    extracted = answer_of(completion)
    if not extracted.texts:
        return AnswerVerdict(0.0, extracted.trouble)
    undecided: list[tuple[Node, Node]] = []
    trouble = ""
    for text in extracted.texts:
        how, pairs, why = compared(gold.texts[0], text)
        if how:
            return AnswerVerdict(
                1.0, f"{extracted.rule} {shown(text)}, gold {shown(gold.texts[0])}: {how}"
            )
        undecided += pairs
        trouble = trouble or why
    reason = f"{extracted.rule} {shown(extracted.texts[0])}, gold {shown(gold.texts[0])}: "
    return AnswerVerdict(0.0, reason + (trouble or "not equal"), tuple(undecided))


def _gold(answer: str) -> Extracted:
    return _gold_of(answer) if len(answer) <= CACHED_GOLD else gold_of(answer)


def left_to_do(completion: str, answer: str) -> str:
    """The answer of a right completion where it is a calculation (`900 - 156`), else empty.

    Equal is not yet worked out: a policy that learns to write the calculation down, or the question
    itself (`\\int_0^3 x^2\\,dx`), would have the verifier do the sum. Where no rule finds a reading
    equal, sympy has: those that only it could settle are asked about. Asked only where the gold is
    worked out, so `2^{10}` may answer `2^{10}`. Never raises on strings.
    """
    try:
        gold = _gold(answer).texts
        if not gold or not _is_number(gold[0]):
            return ""
        found = [(text, compared(gold[0], text)) for text in answer_of(completion).texts]
        equal = [text for text, (how, _, _) in found if how]
        equal = equal or [text for text, (_, undecided, _) in found if undecided]
        return "" if not equal or any(map(_is_value, equal)) else equal[0]
    except Exception:  # as in `fast_verdict`: the verdict before this one stands
        return ""


def _is_value(text: str) -> bool:
    """Whether `text` reads as a number worked out, or as no mathematics at all: `seven`."""
    return _is_number(text) or not _trees(text)


def _is_number(text: str) -> bool:
    return any(map(is_worked_out, _trees(text)))


def _trees(text: str) -> tuple[Node, ...]:
    return read_answer(_BOLD.sub(r"\1", text.strip())).trees


def shown(text: str) -> str:
    """`text` as a reason quotes it: one line, cut at `SHOWN` characters."""
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else line[: SHOWN - 1] + "…")


def compared(gold: str, given: str) -> Equality:
    """How two answer texts are equal (empty: not), undecided pairs, and the trouble if any."""
    short = len(gold) + len(given) <= 2 * CACHED_LENGTH
    return _cached(gold, given) if short else _compared(gold, given)


def _compared(gold: str, given: str) -> Equality:
    gold, given = _BOLD.sub(r"\1", gold.strip()), _BOLD.sub(r"\1", given.strip())
    if gold == given:
        return "same text", (), ""
    gold, given = meant(gold), meant(given)
    if _COMMA.sub(",", gold) == _COMMA.sub(",", given):
        return "same meaning", (), ""
    decided = by_choice(gold, given)
    if decided is not None:
        return (decided, (), "") if decided else ("", (), "another choice")
    left, right = read_answer(gold), read_answer(given)
    if left.trees and left.trees[0].op == "ratio" and not right.trees:
        right = read_answer(re.sub(r"\bto\b", ":", given))
    if left.tokens and _spelling(left) == _spelling(right):
        return "same spelling", (), ""
    how = by_words(gold, given, left, right)
    if how is not None:
        return how, (), "" if how else "not equal as text"
    return by_trees(left, right)


def _spelling(reading: Reading) -> list[Token]:
    """The tokens of an answer; of one that cannot be read, without spaces and braces of indices."""
    if reading.trees:
        return list(reading.tokens)
    tokens = [Token(token.kind, token.text) for token in reading.tokens]
    for at in range(len(tokens) - 4, -1, -1):
        index = [token.text for token in tokens[at : at + 4]]
        if index[:2] == ["_", "{"] and index[3] == "}":
            tokens[at + 1 : at + 4] = [tokens[at + 2]]
    return tokens


def by_choice(gold: str, given: str) -> str | None:
    """How two multiple choices are equal; "" where they differ, None where the gold is none."""
    wanted = choice(gold, marked_only=True)
    several = choice_letters(gold)
    if len(several) > 1:
        others = choice_letters(given)
        if sorted(others) != sorted(several):
            return None
        every = _LETTERS.startswith(unstyled(gold)) and has_ordered_letters(given)
        in_order = others == several or not (every or has_ordered_letters(gold))
        return "same choices" if in_order else ""
    if wanted is None:
        return None
    letter, option = wanted
    answered = choice(given)
    if option and words(option) == words(given):
        return "text of the choice"  # of "D. A triangle", too: that A is an article
    if answered is None:
        first = re.match(
            r"\W*([A-J])[)\]]?[\s,;]+\w", unstyled(given)
        )  # "B is wrong" is no unit of B
        return "" if option or (first and first[1] == letter) else None
    if answered[0] != letter:
        return ""
    return f"same choice {letter}"


def by_words(gold: str, given: str, left: Reading, right: Reading) -> str | None:
    """How two texts are equal as words or times; "" where they differ, None for mathematics."""
    time = time_of_day(gold)
    if time:
        return "same time" if time == time_of_day(given) else ""
    if left.trees and right.trees and not (is_wordy(gold) and is_wordy(given)):
        return None
    wanted, answered = dated(words(gold)), dated(words(given))
    if wanted == answered and re.search(r"[^\W\d_]{2}|[\u4e00-\u9fff]", wanted):
        return "same words"
    if name_list(gold) and name_list(gold) == name_list(given):
        return "same names"
    if number_word(given) and number_word(given) == gold.strip("$ "):
        return "same number in words"
    return None


def by_trees(left: Reading, right: Reading) -> Equality:
    """The readings of one against those of the other; two unlikely readings never meet."""
    if not left.trees or not right.trees:
        side, trouble = ("gold", left.trouble) if not left.trees else ("answer", right.trouble)
        return "", (), f"not equal as text (the {side} is not mathematics: {trouble})"
    if any(token.text in _QUANTIFIERS for token in (*left.tokens, *right.tokens)):
        same = not set(left.trees).isdisjoint(right.trees)
        return ("same expression" if same else ""), (), "" if same else "another order"
    with one_budget():
        return _by_trees(left, right)


def _by_trees(left: Reading, right: Reading) -> Equality:
    comparison = TreeComparison()
    trouble = ""
    pairs = [(gold, right.trees[0]) for gold in left.trees]
    pairs += [(left.trees[0], given) for given in right.trees[1:]]
    for gold, given in pairs:
        try:
            how = comparison.same(without_integers(gold, given), without_domain(given, gold))
        except (Inconsistent, TooLarge, RecursionError) as error:
            trouble = trouble or str(error)
            continue
        if how:
            return how, (), ""
    return "", tuple(comparison.undecided[:4]), trouble


_gold_of = lru_cache(maxsize=2048)(gold_of)
_cached = lru_cache(maxsize=8192)(_compared)
