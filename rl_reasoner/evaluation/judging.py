"""Which reward judges a row, and the scored rows that come of completions and their scores.

Rows say it themselves: by the task that made them, or by having tests or instructions instead of an
answer. So one set may hold maths, programs and instructions, and one evaluation several such sets.

`score` takes completions that were just sampled, `judge_again` those of a saved result: a replay
needs no model. Rows keep what their reward read, so that a saved result can be judged anywhere.
Where the answer is one thing and its form another, each completion also has a lenient mark: 1.0
where the answer is right in the form asked for or where else a person reads it (`lenient`).
Knows nothing of sampling; the figures are made by `metrics`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rl_reasoner.answers import verify
from rl_reasoner.answers.extraction.extract import answer_of
from rl_reasoner.dataset.code_rows import continuing
from rl_reasoner.dataset.tasks.generate import TASKS
from rl_reasoner.environments.environment import EPISODE, OPENED
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.lenient import has_form, readings
from rl_reasoner.foreign import mapping, number
from rl_reasoner.rewards.math_answer import tagged
from rl_reasoner.scoring.batch import POLICY_TEXT, score_batch
from rl_reasoner.scoring.outcome import outcome_json
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import GROUPS, Reward
from rl_reasoner.types import Rollout, Row

_KEPT = ("id", "problem", "answer", "start", "task", "level", "subject", "entry_point")
_NOTED = ("overlap", OPENED)  # of evaluations: put on the rows of a result
_CLASS_TIMEOUT_S = 1.0  # of sympy's opinion whether two wrong answers are one
_SAMPLED = ("completions", "tokens", "truncated")
_EPISODES = "episodes"  # what an environment gave each completion
_POLICY_TEXTS = "policy_texts"  # what the policy wrote of each, where others answered in the middle
_TURNED = (_EPISODES, _POLICY_TEXTS)
_JUDGED = ("scores", "reasons", "outcomes", "classes", "lenient", "lenient_reasons")
_APART = "own_columns"
"""The column of a result's row with those of the set's that are called as one of the result's."""
_DIGEST = 64  # characters of a note that tells episodes from each other
_OF_RESULT = frozenset({"set", *_SAMPLED, *_JUDGED, *_TURNED, *_NOTED, _APART})


def judge_of(row: Row) -> tuple[str, Mapping[str, Any]]:
    """The shipped reward that judges a row, and its options.

    That of the task that made it; else by its tests, its instructions, or its answer.
    """
    task = TASKS.get(str(row.get("task")))
    own = task is not None and str(row.get("id", "")).startswith(f"{task.name}-")
    if task is not None and own:
        return task.judge, task.judge_options
    names = {"tests": "code_tests", "instructions": "instructions"}
    return next((name for column, name in names.items() if row.get(column)), "math_answer"), {}


class _Bench:
    """One reward, and the rows that it judges."""

    def __init__(
        self, name: str, options: Mapping[str, Any] | None, places: list[int], rows: list[Row]
    ) -> None:
        self.name = name
        self.places = places
        self.options = options or {}
        function = load_reward(name, self.options)
        self.columns: tuple[str, ...] | None = None
        if isinstance(function, Reward):
            self.columns = (*function.columns, *function.missing)
            _check_columns(function, rows)
        self.function: Callable[..., Any] = continuing(function, rows)
        self.of_policy = isinstance(function, Reward) and function.policy_text

    def marks(self, rows: Sequence[Row], sampled: Sequence[Row]) -> Iterator[dict[str, Any]]:
        """Verdicts on every completion of its rows, in order, lenient ones beside them."""
        pairs = [(rows[i], sampled[i]) for i in self.places]
        spread = [one for place, pair in enumerate(pairs) for one in _played(place, *pair)]
        texts = [text for _, own in pairs for text in self.texts(own)]
        marks = self._verdicts(spread, texts)
        if not has_form(self.name):
            return iter(marks)
        asked: list[tuple[int, str, str]] = []  # which completion, place and text of a reading
        for i, (mark, text) in enumerate(zip(marks, texts, strict=True)):
            mark |= {"lenient": mark["value"], "lenient_reason": ""}
            if mark["outcome"] == "score" and mark["value"] != 1.0:
                asked += [(i, *reading) for reading in readings(self.name, self.options, text)]
        if asked:
            again = self._verdicts([spread[i] for i, _, _ in asked], [text for *_, text in asked])
            for (i, place, _), mark in zip(asked, again, strict=True):
                if mark["value"] == 1.0:
                    reason = mark["reason"].removeprefix("answer tag ")  # where it was put
                    marks[i] |= {"lenient": 1.0, "lenient_reason": f"{place}: {reason}"}
        return iter(marks)

    def texts(self, sampled: Row) -> list[str]:
        """The completions of a row as its reward reads them."""
        whole: list[str] = sampled["completions"]
        own = sampled.get(_POLICY_TEXTS) if self.of_policy else None
        if own is None:
            return whole
        return [text if mine is None else mine for text, mine in zip(whole, own, strict=True)]

    def _verdicts(self, rows: Sequence[Row], texts: Sequence[str]) -> list[dict[str, Any]]:
        """Verdicts on texts, each of the row that stands beside it."""
        # its texts are that already; trl's form has a parameter of that name
        taken = {POLICY_TEXT} if self.of_policy else set()
        taken |= {"completions"} if self.columns is None else set()
        names = dict.fromkeys(name for row in rows for name in row if name not in taken)
        columns = {name: [row.get(name) for row in rows] for name in names}
        columns["prompts"] = columns["problem"]
        return [*map(outcome_json, score_batch(self.function, texts, columns))]

    def kept(self, row: Row) -> Row:
        """The columns that go into the result: those that name the row or that its reward reads."""
        wanted = row if self.columns is None else (*_KEPT, *self.columns)
        own = {name: row[name] for name in wanted if name in row}
        apart = {name: value for name, value in own.items() if name in _OF_RESULT}
        rest = {name: value for name, value in own.items() if name not in apart}
        return {"answer": "", **rest, **({_APART: apart} if apart else {})}


