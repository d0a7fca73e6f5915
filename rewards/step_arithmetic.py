"""Step arithmetic: which share of the calculations in a chain is right?

A small reward beside one for the answer: it reads claims such as `16 - 3 - 4 = 9` out of the text
and checks each exactly, with the verifier's own bounded parser; nothing is evaluated as code. What
would be cheap to write is not counted: `1 = 1`, `7 * 1 = 7`, a result twice (`16 - 7 + 0 = 9`
after `16 - 7 = 9`), and right results that do not lead to the answer. Numbers have to come from
somewhere: each operand of a right claim is a number of the problem (in digits, in words, or implied
by its units) or the result of an earlier claim that counts. What the reward cannot see is whether a
step is the one to take: `16 + 4 = 20` is right arithmetic, whatever was asked, and enough of such
steps end in any number. Hence the reward for the answer beside it, and `only_right`, with which
steps to a wrong answer are not paid. A claim is wrong only where all of it is read: what may go on
beyond it, as `2x + 4 = 16` or `13 / 4 = 3 remainder 1` do, is not counted.
"""

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from rl_reasoner import Column, Score, reward
from rl_reasoner.answers import verify
from rl_reasoner.answers.equality.arithmetic import TooLarge, Undefined
from rl_reasoner.answers.equality.values import constant, equal
from rl_reasoner.answers.extraction.extract import answer_of
from rl_reasoner.answers.parsing.statements import read_answer
from rl_reasoner.answers.tree import Node
from rl_reasoner.errors import UserError
from rl_reasoner.language.spoken_numbers import spoken_numbers

_MAX_CHARS = 20_000
_MAX_CLAIMS = 200
_MAX_SIDE = 40  # tokens
_MAX_UNIT = 6  # words behind a number
_TOKEN = re.compile(
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3}){1,5}(?:\.[0-9]{1,20})?|[0-9]{1,20}(?:\.[0-9]{1,20})?"
    r"|\.[0-9]{1,20})(?P<percent>\s?\\?%)?|(?P<unit>/\s?[^\W\d_]{2,20})"
    r"|(?P<mark>(?<![\w)\]}%])\*\*\*?(?=\S)|(?<=\S)\*\*\*?(?![\w(\\$√]|\.[0-9])"  # bold
    r"|\\[()\[\],;]|\\(?:left|right)(?=[()])|\\boxed\{|&(?==))"
    r"|(?P<operator>[-+*/^×·÷−–]|\\times|\\cdot|\\div|[xX](?=\s{0,3}\$?[0-9(]))"
    r"|(?P<open>\()|(?P<close>\))|(?P<equal>=)|(?P<skip>\\?\$|\s)|(?P<other>[^\W\d_]{1,40}|.)",
    re.DOTALL,
)
_PLAIN = {"×": "*", "·": "*", "\\times": "*", "\\cdot": "*", "x": "*", "X": "*"}
_MINUS = ("-", "−", "–")
_PLAIN |= {"÷": "/", "\\div": "/", "−": "-", "–": "-"}
_WIDE = {chr(sign + 0xFEE0): chr(sign) for sign in map(ord, "0123456789+-*/^=().%$")}
_NARROW = str.maketrans(_WIDE | {"﹣": "-", "✕": "×", "⋅": "·", "∗": "*", "∕": "/", "⁄": "/"})
_CUT = ",:'’_"  # 16,5 and 16'000 are one number, 10:30 and x_1 are none
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}\.[0-9]{3}")  # or a decimal
# fmt: off
_LEADING = {
    "of", "times", "plus", "minus", "by", "over", "than", "twice", "thrice", "double", "triple",
    "half", "quarter", "third",
}
_SIZES = {
    "hundred", "thousand", "million", "billion", "dozen", "percent", "cent", "cents", "half",
}
_REST = {"remainder", "remainders", "rem", "rest", "r", "with"}
_FORMULAS = {"frac", "dfrac", "tfrac", "cfrac", "sqrt", "pi", "cdot", "times", "div"}
# fmt: on


