"""Which text of a completion, or of a gold, is the answer.

In this order: what follows the reasoning, up to a chat marker; the last box; `<answer>`; `####`; a
cue such as "the answer is"; a last line that is only an expression; the only mathematics of a
concluding last sentence. Only the end of a long text is looked at. `Extracted.texts` are readings
of one place, the likeliest first; a place that gives none is no answer, with `trouble` saying why.
"""

import re
import unicodedata
from dataclasses import dataclass

from rl_reasoner.answers.extraction.backslashes import undoubled
from rl_reasoner.answers.extraction.boxes import last_boxes
from rl_reasoner.answers.extraction.phrases import (
    BOLD,
    MAX_SENTENCE,
    REFUSAL,
    SPAN,
    corrected,
    phrase,
    readable,
    sentences_of,
    without_kind,
)
from rl_reasoner.answers.extraction.wording import choice, is_wordy, meant, unstyled
from rl_reasoner.answers.parsing.changing import changed, changed_before, denied
from rl_reasoner.answers.parsing.lexer import closing_brace
from rl_reasoner.answers.parsing.statements import read_answer
from rl_reasoner.answers.tree import Unreadable
from rl_reasoner.language.thinking import chain_marks, channels_as_tags, without_chain_marks

TAIL = 20_000
MAX_GOLD = 5_000
MAX_CUES = 50


@dataclass(frozen=True, slots=True)
class Extracted:
    """The answer's text (several readings of one place), the rule that found it, or the trouble."""

    texts: tuple[str, ...]
    rule: str
    trouble: str = ""


