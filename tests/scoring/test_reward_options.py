"""Options of shipped rewards: what they make of a value, and which values they refuse."""

from typing import Any

import pytest

from rl_reasoner import reward
from rl_reasoner.errors import UserError
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.types import Fault


def values(name: str, options: dict[str, Any], *texts: str) -> list[float | None]:
    return load_reward(name, options)(completions=[*texts])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("length", {"limit": 400, "buffer": 500}, "buffer 500 one from 0 to the limit"),
        ("length", {"buffer": -500}, "buffer -500 one from 0 to the limit"),
        ("length", {"limit": 0}, "limit 0 must be a whole number, 1 or more"),
        ("length", {"limit": "many"}, "limit 'many' must be a whole number"),
        ("length", {"target": -5}, "target -5 one of 0 (none) or more"),
        ("step_arithmetic", {"at_least": 0}, "at_least of step_arithmetic is 0: expected a whole"),
        ("step_arithmetic", {"at_least": "two"}, "at_least of step_arithmetic is 'two'"),
        ("math_answer", {"timeout_s": "5s"}, "timeout_s of math_answer is '5s': expected seconds"),
        ("math_answer", {"timeout_s": -1}, "timeout_s of math_answer is -1: expected seconds"),
        ("language", {"target": "zh-CN"}, "unknown target of reward language 'zh-CN'."),
        ("language", {"target": ["zh"]}, "target of reward language is ['zh']: expected a text."),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_a_row_is_scored(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_reward(name, options)
    assert said in str(caught.value)


def test_the_buffer_of_length_is_a_quarter_of_its_limit_and_at_most_500() -> None:
    texts = ("", "x" * 300, "x" * 350, "x" * 400, "x" * 500)
    assert values("length", {"limit": 400}, *texts) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert values("length", {}, "x" * 1500, "x" * 1750, "x" * 2000) == [0.0, -0.5, -1.0]
    assert values("length", {"limit": 4000}, "x" * 3500, "x" * 3750) == [0.0, -0.5]
    assert values("length", {"limit": 400, "buffer": 400}, "", "x" * 100) == [0.0, -0.25]


def test_a_length_below_nothing_that_a_row_asks_for_is_a_fault_of_the_row() -> None:
    columns = {"target_length": [-5, 2, None]}
    found = score_batch(load_reward("length"), ["a b", "a b", "a b"], columns)
    assert isinstance(found[0], Fault) and "target_length is -5" in found[0].message
    assert [getattr(one, "value", None) for one in found[1:]] == [1.0, 0.0]


def test_language_takes_its_target_from_the_prompt_where_none_is_given() -> None:
    text = "<think>The answer is seven.</think>"
    for options, value in (({}, 1.0), ({"target": ""}, 1.0), ({"target": "de"}, 0.0)):
        language = load_reward("language", options)
        assert language(completions=[text], prompts=["What is it?"]) == [value]


def test_called_in_trls_form_it_takes_a_plain_value_as_an_option() -> None:
    length = load_reward("length", {"limit": 4000})
    assert length(completions=["x" * 400], limit=400) == [-1.0]
    assert length(completions=["x" * 400], limit=[400]) == [0.0], "a column of the data"

    @reward
    def below(completion: str, answer: str, most: float = 0.3, marks: str = "!") -> float:
        return float(completion.count(marks) <= most)

    texts = {"completions": ["a!", "b??"], "answer": ["1", "1"]}
    assert below(**texts) == [0.0, 1.0]
    assert below(**texts, most=1) == [1.0, 1.0]
    assert below.with_options(most=1)(**texts, marks="?") == [1.0, 0.0]