class _Token(NamedTuple):
    kind: str
    text: str
    at: int
    tight: bool = False
    """of a number: nothing but a $ or ** stands between it and the token before"""
    sure: bool = True
    """of a number or bracket: it is no part of what is not read, such as 2x, 16,5 or 6 1/2"""


class _Claim(NamedTuple):
    text: str
    operands: tuple[Fraction, ...]
    result: Fraction
    right: bool


@reward(policy_text=True)
def step_arithmetic(
    completion: str,
    prompt: str,
    at_least: int = 1,
    only_right: bool = False,
    answer: str | None = Column(),  # type: ignore[assignment]
) -> Score:
    """The share of right claims among those that count; 0.0 for fewer than `at_least` right ones.

    A right claim counts where all that it calculates with are numbers of the `prompt` or results of
    earlier claims that count; it has to come to a result for the first time and to lead to the
    answer: its result is the answer's number or stands in a claim that does. A wrong one counts
    where it calculates with one such number. With `only_right` a wrong answer gets 0.0, whatever
    its steps; a row without an `answer`, or with one that cannot be judged, then abstains.
    """
    _check_options(at_least)
    if only_right and answer is None:
        return Score(None, "the row has no answer, which only_right needs")
    if only_right:
        verdict = verify(completion, str(answer))
        if verdict.value is None:
            return Score(None, verdict.reason)
        if verdict.value != 1.0:
            return Score(0.0, "the answer is not right")
    text = completion[:_MAX_CHARS]
    claims = [*_that_count(text, prompt)]
    said = answer_of(text).texts
    needed = {*_signed_numbers(said[0])} if said else set()
    if not needed and claims:  # it stops at its last step
        needed = {claims[-1].result}
    right = []
    for claim in reversed(claims):
        if claim.result not in needed:
            continue
        if claim.right:
            right.append(claim.text)
        needed |= {*claim.operands}
    wrong = [claim.text for claim in claims if not claim.right]
    parts = {"right": float(len(right)), "wrong": float(len(wrong))}
    if len(right) < at_least:
        told = f", wrong: {wrong[0]}" if wrong else ""
        return Score(0.0, f"{len(right)} right claims that count{told}", parts)
    told = f"; wrong: {wrong[0]}" if wrong else ""
    of = len(right) + len(wrong)
    return Score(len(right) / of, f"{len(right)} of {of} claims are right{told}", parts)


@step_arithmetic.checks
def _check_options(at_least: int, **others: object) -> None:
    if not isinstance(at_least, int) or at_least < 1:
        raise UserError(
            f"at_least of step_arithmetic is {at_least!r:.40}: expected a whole number, 1 or more"
        )


def _that_count(text: str, prompt: str) -> Iterator[_Claim]:
    """The claims of a text that are about the problem; right ones new, and no matter of course."""
    known = numbers_given(prompt[:_MAX_CHARS])
    seen: set[tuple[object, ...]] = set()
    for claim in _claims(text):
        # a right result is made once: adding 0 to it makes no other claim
        key = (() if claim.right else tuple(sorted(claim.operands)), claim.result)
        of_course = claim.right and claim.result in claim.operands
        # of a problem's number the sign is not read
        grounded = (o in known or (o < 0 and -o in known) for o in claim.operands)
        if key in seen or of_course or not (all if claim.right else any)(grounded):
            continue
        seen.add(key)
        known.add(claim.result)
        yield claim


def numbers_given(prompt: str) -> set[Fraction]:
    """What a problem gives to calculate with: its numbers, and what its shares leave or come to.

    1 and 2 are always there: oneself, each half, a pair.
    """
    prompt = prompt.translate(_NARROW)
    found = spoken_numbers(prompt) | {Fraction(1), Fraction(2)}
    numbers = [*_numbers(prompt)]
    found |= {number for number, _ in numbers}
    for (one, at), (other, behind) in pairwise(numbers):
        if other and prompt[at:behind].strip("0123456789., ") == "/":  # 3/4
            found.add(one / other)
    shares = {number for number in found if 0 < number < 1}
    found |= {100 * share for share in shares}  # of 20%
    return found | {1 - share for share in shares} | {1 + share for share in shares}


