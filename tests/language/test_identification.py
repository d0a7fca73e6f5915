"""Shares of languages in mixed texts, and the rewards that read texts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.errors import UserError
from rl_reasoner.language.identification import LANGUAGES, language_of, language_share
from rl_reasoner.language.repetition import ending_loop, repeated_share
from rl_reasoner.language.thinking import answer_part, chain_of
from rl_reasoner.scoring.registry import load_reward

TEXTS = Path(__file__).parent / "language_texts.jsonl"
TABLE: list[dict[str, Any]] = [
    json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()
]


# ---------------------------------------------------------------------------------- the shares


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["text"][:24])
def test_the_share_of_a_text_is_near_the_one_counted_by_hand(row: dict[str, Any]) -> None:
    found = language_share(row["text"], row["target"]).value
    if row["share"] is None:
        assert found is None
    else:
        assert found == pytest.approx(row["share"], abs=0.12)


@pytest.mark.parametrize("fence", ["```", "~~~", "~~~~", "   ~~~"])
def test_code_between_fences_of_either_kind_is_of_no_language(fence: str) -> None:
    code = f"{fence}python\nfor item in the_list:\n    print(item and not the other)\n{fence}"
    assert language_share(f"我们先写一个程序。\n{code}\n然后得到答案。", "zh").value == 1.0


def test_tildes_within_a_line_are_no_fence() -> None:
    share = language_share("好的~~~ let us see what this is about ~~~ 好的", "zh").value
    assert share is not None and share < 0.5


@given(st.text(max_size=300), st.sampled_from(sorted(LANGUAGES)))
def test_any_text_has_a_share(text: str, language: str) -> None:
    found = language_share(text, language)
    assert found.value is None or 0.0 <= found.value <= 1.0
    assert (found.value is None) == (not found.words)


@given(st.integers(1, 30), st.integers(0, 30))
def test_words_of_two_scripts_are_counted_in_proportion(english: int, chinese: int) -> None:
    text = "answer " * english + "我们" * chinese
    assert language_share(text, "zh").value == pytest.approx(chinese / (english + chinese))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the sum of these numbers?", "en"),
        ("计算 3+4 的结果。", "zh"),
        ("Was ist die Summe und wie viel ist es?", "de"),
        ("Сколько будет три плюс четыре?", "ru"),
        ("これはいくつですか。", "ja"),
        ("3+4=", None),
        ("$x^2$", None),
    ],
)
def test_the_language_of_a_prompt(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_an_unknown_language_is_told() -> None:
    with pytest.raises(UserError, match=r"unknown language 'eng'\. Did you mean 'en'"):
        language_share("a", "eng")


# ----------------------------------------------------------------------------------- its reward

CHAIN = "<think>3 plus 4=7乘2=4</think><answer>四</answer>"


@pytest.mark.parametrize(
    ("completion", "prompt", "row", "options", "value"),
    [
        (CHAIN, "Compute it.", {}, {}, 0.5),
        (CHAIN, "Compute it.", {}, {"part": "answer"}, 0.0),
        (CHAIN, "Compute it.", {}, {"part": "all"}, 1 / 3),
        (CHAIN, "3+4", {}, {}, None),
        (CHAIN, "3+4", {}, {"target": "zh", "part": "answer"}, 1.0),
        (CHAIN, "计算。", {"language": "en"}, {"target": "zh"}, 0.5),
        (CHAIN, "计算。", {"language": None}, {"target": "en", "part": "answer"}, 0.0),
        ("三加四</think>4", "3+4", {}, {"target": "zh", "opened": True}, 1.0),
        ("<think></think>4", "Compute it.", {}, {}, None),
    ],
)
def test_the_language_reward(
    completion: str, prompt: str, row: dict[str, Any], options: dict[str, Any], value: float | None
) -> None:
    found = load_reward("language", options)(completion, prompt=prompt, **row)
    assert found.value == (None if value is None else pytest.approx(value))


def test_the_language_reward_on_a_batch_with_and_without_the_column() -> None:
    reward = load_reward("language")
    batch = {"completions": [CHAIN, CHAIN], "prompts": ["Compute it.", "计算它。"]}
    assert reward(**batch) == [0.5, 0.5]
    alone = {**batch, "completions": ["<think>plus</think>"] * 2}
    assert reward(**alone) == [1.0, 0.0]
    assert reward(**alone, language=["zh", None]) == [0.0, 0.0]


@pytest.mark.parametrize("options", [{"part": "chian"}, {"target": "english"}])
def test_mistakes_in_its_options_are_told(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="unknown"):
        load_reward("language", options)(CHAIN, prompt="Compute it.")


# ------------------------------------------------------------------------------- chain and answer


@pytest.mark.parametrize(
    ("completion", "chain", "answer"),
    [
        ("<think>a</think>b", "a", "b"),
        ("<think>a</think><answer>b</answer>", "a", "b"),
        ("<think>a</think>\n<answer>b</answer>\n", "a", "b"),
        ("a</think>b", "a", "b"),
        ("b", "", "b"),
        ("<answer>b</answer>", "", "b"),
        ("<think>a", "a", ""),
        ("<think>a</think>b</think>c", "a</think>b", "c"),
        ("<think>a</think>so <answer>b</answer>", "a", "so <answer>b</answer>"),
        ("", "", ""),
    ],
)
def test_the_parts_of_a_completion(completion: str, chain: str, answer: str) -> None:
    assert (chain_of(completion), answer_part(completion)) == (chain, answer)


# ------------------------------------------------------------------------------------ repetition


@pytest.mark.parametrize(
    ("text", "characters", "period"),
    [
        ("So it is 5. " + "Wait, no. " * 8, 79 + 1, 10),
        ("a" * 50, 50, 1),
        ("ab" * 5, 0, 0),
        ("Let me think about this step by step.", 0, 0),
        ("x. " + "再算一次。" * 6 + "再算", 32, 5),
        ("", 0, 0),
    ],
)
def test_the_loop_at_the_end(text: str, characters: int, period: int) -> None:
    found = ending_loop(text)
    assert found[1] == period
    assert abs(found[0] - characters) <= 2


@given(
    st.text("abc d", max_size=30),
    st.text("abcdefgh ", min_size=1, max_size=12).filter(lambda t: t.strip() == t),
    st.integers(3, 9),
)
def test_a_repeated_end_is_found(start: str, unit: str, rounds: int) -> None:
    characters, period = ending_loop(start + unit * rounds)
    if len(unit) * rounds >= 20:
        assert characters >= len(unit) * rounds and 1 <= period <= len(unit)
        end = (start + unit * rounds)[-characters:]
        assert end[period:] == end[:-period]


def test_repeated_words() -> None:
    assert repeated_share("one two three four five six", 2) == 0.0
    assert repeated_share("one two one two one two", 2) == pytest.approx(3 / 5)
    assert repeated_share("天地天地天地", 2) == pytest.approx(3 / 5)
    assert repeated_share("one", 2) == 0.0


def test_the_repetition_penalty() -> None:
    reward = load_reward("repetition")
    fresh = "We add three to four and get seven, which times two makes fourteen, so four is left."
    assert reward(fresh).value == 0.0
    assert reward(f"{fresh} " + "No, wait. " * 40).value < -0.7
    assert -0.3 < reward(fresh + " And so on and on and on.").value <= 0.0
    with pytest.raises(UserError, match="size 0"):
        load_reward("repetition", {"size": 0})("a")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["a" * 100_000, "ab" * 50_000, ("a" * 300 + "b") * 333])
def test_a_hundred_thousand_characters_take_linear_time(text: str) -> None:
    """Quadratic time would be many minutes."""
    assert load_reward("repetition")(text).value == pytest.approx(-1.0, abs=0.01)
    assert language_share(text, "en").value is not None


# ------------------------------------------------------------------------------ length and form


@pytest.mark.parametrize(
    ("options", "row", "value"),
    [
        ({"target": 4}, {}, 1.0),
        ({"target": 8}, {}, 0.5),
        ({"target": 2}, {}, 0.0),
        ({"target": 1}, {}, 0.0),
        ({"target": 8, "mode": "most"}, {}, 1.0),
        ({"target": 3, "mode": "most"}, {}, 2 / 3),
        ({"target": 18, "unit": "characters"}, {}, 1.0),
        ({"target": 99}, {"target_length": 4}, 1.0),
        ({"target": 6}, {"completion_ids": [1] * 6}, 1.0),
        ({"target": 6, "unit": "words"}, {"completion_ids": [1] * 6}, 4 / 6),
        ({}, {}, 0.0),
    ],
)
def test_a_target_for_the_length(
    options: dict[str, Any], row: dict[str, Any], value: float
) -> None:
    found = load_reward("length", options)("four words are it.", **row)
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize(
    "options", [{"target": 3, "mode": "exactly"}, {"target": 3, "unit": "token"}]
)
def test_mistakes_in_the_options_of_length(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Did you mean"):
        load_reward("length", options)("a")


@pytest.mark.parametrize(
    ("form", "filled", "completion", "value"),
    [
        ("think", False, "<think>a</think>b", 1.0),
        ("think", False, "<think>a</think>", 1.0),
        ("think", True, "<think>a</think> ", 0.0),
        ("think", False, "b<think>a</think>", 0.0),
        ("think", False, "<think>a</think>b</think>", 0.0),
        ("answer", False, "a <answer>b</answer>", 1.0),
        ("answer", True, "<answer>b</answer>", 0.0),
        ("answer", False, "<answer>b</answer> c", 0.0),
        ("r1", True, "<think></think><answer>b</answer>", 0.0),
        ("r1", True, "<think>a</think><answer>b</answer>", 1.0),
    ],
)
def test_other_forms_of_tags(form: str, filled: bool, completion: str, value: float) -> None:
    assert load_reward("format_tags", {"form": form, "filled": filled})(completion).value == value
