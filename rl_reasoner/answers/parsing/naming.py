"""Names: letters with an index, a prime or a star, unknown functions, events in brackets."""

from rl_reasoner.answers.parsing.brackets import Brackets
from rl_reasoner.answers.parsing.lexer import Token
from rl_reasoner.answers.tree import Node, Unreadable, integer

MAX_EVENT = 24
_CALLED = frozenset("fgFG")
_CALLED_ON_NAMES = frozenset("hpqrsuvwyHPQRSTVWABCENMLKI")


class Naming(Brackets):
    """What begins with a letter and is one thing: `x_1`, `f^{-1}(x)`, `P(A|B)`, `C_{10}^3`."""

    def primed(self, node: Node) -> Node:
        """A name with a prime."""
        if node.op != "sym":
            raise Unreadable("a prime after something that is not a name")
        return self.called(Node("sym", name=node.name + "'"))

    def called(self, node: Node) -> Node:
        """`node`, or the unknown function of that name applied to the brackets behind it."""
        event = self.event(node.name) if node.op == "sym" else 0
        if event:
            spelling = "".join(token.text for token in self.tokens[self.at : event])
            self.at = event
            return Node("sym", name=node.name + spelling)
        if self.now.text != "(" or self.now.kind != "op" or node.op not in ("sym", "index"):
            return node
        name = node.name
        if name[:1] in _CALLED or name.endswith("'") or self.names_in_brackets(name):
            self.at += 1
            inside = self.listing(")")
            self.need(")")
            arguments = inside.args if inside.op == "list" else (inside,)
            return Node("call", (*node.args, *arguments), name="?" + name)
        return node

    def event(self, name: str) -> int:
        """Where the brackets of `P(A|B)`, `P(X \\ge 3)` or `E[X]` end; 0 for other names."""
        closer = {"P": ")", "bbP": ")", "\\Pr": ")", "E": "]", "bbE": "]"}.get(name)
        opener = "(" if closer == ")" else "["
        if closer is None or self.now.kind != "op" or self.now.text != opener:
            return 0
        inside = self.tokens[self.at + 1 : self.at + MAX_EVENT]
        end = next((at for at, token in enumerate(inside) if token.text == closer), 0)
        simple = all(
            token.kind in ("let", "num", "rel", "cmd", "word") or token.text in "|,-^_{}"
            for token in inside[:end]
        )
        conditional = any(token.kind == "rel" or token.text == "|" for token in inside[:end])
        said = self.ahead(end + 2).kind == "rel" and inside[0].kind == "word"
        event = conditional or said or closer == "]"
        return self.at + end + 2 if end and simple and event else 0

    def names_in_brackets(self, name: str) -> bool:
        """Whether brackets hold few names or numbers, so that the letter is a function."""
        counted = name in ("n", "d") and self.ahead().text.isupper()  # of sets, of points
        if name[:1] not in _CALLED_ON_NAMES and not counted:
            return False
        end = self.at + 1
        while end < len(self.tokens) and (
            self.tokens[end].kind in ("let", "num", "word")
            or self.tokens[end].text in (",", "cap", "cup")
        ):
            end += 1
        closed = end < len(self.tokens) and self.tokens[end].text == ")"
        single = [token for token in self.tokens[self.at + 1 : end] if token.text != ","]
        return closed and 1 <= len(single) <= 4

    def subscript(self, name: str) -> Node:
        """The letter `name` with the index that follows, a name of its own."""
        if self.now.kind != "op" or self.now.text != "_":
            return Node("sym", name=name)
        self.at += 1
        braced = self.take("{")
        start = self.at
        if not braced:
            token = self.now
            self.at += 1
            if token.kind not in ("num", "let", "word", "cmd", "fn", "rel"):
                raise Unreadable("an index that is not a name")
            if token.kind != "let":
                return Node("sym", name=f"{name}_{token.text}")
            return Node("index", (Node("sym", name=token.text),), name=name)
        depth = 1
        while depth and self.at < len(self.tokens):
            depth += (self.now.text == "{") - (self.now.text == "}")
            self.at += 1
        inside = self.tokens[start : self.at - 1]
        if depth or not inside:
            raise Unreadable("an index that does not close")
        named = len(inside) == 1 and inside[0].kind in ("fn", "rel", "cmd")  # x_{\max}
        if (
            named
            or any(token.kind == "word" for token in inside)
            or all(token.kind in ("num", "sep") or token.text == "'" for token in inside)
        ):
            index = "".join(token.text for token in inside)
            if name == "C" and index.isdecimal() and self.now.text == "^":
                return self.combinations(int(index[:9]))
            return Node("sym", name=f"{name}_{index}")
        return self.reparsed_index(name, tuple(inside))

    def combinations(self, total: int) -> Node:
        """`C_{10}^{3}` as a binomial coefficient; the power of a constant where it is none."""
        self.at += 1
        chosen = self.exponent()
        if chosen.number is not None and chosen.number <= total:
            return Node("call", (integer(total), chosen), name="binom")
        return self.postfix(Node("pow", (Node("sym", name=f"C_{total}"), chosen)))

    def reparsed_index(self, name: str, inside: tuple[Token, ...]) -> Node:
        """An index that is an expression, its i and e plain letters."""
        as_names = [Token("let", t.text + "\u0307") if t.text in ("i", "e") else t for t in inside]
        inner = type(self)(tuple(as_names))
        inner.depth = self.depth
        inner.descend()
        return Node("index", (inner.listing(),), name=name)

    def starred(self, base: Node) -> Node | None:
        """`x^*` as a name of its own, `0^+` as a side of a limit; None for a power."""
        braced = self.now.text == "{"
        mark, behind = self.ahead(int(braced)), self.ahead(1 + braced)
        if mark.kind != "op" or mark.text not in ("*", "+", "-"):
            return None
        if (braced or mark.text != "*") and behind.text != "}":
            return None
        if mark.text == "*" and (base.op != "sym" or (not braced and behind.kind == "num")):
            return None
        self.at += 1 + 2 * braced
        if mark.text == "*":
            return self.called(Node("sym", name=base.name + "^*"))
        return Node("call", (base,), name="?side" + mark.text)
