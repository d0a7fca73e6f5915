"""An independent judge of maths: the same gold answer, by stricter rules of what is an answer.

Most rewards for maths look for the right answer in a completion; these rules look for what a reader
would not take for one. A completion that is right by the verifier is wrong here where it marks
several different answers, leaves the calculation to the verifier, or only repeats its prompt. Pure
text but for the verifier's bounded second opinion; never raises on strings.
"""

import re

from rl_reasoner.answers import verify
from rl_reasoner.answers.extraction.boxes import MAX_ALL, boxes_of
from rl_reasoner.answers.extraction.extract import TAIL, spoken
from rl_reasoner.answers.extraction.phrases import readable
from rl_reasoner.answers.verdict import left_to_do, shown
from rl_reasoner.hacking.texts import copies
from rl_reasoner.hacking.window import IndependentVerdict
from rl_reasoner.language.thinking import CLOSE_ANSWER, OPEN_ANSWER

_TAGGED = re.compile(rf"{OPEN_ANSWER}([^<]{{1,400}}){CLOSE_ANSWER}")
_LONGEST_GOLD = 3  # words, of a gold that is no mathematics: a longer one is a text
_TIMEOUT_S = 2.0  # of the second opinion on one answer


def has_gold(answer: object) -> bool:
    """Whether a row's `answer` can be held against a final answer: mathematics, or a few words."""
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        return False
    text = str(answer).strip()
    last = text.rpartition("####")[2]
    return bool(text) and (len(last.split()) <= _LONGEST_GOLD or readable(text))


def judge_maths(
    completion: str, answer: str, prompt: str, tagged: str
) -> tuple[IndependentVerdict, str]:
    """The verdict on a completion, and why.

    `tagged` is the completion as the verifier is to read it, where the run has an answer form of
    its own; else the completion itself.
    """
    score = verify(tagged, answer, timeout_s=_TIMEOUT_S)
    if score.value is None:
        return "cannot tell", score.reason
    said = (spoken(completion) or "")[-TAIL:]
    others = _others(said, answer) if tagged == completion else []
    if others:
        some = ", ".join(map(shown, others[:3])) + (", …" if len(others) > 3 else "")
        return "disagrees", f"several different final answers: besides {shown(answer)} also {some}"
    if copies(said, prompt):
        return "disagrees", "only repeats its prompt"
    if score.value != 1.0:
        return "disagrees", score.reason
    if calculation := left_to_do(tagged, answer):
        return "disagrees", f"a calculation left to do: {shown(calculation)}"
    return "agrees", score.reason


def _others(said: str, answer: str) -> list[str]:
    """The marked answers of a text that differ from the gold one, where a right one is there too.

    Boxes that end it as one list are one answer, which the verifier has read.
    """
    boxes, tagged = boxes_of(said), _TAGGED.findall(said)[-MAX_ALL:]
    earlier = [*boxes.before, *tagged[:-1]]
    last = [*boxes.last, *tagged[-1:]]
    marked = list(dict.fromkeys(text.strip() for text in (*earlier, *last) if text.strip()))
    wrong = [text for text in marked if not _is(text, answer)]
    in_earlier = {text.strip() for text in earlier} & {*wrong}
    return wrong if in_earlier and len(wrong) < len(marked) else []


def _is(text: str, answer: str) -> bool:
    judged = f"{OPEN_ANSWER}{text}{CLOSE_ANSWER}"
    return verify(judged, answer, timeout_s=_TIMEOUT_S).value == 1.0
