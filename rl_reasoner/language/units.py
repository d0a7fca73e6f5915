"""The units of a text, in any script: words, sentences, paragraphs, list items.

What counts as what is told in docs/rewards-language.md. Every function takes model output of any
kind, raises nothing, and takes time linear in it. Knows nothing of rewards.
"""

import re
import unicodedata
from bisect import bisect_right

from rl_reasoner.language.fences import column_of, fenced_blocks

# Scripts without spaces, whose characters count as words: Han (with extensions), kana, bopomofo.
IDEOGRAPHS = (
    "\u3005-\u3007\u3021-\u3029\u3040-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
)
# Scripts in which a word may stand close to the next one, or a particle to its word.
UNSPACED = (
    IDEOGRAPHS + "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3130-\u318f\uac00-\ud7af"
)
# Signs within words that Python does not take for letters: accents, Indic, Arabic, Thai vowels.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a"
    "\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0962\u0963\u0980-\u09ff\u0a00-\u0dff"
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u1ab0-\u1aff\u20d0-\u20ff"
)
_LETTER = rf"(?:[^\W_{IDEOGRAPHS}]|[{_MARKS}])"
_IDEOGRAPH = re.compile(f"[{IDEOGRAPHS}]")
_WORD = re.compile(
    rf"[{IDEOGRAPHS}]|{_LETTER}+(?:"
    r"(?:['’‑_-]"  # don't, well-known
    r"|(?<=[a-z0-9])\.(?=[a-z0-9])|(?<=[0-9])[,:](?=[0-9])"  # 3.14, example.com, 1,000, 10:30
    r"|(?<=\b[^\W\d_])\.(?=[^\W\d_]\b))"  # U.S.A, e.g
    rf"{_LETTER}+)*"
)
# Joiners and marks that are not seen. The emoji joiner goes too: emoji are no words.
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u061c"))
_UNSEEN |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
_APOSTROPHES = dict.fromkeys(map(ord, "’‘ʼ"), "'")
_NEVER = """
mr mrs ms dr prof rev gen st mt vs e.g i.e cf al approx dept capt sgt col hon messrs mmes
jan feb mar apr jun jul aug sept sep oct nov dec
"""
_NUMBERED_ONLY = "fig figs no nos vol ed eds pp p eq sec ch art"
_MAY = "etc inc ltd co corp a.m p.m u.s u.k u.s.a u.n jr sr b.c a.d ph.d m.d"
_NEVER_ENDS, _MAY_END = frozenset(_NEVER.split()), frozenset(_MAY.split())
_BEFORE_NUMBERS = frozenset(_NUMBERED_ONLY.split())
_LAST_WORD = 24  # characters before a mark that are looked at
_CLOSERS = "\"'”’»)]}」』】）*_"
_CLOSED = f"[{re.escape(_CLOSERS)}]*"
_GREEK = "[\u0370-\u03ff\u1f00-\u1fff]"
_END = re.compile(rf"(?P<wide>[。！？｡।؟]+){_CLOSED}|(?:[.!?…۔॥]+|(?<={_GREEK}{{2}});){_CLOSED}")
_BULLET = re.compile(r"[ \t]*(?:[-*+–][ \t]+|[•·・‣◦▪●○]\s*)(?=\S)")
_NUMBERED = re.compile(r"[ \t]*[(（]?(\d{1,4})(?:[.)](?=[ \t])|[．、）])[ \t]*(?=\S)")
_RULE = re.compile(r"[ \t]*([-*_=•·])(?:[ \t]*\1){2,}[ \t]*")
_NESTED = 2  # columns that an item of a list within an item is further in, at least
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]")


def normalised(text: str) -> str:
    """`text` in one spelling: line ends as \\n, full-width letters narrow, nothing unseen in it.

    Chinese punctuation stays wide. Surrogates, which are no characters, become question marks.
    """
    text = one_line_end(text).translate(_UNSEEN)
    if text.isascii():
        return text
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return unicodedata.normalize("NFC", text.translate(_NARROW))


