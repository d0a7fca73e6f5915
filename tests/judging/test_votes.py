"""How far the votes of a judge may be apart."""

import itertools
import json
from fractions import Fraction
from pathlib import Path

from rl_reasoner import ModelJudge
from rl_reasoner.judging.backends import FunctionBackend
from rl_reasoner.judging.rubric import read_rubric
from rl_reasoner.types import Score

RUBRIC = {
    "items": [
        {"name": "right", "text": "It is right.", "weight": 2},
        {"name": "sound", "text": "It is sound."},
    ],
    "points": 4,
}


def test_votes_that_are_as_far_apart_as_allowed_count(tmp_path: Path) -> None:
    """Sums of shares are rounded, and twelfths are no binary fractions."""
    given = list(itertools.product(range(5), repeat=2))
    pairs = [
        (one, other)
        for one, other in itertools.combinations(given, 2)
        if abs(_share(one) - _share(other)) == Fraction(1, 4)
    ]
    points = [{"right": right, "sound": sound} for pair in pairs for right, sound in pair]
    replies = iter([json.dumps({"points": one}) for one in points])
    backend = FunctionBackend(lambda messages, seed: next(replies), 1)
    judge = ModelJudge(backend, read_rubric(RUBRIC), votes=2, tolerance=0.25, cache=tmp_path)
    outcomes = judge.points([("p", f"{number}", None) for number in range(len(pairs))])
    assert len(pairs) > 20
    for pair, outcome in zip(pairs, outcomes, strict=True):
        assert isinstance(outcome, Score) and outcome.value is not None, (pair, outcome)


def _share(points: tuple[int, int]) -> Fraction:
    return Fraction(2 * points[0] + points[1], 12)