def _tokens(text: str) -> Iterator[_Token]:
    end = 0  # of the token before
    for match in _TOKEN.finditer(text.translate(_NARROW)):
        kind = str(match.lastgroup)
        if kind in ("unit", "mark") or (kind == "skip" and match[0] != "\n"):
            continue
        tight, end = not text[end : match.start()].strip("$\\*"), match.end()
        if match["number"]:
            number = match["number"].replace(",", "")
            value = f"({number}/100)" if match["percent"] else number
            sure = not _THOUSANDS.fullmatch(number)
            yield _Token("number", value, match.start(), tight, sure)
        else:
            plain = _PLAIN.get(match[0], match[0]) if kind == "operator" else match[0]
            yield _Token(kind, plain, match.start(), tight)


def _numbers(text: str) -> Iterator[tuple[Fraction, int]]:
    """The numbers of a text, and where each stands."""
    for token in _tokens(text):
        if token.kind == "number":
            yield _value(token.text), token.at


def _signed_numbers(text: str) -> Iterator[Fraction]:
    """The numbers of a text, with a minus in front where it is a sign: no difference, no dash."""
    tokens = [_Token("other", "", 0), *_tokens(text)]
    for i, token in enumerate(tokens):
        if token.kind == "number":
            before = tokens[i - 1]
            begins = before.at == 0 or not (
                text[before.at - 1].isalnum() or text[before.at - 1] in ")%"
            )
            first = i == 2  # the text begins with the minus
            signed = before.text in _MINUS and begins and (token.tight or first)
            yield -_value(token.text) if signed else _value(token.text)


def _value(number: str) -> Fraction:
    whole, _, hundred = number.strip("()").partition("/")
    return Fraction(whole) / (100 if hundred else 1)


def _claims(text: str) -> Iterator[_Claim]:
    """The claims of a text, in order: of `a = b = c` two."""
    sides: list[list[_Token]] = [[]]
    found = 0
    tokens = [*_without_units([*_tokens(text), _Token("other", "", len(text))])]
    for token in _sure(tokens):
        if token.kind == "equal":
            sides.append([])
        elif token.kind in ("other", "skip"):  # a word, a stop, the end of a line
            for left, right in pairwise(sides):
                claim = _claim(*_ending(left), _beginning(right))
                if claim is not None and found < _MAX_CLAIMS:
                    found += 1
                    yield claim
            sides = [[token] if token.kind == "other" else []]
        else:
            sides[-1].append(token)


def _without_units(tokens: list[_Token]) -> Iterator[_Token]:
    """The tokens without the words behind a number that calculations go on after: `3 bags * 4`."""
    at = 0
    while at < len(tokens):
        token, at = tokens[at], at + 1
        if token.kind in ("number", "close"):
            end = _behind_words(tokens, at)
            if tokens[end].kind in ("operator", "equal", "close"):
                unread = any(_is_no_unit(word) for word in tokens[at:end])
                token, at = token._replace(sure=token.sure and not unread), end
        yield token


def _behind_words(tokens: list[_Token], at: int) -> int:
    """The place behind the words that stand at `at`; of words that are too many, within them."""
    end = at
    while end < at + _MAX_UNIT and _is_word(tokens[end]):
        end += 1
    return end


def _is_word(token: _Token) -> bool:
    return token.kind == "other" and token.text.isalpha()


def _is_no_unit(word: _Token) -> bool:
    """Whether a word behind a number is a part of it: a variable, a size, a remainder."""
    text = word.text.lower()
    variable = len(text) == 1 and _has_case(text) and (word.tight or text not in "ai")
    return variable or text in _SIZES or text in _REST


def _has_case(text: str) -> bool:
    """Whether its last letter is of a script as that of variables and functions."""
    return text[-1:].lower() != text[-1:].upper()