_MARKER = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|end|user|end_of_text|start_header_id|eom_id|"
    r"end▁of▁sentence|assistant|begin_of_text)\|>|</s>|<\uff5cend▁of▁sentence\uff5c>|<eos>|"
    r"<end_of_turn>|\[/?INST\]"
)
_LEADING = re.compile(
    r"\s*(?:<\|(?:im_start|begin_of_text|start_header_id|end_header_id|assistant|begin_of_solution"
    r")\|>|<s>|assistant(?=\s*\n|<\|))\s*"
)
_TAG = re.compile(r"<(/?)(?:final_)?answer>", re.IGNORECASE)
_CUE = re.compile(
    r"(?:(?:(?<![a-zA-Z])(?:(?:final|correct|right|best|exact|numerical|simplified|required|desired)\s+){0,6}"
    r"(?:answer|ans)\b\.?(?:\s+(?:to|for|of|in)\s(?:[^.:\n=]|\.(?=\d)){0,70}?)?[\s*_}]*"
    r"(?:(?:is|are|was|would\s+be|will\s+be|should\s+be|must\s+be|equals|comes?\s+(?:out\s+)?to)"
    r"\b[\s*_]*[:：]?|[:：=]|(?=\$|\\\(|\\\[)|-(?=\s)|→|->))"
    r"|\b(?:correct|right|best)\s+(?:option|choice)\s+is\b\s*:?"
    r"|(?:最终|最后|正确|故|所以|因此)?(?:答案|选项)(?:应该?)?[\s*_]*(?:是|为|:|：|等于|选)[\s*_]*[:：]?"
    r"|(?:^|(?<!\s)[^\S\n]*+\n)\s*+\**答\**\s*[:：]|结论[*_\s]*[:：]|(?:故|应|所以|因此)选(?:择)?[:：]?|最终结果(?:是|为|：|:)"
    r"|\br[ée]ponse\s*(?:finale\s*)?(?:est|:)|\brespuesta\s*(?:final\s*)?(?:es|:)"
    r"|\bantwort\s*(?:ist|lautet|:)|\brisposta\s*(?:è|:)|\bresposta\s*(?:é|:)|ответ\s*[:：—–-]"
    r"|答えは|答え[:：]|정답(?:은|:)|답(?:은|:))",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"(?:^|\n)[ \t#*_>✅✓☑-]*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|result|最终答案|答案)"
    r"[ \t#*_:：]*(?=\n)",
    re.IGNORECASE,
)
_THINK_IT_IS = re.compile(
    r"\b(?:I\s+(?:think|believe)|I'd\s+say)\s+(?:it'?s|it\s+is|the\s+\w+\s+is)\s+"
    r"(?=\(?[A-J]\)?[.\s]*$)"
)
_A_MARK = re.compile(r"[ \t>*_#-]*+A\**+\s?[:：](?=[\s*$\\(]|[-−]?\d)[ \t*]*+")
_B_MARK = re.compile(r"(?:^|\n)[ \t>*_#(-]*+[B-E]\**+\s?[:：.)]")
_OPTION_IS = re.compile(
    r"\b(?:option|choice)\s*\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|best|answer)",
    re.IGNORECASE,
)
_IS_THE_ANSWER = re.compile(
    r"\s(?:is|are)\s+(?:therefore\s+)?(?:the|our|my)\s+(?:final\s+|correct\s+)?(?:answer|solution)s?\b"
)
_NOT_ASSERTED = re.compile(
    r"\b(?:if|whether|suppose|assume|assuming|doubt|unless|why|how|wonder|what|isn'?t|not|"
    r"don'?t\s+know|unsure|sure\s+(?:if|that)|false\s+that)\b",
    re.IGNORECASE,
)
_MINERVA = re.compile(r"final answer:\s*the final answer is", re.IGNORECASE)
_CONCLUDING = re.compile(
    r"(?:^|\s)(?:因此|所以|综上|故)|^[\W_]*(?i:so|thus|hence|therefore|consequently|in conclusion|"
    r"donc|en conclusion|于是|最终)(?![a-z])|[$)]\s+(?:So|Thus|Hence|Therefore)\b"
)
_STATING = re.compile(r"\b(?:is|are|equals?|we find that)\b|:", re.IGNORECASE)
_REPORTED = re.compile(
    r"\b(?:problem|question|given|says?|states?|asks?|asked|told|suppose|let|assume|would|could|might"
    r"|maybe|perhaps|guess|think|example|hint|recall|wrong|incorrect|if)\b",
    re.IGNORECASE,
)
_STATES_FORMULA = re.compile(r"\b(?:is|are|equals)\s*+(?::\s*+)?(?=\$|\\\()")
_FILLER = re.compile(
    r"^(?:\n(?:[ \t]*+>(?![ \t]*+=))++|[\s:：,*_#}]|\\n)*"  # a > is of a block quote
    r"(?:(?:simply|just|therefore|thus|hence|probably|likely|definitely|"
    r"for sure|certainly|clearly|indeed|also|now|then|given by|as follows|the following|"
    r"below(?=\s*+[:：\n])|equal to|approximately|about|exactly|either|only|actually|that|option"
    r"|choice|选项)\b"
    r"[\s:：,]*)*",
    re.IGNORECASE,
)
_RULE = re.compile(r"^\s*(?:```\w*|-{3,}|\*{3,}|_{3,}|={3,})\s*$")
_WORDED = re.compile(
    r"(?:\\text(?:bf)?\s*\{)?(?!.*\b(?:not|no|never|neither)\b)[A-Za-z ]{2,40}"
    r"(?:(?:\}\s*+)?:|\bis\b)\s*+(?:\}\s*+)?(.+)$"
)
_IN_TEXT = re.compile(r"\\text(?:bf)?\s*\{([^{}]*)\}")
_PICTURE = re.compile(
    r"\[asy\].*|\\includegraphics.*|!\[[^\]]*\](?:\([^)]*\))?|<(?:image|img|figure)[^>]*>|"
    r"[(\[]? ?(?:see|refer to|shown in|as shown in|in) (?:the )?(?:attached |above )?"
    r"(?:figure|fig|diagram|picture|graph|image|drawing|illustration)s?\.? ?(?:\d+(?:\.\d+)*)? ?"
    r"(?:above|below|shown|attached)? ?[)\]]?|"
    r"[(\[]? ?(?:figure|fig\.?|diagram|image) ?(?:\d+(?:\.\d+)*)? ?[)\]]?|"
    r"[(\[](?:picture|graph|drawing)[)\]]|(?:见|如)(?:下|右|左|上|附)?图(?:所示)?\d*",
    re.IGNORECASE | re.DOTALL,
)


# ---------------------------------------------------------------------- completions


