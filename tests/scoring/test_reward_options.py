"""Options of shipped rewards: what they make of a value, and which values they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from rl_reasoner import reward
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.inputs import read_inputs
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward, options_read
from rl_reasoner.testing.kit import examine
from rl_reasoner.types import Fault
from support.commands import Cli


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


def test_values_that_do_not_fit_are_refused_where_options_are_set_by_hand() -> None:
    math_answer, length = load_reward("math_answer"), load_reward("length")
    for make in (
        lambda: math_answer.with_options(value_only="False"),  # would turn it on
        lambda: math_answer(completions=["5"], answer=["5"], value_only="no"),
    ):
        with pytest.raises(UserError, match="value_only of math_answer"):
            make()
    with pytest.raises(UserError, match="limit 'many' must be a whole number"):
        length.with_options(limit="many")
    halves = length.with_options(limit=100).with_options(buffer=100)  # one after the other
    assert halves(completions=["x" * 50]) == [-0.5]


OWN = """
from __future__ import annotations
from typing import TYPE_CHECKING, Any, Literal
from rl_reasoner import reward
if TYPE_CHECKING:
    from nowhere import Unknown

@reward
def short(
    completion: str,
    limit: int = 20,
    share: float | None = 0.5,
    mark: str = "!",
    kind: Literal["a", "b"] = "a",
    sizes: tuple[int, ...] = (),
    late: int = None,
    strict=False,
    own: Unknown = 1,
    any: Any = 0,
) -> float:
    return float(mark == "7" and share is None and strict is False and limit == 3)

@reward(group=True)
def ranked(completions: list[str], half: bool = False) -> list[float]:
    return [0.0 for _ in completions]
"""


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "math_answer",
            {"value_only": "maybe"},
            "value_only of math_answer is 'maybe': expected true or false",
        ),
        (
            "format_tags",
            {"opened": "False"},
            "opened of format_tags is 'False': expected true or false",
        ),
        (
            "judge",
            {"function": "f.py:f", "reference": "no"},
            "reference of judge is 'no'",
        ),
        ("repetition", {"size": True}, "size of repetition is True: expected a whole number"),
        ("code_tests", {"memory_mb": "512"}, "memory_mb of code_tests is '512': expected a whole"),
        ("short", {"limit": "abc"}, "limit of short is 'abc': expected a whole number"),
        ("short", {"limit": 2.5}, "limit of short is 2.5: expected a whole number"),
        ("short", {"limit": False}, "limit of short is False: expected a whole number"),
        ("short", {"share": "most"}, "share of short is 'most': expected a number or null"),
        ("short", {"mark": 3}, "mark of short is 3: expected a text"),
        ("short", {"kind": "c"}, "kind of short is 'c': expected 'a' or 'b'"),
        ("short", {"sizes": "12"}, "sizes of short is '12': expected a list of whole numbers"),
        (
            "short",
            {"sizes": [1, "2"]},
            "sizes of short is [1, '2']: expected a list",
        ),
        ("short", {"late": "x"}, "late of short is 'x': expected a whole number"),
        ("ranked", {"half": "off"}, "half of ranked is 'off': expected true or false"),
        (
            "http://localhost:1/s",
            {"attempts": "4"},
            "is '4': expected a whole number",
        ),
        ("http://localhost:1/s", {"columns": "answer"}, "is 'answer': expected a list of texts"),
    ],
)
def test_a_value_of_another_type_than_the_function_says_is_refused(
    name: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "f.py").write_text("def f(prompt): return ''\n")
    with pytest.raises(UserError) as caught:
        load_reward(
            f"{tmp_path}/own.py:{name}" if name in ("short", "ranked") else name,
            {
                key: value.replace("f.py", f"{tmp_path}/f.py") if key == "function" else value
                for key, value in options.items()
            },
        )
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 1, "limit": 3, "mark": "", "kind": "b", "sizes": [1, 2]},
        {"share": None, "late": None, "sizes": (), "strict": "a", "own": "b", "any": []},
        {"late": 3},
    ],
)
def test_a_value_that_fits_is_taken_and_what_is_not_known_is_not_checked(
    options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert load_reward(f"{tmp_path}/own.py:short", options).options == options


WIDE = """
from typing import Annotated, Literal
from rl_reasoner import reward

