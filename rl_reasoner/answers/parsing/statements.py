"""Statements above expressions: lists, relations, labels, units, percent, and `read_answer`.

A statement is an expression with a unit, or a relation of several; a list is statements joined by
commas, semicolons, "and" or "or". `read_answer` gives every honest reading of an answer's text, or
none where the text is not mathematics and can only be compared as words.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

from rl_reasoner.answers.parsing.changing import changed_behind, changed_by_remark
from rl_reasoner.answers.parsing.cleaning import clean
from rl_reasoner.answers.parsing.lexer import Token, tokens_of
from rl_reasoner.answers.parsing.parser import Expressions
from rl_reasoner.answers.parsing.units import MONEY, canonical_unit, is_known_unit
from rl_reasoner.answers.tree import (
    Node,
    Unreadable,
    depth,
    multiply,
    names,
    negative,
    spelled,
)

MAX_MEMBERS = 60
MAX_LENGTH = 4000
MAX_TREE_DEPTH = 120
CACHED_LENGTH = 400
MAX_FOLDED = 10**60
_LOOSE_TO_TIGHT = (";", "or", "and", "quad", "row", ",")
_PARTS = """
halves 2 thirds 3 fourths 4 fifths 5 sixths 6 sevenths 7 eighths 8 ninths 9 tenths 10 elevenths 11
twelfths 12 fifteenths 15 sixteenths 16 twentieths 20 hundredth 100 hundredths 100 thousandth 1000
thousandths 1000 ten-thousandths 10000 hundred-thousandths 100000 millionths 1000000 permille 1000
"""
_TIMES = """
dozen 12 hundred 100 thousand 1000 lakh 100000 million 1000000 crore 10000000 billion 1000000000
trillion 1000000000000
"""
_SIZES = dict(zip(*[iter(_TIMES.split())] * 2, strict=True))
SCALES: dict[str, Fraction | int] = {
    "tens": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
    **{word + s: int(size) for word, size in _SIZES.items() for s in ("", "s")},
    **{part: Fraction(1, int(of)) for part, of in zip(*[iter(_PARTS.split())] * 2, strict=True)},
}  # fmt: skip
_POWER_WORDS = frozenset({"squared", "cubed", "factorial"})
_ORDERED = frozenset({"<", "<=", ">", ">=", "!="})
_CONDITIONS = names(  # of whole numbers, behind an inequality: no unit of it
    "odd even prime composite integer integers natural rational irrational gerade ungerade ganz"
    " pair impair premier entier entiers par impar primo entero enteros 奇数 偶数 质数 整数 正整数"
)
_HEDGED = names("approximately about around roughly exactly only just simply nearly")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text may mean: trees (first the likeliest), its tokens, why there is no tree."""

    trees: tuple[Node, ...]
    tokens: tuple[Token, ...]
    trouble: str = ""


