"""An answer's text before it is read into tokens: delimiters, spacing and spellings put in order.

What has several spellings gets the one that the lexer knows. Work is linear in the length.
"""

import re
from math import factorial

from rl_reasoner.answers.parsing.glyphs import ascii_mathematics
from rl_reasoner.answers.parsing.lines import parted_lines

_RUPEES = re.compile(r"(?:\\text\s*\{\s*Rs\.?\s*\}|\bRs\b\.?)\s*(?=\d)")
_MICRO = re.compile(
    r"\\(?:text|mathrm)\s*\{\s*[\u00b5\u03bc]([mgslL])\s*\}"
    r"|(?:\\mu\s*|[\u00b5\u03bc]\s?)\\(?:text|mathrm)\s*\{\s*([mgslL])\s*\}"
)
_OHMS = re.compile(r"(?<=\d)\s?([kM])[\u03a9\u2126](?!\w)")
_SQUARES = re.compile(
    r"(?<=[\d\s{])(sq|cu)\.?\s+(?=(?:mm|cm|m|km|in|ft|feet|foot|yd|yards?|mi|miles?|inch(?:es)?"
    r"|met(?:er|re)s?|units?)\b)"
)
_CASES_ARRAY = re.compile(
    r"\\left\s?\\\{\s?\\begin\s?\{array\}(?:\s?\{[^{}]*\})?((?:(?!\\begin|\\end).)*+)\\end\s?\{array\}"
    r"\s?\\right\s?\."
)
_CASE_WORD = re.compile(
    r",?+\s?&\s?(?:\\(?:text|mathrm)\s?\{\s?(?:if|for|when|where)\s?\}|(?:if|for)\b)"
)
_FACTORIAL_EQUALS = re.compile(r"(?<![\w^.])(\d{1,2})!=\s?(\d++)(?![\w.,^])")
_UNIT_FRACTION = re.compile(
    r"\\[dt]?frac\s*\{\s*\\(?:text|mathrm)\s*\{([^{}\d]*)\}\s*\}\s*"
    r"\{\s*\\(?:text|mathrm)\s*\{([^{}\d]*)\}\s*\}"
)
_NOISE = re.compile(
    r"\\(?:left|right)\s*\.(?!\d)|\\(?:hspace|vspace|kern|hskip|label|tag|color)\*?\s*\{[^{}]*\}"
    r"|\$\$|(?<!\\)\\[()\[\]]|\\textcolor\s*\{[^{}]*\}"
    r"|\\[hv]?phantom\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\d)"  # room that is left, and nothing in it
)
_BASE_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{([^{}]*\bbase\b[^{}]*)\}")
_IN_BASE = re.compile(
    r"(?:(?<!\s)\s++)?(?:_\s*\{\s*base|\(\s*base|\bin\s+base|\bbase)[\s-]*(\d+|two|three|four|five|six|seven|eight|nine"
    r"|ten|twelve|sixteen)\b\s*[})]?"
)
_HEX_TEXT = re.compile(r"(?<=\d)\\(?:mathrm|text)\s*\{([A-F]+)\}(?=\s*_)")
_DEGREE = re.compile(
    r"\^?(?:(?<!\s)\s++)?(?:\{\s*+)?\\(?:text|math)?(?:degree(?![a-z])|(?:text|rm)\s*\{o\})\s*\}?"
)
_RAISED_O = re.compile(r"(?<=\d)\s?\^\s?(?:o(?![a-zA-Z])|\{\s?o\s?\})")
_ORDINAL = re.compile(
    r"(?<=\d)\s?\^\s?(?:\{\s?(?:\\rm\s)?(?P<a>st|nd|rd|th)\s?\}"
    r"|(?P<o>\{\s?)?\\(?:text|mathrm|textrm)\s?\{\s?(?P<b>st|nd|rd|th)\s?\}(?(o)\s?\}))"
)
_INDEX_TEXT = re.compile(r"_\s?(\\(?:text|mathrm)\s?\{[^{}]*\})")
_MEASURE = re.compile(r"(?<![a-zA-Z\\])m\s?(?=\\(?:measured)?angle(?![a-zA-Z]))")
_THIN_SPACE = re.compile(r"\\[,;:! ]")
_SPACED_INDEX = re.compile(r"\\[,;:! ]\s?(?=_)")
_GLUED_JOINT = re.compile(r"([且或和与])(?=[a-zA-Z])")
_TYPED_TIMES = re.compile(r"(?<=[\d)] )[xX] (?=(?:\$ ?)?\d|\([\d .+*/-]{1,40}\))")
_NAMED_X = re.compile(r"(?<![a-zA-Z\\])[xX](?![a-zA-Z])")
_GLUED_SPACE = re.compile(r"(\\q?quad)(?=[a-zA-Z])")
_DERIVATIVE = re.compile(r"(?<![a-zA-Z\\])d([a-zA-Z])\s?/\s?d([a-zA-Z])(?![a-zA-Z])")
_DOLLAR = re.compile(r"(?<!\\)\$")
_CIRCLED = re.compile(r"(\\textcircled\s?\{\s?\d{1,2}\s?\})\s?(?=\\textcircled)")
_COMPOSED = re.compile(r"\(\s?([fgh])\s?\\circ\s?([fgh])\s?\)\s?\(")
_TEXT = r"(?:\\text\s?\{\s?)?"
_INTEGER = re.compile(
    rf",?\s?\(?{_TEXT},?\s?(?:for|where|with)\s(?:(?:any|all|every|some|each|an)\s)?integers?\s?"
    r"(?:values?\sof\s?)?\}?\s?([a-zA-Z])\s?\}?\)?\.?$"
)
_AN_INTEGER = re.compile(
    rf"(?:,\s?|\(|(?<=\s)(?=\\text)){_TEXT}(?:(?:for|where|with)\s?)?\}}?\s?([a-zA-Z])\s?{_TEXT}"
    r"(?:is\s|being\s)?(?:any|an|some)\sinteger\s?\}?\)?\.?$"
)
_BOLD = r"\\(?:vec|mathbf|bm|boldsymbol|overrightarrow|hat)(?![a-zA-Z])"
_NABLA = re.compile(r"\\nabla\s?(?:\\(cdot|times)(?![a-zA-Z])\s?)")
_CROSS = re.compile(
    rf"({_BOLD}\s?(?:\{{\s?[a-zA-Z]{{1,3}}\s?\}}|[a-zA-Z])(?:_\w)?\s?)\\times(?=\s?\(?{_BOLD})"
)
_RELATED = r"[a-z]\s?(?:\\(?:neq?|[lg]eq?|[lg]eqslant|[lg]t|in)(?![a-z])|[<>]|!=)[^,;]{1,40}"
_DOMAIN = re.compile(  # at the end: `x for x > 0, -x otherwise` has two values
    r"(?:\\text\s?\{\s?(?:for|where|with|when|provided that)\s?\}|\b(?:for|where|with|when)\b"
    rf"|(?<!P)(?<!P\s)(?<!Pr)(?<!Pr\s)(?=\({_RELATED}\)\s?$))\s?(?=\(?{_RELATED}$)"
)


