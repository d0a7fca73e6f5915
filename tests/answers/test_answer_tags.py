"""An answer form of one's own: math_answer takes its tags, and votes are counted by them."""

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.judging import Judge
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.types import Rollout

TAGS = ["<ans>", "</ans>"]


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("so <ans>4</ans>", 1.0),
        ("<ans>5</ans> no, <ans> \\boxed{4} </ans>.", 1.0),
        ("<think><ans>4</ans></think> <ans>5</ans>", 0.0),
        ("<think><ans>4</ans></think> 4", 0.0),
        ("\\boxed{4}", 0.0),  # another form is not the one that was asked for
        ("<ans>4", 0.0),
        ("</ans>4<ans>", 0.0),
        ("<ans></ans>", 0.0),
        ("the answer is <ans>2*2</ans> apples", 1.0),
    ],
)
def test_only_what_stands_between_the_tags_counts(completion: str, value: float) -> None:
    judge = load_reward("math_answer", {"tags": TAGS})
    assert judge(completion, answer="4").value == value


def test_a_missing_answer_says_which_tags_it_looked_for() -> None:
    said = load_reward("math_answer", {"tags": TAGS})("4", answer="4").reason
    assert said == "no final answer: nothing between <ans> and </ans>"


@pytest.mark.parametrize("tags", ["ans", ["<ans>"], ["", "</ans>"], [1, 2]])
def test_what_are_not_two_tags_is_refused(tags: object) -> None:
    with pytest.raises(UserError, match="expected two texts, such as"):
        load_reward("math_answer", {"tags": tags})


def test_votes_are_counted_by_the_tags() -> None:
    texts = ["<ans>5</ans>", "<ans>5.0</ans>", "<ans>4</ans>", "\\boxed{4}"]
    judge = Judge([{"problem": "2+2=", "answer": "4"}], "math_answer", {"tags": TAGS})
    group = [Rollout(text=text, tokens=1, truncated=False) for text in texts]
    [row] = judge.score([{"problem": "2+2=", "answer": "4"}], [group])
    assert row["classes"] == [1, 1, 0, -1]
    assert compute_figures([row])["maj_at"]["4"] == 0.0