def _played(place: int, row: Row, sampled: Row) -> list[Row]:
    """The row for each of its completions, with what that was given and what is the policy's.

    `place` is the number of its group: an equal row is another one.
    """
    count = len(sampled["completions"])
    given = {EPISODE: sampled.get(_EPISODES), POLICY_TEXT: sampled.get(_POLICY_TEXTS)}
    there = {name: values for name, values in given.items() if values is not None}
    return [{**row, GROUPS: place, **{n: there[n][i] for n in there}} for i in range(count)]


def _check_columns(reward: Reward, rows: Sequence[Row]) -> None:
    """Raise `UserError` if no row has a column that the reward reads: every call would fail."""
    there = {"prompt": None, "prompts": None, EPISODE: None, POLICY_TEXT: None} | dict.fromkeys(
        name for row in rows for name in row
    )
    for name in reward.columns:
        if name not in there:
            names = ", ".join([*map(str, there)][4:])
            raise UserError(
                f"reward {reward.name!r} needs the column {name!r}; the rows have {names}"
            )


class Judge:
    """The judge of one set's rows: one reward for all, or for each row its own (`judge_of`)."""

    def __init__(
        self, rows: Sequence[Row], reward: str | None, options: Mapping[str, Any] | None
    ) -> None:
        kinds: dict[str, tuple[str, Mapping[str, Any] | None, list[int]]] = {}
        for place, row in enumerate(rows):
            name, own = (reward, options) if reward else judge_of(row)
            kinds.setdefault(f"{name} {own!r}", (name, own, []))[2].append(place)
        self.benches = [
            _Bench(name, own, places, [rows[i] for i in places])
            for name, own, places in kinds.values()
        ]
        self.name = ", ".join(dict.fromkeys(bench.name for bench in self.benches))
        """The names of the rewards that judge."""

    def kept(self, rows: Sequence[Row]) -> list[Row]:
        """What a result has of its rows, before anything is sampled."""
        kept = {i: bench.kept(rows[i]) for bench in self.benches for i in bench.places}
        return [kept[place] for place in range(len(rows))]

    def score(self, rows: Sequence[Row], outs: Sequence[Sequence[Rollout]]) -> list[Row]:
        """Score fresh completions, one group for each row; returns scored rows (see `metrics`)."""
        sampled = [
            {
                "completions": [out.text for out in group],
                "tokens": [out.tokens for out in group],
                "truncated": [out.truncated for out in group],
                **_turned(group),
            }
            for group in outs
        ]
        return self._judge(rows, sampled)

    def judge_again(self, saved: Sequence[Row]) -> list[Row]:
        """Score the completions of a saved result again; the judge is of its rows `as_given`."""
        names = (*_SAMPLED, *_TURNED)
        sampled = [{n: v for n, v in row.items() if n in names or _is_note(n, v)} for row in saved]
        return self._judge([as_given(row) for row in saved], sampled)

    def _judge(self, rows: Sequence[Row], sampled: Sequence[Row]) -> list[Row]:
        scored: dict[int, Row] = {}
        for bench in self.benches:
            marks = bench.marks(rows, sampled)
            for place in bench.places:
                own = sampled[place]
                mine = [next(marks) for _ in own["completions"]]
                scored[place] = {
                    **bench.kept(rows[place]),
                    **own,
                    "scores": [mark["value"] for mark in mine],
                    "reasons": [mark["reason"] for mark in mine],
                    "outcomes": [mark["outcome"] for mark in mine],
                }
                if mine and "lenient" in mine[0]:
                    scored[place]["lenient"] = [mark["lenient"] for mark in mine]
                    scored[place]["lenient_reasons"] = [mark["lenient_reason"] for mark in mine]
                if bench.name == "math_answer" and len(mine) > 1:
                    scores, tags = scored[place]["scores"], bench.options.get("tags")
                    texts = [tagged(t, tags) if tags else t for t in bench.texts(own)]
                    scored[place]["classes"] = classes(texts, scores)
        return [scored[place] for place in range(len(rows))]


