"""What should not be paid in a text: praise of itself, orders to its judge, what it said before.

Where no gold answer is known, the independent question is counterfactual: is the same completion
worth as much without these, and is a text of the same form that says nothing (`meaningless`) worth
less? `without_praise` and `without_repeats` take them out; `copies` tells a completion that is its
prompt again. Praise is known in English alone, all else in any language. Pure, bounded; never
raises.
"""

import re
import unicodedata
from typing import ClassVar

from rl_reasoner.judging.prompts import speaks_to_a_judge

_MOST = 40_000  # characters that are read, from the start: padding repeats itself soon
_SENTENCE = re.compile(r"[^.!?。！？।॥؟۔\n]*(?:[.!?。！？।॥؟۔]+[\"')\]]*|\n|$)[ \t]*")
_GOOD = (
    r"(?:correct|right|accurate|perfect|excellent|great|outstanding|superb|brilliant|flawless|"
    r"best|ideal|complete|comprehensive|thorough|insightful|exceptional|amazing|wonderful|"
    r"masterful|high[- ]quality|top[- ]quality|well[- ](?:written|reasoned|structured|explained))"
)
_SUPERB = (  # what no answer says of its own content, as "the correct answer is 7" does
    r"(?:excellent|outstanding|superb|brilliant|flawless|exceptional|amazing|wonderful|masterful|"
    r"insightful|high[- ]quality|top[- ]quality)"
)
_WORK = (
    r"(?:answer|response|solution|reply|work|explanation|output|completion|submission|essay|text|"
    r"analysis|reasoning|derivation|proof|result)"
)
_PRAISE = re.compile(
    rf"\b(?:this|my|the above|above)\b[^.!?\n]{{0,30}}\b{_WORK}\b[^.!?\n]{{0,60}}\b{_GOOD}\b"
    rf"|\b{_SUPERB}\b[^.!?\n]{{0,20}}\b{_WORK}\b"
    rf"|\b{_WORK}\b[^.!?\n]{{0,30}}\b(?:deserves?|earns?|merits?|is worth)\b"
    r"|\b(?:full|top|maximum|highest|perfect)\s+(?:marks?|scores?|points|rating|grade)\b"
    r"|\b(?:10\s?/\s?10|100\s?/\s?100|five stars|5 stars)\b"
    r"|\b(?:I am|I'm|we are)\s+(?:\w+\s+)?(?:confident|certain|sure|convinced)\b"
    r"|\b(?:trust me|rest assured|without (?:a|any) doubt|guaranteed)\b"
    r"|\bas an? (?:\w+ )?expert\b"
    r"|\b(?:I|we) (?:have )?(?:\w+ )?(?:verified|(?:double[- ])?checked) (?:this|it|that|every)\b"
    r"|\b(?:great|excellent|wonderful|fantastic|brilliant|amazing) question\b",
    re.IGNORECASE,
)
_SUPERLATIVE = re.compile(rf"\b{_SUPERB}\w{{0,30}}[ \t]?", re.IGNORECASE)
_LONGEST_UNIT = 8  # words of what is said again and again
_ROUNDS = 3  # from which on the same words count as padding
_NEARBY = 8  # words before a word among which
_CROWD = 2  # it may not stand so often, where that is so for more than
_CROWDED = 0.25  # of a text's words
_WORD_AND_GAP = re.compile(r"\S+\s*")
_FEW = 12  # letters and digits
_MARKUP = re.compile(r"(</?\w{1,30}>|\\[A-Za-z]{1,30})")
_COPIED = 24  # characters from which on a copy of the prompt is no short answer


class _Others(dict[int, str]):
    """For each letter and digit another one: a vowel for a vowel, a letter of the same script."""

    _PLAIN: ClassVar[dict[str, str]] = {
        **dict(zip("aeiouAEIOU", "eiouaEIOUA", strict=True)),
        **dict(zip("bcdfghjklmnpqrstvwxyz", "cdfghjklmnpqrstvwxyzb", strict=True)),
        **dict(zip("BCDFGHJKLMNPQRSTVWXYZ", "CDFGHJKLMNPQRSTVWXYZB", strict=True)),
    }

    def __missing__(self, code: int) -> str:
        letter, other = chr(code), chr(code ^ 8)
        same = code < 128 or not letter.isalpha() or not other.isalpha()
        if letter.isdecimal():  # of any script; each has its ten in a row
            zero = code - unicodedata.decimal(letter)
            self[code] = chr(zero + (code - zero + 3) % 10)
        else:
            self[code] = self._PLAIN.get(letter, letter if same else other)
        return self[code]


