"""The rewards of control arms: what they draw, and what they take for an answer's form."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.control_rewards import FORM_COLUMN, control_reward, form_of, with_forms
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.scoring.batch import POLICY_TEXT, score_batch
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.runner import SEEDS
from rl_reasoner.types import Score

BLOCK = "Here:\n```python\n{}\n```\n"


def recipe(rewards: Any, **changes: Any) -> Recipe:
    fields = {
        "policy": "scratch:dense-tiny",
        "template": "plain",
        "rewards": rewards,
        "stages": [{"kind": "grpo", "data": {"task": "modular"}}],
        **changes,
    }
    return Recipe.model_validate(fields)


def form(rewards: Any, row: dict[str, Any] | None = None, **changes: Any) -> Any:
    made = recipe(rewards, **changes)
    loaded = {name: load_reward(name, spec.options) for name, spec in made.rewards.items()}
    return form_of({"problem": "1+1", "answer": "2", **(row or {})}, made, loaded)


def has_form(asked: Any, completion: str) -> float | None:
    score: Score = control_reward("form_only", {}).score(completion, **{FORM_COLUMN: asked})
    return score.value


# ------------------------------------------------------------------------------------- drawn


@given(st.integers(0, 2**32 - 1), st.text(max_size=20), st.text(max_size=20))
def test_the_draw_is_a_function_of_the_place_alone(seed: int, one: str, other: str) -> None:
    drawn = control_reward("random_reward", {"mean": 0.4})
    assert drawn.score(one, row_seed=seed) == drawn.score(other, row_seed=seed)


@settings(max_examples=20)
@given(st.floats(0, 1), st.floats(-2, 0), st.floats(0.1, 2))
def test_the_mean_is_the_one_asked_for(share: float, low: float, width: float) -> None:
    mean = low + share * width
    drawn = control_reward("random_reward", {"mean": mean, "low": low, "high": low + width})
    values = [drawn.score("", row_seed=seed).value or 0.0 for seed in range(4000)]
    assert {*values} <= {low, low + width}
    assert sum(values) / len(values) == pytest.approx(mean, abs=5 * width * 0.5 / 4000**0.5)


def test_a_reward_that_never_varied_is_drawn_flat() -> None:
    drawn = control_reward("random_reward", {"mean": 0.5, "low": 0.5, "high": 0.5})
    assert {drawn.score("", row_seed=seed).value for seed in range(50)} == {0.5}


def test_places_decide_wherever_the_reward_runs() -> None:
    """In a worker process, on a thread, in one batch or in two: the seeds of the rows decide."""
    drawn = control_reward("random_reward", {"mean": 0.5})
    seeds = list(range(100, 140))
    texts = ["the same"] * len(seeds)
    columns = {"prompts": texts, SEEDS: seeds}
    apart = [s.value for s in score_batch(drawn, texts, columns) if isinstance(s, Score)]
    thread = [
        s.value
        for s in score_batch(control_reward("random_reward", {"mean": 0.5}), texts, columns, HERE)
        if isinstance(s, Score)
    ]
    half = {name: values[20:] for name, values in columns.items()}
    later = [s.value for s in score_batch(drawn, texts[20:], half) if isinstance(s, Score)]
    assert apart == thread == [drawn.score("", row_seed=seed).value for seed in seeds]
    assert later == apart[20:] and {*apart} == {0.0, 1.0}


HERE = Limits(apart=False)

# -------------------------------------------------------------------------------------- form


@pytest.mark.parametrize(
    ("completion", "there"),
    [
        ("so \\boxed{7}", 1.0),
        ("so \\boxed{wrong}", 1.0),
        ("<think>\\boxed{1}</think> it is \\boxed{2}", 1.0),
        ("<think>\\boxed{1} and on", 0.0),
        ("<think>\\boxed{1}</think> it is 2", 0.0),
        ("so \\boxed{}", 0.0),
        ("so \\boxed{7", 0.0),
        ("the answer is 7", 0.0),
        ("", 0.0),
    ],
)
def test_a_box(completion: str, there: float) -> None:
    asked = form(["math_answer"], template="boxed")
    assert asked["kind"] == "boxed"
    assert has_form(asked, completion) == there
    assert form(["math_answer"], {"template": "boxed"}) == asked
    assert form(["math_answer"], system="Use \\boxed{}.", template="chat") == asked


@pytest.mark.parametrize(
    ("completion", "there"),
    [
        (BLOCK.format("def f():\n    return 1"), 1.0),
        (BLOCK.format("assert False"), 1.0),
        (BLOCK.format("def f(:"), 0.0),
        (BLOCK.format(""), 0.0),
        ("```js\nlet x = 1\n```", 0.0),
        ("```python\nx = 1", 0.0),
        (BLOCK.format("x = " + "(" * 5000), 0.0),
        (BLOCK.format("x = '\\d'"), 1.0),
        (BLOCK.format("x = \x00"), 0.0),
        ("x = 1", 0.0),
    ],
)
def test_a_program(completion: str, there: float, tmp_path: Any) -> None:
    asked = form({"code_tests": {"weight": 1}}, {"tests": ["assert f() == 2"]})
    assert has_form(asked, completion) == there


def test_a_program_is_never_run(tmp_path: Any) -> None:
    asked = form({"code_tests": 1.0}, {"tests": ["assert True"]})
    mark = tmp_path / "ran"
    assert has_form(asked, BLOCK.format(f"open({str(mark)!r}, 'w')")) == 1.0
    assert not mark.exists()


def test_a_program_is_taken_as_its_reward_takes_it() -> None:
    asked = form({"code_tests": {"options": {"extract": "any"}}}, {"tests": ["assert f()"]})
    assert has_form(asked, "x = 1") == 1.0
    row = {"problem": "def f():\n", "entry_point": "f", "tests": ["assert f()"]}
    assert has_form(form({"code_tests": 1.0}, row), "    return 1\nhello there") == 1.0
    assert has_form(form({"code_tests": 1.0}, row), "    return (\n") == 0.0


@pytest.mark.parametrize(
    ("rewards", "changes", "right", "wrong"),
    [
        (["math_answer"], {"template": "r1"}, "<think>a</think><answer>b</answer>", "b"),
        (
            {"math_answer": 1, "format_tags": {"options": {"opened": True}}},
            {},
            "a</think><answer>b</answer>",
            "<think>a</think><answer>b</answer>",
        ),
        (
            ["math_answer"],
            {"template": "{problem} Put it in <answer></answer>."},
            "so <answer>b</answer>",
            "so <answer>b",
        ),
        (
            {"math_answer": {"options": {"tags": ["<ans>", "</ans>"]}}},
            {},
            "it is <ans>5</ans>",
            "it is <answer>5</answer>",
        ),
        (["math_answer"], {}, "The answer is 5.", "<think>it is 5"),
    ],
)
def test_other_forms(rewards: Any, changes: Any, right: str, wrong: str) -> None:
    asked = form(rewards, **changes)
    assert (has_form(asked, right), has_form(asked, wrong)) == (1.0, 0.0)


def test_rows_of_several_tasks_have_forms_of_their_own() -> None:
    made = recipe({"math_answer": 1.0, "code_tests": 1.0}, template="boxed")
    loaded = {name: load_reward(name) for name in made.rewards}
    rows: list[dict[str, Any]] = [
        {"problem": "a", "answer": "1", "rewards": ["math_answer"]},
        {"problem": "b", "tests": ["assert f()"], "rewards": ["code_tests"]},
    ]
    kinds = [row[FORM_COLUMN]["kind"] for row in with_forms(rows, made, loaded)]
    assert kinds == ["boxed", "program"]


def test_a_row_without_a_form_is_named() -> None:
    made = recipe({"instructions": 1.0, "math_answer": 1.0})
    loaded = {name: load_reward(name) for name in made.rewards}
    rows = [{"problem": "say it", "id": 9, "rewards": ["instructions"]}]
    with pytest.raises(UserError, match=r"on row 9: instructions with .* use random_reward alone"):
        with_forms(rows, made, loaded)


@given(st.text(max_size=300))
def test_no_text_is_a_fault(text: str) -> None:
    for asked in (
        form(["math_answer"], template="boxed"),
        form(["math_answer"], template="r1"),
        form(["math_answer"]),
        form({"code_tests": {"options": {"extract": "whole"}}}),
    ):
        assert has_form(asked, text) in (0.0, 1.0)


def test_a_form_that_only_a_tool_gave_is_none() -> None:
    """As for the treatment's rewards: else the arm is paid for what the treatment is not."""
    asked, whole, own = form(["math_answer"], template="boxed"), "\\boxed{7}\nso", "so"
    columns = {"prompts": ["p"] * 2, FORM_COLUMN: [asked] * 2, POLICY_TEXT: [own, None]}
    told = score_batch(control_reward("form_only", {}), [whole] * 2, columns, HERE)
    assert [score.value for score in told if isinstance(score, Score)] == [0.0, 1.0]
