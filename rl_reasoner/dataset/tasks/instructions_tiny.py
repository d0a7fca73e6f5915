"""The task `instructions_tiny`: a few words or Chinese characters, as told.

    3 words, upper, end t             写4字,山开头,含水
    SUN BOX CAT                       山天水日

For policies that read single bytes: two dozen words, twenty characters, short prompts in both
languages. Each row's `instructions` are for the reward of that name; its answer is one of many
right ones, written here and held against the checkers. Choices of answers follow from the problem.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from rl_reasoner.dataset.tasks.base import Pick, Problem, Task, picker
from rl_reasoner.dataset.tasks.instructions import Added, Instructions
from rl_reasoner.language.instructions import parsed, verdicts

_WORDS = (
    *("ant", "box", "cat", "dog", "eel", "fox", "gem", "hat", "ink", "jam", "kid", "log"),
    *("map", "net", "oak", "pen", "rat", "sun", "tub", "urn", "van", "wig", "yak", "zip"),
)
_CHARACTERS = "山水火木金土日月天地人口手足上下大小中云"
_COUNTS = range(2, 6)
_TRIED = 40  # answers that are tried out for one problem
# A kind of instruction: how many choices it has; the choice in words, and as data.
_Kind = tuple[int, Callable[[int], Added]]


def _each(values: Sequence[Any], words: str, told: Callable[[Any], dict[str, Any]]) -> _Kind:
    """A choice among `values`: each in `words`, and as what is `told` to the checkers."""
    return len(values), lambda i: (words.format(values[i]), told(values[i]))


def _starts(text: str) -> dict[str, Any]:
    return {"name": "starts_with", "text": text}


def _ends(text: str) -> dict[str, Any]:
    return {"name": "ends_with", "text": text}


def _with(word: str) -> dict[str, Any]:
    return {"name": "include", "words": [word]}


_ENGLISH: dict[str, _Kind] = {
    "count": _each(_COUNTS, "{} words", lambda n: {"name": "words", "exactly": n}),
    "case": _each(("upper", "lower"), "{}", lambda case: {"name": f"{case}_case"}),
    "start": _each(sorted({word[0] for word in _WORDS}), "start {}", _starts),
    "with": _each(_WORDS, "with {}", _with),
    "twice": _each(
        _WORDS, "{} twice", lambda word: {"name": "keyword", "word": word, "exactly": 2}
    ),
    "without": _each("aeiou", "no {}", lambda c: {"name": "letter", "letter": c, "exactly": 0}),
    "end": _each(sorted({word[-1] for word in _WORDS}), "end {}", _ends),
}
_CHINESE: dict[str, _Kind] = {
    "count": _each(_COUNTS, "写{}字", lambda n: {"name": "ideographs", "exactly": n}),
    "start": _each(_CHARACTERS, "{}开头", _starts),
    "with": _each(_CHARACTERS, "含{}", _with),
    "without": _each(_CHARACTERS, "无{}", lambda c: {"name": "exclude", "words": [c]}),
    "end": _each(_CHARACTERS, "{}结尾", _ends),
}


def _tiny(level: int, pick: Pick) -> Problem | None:
    """`level` instructions in one language; None where no answer was found to follow them all."""
    chinese = pick(3) == 0
    kinds = _CHINESE if chinese else _ENGLISH
    left, chosen = list(kinds), []
    for _ in range(level):
        chosen.append(left.pop(pick(len(left))))
    said, instructions = [], []
    for name in sorted(chosen, key=list(kinds).index):
        choices, make = kinds[name]
        words, told = make(pick(choices))
        said.append(words)
        instructions.append(told)
    key = json.dumps(instructions, ensure_ascii=False)
    answer = _answer(instructions, chinese, picker(f"instructions_tiny|{key}"))
    if answer is None:
        return None
    return Problem(
        "instructions_tiny",
        f"{','.join(said) if chinese else ', '.join(said)}\n",
        "",
        answer,
        level,
        key,
        {"completion": answer, "instructions": instructions, "language": "zh" if chinese else "en"},
    )


def _answer(instructions: Instructions, chinese: bool, pick: Pick) -> str | None:
    """A response that follows all of them, found by trying; None where there is none at hand."""
    wanted = parsed(instructions)
    seed = pick(2**100)
    for attempt in range(_TRIED):
        text = _attempt(instructions, chinese, picker(f"{seed}|{attempt}"))
        if text and all(followed for followed, _ in verdicts(text, wanted, loose=False)):
            return text
    return None


def _attempt(instructions: Instructions, chinese: bool, pick: Pick) -> str | None:
    """A response made with the instructions in mind; they may yet be in each other's way."""
    args = {one["name"]: one for one in instructions}
    pool: Sequence[str] = _CHARACTERS if chinese else _WORDS
    gone = [args[name] for name in ("letter", "exclude") if name in args]
    banned = [one["letter"] if "letter" in one else one["words"][0] for one in gone]
    twice = args["keyword"]["word"] if "keyword" in args else None
    pool = [w for w in pool if not any(ban in w for ban in banned) and w != twice]
    size = args.get("words", args.get("ideographs"))
    count = size["exactly"] if size else _COUNTS[pick(len(_COUNTS))]
    if not pool:
        return None
    text = [pool[pick(len(pool))] for _ in range(count)]
    if twice is not None:
        for _ in range(2):  # two places; the same one twice is found out afterwards
            text[pick(count)] = twice
    if "include" in args:
        text[pick(count)] = args["include"]["words"][0]
    for name, place in (("starts_with", 0), ("ends_with", -1)):
        if name in args:
            letter = args[name]["text"]
            fits = [w for w in (*pool, *([twice] if twice else [])) if w[place] == letter]
            if not fits:
                return None
            if text[place][place] != letter:
                text[place] = fits[pick(len(fits))]
    line = "".join(text) if chinese else " ".join(text)
    return line.upper() if "upper_case" in args else line


def _careless_response(problem: Problem, share: float, rng: random.Random) -> dict[str, str]:
    """The completion of a writer who forgets one instruction in a `share` of the responses."""
    if rng.random() >= share:
        return {}
    kept = list(problem.columns["instructions"])
    kept.pop(int(rng.random() * len(kept)))
    chinese = problem.columns["language"] == "zh"
    found = _answer(kept, chinese, picker(str(rng.random())))
    return {"completion": found} if found else {}


TINY_INSTRUCTION_TASK = Task(
    "instructions_tiny",
    "a few words or Chinese characters, as instructed; level: instructions",
    range(2, 4),
    range(4, 5),
    _tiny,
    _careless_response,
    "instructions",
)