class Statements(Expressions):
    """The whole grammar: `listing` is its start."""

    def listing(self, *closers: str) -> Node:
        """A list up to one of `closers` (not taken) or the end; one member stands for itself."""
        self.depth += 1
        members = [self.statement(closers)]
        joins: list[str] = []
        while self.goes_on(members[-1], closers):
            join = self.joint(closers) if self.now.kind == "sep" else "and"
            if self.now.text != "[" and self.at_end(closers):
                break  # a trailing separator
            joins.append(join)
            members.append(self.statement(closers))
            if len(members) > MAX_MEMBERS:
                raise Unreadable(f"more than {MAX_MEMBERS} members")
        if not self.at_end(closers):
            raise Unreadable(f"{self.now.text!r} after a complete statement")
        self.depth -= 1
        return members[0] if not joins else grouped(members, joins)

    def goes_on(self, last: Node, closers: tuple[str, ...]) -> bool:
        """Whether another member follows: a separator, or the rest of "2 hours 30 minutes"."""
        if self.now.kind == "num":
            return last.op == "quantity" and is_known_unit(last.name)
        return self.now.kind == "sep" and self.now.text not in closers

    def at_end(self, closers: tuple[str, ...]) -> bool:
        """Whether the list ends here, a final full stop aside."""
        if self.now.kind == "op" and self.now.text == "." and self.ahead().kind == "end":
            self.at += 1
        return self.now.kind == "end" or (self.now.kind != "word" and self.now.text in closers)

    def joint(self, closers: tuple[str, ...]) -> str:
        """Step over the separators between two members; the loosest of them."""
        seen: list[str] = []
        while self.now.kind == "sep" and self.now.text not in closers:
            seen.append(self.now.text)
            self.at += 1
        for text in _LOOSE_TO_TIGHT:
            if text in seen:
                return text
        raise Unreadable("an & outside a matrix")

    def statement(self, closers: tuple[str, ...]) -> Node:
        """An expression with its unit, or a chain of them joined by relation signs."""
        if self.now.kind == "rel" and self.now.text in ("=", "~", "then"):
            self.at += 1  # "= 5"
        start = self.at
        members = [self.operand(closers)]
        signs: list[str] = []
        while self.now.kind == "rel" or self.now.text == ":" or self.negated():
            signs.append(self.now.text)
            self.at += 1
            members.append(self.operand(closers))
            said = signs == ["then"] and all(member.op == "sym" for member in members)
            if signs[-1] == "then" and (not said or self.now.kind == "rel"):  # its end counts
                members, signs = members[-1:], []
        if not signs:
            return members[0]
        if _ORDERED & {*signs} and _CONDITIONS & {t.text for t in self.tokens[start : self.at]}:
            raise Unreadable("a condition in words")
        if all(sign == ":" for sign in signs):
            return Node("ratio", tuple(members))
        if ":" in signs:
            return ratio_relation(members, signs)
        return Node("rel", tuple(members), name=" ".join(signs))

    def negated(self) -> bool:
        """`\\not=` and `\\not\\in` as one sign."""
        if self.now.text != "not" or self.ahead().text not in ("=", "in"):
            return False
        sign = "!=" if self.ahead().text == "=" else "notin"
        self.tokens[self.at : self.at + 2] = [Token("rel", sign)]
        return True

    def operand(self, closers: tuple[str, ...]) -> Node:
        """An expression with what belongs to it before and behind: money, units, remarks."""
        minus = False
        while self.now.kind == "word" and self.now.text.lower() in _HEDGED:
            self.at += 1
        if self.now.text == "-" and self.ahead().kind == "money":
            minus = True
            self.at += 1
        unit = self.unit_before()
        if self.now.kind == "word":
            return self.label_of_words()
        node = self.sets()
        if minus:
            node = negative(node)
        while self.now.kind == "word" and self.now.text.lower() in SCALES:
            node = _scaled(node, Fraction(SCALES[self.now.text.lower()]))
            self.at += 1
        node, degrees = _hoisted(node)
        after = self.unit_after(closers)
        if degrees:
            after = {"C": "celsius", "F": "fahrenheit"}.get(after, f"degree {after}")
        if unit and after and canonical_unit(unit) != canonical_unit(after):
            after = f"{unit} {after}"
        if after.split(" ")[0] in _POWER_WORDS or (after and changed_behind(after)):
            raise Unreadable("words that change the value")
        unit = after or unit
        return Node("quantity", (node,), name=canonical_unit(unit)) if unit else node

    def unit_before(self) -> str:
        """A sign of money, or words for a unit, before the value."""
        if self.now.kind == "money":
            sign = self.now.text
            self.at += 1
            return MONEY[sign]
        unit = ""
        while (
            self.now.kind == "word"
            and is_known_unit(self.now.text)
            and (self.ahead().kind in ("num", "money", "word"))
        ):
            unit = f"{unit} {self.now.text}"
            self.at += 1
            if self.now.kind == "money":
                self.at += 1
        return unit

    def label_of_words(self) -> Node:
        """Words before a relation sign, as a label."""
        words = []
        while self.now.kind == "word":
            words.append(self.now.text.lower())
            self.at += 1
        if self.now.text == "(":  # \text{rank}(A)
            end = next((t for t in range(2, 12) if self.ahead(t).text == ")"), 0)
            if end and self.ahead(end + 1).kind == "rel":
                inside = self.tokens[self.at : self.at + end + 1]
                words.append("".join(token.text for token in inside))
                self.at += end + 1
        if self.now.kind != "rel":
            raise Unreadable("words where a value should be")
        return Node("text", name=" ".join(words))

    def unit_after(self, closers: tuple[str, ...]) -> str:
        """Words, signs and powers after a value up to the end of the statement, as a unit."""
        parts: list[str] = []
        while self.now.kind in ("word", "op", "let", "num", "money", "fn", "cmd") and (
            self.now.kind == "word" or self.now.text not in closers
        ):
            text, kind = self.now.text, self.now.kind
            if kind == "op" and text == "." and self.ahead().kind in ("end", "sep"):
                self.at += 1
                continue
            if kind == "op" and text == "%":
                text = "percent"
            elif (kind == "op" and text == "pmod") or (text == "(" and self.ahead().text == "mod"):
                return f"{' '.join(parts)} {self.modulus()}"
            elif kind == "op" and text == "(" and self.is_remark():
                self.remark()
                continue
            elif kind == "money":
                text = MONEY[text]
            elif not (kind == "word" or self.continues_unit(parts)):
                break
            parts.append(text)
            self.at += 1
        return " ".join(parts).replace("^ ", "^").strip()

    def continues_unit(self, parts: list[str]) -> bool:
        """Whether an operator, letter or number goes on with a unit that has begun."""
        kind, text, _ = self.now
        if not parts:
            return text == "/" and self.ahead().kind == "word"
        if kind == "op" and text in "^/*-{}.'":
            return True
        if kind == "num":
            powers = parts[-2:-1] if parts[-1] == "-" else parts[-1:]  # no "5 cm - 3"
            return powers in (["^"], ["{"]) and len(text) == 1
        return (kind == "let" and parts[-1] in ("/", "*", "per")) or text == "circ"

    def modulus(self) -> str:
        """`(mod n)` as a unit of its own."""
        self.at += 1
        while self.now.text in ("{", "(", "mod"):
            self.at += 1
        node = self.sum()
        while self.now.text in ("}", ")"):
            self.at += 1
        name = "".join(chr(ord("a") + int(c)) if c.isdigit() else c for c in spelled(node))
        return f"modulo{''.join(c for c in name if c.isalpha())}"

    def remark(self) -> None:
        """Step over a remark in brackets; one that holds a number is a hedge."""
        self.at += 1
        start = self.at
        while self.now.text != ")":
            if self.now.kind not in ("word", "let", "sep", "op", "fn", "rel"):
                raise Unreadable("a remark with another value in it")
            self.at += 1
        if changed_by_remark(" ".join(token.text for token in self.tokens[start : self.at])):
            raise Unreadable("a remark that changes the value")
        self.at += 1


