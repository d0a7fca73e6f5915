"""Tokens of an expression into a tree, by recursive descent.

Numbers, letters, operators and functions; brackets and matrices are in `brackets`, what is above
an expression (lists, relations, labels, units) in `statements`. Depth is bounded; nothing is
evaluated.
"""

from fractions import Fraction

from rl_reasoner.answers.parsing.lexer import Token
from rl_reasoner.answers.parsing.naming import Naming
from rl_reasoner.answers.parsing.units import is_known_unit
from rl_reasoner.answers.tree import (
    EMPTY,
    INFINITY,
    REALS,
    Node,
    Unreadable,
    add,
    decimal_node,
    integer,
    multiply,
    names,
    negative,
    repeating_node,
    spelled,
)

_ACCENTS = names("overline vec hat tilde dot ddot underline overbrace overleftrightarrow")
_NAMED = names("angle triangle measuredangle odot square parallelogram")
_FUNCTION_NAMES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh",
    "atanh": "arctanh", "tg": "tan", "ctg": "cot", "arctg": "arctan", "sgn": "sign",
}  # fmt: skip
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "sinh": "arcsinh",
             "cosh": "arccosh", "tanh": "arctanh"}  # fmt: skip
_CONSTANTS = {"pi": "pi", "e": "e", "i": "i"}


