"""Text of one answer into tokens: LaTeX, plain ASCII mathematics and the words between.

The grammar itself is in `parser`. Spellings that mean the same give the same tokens (`\\dfrac` and
`\\frac`, `\\le` and `<=`, `\\text{cm}` and cm after a number). Where one spelling has two honest
meanings the lexer takes one, notes the doubt, and takes the other when it is asked to (`Doubt`).
Work is linear in the length of the text.
"""

import re
from enum import StrEnum
from typing import NamedTuple

from rl_reasoner.answers.parsing.factors import spells_factors
from rl_reasoner.answers.parsing.glyphs import GREEK_NAMES
from rl_reasoner.answers.parsing.units import CURRENCIES, LETTER_RUNS, MONEY, SOFT
from rl_reasoner.answers.parsing.vocabulary import (
    ALIAS,
    ALIGNED,
    BASE_WORDS,
    CHINESE,
    CONNECT,
    CONSTANTS,
    FUNCTIONS,
    IN_WORDS,
    PLAIN_COMMANDS,
    RELATIONS,
    SIGNS,
    SMALL_WORDS,
    STYLE,
    TEXTS,
)
from rl_reasoner.answers.tree import Unreadable

MAX_TOKENS = 2500


class Doubt(StrEnum):
    """A spelling with a second meaning."""

    GROUPED = "digits among others in brackets, joined by a comma: a list, or thousands"
    EULER = "2e-1: a power of ten, or Euler's number"
    SOFT_UNIT = "5 m: a product, or metres"
    COMMON_LOG = "log without a base: natural, or of base ten"


class Token(NamedTuple):
    """A token: `kind` is num, based, let, fn, word, cmd, rel, sep, op or money."""

    kind: str
    text: str
    space: bool = False


_GROUP = re.compile(
    r"\d{1,3}(?:(?P<s>,\\!\s?|\s?\{\s?,\s?\}\s?|\\!\s?,\s?|\{\\,\}|\\[,;: ]|[,~  ])\d{3})"
    r"(?:(?P=s)\d{3})*(?!\d|,\d|\s\d)(?:\.\d+)?"
)
_LISTED = re.compile(r"\d,$")
_OPENED = re.compile(r"(?:^|=|∈|\\in) ?(?:\\left ?)?(?:[(\[]|\\\{) ?\Z")
_CLOSED = re.compile(r" ?(?:\\right ?)?(?:[)\]]|\\\})(?! ?[-+*/^\d\\])")
_SEPARATORS = re.compile(r"[^\d.]")
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\(?:overline|bar|overbar)\s*(?:\{\s*(\d+)\s*\}|(\d))|\((\d+)\)(?![\d(])"
    r"|\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?)"
)
_ELLIPSIS = re.compile(r"(\d+)\.(\d+)\s*(?:\\(?:ldots|dots|cdots)(?![a-z])|\.\.\.+)")
_NUMBER = re.compile(r"\d+\.?\d*(?!\.\d)|\.\d+|\d+")
_SCIENTIFIC = re.compile(r"(?:\d++(?:\.\d*+)?|\.\d++)[eE]([+-]?)(\d{1,4})(?![\d.])")
_BASED = re.compile(
    r"\(?(?P<d>(?=[A-Z]*\d)[0-9A-Z]+)\)?\s*_\s*(?:\{\s*+(?:\\(?:text|mathrm)\s*\{\s*+)?\(?(?:base\s*+)?"
    r"(?P<b>\d++|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)\)?\s*+(?:\}\s*+)?\}|(?P<c>\d+))"
)
_LETTERED = re.compile(
    r"(?P<d>[A-F](?=[0-9A-F])[0-9A-F]+)_(?:\{(?P<b>1[1-6])\}|(?P<c>1[1-6]))(?!\d)"
)
_RUN = re.compile(r"[a-zA-Z]+")
_ACCENTED = re.compile(r"(?<![a-zA-Z])[a-zA-Z]++[\u00c0-\u024f][a-zA-Z\u00c0-\u024f]*")
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
_APPLIED = re.compile(r"(arcsin|arccos|arctan|sin|cos|tan|cot|sec|csc|ln|log)([a-z]|theta|alpha)$")
_NEXT_VALUE = re.compile(r"\s[-+]?(?:\d|[a-z]\s?=)")
_MICRO_LETTERS = re.compile(r"\s*([mgslL])(?![a-zA-Z])")
_POINT = re.compile(r"\.(?:\d|\\(?:overline|bar|dot)\b)")
_ROW_GAP = re.compile(r"\s*\[-?[\d.]+\s*(?:pt|em|ex|mm|cm)\]")
_BLACKBOARD = re.compile(r"\s*+(?:\{\s*+)?([A-Z])\s*\}?")
_ENVIRONMENT = re.compile(r"\s*\{([a-zA-Z]+)\*?\}(\s*\[[^\]]*\])?")
_COLUMNS = re.compile(r"\s*\{[^{}]*\}")
_STYLED_LETTERS_KEPT = frozenset("eid")


