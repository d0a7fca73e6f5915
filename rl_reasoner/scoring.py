"""Which reward judges a set, and the scored rows that come of completions and their scores.

`scored` takes completions that were just sampled, `judged_again` those of a saved result: a replay
needs no model. Rows keep what their reward read, so that a saved result can be judged anywhere.
Knows nothing of sampling; the figures are made by `figures`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_reasoner.answers import verify
from rl_reasoner.answers.extract import answer_of
from rl_reasoner.code_rows import continuing
from rl_reasoner.prompts import Row
from rl_reasoner.reward import Reward, described, load_reward, score_batch
from rl_reasoner.sample_cache import Rollout

_KEPT = ("id", "problem", "answer", "level", "subject", "entry_point", "overlap")
_CLASS_TIMEOUT_S = 1.0  # of sympy's opinion whether two wrong answers are one
_SAMPLED = ("completions", "tokens", "truncated")


def reward_for(rows: Sequence[Row]) -> str:
    """The shipped reward that judges rows of this form: by their tests, else by their answer."""
    return "code_tests" if any(row.get("tests") for row in rows) else "math_answer"


class Judge:
    """A reward as the judge of one set's rows."""

    def __init__(
        self, rows: Sequence[Row], reward: str | None, options: Mapping[str, Any] | None
    ) -> None:
        self.name = reward or reward_for(rows)
        function = load_reward(self.name, options)
        self.columns = function.columns if isinstance(function, Reward) else None
        self.function: Callable[..., Any] = continuing(function, rows)

    def scored(self, rows: Sequence[Row], outs: Sequence[Sequence[Rollout]]) -> list[Row]:
        """The scored rows (see `figures`) of fresh completions, one group a row."""
        sampled = [
            {
                "completions": [out.text for out in group],
                "tokens": [out.tokens for out in group],
                "truncated": [out.truncated for out in group],
            }
            for group in outs
        ]
        return self._judged(rows, sampled)

    def judged_again(self, saved: Sequence[Row]) -> list[Row]:
        """Scored rows of a saved result, judged anew by their completions alone."""
        return self._judged(saved, [{name: row[name] for name in _SAMPLED} for row in saved])

    def _judged(self, rows: Sequence[Row], sampled: Sequence[Row]) -> list[Row]:
        spread = [row for row, own in zip(rows, sampled, strict=True) for _ in own["completions"]]
        texts = [text for own in sampled for text in own["completions"]]
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in spread] for name in names}
        columns["prompts"] = columns["problem"]
        marks = map(described, score_batch(self.function, texts, columns))
        found = []
        for row, own in zip(rows, sampled, strict=True):
            mine = [next(marks) for _ in own["completions"]]
            found.append(
                {
                    **self._kept(row),
                    **own,
                    "scores": [mark["value"] for mark in mine],
                    "reasons": [mark["reason"] for mark in mine],
                    "outcomes": [mark["outcome"] for mark in mine],
                }
            )
            if self.name == "math_answer" and len(mine) > 1:
                found[-1]["classes"] = classes(own["completions"], found[-1]["scores"])
        return found

    def _kept(self, row: Row) -> Row:
        """What of a row goes into the result: what names it, and what its reward reads."""
        if self.columns is None:
            return {"answer": "", **row}
        wanted = (*_KEPT, *self.columns)
        return {"answer": "", **{name: row[name] for name in wanted if name in row}}


def classes(completions: Sequence[str], scores: Sequence[float | None]) -> list[int]:
    """Which completions have equal answers: 0 the right ones, 1, 2 … wrong ones, -1 no answer.

    Wrong answers are equal where the verifier says so, whatever their spelling; a completion joins
    the first class whose first answer its own equals.
    """
    firsts: list[str] = []
    numbers: dict[str, int] = {}
    found = []
    for text, score in zip(completions, scores, strict=True):
        if score == 1.0:
            found.append(0)
            continue
        answers = answer_of(text).texts if score is not None else ()
        if not answers:
            found.append(-1)
            continue
        if answers[0] not in numbers:
            numbers[answers[0]] = _class_of(answers[0], firsts)
        found.append(1 + numbers[answers[0]])
    return found


def _class_of(answer: str, firsts: list[str]) -> int:
    for number, first in enumerate(firsts):
        boxed = f"\\boxed{{{answer}}}"
        if verify(boxed, first, timeout_s=_CLASS_TIMEOUT_S).value == 1.0:
            return number
    firsts.append(answer)
    return len(firsts) - 1