def one_line_end(text: str) -> str:
    """`text` with every line end as \\n, and else as it is written."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Full-width letters, digits and signs, but the punctuation that Chinese is written with.
_NARROW = {
    code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "！，．：；？（）～"
} | {0x3000: 0x20, 0x2028: 0x0A, 0x2029: 0x0A, 0x85: 0x0A}


def words_of(text: str) -> list[str]:
    """The words of a text: runs of letters and digits; each Chinese character or kana is one.

    `don't`, `well-known`, `3.14`, `1,000`, `10:30`, `e.g` and `example.com` are one word each.
    """
    return _WORD.findall(normalised(text))


def ideographs(text: str) -> list[str]:
    """The Chinese characters (and kana) of a text."""
    return _IDEOGRAPH.findall(normalised(text))


def paragraphs(text: str) -> list[str]:
    """The blocks of a text between blank lines; a line of only ---, *** or the like is none."""
    blocks: list[list[str]] = [[]]
    for line in normalised(text).split("\n"):
        if not line.strip() or _RULE.fullmatch(line):
            blocks.append([])
        else:
            blocks[-1].append(line)
    return ["\n".join(block) for block in blocks if block]


def sentences(text: str) -> list[str]:
    """The sentences of a text.

    They end with . ! ? ۔ ॥ (in Greek also with ;) and blanks behind it, or with 。！？।؟ whatever
    follows. Points of abbreviations, initials, numbers and ellipses within a sentence end none. A
    paragraph, a heading and an item of a list end one too, and count where a word is in them.
    """
    pieces: list[str] = []
    for block in paragraphs(text):
        for part in _parts(block):
            pieces += (piece for piece in _split(part) if _WORD.search(piece))
    return pieces


def _parts(block: str) -> list[str]:
    """The block, apart where an item of a list or a heading begins; their marks are taken off."""
    parts: list[list[str]] = [[]]
    for line in block.split("\n"):
        mark = _BULLET.match(line) or _NUMBERED.match(line) or _HEADING.match(line)
        if mark:
            parts.append([line[mark.end() :]])
            if _HEADING.match(line):
                parts.append([])
        else:
            parts[-1].append(line)
    return [" ".join(part) for part in parts if part]


def _split(text: str) -> list[str]:
    pieces, start = [], 0
    for end in _END.finditer(text):
        after = text[end.end() : end.end() + 40].lstrip()
        spaced = end.end() == len(text) or text[end.end()].isspace()
        if end["wide"]:
            ends = True
        elif _ideograph(text[end.end() : end.end() + 1]):
            ends = not _ellipsis(end[0])
        else:
            ends = spaced and _ends_here(
                text[max(start, end.start() - _LAST_WORD) : end.start()], end[0], after
            )
        if ends:
            pieces.append(text[start : end.end()])
            start = end.end()
    return [*pieces, text[start:]]


def _ideograph(character: str) -> bool:
    return bool(character) and bool(_IDEOGRAPH.match(character))


def _ellipsis(mark: str) -> bool:
    return mark[0] == "…" or mark.startswith("...")


def _ends_here(before: str, mark: str, after: str) -> bool:
    """Whether a point, question mark or the like, with a blank behind it, ends a sentence."""
    small = after[:1].islower()
    quoted = mark[-1] in _CLOSERS
    if mark.rstrip(_CLOSERS) == ".":
        last = before.split()[-1:] or [""]
        word = last[0].lstrip("\"'“‘([{*_").lower()
        if word in _NEVER_ENDS or (len(word) == 1 and word.isalpha() and word != "i"):
            return not after
        if word in _BEFORE_NUMBERS:
            return not after[:1].isdigit()
        if word in _MAY_END:
            return not small and not after[:1].isdigit()
        return not (quoted and small)
    if _ellipsis(mark):
        return not small
    return not (quoted and small)  # “Stop!” he said


def bullets(text: str) -> list[str]:
    """The items of bullet lists: lines that begin with - * + – or •, outside of code fences."""
    return [line[mark.end() :] for line, mark in _lines(text, _BULLET)]


def numbered(text: str) -> list[int]:
    """The numbers of the items of numbered lists: lines such as `1. …`, `2) …`, `3、…`.

    A list within an item does not count: it is further in, and does not go on with the numbers.
    """
    numbers: list[int] = []
    outermost, within = 1000, False
    for line, mark in _lines(text, _NUMBERED):
        number, column = int(mark[1]), column_of(line)
        further_in = bool(numbers) and column >= outermost + _NESTED
        within = further_in and (within or number != numbers[-1] + 1)
        if not within:
            numbers.append(number)
            outermost = min(outermost, column)
    return numbers


def _lines(text: str, kind: re.Pattern[str]) -> list[tuple[str, re.Match[str]]]:
    """The lines of a text, outside of its code blocks, that begin as `kind` does."""
    text = normalised(text)
    blocks = fenced_blocks(text, unclosed=True)
    starts = [block.start for block in blocks]
    items, at = [], 0
    for line in text.split("\n"):
        before = bisect_right(starts, at)
        fenced = before and at < blocks[before - 1].end
        if not fenced and not _RULE.fullmatch(line) and (mark := kind.match(line)):
            items.append((line, mark))
        at += len(line) + 1
    return items


def comparable(text: str) -> str:
    """`text` as phrases are looked for in it: case, white space and kind of apostrophe made one."""
    return " ".join(normalised(text).translate(_APOSTROPHES).casefold().split())


def has_word(text: str, word: str) -> int:
    """How often a word or phrase stands in a text (see `comparable`); whole words only.

    Where it begins or ends with a Chinese character, what stands beside it does not matter.
    """
    wanted = comparable(word)
    if not wanted:
        return 0
    before = "" if not _alone(wanted[0]) else rf"(?<!{_LETTER})(?<!_)"
    after = "" if not _alone(wanted[-1]) else rf"(?!{_LETTER}|_)"
    return len(re.findall(f"{before}{re.escape(wanted)}{after}", comparable(text)))


def _alone(character: str) -> bool:
    """Whether a word that begins or ends so must stand apart from letters."""
    return (character.isalnum() or character == "_") and not _ideograph(character)