@reward
def wide(
    completion: str,
    limit: int = 3,
    share: float = 0.5,
    on: bool = False,
    file: str = "words.txt",
    mark: str | None = "x",
    mode: Literal["none", "all"] | None = "all",
    sizes: list[Annotated[int, []]] = [],
) -> float:
    return 1.0
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("limit=1e3", 1000),
        ("limit=3.0", 3),
        ("share=.5", 0.5),
        ("share=inf", float("inf")),
        ("mark=", ""),
        ("mark=None", None),
        ("mark=1e3", "1e3"),
        ("mode=none", "none"),
        ("mode=null", None),
    ],
)
def test_a_word_is_the_value_that_the_annotation_has(text: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text(WIDE)
    name, _, word = text.partition("=")
    found = options_read(f"{tmp_path}/wide.py:wide", {name: word})
    assert repr(found) == repr({name: value})


def test_paths_are_texts_and_numpys_truth_is_true_or_false(tmp_path: Path) -> None:
    (tmp_path / "wide.py").write_text(WIDE)
    wide = f"{tmp_path}/wide.py:wide"
    options = {"file": tmp_path, "on": numpy.True_, "limit": numpy.int64(2)}
    assert load_reward(wide, options).options == options
    with pytest.raises(UserError, match="sizes of wide is \\['a'\\]: expected a list"):
        load_reward(wide, {"sizes": ["a"]})


SUM = '{"completion": "<answer>900 - 156</answer>", "answer": "744"}\n'


def test_words_of_a_command_line_are_true_or_false_where_that_is_asked_for(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "vo.jsonl").write_text(SUM)
    (tmp_path / "own.py").write_text(OWN)

    def mean(reward: str, options: str) -> Any:
        ended = cli("score", reward, "vo.jsonl", "--json", "--reward-options", options)
        return json.loads(ended.out)["mean"]

    for word in ("False", "no", "off", "0"):
        assert mean("math_answer", f"value_only={word}") == 1.0, word
    for word in ("True", "YES", "on", "1"):
        assert mean("math_answer", f"value_only={word}") == 0.0, word
    assert mean("own.py:short", "limit=3,share=None,mark=7,strict=no") == 1.0
    assert mean("own.py:short", 'limit=3,share=null,mark="7"') == 1.0


@pytest.mark.parametrize(
    ("reward", "options", "said"),
    [
        (
            "math_answer",
            "value_only=maybe",
            "option value_only of math_answer is 'maybe'",
        ),
        ("math_answer", '{"value_only": "False"}', "option value_only of math_answer is 'False'"),
        ("own.py:short", "limit=abc", "option limit of short is 'abc': expected a whole number"),
        ("own.py:short", "limit=no", "option limit of short is 'no': expected a whole number"),
    ],
)
def test_a_wrong_value_on_the_command_line_ends_it_before_a_row_is_scored(
    cli: Cli, tmp_path: Path, reward: str, options: str, said: str
) -> None:
    (tmp_path / "vo.jsonl").write_text(SUM)
    (tmp_path / "own.py").write_text(OWN)
    ended = cli("score", reward, "vo.jsonl", "--reward-options", options)
    assert ended.code == 2 and said in ended.err and "Traceback" not in ended.err
    assert "scoring" not in ended.err and not (tmp_path / "vo.jsonl.scores.jsonl").exists()


def test_a_text_for_true_or_false_in_a_recipe_is_told_with_its_place(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(
        "policy: scratch:dense-tiny\ndata: {task: modular}\nstages: [{kind: grpo, steps: 1}]\n"
        'rewards:\n  math_answer: {options: {value_only: "False"}}\n'
    )
    ended = cli("train", "own.yaml", "--quiet")
    told = "own.yaml:5: option value_only of math_answer is 'False': expected true or false"
    assert ended.code == 2 and told in ended.err


SHY = """
from rl_reasoner import Column, reward

@reward
def shy(completion: str, answer: str = "") -> float:
    return float(bool(answer) and answer in completion)

@reward
def mild(completion: str, answer: str = Column(""), most: int = 3) -> float:
    return float(bool(answer) and answer in completion)

@reward
def takes(completion: str, *rest: str, most: int = 3, **others) -> float:
    return float(others.get("answer", "") in completion)

class Made:
    def __call__(self, completion: str, **others) -> float:
        return float(others.get("answer", "") in completion)

made = reward(Made())

@reward
def leaves(completion: str, **others) -> float:
    del others
    return float("4" in completion)
"""


def test_an_option_that_is_called_like_a_column_is_told(
    cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`answer=""` is an option: a newcomer's reward never sees the answer, and pays nothing."""
    (tmp_path / "own.py").write_text(SHY)
    (tmp_path / "vo.jsonl").write_text(SUM)
    shy = "reward 'shy' is not given the column 'answer': its parameter has a default"
    takes = "reward 'takes' is given no columns in **others"
    for name, options, told in (
        ("shy", {}, shy),
        ("shy", {"answer": "744"}, ""),
        ("mild", {}, ""),
        ("takes", {}, takes),
        ("made", {}, "is given no columns in **others"),
        ("leaves", {}, ""),
    ):
        spec = {f"{tmp_path}/own.py:{name}": {"weight": 1.0, "options": options}}
        rows = {"task": "modular", "count": 8}
        stage = {"kind": "grpo", "steps": 1, "data": rows, "group": {"prompts": 2}}
        caplog.clear()
        read_inputs(Recipe(policy="scratch:dense-tiny", rewards=spec, stages=[stage]))
        assert told in caplog.text if told else "column" not in caplog.text
        caplog.clear()
        ended = cli("score", f"own.py:{name}", "vo.jsonl", "--reward-options", json.dumps(options))
        assert ended.code == 0
        assert told in caplog.text if told else "column" not in caplog.text
    [seen] = [f for f in examine(load_reward("own.py:shy")).findings if f.check == "distinguishes"]
    assert seen.status == "warned" and "answer=Column('') where rows may lack it" in seen.message