def grouped(members: list[Node], joins: list[str]) -> Node:
    """`members` as one list, or as a list of groups where two strengths of separators say so."""
    loosest = next(text for text in _LOOSE_TO_TIGHT if text in joins)
    flat = Node("list", tuple(members), name=loosest)
    if loosest == "," or all(join == loosest for join in joins):
        return flat
    groups: list[list[Node]] = [[members[0]]]
    for member, join in zip(members[1:], joins, strict=True):
        if join == loosest:
            groups.append([])
        groups[-1].append(member)
    sizes = {len(group) for group in groups}
    assigned = all(member.op == "rel" for member in members)
    if len(sizes) != 1 or sizes == {1} or not (assigned or loosest == ";"):
        return flat
    inner = [
        Node("list", tuple(group), ",") if assigned else Node("seq", tuple(group), "()")
        for group in groups
    ]
    return Node("list", tuple(inner), name=loosest)


def ratio_relation(members: list[Node], signs: list[str]) -> Node:
    """`A:B = 2:3` as a relation between two ratios; `f: x` in other places is unreadable."""
    parts: list[list[Node]] = [[members[0]]]
    others = []
    for member, sign in zip(members[1:], signs, strict=True):
        if sign == ":":
            parts[-1].append(member)
        else:
            others.append(sign)
            parts.append([member])
    nodes = tuple(part[0] if len(part) == 1 else Node("ratio", tuple(part)) for part in parts)
    return Node("rel", nodes, name=" ".join(others))


def _scaled(node: Node, size: Fraction) -> Node:
    """`node` times the size that a word names; `5 million` is a number, and no calculation."""
    number = node.number
    if node.op == "num" and number and abs(number.numerator) * number.denominator < MAX_FOLDED:
        return Node("num", number=number * size, digits=node.digits)
    return multiply(node, Node("num", number=size))


def _hoisted(node: Node) -> tuple[Node, bool]:
    """`node` without a degree sign at its end, and whether it had one."""
    if node.op == "deg":
        return node.args[0], True
    if node.op == "neg":
        inner, degrees = _hoisted(node.args[0])
        return (negative(inner), True) if degrees else (node, False)
    if node.op == "mul" and node.args[-1].op == "deg":
        return Node("mul", (*node.args[:-1], node.args[-1].args[0])), True
    return node, False


def _tree(tokens: tuple[Token, ...]) -> Node:
    parser = Statements(tokens)
    if not tokens:
        raise Unreadable("nothing")
    return parser.listing()


def read_answer(text: str) -> Reading:
    """Every reading of `text` as mathematics; `trees` is empty where there is none.

    Readings of short texts are cached: a group of completions shares its gold, and answers repeat.
    """
    return _cached(text) if len(text) <= CACHED_LENGTH else _readings(text)


def _readings(text: str) -> Reading:
    if len(text) > MAX_LENGTH:
        return Reading((), (), f"longer than {MAX_LENGTH} characters")
    trees: list[Node] = []
    trouble = ""
    try:
        cleaned = clean(text)
        tokens, doubts = tokens_of(cleaned)
    except (Unreadable, RecursionError) as error:
        return Reading((), (), str(error))
    choices = [frozenset(c) for n in range(len(doubts) + 1) for c in combinations(doubts, n)]
    for choose in choices:
        try:
            tree = _tree(tokens if not choose else tokens_of(cleaned, choose)[0])
            if depth(tree) > MAX_TREE_DEPTH:
                raise Unreadable(f"nested deeper than {MAX_TREE_DEPTH}")
        except (Unreadable, RecursionError) as error:
            trouble = trouble or str(error)
            continue
        if tree not in trees:
            trees.append(tree)
    return Reading(tuple(trees), tokens, "" if trees else trouble)


_cached = lru_cache(maxsize=8192)(_readings)