def _sure(tokens: list[_Token]) -> Iterator[_Token]:
    """The tokens; not sure are numbers and brackets that go on from, or in, what is not read."""
    for at, token in enumerate(tokens):
        if token.kind in ("number", "open", "close"):
            sure = token.sure and not _is_led(tokens, at) and not _goes_on(tokens, at)
            yield token._replace(sure=sure)
        else:
            yield token


def _is_led(tokens: list[_Token], at: int) -> bool:
    """Whether a number or bracket may go on from what stands before it: `half of 16`, `f(`."""
    if at == 0 or tokens[at].kind == "close":
        return False
    token, before = tokens[at], tokens[at - 1]
    if before.kind == "number":
        return token.kind == "number" or token.tight
    if before.kind == "close":
        return token.kind == "open" and token.tight
    if before.kind != "other":
        return False
    named = token.tight and (
        before.text in ("_", "}") or (_is_word(before) and _has_case(before.text))
    )
    return named or before.text.lower() in _LEADING or _is_cut(tokens, at - 1)


def _is_cut(tokens: list[_Token], at: int) -> bool:
    """Whether the token at `at` is a sign that stands within a number."""
    one = tokens[at].text in _CUT and 0 < at < len(tokens) - 1
    around = one and tokens[at - 1].kind == tokens[at + 1].kind == "number"
    return around and tokens[at].tight and tokens[at + 1].tight


def _goes_on(tokens: list[_Token], at: int) -> bool:
    """Whether a number or bracket may go on in what stands behind it: `6 1/2`, `3 remainder 1`."""
    if tokens[at].kind == "open" or at + 1 == len(tokens):
        return False
    behind = tokens[at + 1]
    if behind.kind == "number":
        return tokens[at].kind == "number"
    after = tokens[at + 2] if at + 2 < len(tokens) else behind
    if behind.kind == "operator":  # 10^{2}, 13 + x; no dash before a word
        unread = _is_word(after) or after.text in ("{", "\\")
        return unread and (behind.text != "-" or _is_no_unit(after))
    if behind.kind == "open":
        return behind.tight or after.text.lower() in _REST
    if behind.kind != "other" or not behind.text:
        return False
    if _is_word(behind):
        return _is_no_unit(behind) or _has_rest(tokens, at + 1)
    if behind.text in ",\\":
        known = _REST if behind.text == "," else _FORMULAS
        return after.text.lower() in known or _is_cut(tokens, at + 1)
    tight = behind.tight and behind.text in "!{"
    return tight or _is_number_like(behind) or _is_cut(tokens, at + 1)


def _has_rest(tokens: list[_Token], at: int) -> bool:
    """Whether the words behind a number are followed by its rest: `3 weeks and 1 day`."""
    end = _behind_words(tokens, at)
    if any(word.text.lower() in _REST | _SIZES for word in tokens[at:end]):
        return True
    joined = tokens[end - 1].text.lower() == "and" or end == at + 1
    if tokens[end].kind != "number" or not joined:
        return False
    while tokens[end].kind in ("number", "operator", "open", "close"):
        end += 1
    return tokens[end].kind != "equal"  # a claim of its own


def _ending(tokens: list[_Token]) -> tuple[list[_Token], bool]:
    """The expression that tokens end in, and whether it may be told wrong.

    A number that follows another begins a new one, and so does a bracket that is not closed.
    Nothing where it goes on from a word, or from a number that cannot be read: of `x * 2 + 3` and
    `√16 - 3` the end is no claim. A minus that it begins with is a sign where it stands at its
    number, else that or the dash of a list; where neither is sure, it is not told wrong.
    """
    at = len(tokens)
    while at > 0 and not (at < len(tokens) and _apart(tokens[at - 1], tokens[at], product=True)):
        at -= 1
    own, before, whole = tokens[at:], None, True
    if opened := _opened(own):
        whole = all(token.kind in ("open", "other") for token in own[:opened])
        own = own[opened:]
    elif own and own[0].kind == "other":
        before, *own = own
    goes_on = bool(own) and own[0].kind in ("operator", "close")
    if before and (_is_number_like(before) or (goes_on and _is_word(before))):
        return [], False
    while len(own) > 1 and own[0].kind in ("operator", "close") and not _is_signed(own):
        own = own[1:]
    return own, whole and (before is None or not goes_on)


