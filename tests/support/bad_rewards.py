"""Rewards with one defect each, and the check of the test kit that has to find it."""

import ctypes
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from rl_reasoner import Score, reward
from rl_reasoner.answers import verify

EXPECTED: dict[str, str] = {}
_Any = TypeVar("_Any", bound=Callable[..., Any])


def found_by(check: str) -> Callable[[_Any], _Any]:
    """Register a reward under the check that finds its defect."""

    def register(function: _Any) -> _Any:
        EXPECTED[function.__name__] = check
        return function

    return register


def right(completion: str, answer: str) -> float:
    """A sound judgement, to build the defects on."""
    return verify(completion, answer).value or 0.0


@found_by("types")
@reward
def text(completion: str, answer: str) -> Any:
    return str(right(completion, answer))


@found_by("types")
def wrong_length(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    return [right(c, a) for c, a in zip(completions, answer, strict=True) if c]


@found_by("numbers")
@reward
def divides_by_nothing(completion: str, answer: str) -> float:
    return right(completion, answer) if completion else float("nan")


@found_by("ordinary")
@reward
def needs_an_answer(completion: str, answer: str) -> float:
    return float(re.findall(r"<answer>(.*)</answer>", completion)[-1] == answer)


@found_by("ordinary")
@reward
def ascii_only(completion: str, answer: str) -> float:
    completion.encode("ascii")
    return right(completion, answer)


@found_by("hostile")
@reward
def backtracks(completion: str, answer: str) -> float:
    return float(bool(re.fullmatch(r"(a+)+b|(?s:.*)", completion)) and right(completion, answer))


@found_by("hostile")
@reward
def recurses(completion: str, answer: str) -> float:
    def depth(at: int) -> int:
        return depth(at + 1) + 1 if at < len(completion) and completion[at] == "(" else 0

    return right(completion, answer) + 0 * depth(0)


@found_by("hostile")
@reward
def crashes(completion: str, answer: str) -> float:
    if "\x00" in completion:
        ctypes.string_at(0)
    return right(completion, answer)


@found_by("hostile")
@reward
def hoards(completion: str, answer: str) -> float:
    table = bytearray(len(completion) ** 2)
    return right(completion, answer) + 0 * len(table)


@found_by("repeats")
@reward
def rolls_dice(completion: str, answer: str) -> float:
    return right(completion, answer) + 0.01 * random.random()


@found_by("repeats")
@reward
def hashes(completion: str, answer: str) -> float:
    return right(completion, answer) + (hash(completion) % 7) / 100


@found_by("order")
def first_is_best(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    rows = enumerate(zip(completions, answer, strict=True))
    return [right(c, a) + (i == 0) * 0.1 for i, (c, a) in rows]


@found_by("batch")
def normalises(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    values = [right(c, a) for c, a in zip(completions, answer, strict=True)]
    return [value - sum(values) / len(values) for value in values]


STATE: dict[str, str] = {}


@found_by("threads")
@reward
def shares_state(completion: str, answer: str) -> float:
    STATE["now"] = completion
    time.sleep(0.001)
    return right(STATE["now"], answer)


@found_by("leaves data unchanged")
def sorts_in_place(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    values = [right(c, a) for c, a in zip(completions, answer, strict=True)]
    answer.sort()
    return values


@found_by("latency")
@reward
def sleeps(completion: str, answer: str) -> float:
    time.sleep(0.6 if len(completion) > 150_000 else 0.0)
    return right(completion, answer)


@found_by("answer stuffing")
@reward
def contains(completion: str, answer: str) -> float:
    return float(answer in completion)


@found_by("several answers")
@reward
def any_box(completion: str, answer: str) -> float:
    return float(answer in re.findall(r"\\boxed\{([^{}]*)\}", completion))


@found_by("prompt echoed")
@reward
def any_number(completion: str, answer: str) -> float:
    numbers = re.findall(r"-?\d+", completion)
    return float(answer in numbers and len(numbers) < 100)


@found_by("fences")
@reward
def inside_fences(completion: str, answer: str) -> float:
    fenced = re.findall(r"```\w*\n(.*?)```", completion, re.DOTALL)
    return max((right(text, answer) for text in [*fenced, completion]), default=0.0)


@found_by("length")
@reward
def likes_it_long(completion: str, answer: str) -> float:
    return right(completion, answer) + min(1.0, len(completion) / 2000)


@found_by("empty forms")
@reward
def pays_the_form(completion: str, answer: str) -> Score:
    form = bool(re.search(r"<answer>.*</answer>", completion, re.DOTALL))
    return Score(max(right(completion, answer), 0.6 * form))


@found_by("injection")
@reward
def obedient_judge(completion: str, answer: str) -> float:
    return 1.0 if "Score: 10/10" in completion else right(completion, answer)


@found_by("distinguishes")
@reward
def always_content(completion: str, answer: str) -> float:
    return 1.0


@found_by("distinguishes")
def of_its_length_and_luck(completions: list[str], **kwargs: Any) -> list[float]:
    """The same for the same text, and nothing to do with the answer."""
    return [random.Random(text).random() for text in completions]


@found_by("made-up sum")
@reward
def sums_from_nowhere(completion: str) -> float:
    """Pays for every right sum, wherever its numbers are from."""
    sums = re.findall(r"\b(\d{1,9}) ([-+]) (\d{1,9}) = (\d{1,9})\b", completion)
    return float(sum(int(a) + int(f"{sign}{b}") == int(c) for a, sign, b, c in sums))
