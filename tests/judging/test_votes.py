"""How far the votes of a judge may be apart, and by which rubric it votes."""

import itertools
import json
from fractions import Fraction
from pathlib import Path

from rl_reasoner import ModelJudge
from rl_reasoner.judging.backends import FunctionBackend
from rl_reasoner.judging.rubric import read_rubric
from rl_reasoner.scoring.registry import load_reward
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


def test_a_judge_that_is_loaded_again_reads_its_rubric_again(tmp_path: Path) -> None:
    rubric, judge_file = tmp_path / "rubric.yaml", tmp_path / "by_name.py"
    judge_file.write_text(
        "import json\ndef ask(messages, seed):\n"
        "    kind = 'kind' in messages[-1]['content']\n"
        "    return json.dumps({'points': {'kind' if kind else 'terse': 4 * kind}})\n"
    )
    options = {
        "rubric": str(rubric),
        "function": f"{judge_file}:ask",
        "cache": str(tmp_path / "replies"),
    }
    for name, value in (("kind", 1.0), ("terse", 0.0), ("kind", 1.0)):
        rubric.write_text(f"items: [{{name: {name}, text: It is so.}}]\n")
        loaded = load_reward("judge", options)
        assert [loaded("Hello.", prompt="Greet me.").value for _ in range(2)] == [value] * 2


def _share(points: tuple[int, int]) -> Fraction:
    return Fraction(2 * points[0] + points[1], 12)
