"""Checkable instructions: verdicts known beforehand, mistakes in them, hostile responses."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.errors import UserError
from rl_reasoner.language.instructions import KINDS, MOST_READ, parsed, verdicts
from rl_reasoner.language.units import has_word
from rl_reasoner.scoring.registry import load_reward

RESPONSES = Path(__file__).parent / "instruction_responses.jsonl"
CASES: list[dict[str, Any]] = [
    json.loads(line) for line in RESPONSES.read_text(encoding="utf-8").splitlines()
]
ARGUMENTS: dict[str, dict[str, Any]] = {  # of the kinds that need some
    "keyword": {"word": "a b"},
    "letter": {"letter": "a"},
    "include": {"words": ["a", "天"]},
    "exclude": {"words": ["b"]},
    "starts_with": {"text": "a"},
    "ends_with": {"text": "a"},
    "repeat_prompt": {"text": "a"},
    "choice": {"options": ["a"]},
    "paragraph_starts": {"paragraph": 1, "word": "a"},
    "language": {"language": "zh"},
}


def one_of(kind: str) -> dict[str, Any]:
    """An instruction of this kind."""
    counted = {"at_most": 3} if "at_most" in KINDS[kind].arguments else {}
    return {"name": kind, **counted, **ARGUMENTS.get(kind, {})}


def followed(response: str, instructions: Any, loose: bool = False) -> bool:
    return all(right for right, _ in verdicts(response, parsed(instructions), loose))


# ------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["instructions"][0]["name"])
def test_verdicts_known_beforehand(case: dict[str, Any]) -> None:
    found = [followed(case["response"], case["instructions"], loose) for loose in (False, True)]
    assert found == [case["strict"], case["loose"]]


def test_the_known_verdicts_cover_every_kind_both_ways() -> None:
    assert len(CASES) >= 300
    of_kind = Counter(
        (case["instructions"][0]["name"], case["strict"])
        for case in CASES
        if len(case["instructions"]) == 1
    )
    assert set(of_kind) == {(kind, verdict) for kind in KINDS for verdict in (True, False)}


@given(st.text(max_size=200), st.sampled_from(sorted(KINDS)))
def test_loose_never_takes_back_what_is_strictly_right(text: str, kind: str) -> None:
    assert followed(text, [one_of(kind)], loose=True) >= followed(text, [one_of(kind)])


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_limits_are_both_included(count: int, least: int, most: int) -> None:
    wanted = [{"name": "words", "at_least": min(least, most), "at_most": max(least, most)}]
    right = min(least, most) <= count <= max(least, most)
    assert followed("go " * count, wanted) == (right and count > 0), "a response there must be"


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ([{"name": "wrods", "exactly": 2}], "unknown instruction 'wrods'. Did you mean 'words'?"),
        ([{"name": "words"}], "words: give exactly, or at_least, at_most or both"),
        ([{"name": "words", "exactly": 1, "at_most": 2}], "give exactly, or at_least"),
        ([{"name": "words", "at_leats": 2}], "'at_leats'. Did you mean 'at_least'?"),
        ([{"name": "words", "exactly": -1}], "exactly must be a whole number from 0, got -1"),
        ([{"name": "words", "exactly": "3"}], "a whole number from 0, got '3'"),
        ([{"name": "words", "at_least": 5, "at_most": 2}], "at_least is more than at_most"),
        ([{"name": "keyword", "at_least": 1}], "the argument 'word' is missing"),
        ([{"name": "letter", "letter": "ab", "exactly": 1}], "letter must be one letter"),
        ([{"name": "include", "words": []}], "words must be a list of texts"),
        ([{"name": "include", "words": ["a", " "]}], "a text that is not empty"),
        ([{"name": "language", "language": "eng"}], "unknown language 'eng'. Did you mean 'en'?"),
        ([{"name": "sections", "exactly": 2, "marker": "Part"}], "a text with {n} in it"),
        ([{"name": "json", "schema": "strin"}], "schema must be a type (any, string"),
        ([{"name": "json", "schema": {"a": ["x"]}}], "schema must be a type"),
        ([{"name": "json", "only": 1}], "only must be true or false"),
        ([{"name": "paragraph_starts", "paragraph": 0, "word": "a"}], "a whole number from 1"),
        ([], "a list of 1 to 20 objects"),
        ([{"name": "quoted"}] * 21, "a list of 1 to 20 objects"),
        ("[", "instructions are not JSON"),
        ([3], "an instruction is an object with a name, got 3"),
        ({"name": "quoted"}, "a list of 1 to 20 objects"),
    ],
)
def test_mistakes_are_told(instructions: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parsed(instructions)
    assert message in str(raised.value)


def test_arguments_that_are_empty_in_a_table_are_left_out() -> None:
    [found] = parsed('[{"name": "words", "exactly": 3.0, "at_least": null, "word": null}]')
    assert found.args == {"exactly": 3}


# -------------------------------------------------------------------------------------- hostile

HOSTILE = {
    "words": "a " * 99_000,
    "brackets": "[" * 199_000,
    "objects": '{"a":' * 39_000,
    "stars": "*" * 199_000,
    "halves of highlights": "*a" * 99_000,
    "titles that never close": "<<a" * 66_000,
    "placeholders that never close": "[a" * 99_000,
    "bullets": "- " * 99_000,
    "empty lines": "\n" * 198_000 + "a",
    "sections": "Section 1\n" * 19_000,
    "a long number": "9" * 199_000,
    "fences": "```\n" * 49_000,
    "points": "..." * 66_000,
    "quotes": "\"'" * 99_000,
    "surrogates": "\ud800\udfff" * 99_000,
    "right to left": "\u202e\u05d0" * 99_000,
    "unseen": "\u200b" * 199_000,
    "accents": "a\u0300" * 99_000,
    "zeros": "\x00" * 199_000,
    "a megabyte": "a " * 500_000,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_responses_are_judged_and_take_linear_time(name: str) -> None:
    """Quadratic time in 200,000 characters would be minutes for a kind."""
    found = verdicts(HOSTILE[name], parsed([one_of(kind) for kind in sorted(KINDS)][:20]), True)
    found += verdicts(HOSTILE[name], parsed([one_of(kind) for kind in sorted(KINDS)][20:]), True)
    assert len(found) == len(KINDS)


def test_what_is_too_long_follows_nothing() -> None:
    assert followed("a" * MOST_READ, [{"name": "words", "exactly": 1}])
    assert not followed("a" * (MOST_READ + 1), [{"name": "words", "exactly": 1}])


@given(st.text(max_size=300), st.sampled_from(sorted(KINDS)))
def test_any_text_has_a_verdict(text: str, kind: str) -> None:
    [(right, why)] = verdicts(text, parsed([one_of(kind)]), loose=True)
    assert isinstance(right, bool) and isinstance(why, str)


# --------------------------------------------------------------------------------------- reward

THREE = [{"name": "words", "exactly": 2}, {"name": "upper_case"}, {"name": "no_comma"}]


@pytest.mark.parametrize(
    ("completion", "options", "value"),
    [
        ("RED OAK", {}, 1.0),
        ("red oak", {}, 0.0),
        ("red oak", {"credit": "fraction"}, 2 / 3),
        ("<think>two words, in capitals</think>RED OAK", {}, 1.0),
        ("<think>RED OAK</think><answer>RED OAK</answer>", {}, 1.0),
        ("<think>RED OAK", {"credit": "fraction"}, 0.0),
        ("Sure, here:\nRED OAK", {}, 0.0),
        ("Sure, here:\nRED OAK", {"loose": True}, 1.0),
    ],
)
def test_the_reward(completion: str, options: dict[str, Any], value: float) -> None:
    score = load_reward("instructions", options)(completion, instructions=THREE)
    assert score.value == pytest.approx(value)
    assert score.parts["instructions"] == 3 and (score.parts["followed"] == 3) == (value == 1.0)


def test_the_reward_says_what_was_not_followed() -> None:
    score = load_reward("instructions")("red oak tree", instructions=THREE)
    assert score.reason == "words: 3 words, expected: exactly 2; upper_case: has 'r'"


def test_an_unknown_credit_is_told() -> None:
    with pytest.raises(UserError, match=r"'fractoin'\. Did you mean 'fraction'"):
        load_reward("instructions", {"credit": "fractoin"})("a", instructions=THREE)


@pytest.mark.parametrize(
    ("text", "phrase", "count"),
    [
        ("Hello\nworld, hello  world", "hello world", 2),
        ("don’t go, don't", "don't", 2),
        ("don't go", "don’t", 1),
        ("helloworld", "hello world", 0),
    ],
)
def test_phrases_are_found_whatever_their_spaces_and_apostrophes(
    text: str, phrase: str, count: int
) -> None:
    assert has_word(text, phrase) == count


def test_instructions_may_be_json_or_of_a_table() -> None:
    import numpy

    wanted = [{"name": "words", "at_least": 2}]
    judge = load_reward("instructions")
    for cell in (wanted, json.dumps(wanted), [{"name": "words", "at_least": numpy.int64(2)}]):
        assert [judge(text, instructions=cell).value for text in ("a b", "a")] == [1.0, 0.0]