class Expressions(Naming):
    """The expression half of the grammar: sums, products, powers, names, functions."""

    # ------------------------------------------------------------------ sums and products

    def sets(self) -> Node:
        """Sums joined by union, intersection and difference, from left to right."""
        left = self.sum()
        while self.now.kind in ("cmd", "let") or self.now.text == "\\":
            if self.take("cup") or self.letter_union():
                left = Node("union", (left, self.sum()))
            elif self.take("cap"):
                left = Node("cap", (left, self.sum()))
            elif self.take("setminus", "backslash"):
                left = Node("minus", (left, self.sum()))
            else:
                break
        return left

    def letter_union(self) -> bool:
        """A capital U between two brackets is a union."""
        if self.now.text == "U" and self.ahead().text in ("(", "[", "\\{", "{"):
            self.at += 1
            return True
        return False

    def sum(self) -> Node:
        """Products joined by plus, minus and plus-minus."""
        self.descend()
        left = self.signed()
        while True:
            if self.take("+"):
                left = add(left, self.signed())
            elif self.now.text == "-" and self.now.kind == "op":
                self.at += 1
                right = self.signed()
                of_sets = left.op == "reals" and right.op == "set"
                left = Node("minus", (left, right)) if of_sets else add(left, negative(right))
            elif self.now.text in ("pm", "mp") and self.now.kind == "cmd":
                sign = self.now.text
                self.at += 1
                left = Node("pm", (left, self.signed()), name=sign)
            else:
                break
        self.depth -= 1
        return left

    def signed(self) -> Node:
        """A product with its signs."""
        if self.take("+"):
            return self.signed()
        if self.now.kind == "op" and self.now.text == "-":
            self.at += 1
            return negative(self.signed())
        if self.now.text in ("pm", "mp") and self.now.kind == "cmd":
            sign = self.now.text
            self.at += 1
            return Node("pm", (self.signed(),), name=sign)
        return self.product()

    def product(self) -> Node:
        """Factors joined by signs, or by standing side by side."""
        left = self.factor()
        while True:
            if self.take("*"):
                left = multiply(left, self.signed_factor())
            elif self.take("cross"):
                left = crossed(left, self.factor())
            elif self.now.text == "/" and self.next_is_unit():
                return left  # a unit: $15 / hour
            elif self.take("/"):
                left = Node("div", (left, self.signed_factor()))
            elif self.take("mod"):
                left = Node("call", (left, self.signed_factor()), name="mod")
            elif self.starts_factor():
                left = multiply(left, self.factor())
            else:
                return left

    def next_is_unit(self) -> bool:
        """Whether a word that is a unit comes next."""
        return self.ahead().kind == "word" and is_known_unit(self.ahead().text)

    def signed_factor(self) -> Node:
        """A factor with its signs."""
        if self.now.kind == "op" and self.now.text in "+-":
            minus = self.now.text == "-"
            self.at += 1
            node = self.signed_factor()
            return negative(node) if minus else node
        return self.factor()

    def starts_factor(self) -> bool:
        """Whether a factor can follow without an operator."""
        kind, text, _ = self.now
        if kind in ("num", "based", "repeat") and self.ahead(-1).kind == "num":
            return False  # two numbers side by side are no product
        if kind in ("num", "based", "repeat", "let", "fn"):
            return not (text == "U" and self.ahead().text in ("(", "[", "\\{", "{"))
        if kind == "op":
            bar = text == "|" and self.bars == 0
            square = text == "[" and not self.outward and self.ahead().kind not in ("end", "sep")
            square = square and self.ahead().text not in (")", "]", "cup", "cap")
            return bar or square or (text in ("(", "{", "\\<") and not self.is_remark())
        if kind == "cmd":
            return text not in (
                "cup", "cap", "setminus", "backslash", "pm", "mp", "mod", "choose", "over",
                "rfloor", "rceil", "circ", "pmod", "not", "cross",
            ) and not text.startswith("end:")  # fmt: skip
        return False

    def is_remark(self) -> bool:
        """Whether an opening bracket holds words or `mod n`: no factor, a remark or unit."""
        first = self.ahead()
        return self.now.text == "(" and (first.kind == "word" or first.text in ("mod", "~"))

    # ------------------------------------------------------------------ powers and names

    def factor(self) -> Node:
        """An atom with what is behind it."""
        return self.power(self.postfix(self.atom()))

    def power(self, base: Node) -> Node:
        """`base` with exponents, degrees, primes and factorials behind it."""
        while self.now.kind == "op" and self.now.text == "^":
            self.at += 1
            if self.take("circ"):
                base = Node("deg", (base,))
                continue
            if self.now.text == "{" and self.ahead().text in ("circ", "'"):
                degree = self.ahead().text == "circ"
                self.at += 2
                self.skip_to_close()
                base = Node("deg", (base,)) if degree else self.primed(base)
                continue
            starred = self.starred(base)
            if starred is not None:
                base = starred
                continue
            exponent = self.exponent()
            inverse = base.op == "sym" and exponent.number == -1
            named = self.called(Node("sym", name=base.name + "^-1")) if inverse else base
            base = named if named.op == "call" and inverse else Node("pow", (base, exponent))
            base = self.postfix(base)
        return base

    def skip_to_close(self) -> None:
        """Step over marks up to the closing brace."""
        while self.now.text in ("'", "circ"):
            self.at += 1
        self.need("}")

    def exponent(self) -> Node:
        """What is raised: a group, a whole number, or one atom."""
        if self.now.kind == "op" and self.now.text in ("-", "+"):
            return self.signed_factor()
        node = self.atom()
        if self.now.kind == "op" and self.now.text == "^":
            return self.power(node)
        return self.postfix(node)

    def postfix(self, node: Node) -> Node:
        """`node` with factorials and primes."""
        while True:
            if self.take("!"):
                double = self.take("!")  # n!! is no factorial of n!
                node = Node("call", (node,), "factorial2") if double else Node("fact", (node,))
            elif self.now.kind == "op" and self.now.text == "'":
                self.at += 1
                node = self.primed(node)
            else:
                return node

    def argument(self) -> Node:
        """The argument of a command: a braced group, or one token (one digit of a number)."""
        if self.take("{"):
            return self.group("}")
        token = self.now
        if token.kind == "num" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = Token("num", token.text[1:])
            return decimal_node(token.text[0])
        return self.atom()

    def group(self, closer: str) -> Node:
        """What is inside a brace that opened, with infix `choose` and `over`."""
        if self.take(closer):
            return EMPTY
        node = self.listing(closer, "choose", "over")
        if self.take("choose"):
            node = Node("call", (node, self.listing(closer)), name="binom")
        elif self.take("over"):
            node = Node("div", (node, self.listing(closer)))
        self.need(closer)
        return Node("set", node.args) if node.op == "list" and closer == "}" else node

    # ------------------------------------------------------------------ atoms

    def atom(self) -> Node:
        """The smallest part of an expression."""
        kind, text, _ = self.now
        self.at += 1
        if kind == "num":
            return self.mixed(decimal_node(text))
        if kind == "repeat":
            return repeating_node(text)
        if kind == "based":
            digits, _, base = text.partition("_")
            return Node("based", name=text, number=Fraction(int(digits, int(base))))
        if kind == "let":
            if text in _CONSTANTS and self.now.text != "_":
                return Node("const", name=_CONSTANTS[text])
            return self.called(self.postfix(self.subscript(text)))
        if kind == "fn":
            return self.function(_FUNCTION_NAMES.get(text, text))
        if kind == "cmd":
            return self.named(text)
        if kind == "op":
            return self.bracket(text)
        raise Unreadable(f"{text or 'the end'!r} where a value should be")

    def mixed(self, whole: Node) -> Node:
        """`whole`, or the mixed number that it begins (`4 1/3`, `4\\frac13`)."""
        if whole.digits or whole.number is None or whole.number.denominator != 1:
            return whole
        start, before = self.at, self.tokens[self.at : self.at + 2]
        if start in self.not_mixed:
            return whole  # asked again at every level, a nest of them would take 2**depth steps
        if self.now.kind == "cmd" and self.now.text == "frac":
            self.at += 1
            part = Node("div", (self.argument(), self.argument()))
        elif self.now.kind == "num" and self.now.space and self.ahead().text == "/":
            top = decimal_node(self.now.text)
            self.at += 2
            if self.now.kind != "num":
                self.at = start
                return whole
            part = Node("div", (top, decimal_node(self.now.text)))
            self.at += 1
        else:
            return whole
        top, bottom = part.args
        if (
            top.number is not None
            and bottom.number is not None
            and not (top.digits or bottom.digits)
            and 0 < top.number < bottom.number
        ):
            return Node("num", number=whole.number + top.number / bottom.number)
        self.at = start
        self.tokens[start : start + 2] = before  # `argument` may have taken a digit
        self.not_mixed.add(start)
        return whole

    def named(self, name: str) -> Node:
        """The atom that the command `name` (already taken) begins."""
        if name == "frac":
            return Node("div", (self.argument(), self.argument()))
        if name in ("sqrt", "usqrt", "ucbrt"):
            return self.root(name)
        if name == "binom":
            return Node("call", (self.argument(), self.argument()), name="binom")
        if name == "infty":
            return INFINITY
        if name == "emptyset":
            return EMPTY
        if name.startswith("bb"):
            return REALS if name == "bbR" else self.called(Node("sym", name=name))
        if name in ("lfloor", "lceil"):
            inside = self.listing("r" + name[1:])
            self.need("r" + name[1:])
            return Node("call", (inside,), name=name[1:])
        if name in ("sum", "prod", "int", "lim"):
            return self.big(name)
        if name.startswith("begin:"):
            return self.environment(name[6:])
        if name in _ACCENTS:
            return self.called(self.subscript(f"{name} {spelled(self.argument())}"))
        if name in _NAMED:
            return Node("call", (_vertex_in_the_middle(name, self.product()),), name="?" + name)
        if name == "not":
            raise Unreadable("a negated sign")
        if name == "textcircled":
            return self.argument()
        return self.called(self.subscript("\\" + name))

    def root(self, name: str) -> Node:
        """A root of any degree."""
        degree: Node = integer(3 if name == "ucbrt" else 2)
        if self.take("["):
            degree = self.listing("]")
            self.need("]")
        if name == "sqrt" and self.now.kind != "num":
            inside = self.argument()
        elif self.take("{"):
            inside = self.group("}")
        else:
            inside = self.atom()
        if inside.op in ("set", "list", "rel"):
            raise Unreadable("a root of something that is not a number")
        return Node("pow", (inside, Node("div", (integer(1), degree))))

    def function(self, name: str) -> Node:
        """A known function with its power, base and argument."""
        power: Node | None = None
        base: Node | None = None
        while self.now.kind == "op" and self.now.text in "^_":
            if self.take("^"):
                power = self.exponent_of_function()
            else:
                self.at += 1
                base = self.argument_or_number()
        if name == "sqrt":
            inside = self.group_or_product()
            return Node("pow", (inside, Node("div", (integer(1), integer(2)))))
        minus_one = power is not None and power.number == -1
        if minus_one and name in _INVERSES:
            name, power = _INVERSES[name], None
        arguments = self.arguments()
        if base is not None and name == "log":
            arguments = (*arguments, base)
        elif base is not None:
            name = f"?{name}_{spelled(base)}"
        node = Node("call", arguments, name=name)
        return node if power is None else Node("pow", (node, power))

    def exponent_of_function(self) -> Node:
        """The power written on a function."""
        return self.group("}") if self.take("{") else self.exponent()

    def argument_or_number(self) -> Node:
        """A braced group, or one atom."""
        return self.group("}") if self.take("{") else self.atom()

    def group_or_product(self) -> Node:
        """The one argument of a root."""
        arguments = self.arguments()
        if len(arguments) != 1:
            raise Unreadable("a root of several things")
        return arguments[0]

    def arguments(self) -> tuple[Node, ...]:
        """Arguments of a function: in brackets, or the factors that follow."""
        for opener, closer in (("(", ")"), ("{", "}"), ("\\{", "\\}"), ("[", "]")):
            if self.now.kind == "op" and self.now.text == opener:
                self.at += 1
                inside = self.listing(closer)
                self.need(closer)
                return inside.args if inside.op in ("list", "set") else (inside,)
        if self.now.kind == "op" and self.now.text == "|":
            return (self.factor(),)
        if self.now.kind == "op" and self.now.text == "-":
            return (self.signed_factor(),)
        inside = self.factor()
        while self.starts_factor() and self.now.kind != "fn" and self.now.text not in ("(", "["):
            if self.integrals and self.now.text == "d" and self.ahead().kind == "let":
                break
            inside = multiply(inside, self.factor())
        if self.now.text == "/" and self.ahead().kind == "num" and _only_pi(inside):
            self.at += 1
            inside = Node("div", (inside, self.factor()))
        return (inside,)


def crossed(left: Node, right: Node) -> Node:
    """The cross product of the last factor of `left` with `right`: b x a is -(a x b)."""
    *others, last = left.args if left.op == "mul" else (left,)
    swapped = spelled(right) < spelled(last)
    node = Node("call", (right, last) if swapped else (last, right), name="?cross")
    node = negative(node) if swapped else node
    return multiply(*others, node) if others else node


def _only_pi(node: Node) -> bool:
    return node.op in ("const", "num") or (node.op == "mul" and all(map(_only_pi, node.args)))


def _vertex_in_the_middle(figure: str, letters: Node) -> Node:
    """Three points of an angle as one name that keeps the vertex: ABC is CBA, and not BAC."""
    if figure not in ("angle", "measuredangle") or letters.op != "mul":
        return letters
    if len(letters.args) != 3 or any(point.op != "sym" for point in letters.args):
        return letters
    points = [point.name for point in letters.args]
    return Node("sym", name=" ".join(min(points, points[::-1])))