_OTHERS = _Others()


def without_praise(text: str) -> str:
    """`text` without the sentences in which it praises itself or speaks to whoever judges it.

    And without superlatives wherever they stand: an answer that needs "excellent" to be paid, needs
    it for nothing else.
    """
    kept = [
        sentence
        for sentence in _SENTENCE.findall(text[:_MOST])
        if not (_PRAISE.search(sentence) or speaks_to_a_judge(sentence))
    ]
    return _SUPERLATIVE.sub("", "".join(kept)) + text[_MOST:]


def without_repeats(text: str) -> str:
    """`text` without what it said before.

    Sentences that stood in it go. The same one to eight words three times or more in a row are one:
    "very very very" is "very". Where more than a quarter of the words stand twice or more among
    the eight before them, these go, too: "o and and o o and" says nothing new.
    """
    seen: set[str] = set()
    kept = []
    for sentence in _SENTENCE.findall(text[:_MOST]):
        plain = " ".join(sentence.casefold().split())
        if len(plain.split()) < 2 or plain not in seen:
            kept.append(sentence)
        seen.add(plain)
    rest = "".join(kept)
    head = rest[: len(rest) - len(rest.lstrip())]
    return head + "".join(_uncrowded(_collapsed(_WORD_AND_GAP.findall(rest)))) + text[_MOST:]


def _collapsed(words: list[str]) -> list[str]:
    """The words with their gaps, those said several times in a row once."""
    plain = [word.casefold().strip() for word in words]
    kept: list[str] = []
    at = 0
    while at < len(words):
        size, rounds = _run_at(plain, at)
        kept += words[at : at + size]
        at += size * rounds
    return kept


def _uncrowded(words: list[str]) -> list[str]:
    """The words that are not crowded by themselves; all, where few are."""
    plain = ["".join(filter(str.isalnum, word.casefold())) for word in words]
    crowded = [
        word != "" and plain[max(0, at - _NEARBY) : at].count(word) >= _CROWD
        for at, word in enumerate(plain)
    ]
    if sum(crowded) <= _CROWDED * len(words):
        return words
    return [word for word, out in zip(words, crowded, strict=True) if not out]


def _run_at(words: list[str], at: int) -> tuple[int, int]:
    """Size and number of the rounds of the same words from `at` on; (1, 1) for none."""
    for size in range(1, _LONGEST_UNIT + 1):
        unit = words[at : at + size]
        rounds = 1
        while words[at + rounds * size : at + (rounds + 1) * size] == unit:
            rounds += 1
        if rounds >= _ROUNDS and len(unit) == size:
            return size, rounds
    return 1, 1


def meaningless(text: str) -> str:
    """A text of the same form that says nothing: each letter and digit is another one throughout.

    Words stay as long, as many and as different as they were, and what is said again is said again;
    marks, tags such as `<answer>` and commands such as `\\boxed` stay. So what is paid for it, is
    paid for length, variety or layout. Empty for texts of fewer than twelve letters and digits,
    which hold too little, and of such as have no others.
    """
    if sum(map(str.isalnum, text[:_MOST])) < _FEW:
        return ""
    parts = _MARKUP.split(text[:_MOST])  # every second one is markup
    other = "".join(part if at % 2 else part.translate(_OTHERS) for at, part in enumerate(parts))
    return "" if other == text[:_MOST] else other


def copies(text: str, prompt: str) -> bool:
    """Whether `text` is a stretch of its prompt, of half of it or more, and nothing of its own."""
    said, asked = (" ".join(one.casefold().split()) for one in (text, prompt))
    return len(said) >= _COPIED and 2 * len(said) >= len(asked) and said in asked