def answer_of(completion: str) -> Extracted:
    """The answer of a completion: its readings and the rule, or the trouble ("no final answer")."""
    text = spoken(completion)
    if text is None:
        return Extracted((), "", "no final answer: the reasoning never ends")
    text = undoubled(text[-TAIL:])
    boxes = last_boxes(text)
    if boxes is not None:
        override = _MINERVA.search(text, text.rfind("boxed"))
        if override is not None:
            texts = after_cue(text, override.end())
            if texts:
                return Extracted(texts, "final answer after the last box")
        if not boxes.closed:
            return Extracted((), "", "no final answer: the last box never closes")
        return _boxed(boxes.contents)
    for rule in (tagged_answer, hashed, cued, last_line, last_sentence):
        result = rule(text)
        if result is not None:
            return result
    return Extracted((), "", "no final answer")


def turn_of(completion: str) -> str:
    """The completion up to a chat marker; in channels, what thinks stands between think tags."""
    text = channels_as_tags(completion)
    marker = _MARKER.search(text, _led(text))
    return text[: marker.start() if marker else None]


def _led(text: str) -> int:
    """Where a reply begins, behind the markers that lead it."""
    start = 0
    while lead := _LEADING.match(text, start):
        start = lead.end()
    return start


def _first_turn(completion: str) -> str:
    """The completion up to a chat marker, without those that lead it."""
    text = turn_of(completion)
    return text[_led(text) :]


def spoken(completion: str) -> str | None:
    """The completion without its reasoning and what follows a chat marker; None if unfinished."""
    text = _first_turn(completion)
    last = None
    for mark in chain_marks(text):
        last = mark
    if last is None:
        return text
    return text[last.end :] if last.ends else None


def thought_and_spoken(completion: str) -> str:
    """The completion up to a chat marker, with its reasoning, but without the tags around that."""
    return without_chain_marks(_first_turn(completion))


def last_formula(text: str) -> tuple[int, int, str] | None:
    """Start, end and content of the last formula between `$`, `\\(` or `\\[`; None for none."""
    last = None
    for match in SPAN.finditer(text):
        last = match
    return None if last is None else (last.start(), last.end(), last[last.lastindex or 0])


def _boxed(contents: tuple[str, ...]) -> Extracted:
    if len(contents) == 1:
        content = without_kind(contents[0])
        if not unstyled(re.sub(r"\\[,;:! ]|\\q?quad|~", "", content)).strip(" .,;:"):
            return Extracted((), "", "no final answer: the last box is empty")
        whole = _IN_TEXT.fullmatch(content.strip())
        behind = _WORDED.match(whole[1] if whole else content) if len(content) < 400 else None
        said = behind is not None and not changed_before(behind.string[: behind.start(1)])
        texts = (content, behind[1]) if behind and said and readable(behind[1]) else (content,)
        return Extracted(texts, "last box")
    return Extracted((" , ".join(contents),), f"last {len(contents)} boxes, joined")


def tagged_answer(text: str) -> Extracted | None:
    """The last `<answer>...</answer>`."""
    tags = list(_TAG.finditer(text))
    closing = [at for at, tag in enumerate(tags) if tag[1]]
    if not tags:
        return None
    if not closing or closing[-1] == 0 or not tags[-1][1]:
        return Extracted((), "", "no final answer: an answer tag that never closes")
    inside = text[tags[closing[-1] - 1].end() : tags[closing[-1]].start()].strip()
    if not inside:
        return Extracted((), "", "no final answer: the answer tag is empty")
    lines = [line for line in inside.splitlines() if line.strip()]
    inner = cued(inside)
    if inner is not None and inner.texts:
        return Extracted(inner.texts, "answer tag")
    return Extracted(
        phrase(inside if len(lines) < 2 or readable(inside) else lines[-1]), "answer tag"
    )


def hashed(text: str) -> Extracted | None:
    """`#### x`, where x is no heading."""
    at = text.rfind("####")
    if at < 0:
        return None
    line, _, rest = text[at:].lstrip("#").partition("\n")
    inside = line.strip().strip("*_ ")
    if not inside or not (readable(inside) or not rest.strip()):
        return None
    return Extracted(phrase(inside), "#### mark")


