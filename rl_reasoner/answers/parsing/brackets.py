"""Brackets of every kind, large operators and matrices: rules with an end of their own."""

from rl_reasoner.answers.parsing.cursor import Cursor
from rl_reasoner.answers.tree import EMPTY, Node, Unreadable, add, integer, multiply, names

_MATRICES = names("matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix array")


class Brackets(Cursor):
    """Groups, sets, tuples, intervals, absolute values; sums and integrals; environments."""

    def bracket(self, opener: str) -> Node:
        """What begins with the bracket `opener` (already taken)."""
        self.descend()
        if opener == "|":
            node = self.absolute()
        elif opener == "{":
            node = self.braces("}")
        elif opener == "\\{":
            node = self.braces("\\}")
        elif opener in ("(", "[", "]", "\\<"):
            node = self.sequence(opener)
        elif opener == "?":
            raise Unreadable("a question mark")
        else:
            raise Unreadable(f"{opener!r} where a value should be")
        self.depth -= 1
        return node

    def absolute(self) -> Node:
        """An absolute value, or the determinant of a matrix."""
        self.bars += 1
        inside = self.listing("|")
        self.need("|")
        self.bars -= 1
        name = "det" if inside.op == "matrix" else "abs"
        return Node("call", (inside,), name=name)

    def braces(self, closer: str) -> Node:
        """A set, or the group of TeX that has one member and no backslash."""
        if self.take(closer):
            return EMPTY
        bars, self.bars = self.bars, 0
        node = self.builder(closer)
        if node is None and closer == "}":
            node = self.group(closer)
        elif node is None:
            inside = self.listing(closer)
            self.need(closer)
            node = Node("set", inside.args if inside.op == "list" else (inside,))
        self.bars = bars
        return node

    def builder(self, closer: str) -> Node | None:
        """`{x | condition}` as its condition; None where the braces hold something else."""
        end, names, depth = self.at, 0, 0
        while end < min(len(self.tokens), self.at + 10) and self.tokens[end].text not in ("|", ":"):
            token = self.tokens[end]
            depth += (token.text in ("(", "{")) - (token.text in (")", "}"))
            simple = token.kind in ("let", "num") or token.text in (
                "in",
                "_",
                "(",
                ")",
                ",",
                "{",
                "}",
            )
            if depth < 0 or not (simple or token.text.startswith("bb")):
                return None
            names += token.kind == "let"
            end += 1
        if end >= len(self.tokens) or self.tokens[end].text not in ("|", ":") or not names:
            return None
        subject = type(self)(tuple(self.tokens[self.at : end])).listing()
        self.at = end + 1
        condition = self.listing(closer)
        self.need(closer)
        return Node("builder", (subject, condition))

    def sequence(self, opener: str) -> Node:
        """What is between round, square or angle brackets: a group, a tuple or an interval."""
        bars, self.bars = self.bars, 0
        closers: tuple[str, ...] = ("[", "]") if opener == "]" else (")", "]", "[", "\\>", "\\}")
        closers = closers if opener in "[]" or opener == "(" else ("\\>",)
        if self.now.text in (")", "]", "\\>"):
            raise Unreadable("empty brackets")
        self.outward += opener == "]"
        inside = self.listing(*closers)
        closer = self.need(*closers)
        self.outward -= opener == "]"
        self.bars = bars
        if opener == "\\<":
            opener, closer = "(", ")"
        if opener == "]":
            opener, closer = "(", ")" if closer == "[" else "]"
        elif closer == "[":
            closer = ")"
        if inside.op != "list":
            if (opener + closer) not in ("()", "[]"):
                raise Unreadable("brackets of two kinds around one thing")
            return inside
        return Node("seq", inside.args, name=opener + closer)

    # ------------------------------------------------------------------ large operators, matrices

    def big(self, name: str) -> Node:
        """A sum, product, integral or limit as a node of op `sum`, named `kind variable`."""
        lower = upper = EMPTY
        variable = ""
        self.take("limits")
        while self.now.kind == "op" and self.now.text in ("_", "^"):
            if self.take("_"):
                bound = self.group("}") if self.take("{") else self.atom()
                if bound.op == "rel" and bound.args[0].op in ("sym", "const"):
                    variable, lower = bound.args[0].name, bound.args[1]
                else:
                    lower = bound
            else:
                self.at += 1
                upper = self.argument_or_number()
        self.integrals += name == "int"
        body = self.product() if name != "int" else self.sum()
        self.integrals -= name == "int"
        if name == "int":
            body, variable = _differential(body)
        if name == "lim" and not variable:
            raise Unreadable("a limit without its variable")
        return Node("sum", (body, lower, upper), name=f"{name} {variable}")

    def environment(self, name: str) -> Node:
        """A matrix, or the lines of another environment as a list."""
        rows: list[list[Node]] = [[]]
        while not self.take(f"end:{name}"):
            if self.take("row"):
                rows.append([])
            elif self.take("&"):
                continue
            elif self.now.kind == "end":
                raise Unreadable("an environment that does not end")
            else:
                rows[-1].append(self.listing("&", "row", f"end:{name}"))
        rows = [row for row in rows if row]
        if not rows:
            raise Unreadable("an empty environment")
        if name not in _MATRICES:
            lines = tuple(
                row[0] if len(row) == 1 else Node("seq", tuple(row), "row") for row in rows
            )
            return lines[0] if len(lines) == 1 else Node("list", lines, name="and")
        if len({len(row) for row in rows}) != 1:
            raise Unreadable("a matrix with rows of different lengths")
        matrix = Node("matrix", tuple(Node("seq", tuple(row), "row") for row in rows))
        return Node("call", (matrix,), name="det") if name == "vmatrix" else matrix


def _differential(body: Node) -> tuple[Node, str]:
    """An integrand without its trailing `d x`, and the variable."""
    factors = list(body.args) if body.op == "mul" else [body]
    if body.op == "add":
        head, variable = _differential(body.args[-1])
        return add(*body.args[:-1], head), variable
    if len(factors) >= 2 and factors[-2].name == "d" and factors[-1].op in ("sym", "const"):
        return multiply(*factors[:-2]) if factors[:-2] else integer(1), factors[-1].name
    raise Unreadable("an integral without its differential")