def _turned(group: Sequence[Rollout]) -> dict[str, Any]:
    """What turns have made of completions: given by an environment, and the policy's own text."""
    episodes, own = [out.episode for out in group], [out.policy_text for out in group]
    return {
        **({} if None in episodes else {_EPISODES: episodes}),
        **({_POLICY_TEXTS: own} if any(text is not None for text in own) else {}),
    }


def classes(completions: Sequence[str], scores: Sequence[float | None]) -> list[int]:
    """Which completions have equal answers: 0 the right ones, 1, 2 … wrong ones, -1 no answer.

    Wrong answers are equal where the verifier says so, whatever their spelling, and where both
    equal a third one ("5 cm", "5" and "5 m"): so classes do not depend on the samples' order.
    """
    answers = []
    for text, score in zip(completions, scores, strict=True):
        wrong = score is not None and score != 1.0
        answers.append(next(iter(answer_of(text).texts), None) if wrong else None)
    root = _equal({answer for answer in answers if answer is not None})
    numbers: dict[str, int] = {}
    class_of_each = []
    for answer, score in zip(answers, scores, strict=True):
        if answer is None:
            class_of_each.append(0 if score == 1.0 else -1)
        else:
            class_of_each.append(numbers.setdefault(root[answer], len(numbers) + 1))
    return class_of_each


def _equal(answers: set[str]) -> dict[str, str]:
    """Each answer's class, by one of its answers: the connected parts of "is equal to"."""
    root: dict[str, str] = {}
    for answer in sorted(answers):
        root[answer] = answer
        boxed = f"\\boxed{{{answer}}}"
        for other in list(root):
            mine, its = root[answer], root[other]
            if mine != its and verify(boxed, other, timeout_s=_CLASS_TIMEOUT_S).value == 1.0:
                root |= {name: its for name, own in root.items() if own == mine}
    return root


def as_given(saved: Row) -> Row:
    """The row of a saved result as its set had it: without what the evaluation has put on it."""
    own = {
        name: value
        for name, value in saved.items()
        if name not in _OF_RESULT or (name in _NOTED and not _is_note(name, value))
    }
    apart = mapping(saved.get(_APART)).items()
    return own | {name: value for name, value in apart if name in _OF_RESULT}


def _is_note(name: str, value: Any) -> bool:
    """Whether a column of a saved row is a note: in older results a set's own may stand there."""
    if name == OPENED:
        return isinstance(value, str) and len(value) == _DIGEST
    return name == "overlap" and (value is None or isinstance(value, dict))


def malformed(row: Row) -> str:
    """What is wrong with a saved scored row; an empty text for a good one."""
    lists = {name: row.get(name) for name in (*_SAMPLED, *_JUDGED[:3])}
    for name, values in {"problem": row.get("problem"), **lists}.items():
        if not isinstance(values, str if name == "problem" else list):
            return f"its {name} are missing" if name in lists else "its problem is missing"
    for name in _TURNED:
        if name in row and not isinstance(row[name], list):
            return f"its {name} are not a list"
        lists |= {name: row[name]} if name in row else {}
    lengths = {name: len(values or ()) for name, values in lists.items()}
    if len({*lengths.values()}) > 1 or not lengths["scores"]:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        return f"its lists should be of one length and not empty: {counts}"
    own = [text for text in row.get(_POLICY_TEXTS, ()) if text is not None]
    if not all(isinstance(text, str) for text in (*row["completions"], *own)):
        return "its completions are not all texts"
    if not all(isinstance(cut, bool) for cut in row["truncated"]):
        return "its truncated are not all true or false"
    if not all(count is None or number(count) is not None for count in row["tokens"]):
        return "its tokens are not all numbers"
    marks = row.get("lenient", row["scores"])
    if not isinstance(marks, list) or len(marks) != lengths["scores"]:
        return f"its lenient marks should be a list of {lengths['scores']}"
    if not all(mark is None or number(mark) is not None for mark in marks):
        return "its lenient marks are not all numbers"
    return ""
