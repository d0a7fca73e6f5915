"""What should not be paid in a text: praise of itself, orders to its judge, what it said before.

Where no gold answer is known, the independent question is counterfactual: is the same completion
worth as much without these? `without_praise` and `without_repeats` take them out; `copies` tells a
completion that is its prompt again. English phrases, and repeats in any language. Pure, bounded;
never raises.
"""

import re

from rl_reasoner.judging.prompts import speaks_to_a_judge

_MOST = 40_000  # characters that are read, from the start: padding repeats itself soon
_SENTENCE = re.compile(r"[^.!?。！？\n]*(?:[.!?。！？]+[\"')\]]*|\n|$)[ \t]*")
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
_LONGEST_UNIT = 8  # words of what is said again and again
_ROUNDS = 3  # from which on the same words count as padding
_COPIED = 24  # characters from which on a copy of the prompt is no short answer


def without_praise(text: str) -> str:
    """`text` without the sentences in which it praises itself or speaks to whoever judges it."""
    kept = [
        sentence
        for sentence in _SENTENCE.findall(text[:_MOST])
        if not (_PRAISE.search(sentence) or speaks_to_a_judge(sentence))
    ]
    return "".join(kept) + text[_MOST:]


def without_repeats(text: str) -> str:
    """`text` without the sentences that stood in it before, and with the same words once only.

    The same one to eight words three times or more in a row are one: "very very very" is "very".
    """
    seen: set[str] = set()
    kept = []
    for sentence in _SENTENCE.findall(text[:_MOST]):
        plain = " ".join(sentence.casefold().split())
        if len(plain.split()) < 2 or plain not in seen:
            kept.append(sentence)
        seen.add(plain)
    return _collapsed("".join(kept)) + text[_MOST:]


def _collapsed(text: str) -> str:
    words = re.findall(r"\S+\s*", text)
    plain = [word.casefold().strip() for word in words]
    head = text[: len(text) - len(text.lstrip())]
    kept: list[str] = []
    at = 0
    while at < len(words):
        size, rounds = _run_at(plain, at)
        kept += words[at : at + size]
        at += size * rounds
    return head + "".join(kept)


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


def copies(text: str, prompt: str) -> bool:
    """Whether `text` is a stretch of its prompt, of half of it or more, and nothing of its own."""
    said, asked = (" ".join(one.casefold().split()) for one in (text, prompt))
    return len(said) >= _COPIED and 2 * len(said) >= len(asked) and said in asked
