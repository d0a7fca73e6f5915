"""What a sentence says is the answer: its one expression, or what it boils down to.

A sentence is what stands between answer tags, behind a cue, or at the end of a completion
(`extract` finds it). A number beside words that make another value of it ("at most 12", "half of
12") is no answer: a box with the same words has another value, too.
"""

import re
from collections.abc import Iterator

from rl_reasoner.answers.extraction.wording import choice, is_wordy, meant
from rl_reasoner.answers.parsing.changing import changed, changed_behind, changed_by_remark
from rl_reasoner.answers.parsing.lines import parted_lines
from rl_reasoner.answers.parsing.statements import read_answer

MAX_SENTENCE = 2_000

REFUSAL = re.compile(
    r"\b(?:not (?:sure|certain|clear|known|possible|able|determin)|unsure|uncertain|unclear|"
    r"don'?t know|do not know|cannot|can'?t|can not|unable|no idea|impossible to|guess|depends|"
    r"unknown|not enough)|不知道|不确定|无法|不清楚",
    re.IGNORECASE,
)
_SENTENCE_PART = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]*\$|\\\[(?:(?!\\\[).)*?\\\]|\\\((?:(?!\\\().)*?\\\)"
    r"|\\begin\{(?:(?!\\begin\{).)*?\\end\{[a-z*]+\}"
    r"|(?<!\bRs)(?<!\bsq)(?<!\bcu)(?<!\bM[rs])(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?。！？](?=[\s\"*]|$)|[。！？]|\n",
    re.DOTALL,
)
SPAN = re.compile(
    r"\$\$(.+?)\$\$|\\\[((?:(?!\\\[).)+?)\\\]|\\\(((?:(?!\\\().)+?)\\\)|(?<!\\)\$([^$\n]+)\$",
    re.DOTALL,
)
BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_REMARK = re.compile(
    r"(?:,|(?<![\s,]))\s+(?:because|since|as|which|so|where|when|if|for|after|before|it|not|non|pas|nicht|but|given|"
    r"obtained|found|according|due|that|I|we|thus|hence|rounded|with|from|this|meaning|这|因为|pour|"
    r"car|by|in|on|at|and\s+(?:this|that|it))\b|(?<!\s)\s+[(（—–]|\s-\s|[;；]|,(?=\s*[a-z]{3,})|[，,](?=[\u4e00-\u9fff])"
)
_COPULA = re.compile(r"\b(?:is|are|equals?|was|be|est|es|ist|of)\b\s*:?|是|为|等于|[:：]|=")
_NUMBER = re.compile(
    r"[-−]?(?:[$€£¥]\s?)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?:\s?[%$€£])?"
)
_KIND = re.compile(
    r"\s*+(?:\\text\s?\{\s*+)?(?:the\s|an?\s)?(?:ordered\s)?(?:points?|pairs?|triple|vector|set"
    r"|line|circle|plane|interval|equation|coordinates|点)\s?:?\s?\}?(?=\s*+(?:[$(\[\\]|[a-z]\s?=))"
)
_UP_TO_VALUE = re.compile(r"(?:.*[\d)}\]$%])?", re.DOTALL)
_HEDGE = re.compile(
    r"(?<![\s,(（—–-])[\s,(（—–-]*+(?:but\s+|though\s+|although\s+|and\s+)?(?:it\s+|this\s+)?"
    r"(?:or|perhaps|maybe|possibly|might|could|may|alternatively|或)\b",
    re.IGNORECASE,
)
_DOUBTED = re.compile(
    r"(?:\b(?:perhaps|maybe|possibly|alternatively)(?: [a-z']+){0,2}"
    r"|(?:^\W*(?:which\s+)?|\b(?:it|this|that|answer|result|value|but|so|also)\s+)"
    r"(?:might|could|may)(?: also| even| well| just)? be)[ ,:$*({]*"
    r"([-−]?\d[\d.,/]*|(?-i:[A-HJ])(?![\w']))",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"^\W*(?:(?:wait|sorry|oops|correction|i mean|make that)\b|no\s?[,:.!…—-]"
    r"|or (?=maybe|perhaps|possibly|(?-i:[A-HJ])\W*$))[ ,:.!…—-]*"
    r"(?:(?:maybe|perhaps|possibly|rather|no|wait|sorry|it'?s|it is|that'?s|i mean|make that"
    r"|the answer is)\b[ ,:]*)*[$*({]*"
    r"([-−]?\d[\d.,/]*+|(?-i:[A-HJ])(?![\w']))[^\w?]*$",
    re.IGNORECASE,
)
"""A second value that takes the first one back: "wait, 6"; a question does not."""
_SECOND_CHOICE = re.compile(
    r"\A\W*+(?:(?:or|also|and|else|perhaps|maybe|possibly|oder|ou|或者?)(?![a-z])\W*+)*+"
    r"(?:(?:option|choice)\s\W*+)?(?P<a>[A-HJ])\W*+\Z"
    r"|\A\W*+but\s(?P<b>[A-HJ])\s(?:is|could|may|might)(?! not| wrong| incorrect)\b"
)
_CASES = re.compile(
    r"^\W*(?:if|when)\b.*?\s(?:and|but|or)\s+(?:it'?s\s+|it is\s+)?[$*({]*"
    r"([-−]?\d[\d.,/]*+)[$*)}]*,?\s+(?:if|when|otherwise)\b",
    re.IGNORECASE,
)
"""A second value for another case: "if x is even and 6 if x is odd"."""
_OPINION = re.compile(
    r"(?<=[^\s,]),?\s+I(?: am|'m)? (?:think|believe|suppose|sure|certain)\W*$", re.IGNORECASE
)
_TWO_VALUES = re.compile(
    r"^[^\w.,]*+[\d.,]++(?: in [\d.,]++\W*+$| (?:divided|multiplied) by \d"
    r"|(?: ?[a-z]{1,8})? by \d{1,3}(?:\.\d++)?"
    r"(?: (?:[cmk]?m|in|ft|feet|inches|yards|units|meters))?\W*+$)"
    r"|[\d$)]\W{1,3}otherwise\b|\botherwise\W{1,3}\d",
    re.IGNORECASE,
)
"""A number that another one makes a share, a size or a case of; nothing may stand before it."""


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of `text`; formulas are kept whole."""
    start = 0
    for match in _SENTENCE_PART.finditer(text):
        if match[0][0] in ".!?。！？\n":
            if text[start : match.start()].strip():
                yield text[start : match.end()].rstrip("\n")
                start = match.end()
            elif match[0] == "\n":
                start = match.end()
    if text[start:].strip():
        yield text[start:]


def readable(text: str) -> bool:
    """Whether `text` is mathematics by itself, or a set phrase for some."""
    reading = read_answer(meant(text.strip().rstrip(".。")))
    return bool(reading.trees) and sum(token.kind == "word" for token in reading.tokens) <= 5


def without_kind(text: str) -> str:
    """`text` without words for its kind, where the rest is mathematics: "the point (2, 7)"."""
    kind = _KIND.match(text)
    return text[kind.end() :] if kind and readable(text[kind.end() :]) else text


def phrase(sentence: str, exclaims: bool = False) -> tuple[str, ...]:
    """Readings of a short sentence that holds an answer: itself, then what it boils down to.

    `exclaims`: it is spoken, so that a mark at its end is no factorial.
    """
    whole = (
        " ".join(parted_lines(sentence[:MAX_SENTENCE]).split())
        .strip("*_ ")
        .rstrip(".。！")
        .strip("*_ ")
    )
    whole = _OPINION.sub("", whole)  # `5, I think` reads as a list, too
    if exclaims or not readable(whole):
        whole = whole.rstrip(".!").strip("*_ ")
    whole = without_kind(whole)
    if readable(whole) or _TWO_VALUES.search(whole):
        return (whole,)
    readings = [whole]
    cut = _REMARK.search(whole, 1)
    while cut is not None and len(readings) < 4:
        head = whole[: cut.start()].rstrip(" ,*_:")
        behind = whole[cut.start() :]
        if _HEDGE.match(behind) and re.search(r"\d", behind):
            other = _HEDGE.sub(" or ", behind, count=1)
            return (head + re.sub(r"[()（）]|\bbe\b", " ", other),)
        taken_back = corrected(head, behind)
        if taken_back:
            return taken_back
        second = _SECOND_CHOICE.match(behind)
        chosen = choice(head) if second else None
        if second and chosen and chosen[0] != (second["a"] or second["b"]):
            return (f"{head} or {second['a'] or second['b']}",)
        doubted = _another(head, _DOUBTED.search(behind) or _CASES.match(behind))
        if doubted:
            return (f"{head} or {doubted}",)
        if readable(head) or choice(head) is not None:
            valued = _UP_TO_VALUE.match(head)
            spoilt = valued and _spoilt(behind, head[valued.end() :])
            return (whole,) if spoilt else (head, whole)
        if is_wordy(head):
            readings.append(head)
        cut = _REMARK.search(whole, cut.end())
    reduced = _reduced(whole)
    return (*readings, reduced) if reduced else tuple(readings)


def _spoilt(remark: str, counted: str) -> bool:
    """Whether a remark behind what is counted makes another value of it: ", at least"."""
    words = re.sub(r"[()（）]", " ", remark).strip(" ,;—–-，；")
    return changed_behind(counted + remark) or changed_by_remark(words)


def corrected(sentence: str, following: str) -> tuple[str, ...]:
    """A text of both values, where what follows takes the first one back; else nothing."""
    head = sentence.strip("*_ .!…")
    other = _another(head, _CORRECTED.match(following))
    return (f"{head} taken back for {other}",) if other else ()  # no list of two


def _another(head: str, doubted: re.Match[str] | None) -> str:
    """The number or choice that `head` is doubted with; nothing where it is the same."""
    other = doubted[1].rstrip(".,") if doubted else ""
    chosen = choice(head)
    if other.isalpha():
        return "" if chosen is None or chosen[0] == other else other
    return "" if other in _NUMBER.findall(head) else other


def _reduced(sentence: str) -> str:
    """The one value that a sentence states: behind its verb, or its only formula or number.

    Empty where it states none, or where its words make another value of it.
    """
    if REFUSAL.search(sentence):
        return ""
    for match in list(_COPULA.finditer(sentence))[:-5:-1]:
        tail = sentence[match.end() :].strip(" *_")
        if tail and readable(tail):
            return "" if changed(sentence, match.end(), len(sentence)) else tail
    formulas, bold = list(SPAN.finditer(sentence)), list(BOLD.finditer(sentence))
    numbers = list(_NUMBER.finditer(sentence))
    money = [number for number in numbers if re.search(r"[$€£¥]", number[0])]
    if formulas:
        found = formulas
    elif len(bold) == 1 and readable(bold[0][1]):
        found = bold
    else:
        found = money if len(money) == 1 else numbers
    if len(found) != 1 or changed(sentence, *found[0].span()):
        return ""
    stated = found[0][0].strip("*")
    return stated if found is numbers or readable(stated) else ""
