"""The parts of a completion that thinks: its chain of thought, and its answer.

    <think>chain</think>answer        <think>chain</think><answer>answer</answer>

Without tags all is answer. A chain that is never closed leaves no answer. The tags that are written
and asked for are spelled here and nowhere else, and so are all the marks of a chain that are read,
by the verifier too: tags of many names, and channels. Pure text; never raises.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from rl_reasoner.language.fences import fenced_blocks

OPEN_THINK, CLOSE_THINK, OPEN_ANSWER, CLOSE_ANSWER = TAGS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
NO_CHAIN = OPEN_THINK + CLOSE_THINK
"""How a direct answer begins in the form with tags."""
_DIRECT = re.compile(r"\s*<think>\s*</think>")
_MARK = re.compile(
    r"<(/?)(?:think|thinking|thought|thoughts|reasoning|reason|scratchpad|analysis|seed:think)>"
    r"|\[(/?)THINK\]|<\|(begin|end)_of_thought\|>|◁(/?)think▷",
    re.IGNORECASE,
)
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>(\w++)[^<]{0,80}+(?:<\|constrain\|>\w++)?<\|message\|>"
)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*+"?|`[^`\n]*+`?|“[^”\n]*+”?')
_WORD = ("thought>", "thoughts>", "reasoning>", "reason>", "scratchpad>", "analysis>")


class ChainMark(NamedTuple):
    """A mark in a text: where it stands, and whether it ends a chain or begins one.

    `word`: the tag is a word that other texts have as a tag, too, as XML's `<reason>`.
    """

    start: int
    end: int
    ends: bool
    word: bool


def chain_marks(text: str) -> Iterator[ChainMark]:
    """The marks of `text`, in order."""
    for mark in _MARK.finditer(text):
        ends = "/" in (mark[1], mark[2], mark[4]) or mark[3] == "end"
        yield ChainMark(mark.start(), mark.end(), ends, mark[0].lower().lstrip("</") in _WORD)


def without_chain_marks(text: str) -> str:
    """`text` with a blank for each mark."""
    return _MARK.sub(" ", text)


def channels_as_tags(completion: str) -> str:
    """A reply in the channels of gpt-oss ("analysis", "commentary", "final") in think tags.

    Any other completion comes back as it is.
    """
    if not _CHANNEL.match(completion.lstrip()):
        return completion
    text = ""
    for channel in _CHANNEL.finditer(completion):
        behind = completion[channel.end() :]
        end = _CHANNEL_END.search(behind)
        said = behind[: end.start() if end else None]
        if channel[1] == "final":
            text += said
        else:
            text += f"<think>{said}</think>" if end else f"<think>{said}"
    return text


def with_tags(chain: object, answer: object) -> str:
    """The completion that has this chain of thought and this answer, both between their tags."""
    return f"{OPEN_THINK}{chain}{CLOSE_THINK}{OPEN_ANSWER}{answer}{CLOSE_ANSWER}"


def has_chain(completion: str) -> bool:
    """Whether there is a chain of thought, and not an empty one; its end may be missing.

    A completion that begins with an empty one answers at once, whatever follows.
    """
    if _DIRECT.match(completion):
        return False
    said, _ = split_chain(completion)
    return bool(chain_of(said).strip()) if said else behind_chain(completion) is None


def ends_within_chain(prompt: str) -> bool:
    """Whether a prompt ends with the mark that begins a chain: the completion goes on in it."""
    last = deque(chain_marks(prompt.rstrip()), maxlen=1)
    return bool(last) and not last[0].ends and not prompt[last[0].end :].strip()


def chain_of(completion: str) -> str:
    """The chain of thought: up to the last end of one, or to the end where it never ends.

    Empty where no mark of a chain stands in the completion.
    """
    text = channels_as_tags(completion)
    marks = _marks_said(text)
    if not marks:
        return ""
    end = max((mark.start for mark in marks if mark.ends), default=len(text))
    begun = (mark.end for mark in marks if not mark.ends and mark.end <= end)
    return text[next(begun, 0) : end]


def split_chain(completion: str) -> tuple[str, str]:
    """What stands up to the last end of a chain, that mark too, and what stands behind it."""
    text = channels_as_tags(completion)
    end = max((mark.end for mark in _marks_said(text) if mark.ends), default=0)
    return text[:end], text[end:]


def behind_chain(completion: str) -> str | None:
    """What stands behind the chain of thought; None where one is begun that never ends.

    A tag in quotes, in a block of code or within a sentence is spoken of, and begins none. Tags
    that are words are those of other texts (`chain_marks`), and no marks here.
    """
    _, after = split_chain(completion)
    return None if _begins_a_chain(after) else after


def answer_part(completion: str) -> str:
    """What is said after the chain of thought, without answer tags around all of it."""
    return without_answer_tags(behind_chain(completion) or "")


def without_answer_tags(text: str) -> str:
    """`text` without the one pair of answer tags that stands around all of it."""
    bare = text.strip()
    if not (bare.startswith(OPEN_ANSWER) and bare.endswith(CLOSE_ANSWER)):
        return text
    inner = bare.removeprefix(OPEN_ANSWER).removesuffix(CLOSE_ANSWER)
    return inner if OPEN_ANSWER not in inner else text


def _marks_said(text: str) -> list[ChainMark]:
    """The marks of a chain in a text; not those of a program that writes them.

    An end in a closed block of code ends none where the block begins a chain before it, or where
    one has ended before the block.
    """
    marks = [mark for mark in chain_marks(text) if not mark.word]
    blocks = deque(fenced_blocks(text) if any(mark.ends for mark in marks) else ())
    said: list[ChainMark] = []
    ended, begun_in = False, -1  # the block in which a chain was begun last
    for mark in marks:
        while blocks and blocks[0].end <= mark.start:
            blocks.popleft()
        inside = bool(blocks) and blocks[0].start <= mark.start
        if inside and not mark.ends:
            begun_in = blocks[0].start
        if not (inside and mark.ends and (ended or begun_in == blocks[0].start)):
            said.append(mark)
            ended = ended or mark.ends
    return said


def _begins_a_chain(text: str) -> bool:
    if not any(not mark.word for mark in chain_marks(text)):
        return False
    prose, at = [], 0
    for block in fenced_blocks(text):
        prose.append(text[at : block.start])
        at = block.end
    said = _QUOTED.sub("", "".join([*prose, text[at:]]))
    return any(
        not (mark.ends or mark.word or _is_spoken_of(said, mark.start))
        for mark in chain_marks(said)
    )


def _is_spoken_of(text: str, at: int) -> bool:
    """Whether the tag at `at` stands within a sentence: behind a word or its punctuation."""
    while at and text[at - 1] in " \t":
        at -= 1
    before = text[at - 1 : at]
    return before.isalnum() or (before != "" and before in "_,'(#")