def cued(text: str) -> Extracted | None:
    """What follows the last cue that asserts something."""
    cues: list[tuple[int, int, int]] = [(m.start(), m.end(), 0) for m in _CUE.finditer(text)]
    cues += [(m.start(), m.end(), 0) for m in _HEADING.finditer(text)]
    cues += [(m.start(), m.end(), 0) for m in _THINK_IT_IS.finditer(text)]
    cues += [(m.start(), m.start(), 1) for m in _IS_THE_ANSWER.finditer(text)]
    cues += [(m.start(), m.end(), 2) for m in _OPTION_IS.finditer(text)]
    cues += last_line_cue(text)
    for start, end, kind in sorted(cues, reverse=True)[:MAX_CUES]:
        line = text[max(0, text.rfind("\n", 0, start), start - 300) : start]
        clause = line[max(map(line.rfind, ".,;\n")) + 1 :]
        if _NOT_ASSERTED.search(clause) or line.count('"') % 2:
            continue
        if kind == 1:
            texts = before_cue(line)
        elif kind == 2:
            option = _OPTION_IS.match(text, start)
            texts = (option[1].upper(),) if option else ()
        else:
            texts = after_cue(text, end)
        if texts:
            return Extracted(texts, "cue")
        if kind == 0 and not text[end:].strip(" *_:#\n"):
            return Extracted((), "", "no final answer: cut off after the cue")
    return None


def last_line_cue(text: str) -> list[tuple[int, int, int]]:
    """The `A:` that begins a last line, as a cue; none beside a `B:`, which makes it an option."""
    body = text.rstrip()
    mark = _A_MARK.match(body, body.rfind("\n") + 1)
    if mark is None or _B_MARK.search(body[-MAX_SENTENCE:]):
        return []
    return [(mark.start(), mark.end(), 0)]


def after_cue(text: str, at: int) -> tuple[str, ...]:
    """Readings of what a cue introduces; empty where it introduces nothing."""
    if text[at - 1 : at + 1] == "=>":  # an arrow, of which the cue has the first half
        at += 1
    rest = text[at : at + MAX_SENTENCE]
    if text[max(0, at - 20) : at].rstrip(" \t").endswith("\n"):
        rest = "\n" + rest.lstrip(" \t")  # the cue has the end of its line
    sentences = sentences_of(_FILLER.sub("", rest).lstrip())
    sentence, following = next(sentences, ""), next(sentences, "")
    if denied(sentence):
        return ()
    if sentence.strip(" *_$\\[]()") == "":
        return ()
    return corrected(sentence, following) or phrase(sentence, exclaims=True)


def before_cue(line: str) -> tuple[str, ...]:
    """Readings of the subject of "... is the answer"."""
    sentence = re.split(r"[.!?]\s", line)[-1]
    sentence = re.sub(
        r"^\s*(?:so|thus|therefore|hence|and|then|finally)\b,?\s*",
        "",
        sentence,
        flags=re.IGNORECASE,
    )
    if readable(sentence) and not REFUSAL.search(sentence):
        return (sentence,)
    spans = list(SPAN.finditer(sentence))
    if len(spans) != 1 or changed(sentence, *spans[0].span()):
        return ()
    return (spans[0][0],)


def last_line(text: str) -> Extracted | None:
    """A last line (or displayed formula) that is only an expression, or one or a few words."""
    lines = text.rstrip().splitlines()
    while lines and not _RULE.sub("", lines[-1]).strip():
        lines.pop()
    body = "\n".join(lines).rstrip()
    for closer, opener in (("\\]", "\\["), ("$$", "$$")):
        if body.rstrip(". ").endswith(closer):
            end = body.rfind(closer)
            start = body.rfind(opener, 0, end)
            if start >= 0 and readable(body[start + 2 : end]):
                return Extracted((body[start + 2 : end],), "last displayed formula")
    line = body.rpartition("\n")[2].strip()
    line = re.sub(r"^(?:[>#]+\s*|\*\*(?=.*\*\*$)|=>\s*)|\*\*\.?$", "", line).strip()
    if not line or len(line) > 400:
        return None
    reading = read_answer(meant(line.rstrip(".。")))
    if reading.trees and sum(token.kind == "word" for token in reading.tokens) <= 2:
        return Extracted((line,), "last line")
    if is_wordy(line) and len(line.split()) <= (5 if body.strip() == line else 3):
        return Extracted((line,), "last line")
    if choice(line) is not None and len(line) <= 60:
        return Extracted((line,), "last line")
    return None