def _is_number_like(token: _Token) -> bool:
    """Whether a token is a part of a number that is not read: a root, a power, a wide digit."""
    return token.text in "√∛∜" or unicodedata.category(token.text[0]) in ("No", "Nd")


def _is_signed(tokens: list[_Token]) -> bool:
    return tokens[0].text in _MINUS and tokens[1].kind == "number"


def _beginning(tokens: list[_Token]) -> list[_Token]:
    """The expression that tokens begin with."""
    end = 0
    while end < len(tokens) and not (end and _apart(tokens[end - 1], tokens[end])):
        end += 1
    own = tokens[:end]
    own = own[: _closed(own)]
    while own and own[0].text == "*":  # of emphasis
        own = own[1:]
    while own and own[-1].kind in ("operator", "open"):
        own = own[:-1]
    return own


def _opened(tokens: list[_Token]) -> int:
    """Where the tokens begin that stand in an open bracket which none of them closes; else 0."""
    depth = 0
    for at in reversed(range(len(tokens))):
        depth += {"close": 1, "open": -1}.get(tokens[at].kind, 0)
        if depth < 0:
            return at + 1
    return 0


def _closed(tokens: list[_Token]) -> int:
    """Where the first bracket stands that none of the tokens opens; else the end."""
    depth = 0
    for at, token in enumerate(tokens):
        depth += {"open": 1, "close": -1}.get(token.kind, 0)
        if depth < 0:
            return at
    return len(tokens)


def _apart(one: _Token, next_one: _Token, product: bool = False) -> bool:
    """Whether two tokens cannot stand in one expression; as a `product` 5(6 + 3) can."""
    if product and next_one.kind == "open" and next_one.tight:
        return False
    return one.kind in ("number", "close") and next_one.kind in ("number", "open")


def _claim(left: list[_Token], sure: bool, right: list[_Token]) -> _Claim | None:
    """The claim that two sides make; None where it is none, or too large to check.

    `sure`: it may be told wrong (see `_ending`), where all of it is read.
    """
    sure = sure and all(token.sure for token in (*left, *right))
    if len(left) > 1 and _is_signed(left):
        signed = _read_claim(left, right)
        if signed is not None and signed.right:
            return signed
        if left[1].tight:  # no dash of a list: -3 * 5 is not 15
            return signed if sure else None
        left = left[1:]
    claim = _read_claim(left, right)
    return claim if claim is None or claim.right or sure else None


def _read_claim(left: list[_Token], right: list[_Token]) -> _Claim | None:
    calculates = any(t.kind == "operator" for t in left) and len(left) > 2
    if not calculates or not right or max(len(left), len(right)) > _MAX_SIDE:
        return None
    sides = [" ".join(token.text for token in side) for side in (left, right)]
    trees = [reading.trees for reading in map(read_answer, sides)]
    if not all(trees):
        return None
    try:
        one, other = (_plain(tree[0]) for tree in trees)
        holds = bool(equal(one, other)) or _rounded(one, right)
        result = constant(other)
    except (TooLarge, Undefined, RecursionError, ValueError):
        return None
    if not isinstance(result, Fraction):
        return None
    operands = [_value(token.text) for token in left if token.kind == "number"]
    if _is_signed(left):
        operands[0] = -operands[0]
    text = f"{sides[0]} = {sides[1]}"
    return _Claim(text[:80], tuple(operands), result, holds)


def _rounded(exact: Node, right: list[_Token]) -> bool:
    """Whether the right side is a decimal that rounds `exact`, to two places or more: 4.29."""
    number = right[0].text
    places = len(number.partition(".")[2])
    value = constant(exact)
    if len(right) > 1 or places < 2 or "/" in number or not isinstance(value, Fraction):
        return False
    return bool(abs(value - Fraction(number)) * 2 * 10**places <= 1)


def _plain(tree: Node) -> Node:
    """A tree without its unit."""
    return tree.args[0] if tree.op == "quantity" else tree
