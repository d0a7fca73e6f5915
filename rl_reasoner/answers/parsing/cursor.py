"""The tokens of an answer and a position in them: the lowest layer of the parser.

`brackets`, `parser` and `statements` each add rules of the grammar to this class.
"""

from rl_reasoner.answers.parsing.lexer import Token
from rl_reasoner.answers.tree import Node, Unreadable

MAX_NESTING = 60
_END = Token("end", "")


class Cursor:
    """A position in the tokens; the rules named here are completed by the classes above."""

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self.tokens = list(tokens)
        self.at = 0
        self.depth = 0
        self.bars = 0  # open absolute values
        self.outward = 0  # open intervals of the form ]a, b[
        self.integrals = 0  # open integrals, whose `dx` is no factor
        self.not_mixed: set[int] = set()  # where no mixed number begins, though it may seem so

    @property
    def now(self) -> Token:
        """The next token, or the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else _END

    def ahead(self, by: int = 1) -> Token:
        """The token `by` places further."""
        return self.tokens[self.at + by] if self.at + by < len(self.tokens) else _END

    def descend(self) -> None:
        """One level deeper; raises `Unreadable` past `MAX_NESTING`. Undone by `self.depth -= 1`."""
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise Unreadable(f"nested deeper than {MAX_NESTING}")

    def take(self, *texts: str) -> bool:
        """Step over the next token if it is an operator or command out of `texts`."""
        if self.now.kind in ("op", "cmd", "rel", "sep") and self.now.text in texts:
            self.at += 1
            return True
        return False

    def need(self, *texts: str) -> str:
        """Step over one of `texts`, which must follow; gives it."""
        text = self.now.text
        if not self.take(*texts):
            raise Unreadable(f"expected {' or '.join(texts)}, found {text or 'the end'!r}")
        return text

    def listing(self, *closers: str) -> Node:
        """A list of statements up to one of `closers` (not taken); see `statements`."""
        raise NotImplementedError

    def sum(self) -> Node:
        """A sum of products."""
        raise NotImplementedError

    def product(self) -> Node:
        """A product of factors."""
        raise NotImplementedError

    def atom(self) -> Node:
        """The smallest part of an expression."""
        raise NotImplementedError

    def argument_or_number(self) -> Node:
        """A braced group, or one atom."""
        raise NotImplementedError

    def power(self, base: Node) -> Node:
        """`base` with exponents behind it."""
        raise NotImplementedError

    def postfix(self, node: Node) -> Node:
        """`node` with factorials and primes."""
        raise NotImplementedError

    def exponent(self) -> Node:
        """What is raised."""
        raise NotImplementedError

    def group(self, closer: str) -> Node:
        """What is inside a brace that opened."""
        raise NotImplementedError