def last_sentence(text: str) -> Extracted | None:
    """The only mathematics or bold text of a last sentence that concludes something."""
    said = [s for s in sentences_of(text[-MAX_SENTENCE:].strip()) if s.strip()]
    if not said or said[-1].rstrip().endswith("?"):
        return None
    last = said[-1].replace("to the problem", "")
    if len(said) == 1 and last.startswith("$") and not read_answer(last).trees:
        return Extracted((last,), "whole text")
    concluding = _CONCLUDING.search(last) or (len(said) == 1 and _STATING.search(last))
    if not concluding or REFUSAL.search(last) or _REPORTED.search(last):
        return None
    found = [*SPAN.finditer(last), *BOLD.finditer(last)]
    if len(found) == 1 and changed(last, *found[0].span()):
        return None
    spans = [match[int(match[0][0] == "*")] for match in found]
    if len(spans) == 1 and readable(spans[0]):
        return Extracted((spans[0],), "only formula of the last sentence")
    ending = _ending_formula(last)
    if ending and readable(ending):
        return Extracted((ending,), "formula that ends the last sentence")
    return None


def _ending_formula(sentence: str) -> str:
    """The formula that a sentence ends with, behind the first verb that states it; or nothing."""
    body = sentence.rstrip(". \t\n\r\f\v")
    for verb in _STATES_FORMULA.finditer(body):
        formula = body[verb.end() :]
        if "\n" in formula:
            continue
        if formula[0] == "$" and len(formula) > 2 and formula.find("$", 1) == len(formula) - 1:
            return formula
        if formula[0] == "\\" and len(formula) > 4 and formula.endswith("\\)"):
            return formula
    return ""


# ---------------------------------------------------------------------- golds


def gold_of(answer: str) -> Extracted:
    """The final part of a gold, or the trouble that makes it unusable."""
    if not answer.strip():
        return Extracted((), "", "the gold is empty")
    if any(unicodedata.category(c) == "Cc" and c not in "\t\n\r" for c in answer[:MAX_GOLD]):
        return Extracted((), "", "the gold has control characters")
    text = undoubled(answer) if len(answer) <= TAIL else answer
    boxes = last_boxes(text[-TAIL:])
    if boxes is not None and not boxes.closed:
        return Extracted((), "", "the gold has a box that does not close")
    if boxes is not None:
        box = _boxed(boxes.contents)
        if not box.texts:
            return Extracted((), "", "the gold has an empty box")
        text, rule = box.texts[0], "box"
    elif "####" in text:
        text, rule = text.rpartition("####")[2], "#### mark"
    else:
        rule = "whole"
    trouble = gold_trouble(text.strip())
    return Extracted((), "", trouble) if trouble else Extracted((without_kind(text.strip()),), rule)


def gold_trouble(text: str) -> str:
    """Why a gold cannot be judged, or an empty string."""
    if len(text) > MAX_GOLD:
        return f"the gold is longer than {MAX_GOLD} characters"
    if not any(char.isalnum() or char in "∞∅" for char in text):
        inner = text.strip("$ ")
        return "" if inner in (r"\{\}", "{}") else "the gold is only punctuation"
    if _PICTURE.fullmatch(" ".join(text.split()).strip(" .$")):
        return "the gold is only a picture"
    at = text.find("{")
    while at >= 0:
        if at and text[at - 1] == "\\":
            at = text.find("{", at + 1)
            continue
        try:
            at = text.find("{", closing_brace(text, at))
        except Unreadable:
            return "the gold has a group that does not close"
    if len(re.findall(r"\\begin\{", text)) > len(re.findall(r"\\end\{", text)):
        return "the gold has an environment that does not end"
    if len(re.findall(r"\\left(?![a-z])", text)) > len(re.findall(r"\\right(?![a-z])", text)):
        return "the gold has a bracket that does not close"
    if re.search(r"\\[dtc]?frac\s*+(?:\{[^{}]*+\}\s*+)?$", text):
        return "the gold has a fraction without its parts"
    return ""
