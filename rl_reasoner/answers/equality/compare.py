"""Are two readings of answers equal? By type: lists, sets, relations, regions, matrices, scalars.

`TreeComparison.same` gives how two trees are equal, or an empty string. It never falls through to
"compare the first number": what has no rule for its two types is unequal.
"""

import re
from collections.abc import Sequence

from rl_reasoner.answers.equality.arithmetic import TooLarge
from rl_reasoner.answers.equality.regions import region, same_region
from rl_reasoner.answers.equality.shapes import (
    as_matrix,
    ascending,
    assignments,
    attempted,
    base,
    bases,
    bounds_of,
    flat_union,
    has_labelled,
    has_sign_pair,
    is_interval,
    labelled,
    members,
    needs_assumptions,
    same_label,
    single,
    split_unit,
)
from rl_reasoner.answers.equality.values import equal, proportional
from rl_reasoner.answers.tree import Node, add, integer, letters, multiply, negative, spelled, walk

MAX_STEPS = 6_000
_GATHERED = ("list", "set", "pm")
_SETS = ("union", "cap", "minus", "reals", "builder")
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}

Side = tuple[Node, Node | None, Node]


class TreeComparison:
    """One comparison: counts its steps, and keeps the pairs that only sympy could settle."""

    def __init__(self) -> None:
        self.steps = 0
        self.undecided: list[tuple[Node, Node]] = []

    def same(self, gold: Node, given: Node) -> str:
        """How the two are equal, or an empty string.

        Raises `Inconsistent` on a chain of unequal members and `TooLarge` past `MAX_STEPS`.
        """
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise TooLarge("a comparison of too many steps")
        gold, given = single(gold), single(given)
        if gold == given:
            return "same expression"
        gold_name, gold_body = labelled(gold)
        given_name, given_body = labelled(given)
        if gold_name is not None or given_name is not None:
            return self.named(
                (gold, gold_name, single(gold_body)), (given, given_name, single(given_body))
            )
        gold, given = single(gold_body), single(given_body)
        for rule in (self.relations, self.regions, self.gathered, self.shaped):
            how = rule(gold, given)
            if how is not None:
                return how
        return self.scalars(gold, given)

    # ------------------------------------------------------------------ names and relations

    def named(self, gold: Side, given: Side) -> str:
        """Sides of which at least one has a label: (whole, label, body)."""
        gold_pairs, given_pairs = assignments(gold[0]), assignments(given[0])
        if gold_pairs and given_pairs:
            return self.assigned(gold_pairs, given_pairs)
        for pairs, (_, label, body) in ((gold_pairs, given), (given_pairs, gold)):
            if label is not None and {base(name) for name, _ in pairs} == {spelled(label)}:
                return self.multiset([value for _, value in pairs], (body,))  # x_1 = 1, x_2 = 3
        if gold[1] is not None and given[1] is not None:
            if same_label(gold[1], given[1]):
                return self.same(gold[2], given[2])
            return self.equations(gold[0], given[0])
        plain, other = (given[2], gold) if gold[1] is not None else (gold[2], given)
        if plain.op == "rel":
            if gold[1] is not None and not letters(gold[2]) and plain.name == "=":
                return ""  # an equation that still has to be solved
            return self.equations(gold[0], given[0]) or self.relations(gold[0], given[0]) or ""
        if other[0].op == "list" and has_labelled(plain):
            return self.multiset((gold[0],), (given[0],))
        pairs = given_pairs or gold_pairs
        if pairs and other[0].op == "list" and plain.op in ("seq", "list", "set"):
            return self.unnamed(pairs, plain, plain is given[2])
        if other[0].name == "in" and plain.op in ("list", *_SETS):
            left, right = region(gold[0]), region(given[0])
            if left and right:
                return "same set of numbers" if same_region(left, right) else ""
        return self.same(gold[2], given[2])

    def assigned(self, gold: list[tuple[str, Node]], given: list[tuple[str, Node]]) -> str:
        """Several assignments in any order; indexed solutions of one unknown as a list."""
        names = [sorted(name for name, _ in pairs) for pairs in (gold, given)]
        if names[0] != names[1]:
            if {base(name) for name in names[0]} != {base(name) for name in names[1]}:
                return ""
            return self.multiset([body for _, body in gold], [body for _, body in given])
        left, right = (sorted(pairs, key=lambda pair: pair[0]) for pairs in (gold, given))
        return self.in_order([body for _, body in left], [body for _, body in right])

    def unnamed(self, pairs: list[tuple[str, Node]], plain: Node, plain_given: bool) -> str:
        """Assignments against values alone: a tuple in the order of the names, or a list."""
        ordered = plain.op == "seq"
        chosen = sorted(pairs, key=lambda pair: pair[0]) if ordered else pairs
        bodies = [body for _, body in chosen]
        compare = self.in_order if ordered else self.multiset
        return compare(bodies, plain.args) if plain_given else compare(plain.args, bodies)

    def relations(self, gold: Node, given: Node) -> str | None:
        """Two equations, or conditions; None where neither side is a relation."""
        if gold.op != "rel" and given.op != "rel":
            return None
        if gold.op == "rel" and given.op == "rel":
            how = self.equations(gold, given) or self.chains(gold, given)
            if how:
                return how
        left, right = region(gold), region(given)
        if left and right:
            return "same set of numbers" if same_region(left, right) else ""
        first, second = bounds_of(gold), bounds_of(given)
        if first and second and first.name == second.name:
            return self.in_order(first.args, second.args)
        return ""

    def equations(self, gold: Node, given: Node) -> str:
        """Equations or inequalities equal up to a constant factor and moved terms."""
        if not (_is_equation(gold) and _is_equation(given)):
            return ""
        left, right = (add(n.args[0], negative(n.args[1])) for n in (gold, given))
        factor = attempted(lambda: proportional(left, right)) or 0
        if factor == 0:
            if gold.name == given.name and (needs_assumptions(left) or needs_assumptions(right)):
                self.undecided.append((left, right))
            return ""
        wanted = gold.name if factor > 0 else _FLIPPED.get(gold.name, gold.name)
        return "same relation up to a constant factor" if wanted == given.name else ""

    def chains(self, gold: Node, given: Node) -> str:
        """Chains such as a < b < c, compared member by member from the smaller side."""
        left, right = ascending(gold), ascending(given)
        if left.name != right.name or len(left.args) != len(right.args):
            return ""
        how = self.in_order(left.args, right.args)
        if not how and set(left.name.split()) <= {"!=", "="}:
            how = self.in_order(left.args, right.args[::-1])
        return how

    # ------------------------------------------------------------------ sets and lists

    def regions(self, gold: Node, given: Node) -> str | None:
        """Sets of real numbers where at least one side is written as such."""
        if not any(_is_set(side) for side in (gold, given)):
            return None
        left, right = region(gold), region(given)
        if left is not None and right is not None:
            return "same set of numbers" if same_region(left, right) else ""
        if gold.op in _SETS and gold.op == given.op and len(gold.args) == len(given.args):
            if gold.op == "union":
                return self.multiset(flat_union(gold), flat_union(given))
            return self.in_order(gold.args, given.args)
        return None

    def gathered(self, gold: Node, given: Node) -> str | None:
        """Lists, sets and values with a plus-minus sign: the same members in any order."""
        pairs = has_sign_pair(gold) or has_sign_pair(given)
        if not pairs and gold.op not in _GATHERED and given.op not in _GATHERED:
            return None
        if not pairs and gold.op == "seq":
            return self.in_order(gold.args, given.args) if given.op == "list" else ""
        if not pairs and given.op == "seq":
            return ""
        if {gold.name, given.name} == {"and", "or"} and all(map(_is_said, gold.args + given.args)):
            return ""
        if gold.op == given.op == "set" and not gold.args + given.args:
            return "both empty"
        return self.multiset((gold,), (given,))

    def multiset(self, gold: Sequence[Node], given: Sequence[Node]) -> str:
        """Whether each member of one is a member of the other; repeated members do not count."""
        left = [part for node in gold for part in members(node)]
        right = [part for node in given for part in members(node)]
        hit: set[int] = set()
        for at, wanted in enumerate(left):
            order = [at, *(other for other in range(len(right)) if other != at)]
            positions = (o for o in order if o < len(right) and self.same(wanted, right[o]))
            position = next(positions, None)
            if position is None:
                return ""
            hit.add(position)
        for at, extra in enumerate(right):
            if at not in hit and not any(self.same(wanted, extra) for wanted in left):
                return ""
        return "same members" if left else ""

    def in_order(self, gold: Sequence[Node], given: Sequence[Node]) -> str:
        """Whether two sequences agree member by member."""
        if len(gold) != len(given):
            return ""
        matches = all(self.same(a, b) for a, b in zip(gold, given, strict=True))
        return "same members in order" if matches else ""

    def shaped(self, gold: Node, given: Node) -> str | None:
        """Tuples, matrices and ratios."""
        gold, given = as_matrix(gold, given), as_matrix(given, gold)
        if gold.op == "seq" or given.op == "seq":
            same_kind = gold.op == given.op and gold.name == given.name
            return self.in_order(gold.args, given.args) if same_kind else ""
        if gold.op == "matrix" and given.op == "matrix":
            if {len(row.args) for row in gold.args} != {len(row.args) for row in given.args}:
                return ""
            left, right = ([e for row in m.args for e in row.args] for m in (gold, given))
            return "same matrix" if self.in_order(left, right) else ""
        if gold.op == "ratio" or given.op == "ratio":
            return self.ratios(gold, given)
        return None

    def ratios(self, gold: Node, given: Node) -> str:
        """Ratios in order, up to a common factor; a ratio of two is also a quotient."""
        if gold.op == given.op == "ratio":
            left = [split_unit(arg)[1] for arg in gold.args]
            right = [split_unit(arg)[1] for arg in given.args]
            if len(left) != len(right):
                return ""
            pairs = [
                (multiply(a, right[0]), multiply(b, left[0]))
                for a, b in zip(left, right, strict=True)
            ]
            return "same ratio" if all(self.values(a, b) for a, b in pairs) else ""
        ratio, other = (gold, given) if gold.op == "ratio" else (given, gold)
        if len(ratio.args) != 2 or other.op in ("rel", "set", "list", "seq"):
            return ""
        quotient = Node("div", tuple(split_unit(arg)[1] for arg in ratio.args))
        return "same quotient" if self.values(quotient, split_unit(other)[1]) else ""

    # ------------------------------------------------------------------ scalars

    def scalars(self, gold: Node, given: Node) -> str:
        """Two values with their units."""
        gold_unit, left = split_unit(gold)
        given_unit, right = split_unit(given)
        if gold_unit and given_unit and gold_unit != given_unit:
            return ""
        if left.op in ("seq", "list", "set", "matrix", "rel") and (left, right) != (gold, given):
            return self.same(left, right)
        based = bases((left, right))
        if based[0] and based[1] and based[0] != based[1]:
            return ""
        if bool(gold_unit) != bool(given_unit) and _is_unreduced(gold_unit or given_unit, left):
            return ""
        how = self.values(left, right)
        percents = [unit == "percent^1" for unit in (gold_unit, given_unit)]
        if how or percents[0] == percents[1]:
            return how
        scaled = [
            Node("div", (side, integer(100))) if percent else side
            for side, percent in zip((left, right), percents, strict=True)
        ]
        return "percent as a fraction" if self.values(*scaled) else ""

    def values(self, left: Node, right: Node) -> str:
        """Two scalars without units; notes the pair where only sympy could tell."""
        how = attempted(lambda: equal(left, right))
        if not how and (needs_assumptions(left) or needs_assumptions(right)):
            self.undecided.append((left, right))
        return how or ""


def _is_equation(node: Node) -> bool:
    scalar = not any(
        arg.op in (*_GATHERED, *_SETS, "seq", "matrix", "rel", "text") for arg in node.args
    )
    return node.op == "rel" and len(node.args) == 2 and scalar and node.name in _EQUATED


def _is_said(node: Node) -> bool:
    """Whether `node` is a name that may be true or false, with no number in it."""
    return node.op in ("sym", "call", "mul") and all(part.op != "num" for part in walk(node))


def _is_unreduced(unit: str, value: Node) -> bool:
    """Whether `unit` is of a residue that `value` is not: 42 is none modulo 7, and 3 is one."""
    modulus = re.match(r"modulonum([a-j]+)\^1$", unit)
    if modulus is None or value.number is None:
        return False
    return not 0 <= value.number < int("".join(str(ord(c) - ord("a")) for c in modulus[1]))


_EQUATED = frozenset({"=", "!=", *_FLIPPED})


def _is_set(node: Node) -> bool:
    if node.op == "list":
        signs = {sign for arg in node.args if arg.op == "rel" for sign in arg.name.split()}
        return bool(signs & {*_FLIPPED, "!="})
    return node.op in _SETS or is_interval(node)