def _factorial_equals(match: re.Match[str]) -> str:
    """`5!=120` with its factorial apart; other numbers are told to differ."""
    if len(match[2]) > 160 or factorial(int(match[1])) != int(match[2]):
        return match[0]
    return f"{match[1]}! = {match[2]}"


def _units_spelled(text: str) -> str:
    """`text` with the units whose signs mean something else elsewhere spelled in words."""
    text = _SQUARES.sub(lambda m: "square " if m[1] == "sq" else "cubic ", text)
    text = _MICRO.sub(lambda m: rf"\text{{ micro{m[1] or m[2]}}}", text)
    return _OHMS.sub(lambda m: rf"\text{{ {m[1]}ohm}}", _RUPEES.sub("₹", text))


def _with_integers(text: str) -> str:
    """`text` with "for integer k" or "where k is an integer" at its end as `k \\in \\mathbb{Z}`."""
    found = _INTEGER.search(text) or _AN_INTEGER.search(text)
    if found is None or text[: found.start()].count("{") != text[: found.start()].count("}"):
        return text
    return rf"{text[: found.start()]}, {found[1]} \in \mathbb{{Z}}"


def clean(text: str) -> str:
    """`text` without mathematics delimiters and spacing that carries no meaning."""
    text = _units_spelled(parted_lines(text))
    text = " ".join(ascii_mathematics(text).split()).replace("per cent", "percent")
    text = _GLUED_JOINT.sub(r"\1 ", text.replace("{:}", ":"))
    if "=" in text:
        typed = _TYPED_TIMES.sub(r"\\times ", text)
        text = text if _NAMED_X.search(typed) else typed  # `y = 2 x (x + 1)` has a letter x
    text = _FACTORIAL_EQUALS.sub(_factorial_equals, text)
    if text.count("$") % 2:  # an odd dollar beside a digit is money
        text = re.sub(r"(?<!\\)\$(?=\s*[\d.])|(?<=\d)\$", r"\\dollar ", text, count=1)
    text = _DERIVATIVE.sub(r"\\frac{d\1}{d\2}", _DOLLAR.sub(" ", text))
    text = _ORDINAL.sub(r" \g<a>\g<b> ", _RAISED_O.sub(r"^\\circ ", text))
    if "base" in text:
        text = _BASE_TEXT.sub(r" \1 ", _THIN_SPACE.sub(" ", text))
        text = _IN_BASE.sub(r"_{\1}", text)
    if "integer" in text:
        text = _with_integers(text)
    if "\\begin" in text:
        text = _CASES_ARRAY.sub(r"\\begin{cases}\1\\end{cases}", text)
        text = _CASE_WORD.sub(" & ", text) if "{cases}" in text else text
    if "\\" in text:
        text = _HEX_TEXT.sub(r"\1", _DEGREE.sub(r"^\\circ ", text))
        text = _UNIT_FRACTION.sub(r"\\text{ \1/\2}", _NOISE.sub(" ", text))
        text = _GLUED_SPACE.sub(r"\1 ", text)
        text = _INDEX_TEXT.sub(r"_{\1}", _SPACED_INDEX.sub("", _MEASURE.sub("", text)))
        text = _COMPOSED.sub(r"\1_{o\2}(", text)
        text = _NABLA.sub(r"\\nabla\1 ", _CROSS.sub(r"\1\\cross ", text))
        text = _DOMAIN.sub(", ", _CIRCLED.sub(r"\1,", text))
    return text