class _Lexer:
    """State of one scan; `choose` are the doubts to settle the second way."""

    def __init__(self, choose: frozenset[Doubt]) -> None:
        self.choose = choose
        self.tokens: list[Token] = []
        self.doubts: set[Doubt] = set()
        self.depth = 0
        self.space = False
        self.aligned = False  # inside an environment whose & only aligns

    def put(self, kind: str, text: str) -> None:
        """Add a token."""
        self.tokens.append(Token(kind, text, self.space))
        self.space = False
        if len(self.tokens) > MAX_TOKENS:
            raise Unreadable(f"more than {MAX_TOKENS} tokens")

    def after_value(self) -> bool:
        """Whether the last token ends a value, so that a unit may follow."""
        if not self.tokens:
            return False
        last = self.tokens[-1]
        return last.kind in ("num", "word", "based") or last.text in (")", "}", "]", "|", "/", "pi")

    def after_degree(self) -> bool:
        """Whether a degree sign has just ended."""
        texts = [token.text for token in self.tokens[-2:]]
        return texts[-1:] == ["circ"] or texts == ["circ", "}"]

    def scan(self, text: str, in_text: bool = False) -> None:
        """Read `text` into tokens; inside a text command runs of letters are words."""
        position = 0
        while position < len(text):
            char = text[position]
            if char in " \t\r\n~":
                self.space = True
                position += 1
            elif char == "\\":
                position = self.command(text, position)
            elif char.isdigit() or (char == "." and _POINT.match(text, position)):
                position = self.number(text, position)
            elif (char == "(" and (match := _BASED.match(text, position))) or (
                char.isupper() and (match := _LETTERED.match(text, position))
            ):
                position = self.based(match)
            elif char.isalpha():
                position = self.run(text, position, in_text)
            else:
                position = self.sign(text, position)

    def number(self, text: str, at: int) -> int:
        """Scan the number at `at`; returns the position behind it."""
        if match := _BASED.match(text, at):
            return self.based(match)
        if (match := _REPEATING.match(text, at)) is not None:
            whole, fixed, *cycles = match.groups()
            cycle = cycles[0] or cycles[1] or cycles[2] or "".join(c or "" for c in cycles[3:])
            self.put("repeat", f"{whole or 0}.{fixed}|{cycle}")
            return match.end()
        if (match := _ELLIPSIS.match(text, at)) and (tail := _period(match[2])):
            self.put("repeat", f"{match[1]}.{match[2][: -2 * tail]}|{match[2][-tail:]}")
            return match.end()
        if (match := _GROUP.match(text, at)) and self.is_group(text, match):
            self.put("num", _SEPARATORS.sub("", match[0]))
            return match.end()
        if match := _SCIENTIFIC.match(text, at):
            doubtful = bool(match[1]) and "." not in match[0]
            if doubtful:
                self.doubts.add(Doubt.EULER)
            if not doubtful or (match[1] == "-") != (Doubt.EULER in self.choose):
                self.put("num", match[0].lower())
                return match.end()
        match = _NUMBER.match(text, at)
        if match is None:
            raise Unreadable(f"no number at {text[at : at + 12]!r}")
        self.put("num", match[0])
        return match.end()

    def is_group(self, text: str, match: re.Match[str]) -> bool:
        """Whether the digit groups of `match` are one number in the reading asked for."""
        if match["s"] in " ~" and (re.match(r"\s*(/|\\[dt]?frac)", text[match.end() :][:12])):
            return False  # a mixed number with a long numerator
        if match[0][0] == "0" and match["s"] in ", ":
            return False
        if match["s"] != ",":
            return True
        if _LISTED.search(text, max(0, match.start() - 5), match.start()):
            return False  # 27,54,108: the first comma parts no thousands
        if self.depth == 0:
            return True
        if _CLOSED.match(text, match.end()) and _OPENED.search(
            text, max(0, match.start() - 16), match.start()
        ):
            return False  # a point, an interval, a set: nobody writes a number so
        self.doubts.add(Doubt.GROUPED)
        return Doubt.GROUPED in self.choose

    def based(self, match: re.Match[str]) -> int:
        """Add a number with its base; returns the position behind it."""
        base = match["b"] or match["c"]
        value = BASE_WORDS.get(base) or int(base[:4])
        if not 2 <= value <= 36 or any(int(d, 36) >= value for d in match["d"]):
            raise Unreadable(f"{match[0]!r} is not a number in that base")
        self.put("based", f"{match['d']}_{value}")
        return match.end()

    def run(self, text: str, at: int, in_text: bool) -> int:
        """Scan a run of letters: a function, a unit, a word, or single letters."""
        worded = in_text or not text[at].isascii()
        match = (_WORD if worded else _ACCENTED).match(text, at) or _RUN.match(text, at)
        if match is None:
            self.put("word", text[at])
            return at + 1
        run, end = match[0], match.end()
        if run.lower() in CONNECT or run in CHINESE:
            self.put("sep", CONNECT.get(run.lower()) or CHINESE[run])
        elif run.lower() in IN_WORDS and (
            in_text or len(run) > 2 or not run.isascii() or self.is_joint(text, end)
        ):
            self.put("sep", IN_WORDS[run.lower()])
        elif run.lower() in ("percent", "pct", "percentage"):
            self.put("op", "%")
        elif run in CONSTANTS:
            self.put("cmd", CONSTANTS[run])
        elif in_text or not run.isascii():
            self.put("word", run)
        elif run in CURRENCIES:
            self.put("word", run.lower())
        elif self.is_unit(run, text, end):
            power = re.match(r"([23])(?!\d)", text[end : end + 2])
            self.put("word", run + (f"^{power[1]}" if power else ""))
            end += bool(power)
        elif run in FUNCTIONS:
            self.function(run, text, end)
        elif run in GREEK_NAMES:
            self.put("let", run.removeprefix("var"))
        elif applied := _APPLIED.match(run):
            self.put("fn", applied[1])
            self.put("let", applied[2])
        elif len(run) > 3 or self.is_small_word(run, text, at):
            self.put("word", run)
        else:
            self.single_letters(run, text, end)
        return end

    def function(self, name: str, text: str, end: int) -> None:
        """Add a function, a logarithm without a base with its doubt."""
        if name == "log" and text[end : end + 2].lstrip()[:1] != "_":
            self.doubts.add(Doubt.COMMON_LOG)
            name = "lg" if Doubt.COMMON_LOG in self.choose else name
        self.put("fn", name)

    def is_joint(self, text: str, end: int) -> bool:
        """Whether two letters between a number and a number are no factors: `2 ou 3`."""
        numbered = bool(self.tokens) and self.tokens[-1].kind == "num" and self.space
        return numbered and bool(_NEXT_VALUE.match(text, end))

    def is_small_word(self, run: str, text: str, at: int) -> bool:
        """Whether two or three letters are the word that they spell, and no factors."""
        if run.lower() not in SMALL_WORDS or run.isupper():
            return False
        before = tuple((token.kind, token.text) for token in self.tokens[-2:])
        return not spells_factors(text, at, at + len(run), before)

    def is_unit(self, run: str, text: str, end: int) -> bool:
        """Whether a run of letters is a unit where it stands."""
        known = run in LETTER_RUNS or (len(run) > 3 and run.lower() in LETTER_RUNS)
        return known and self.after_value() and text[end : end + 1] != "("

    def single_letters(self, run: str, text: str, end: int) -> None:
        """Add a short run as letters, or as a unit."""
        if run in ("C", "F") and self.after_degree():
            self.put("word", run)
            return
        if run in SOFT and self.space and self.after_value():
            self.doubts.add(Doubt.SOFT_UNIT)
            if Doubt.SOFT_UNIT in self.choose:
                self.put("word", run)
                return
        for letter in run:
            self.put("let", letter)

    def command(self, text: str, at: int) -> int:
        """Scan a command with its name; returns the position behind it."""
        match = _RUN.match(text, at + 1)
        if match is None:
            return self.escaped(text, at)
        name, end = ALIAS.get(match[0], match[0]), match.end()
        if name in TEXTS:
            return self.styled(name, text, end)
        if name in STYLE:
            pass
        elif name in RELATIONS:
            self.put("rel", RELATIONS[name])
        elif name in CONNECT:
            self.put("sep", CONNECT[name])
        elif name in PLAIN_COMMANDS:
            self.op(PLAIN_COMMANDS[name])
        elif name in ("quad", "qquad"):
            self.put("sep", "quad")
        elif name in FUNCTIONS and name != "sqrt":
            self.function(name, text, end)
        elif name in GREEK_NAMES:
            return self.greek(name, text, end)
        elif name == "mathbb":
            group = _BLACKBOARD.match(text, end)
            self.put("cmd", f"bb{group[1] if group else ''}")
            end = group.end() if group else end
        elif name in ("R", "Z", "N", "Q", "C"):
            self.put("cmd", f"bb{name}")
        elif name in ("begin", "end"):
            return self.environment(name, text, end)
        elif name in ("dollar", "euro", "pounds"):
            self.put("money", {"dollar": "$", "euro": "€", "pounds": "£"}[name])
        else:
            self.put("cmd", name)
        return end

    def greek(self, name: str, text: str, end: int) -> int:
        """Add a Greek letter: behind a value, \\mu m and \\Omega may be units."""
        small = _MICRO_LETTERS.match(text, end) if name == "mu" else None
        if (small or name == "Omega") and self.after_value():
            self.doubts.add(Doubt.SOFT_UNIT)
            if Doubt.SOFT_UNIT in self.choose:
                self.put("word", f"micro{small[1]}" if small else "ohm")
                return small.end() if small else end
        self.put("let", name.removeprefix("var"))
        return end

    def escaped(self, text: str, at: int) -> int:
        """Scan a backslash with a sign; returns the position behind it."""
        char = text[at + 1 : at + 2]
        if char in ("{", "}"):
            self.op("\\" + char)
        elif char == "|":
            self.op("|")
        elif char == "\\":
            self.put("sep", "row")
            gap = _ROW_GAP.match(text, at + 2)
            return gap.end() if gap else at + 2
        elif char == "%":
            self.put("op", "%")
        elif char == "$":
            self.put("money", "$")
        elif char and char in ",;:! >/":
            self.space = True
        return at + 2

    def styled(self, name: str, text: str, at: int) -> int:
        """Scan the argument of a text or font command as words, letters or mathematics."""
        while at < len(text) and text[at] == " ":
            at += 1
        if text[at : at + 1] != "{":
            return at  # the next token is styled; styling does not matter
        end = closing_brace(text, at)
        inner = text[at + 1 : end].strip("~ ")
        if len(inner) == 1 and inner.isalpha() and inner.isascii():
            unit = inner in SOFT and inner not in _STYLED_LETTERS_KEPT and self.after_value()
            unit = unit or (inner in "CF" and self.after_degree())
            self.put("word" if unit else "let", inner)
        elif match := _BASED.match(inner + text[end + 1 : end + 12]):
            self.based(match)
            end += max(0, match.end() - len(inner))
        elif self.is_unit(inner, " ", 0):
            self.put("word", inner)
        elif inner in FUNCTIONS or (name == "operatorname" and inner.rstrip("*") in FUNCTIONS):
            self.put("fn", inner.rstrip("*"))
        elif name in ("mathrm", "mathbf", "mathit", "boldsymbol", "bm", "mathsf") and (
            len(inner) < 3 and inner.isupper()
        ):
            self.scan(inner)
        else:
            worded = bool(re.search(r"[^\W\d_]{2}", re.sub(r"\\[a-zA-Z]+", "", inner)))
            self.space = self.space or text[at + 1 : at + 2] in (" ", "~")
            self.scan(inner, in_text=worded)
            self.space = self.space or text[end - 1 : end] == " "
        return end + 1

    def environment(self, name: str, text: str, at: int) -> int:
        """Scan the begin or end of an environment."""
        group = _ENVIRONMENT.match(text, at)
        if group is None:
            raise Unreadable("an environment without a name")
        end = group.end()
        if name == "begin" and group[1] in ("array", "tabular", "alignedat"):
            columns = _COLUMNS.match(text, end)
            end = columns.end() if columns else end
        if group[1] in ALIGNED:
            self.aligned = name == "begin"
        self.put("cmd", f"{name}:{group[1]}")
        return end

    def op(self, text: str) -> None:
        """Add an operator and count brackets."""
        self.depth += (text in ("(", "[", "{", "\\{")) - (text in (")", "]", "}", "\\}"))
        self.put("op", text)

    def sign(self, text: str, at: int) -> int:
        """Scan a sign of one to three characters."""
        for sign, kind, meaning in SIGNS:
            if text.startswith(sign, at):
                self.put(kind, meaning)
                return at + len(sign)
        char = text[at]
        if char in MONEY:
            self.put("money", char)
        elif char == "&" and self.aligned:
            pass
        elif char in ",;&":
            self.put("sep", char)
        elif char in "<>=":
            self.put("rel", char)
        elif char in '"`$':
            pass
        elif char in "+-*/^_!'()[]{}|:%?.#@":
            self.op(char)
        else:
            raise Unreadable(f"the character {char!r}")
        return at + 1


def _period(digits: str) -> int:
    """Length of the cycle at the end of `digits`, seen twice (a single digit three times), or 0."""
    for size in range(1, len(digits) // 2 + 1):
        times = 3 if size == 1 else 2
        if len(digits) >= size * times and digits.endswith(digits[-size:] * times):
            return size
    return 0


def closing_brace(text: str, at: int) -> int:
    """Index of the brace that closes the one at `at`; raises `Unreadable` where there is none."""
    depth, position = 0, at
    while position < len(text):
        char = text[position]
        if char == "\\":
            position += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    raise Unreadable("a group that does not close")


def tokens_of(
    text: str, choose: frozenset[Doubt] = frozenset()
) -> tuple[tuple[Token, ...], frozenset[Doubt]]:
    """Tokens of `text` (already cleaned) and the doubts met; raises `Unreadable`."""
    lexer = _Lexer(choose)
    lexer.scan(text)
    return tuple(lexer.tokens), frozenset(lexer.doubts)
