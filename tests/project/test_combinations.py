"""The matrix of combinations: its tests exist, its refusals come, and the page shows it."""

import re

import pytest

from support.combinations import (
    AT_THE_START,
    FEATURES,
    MEANING,
    TESTED,
    functions_of,
    matrix,
    page,
    tables,
    together,
)


@pytest.mark.parametrize(
    "named", sorted({*TESTED.values(), *(test for _, test in AT_THE_START.values())})
)
def test_each_named_test_exists(named: str) -> None:
    file, _, function = named.partition("::")
    assert function in functions_of(file)


def test_what_is_tested_can_be_asked_for() -> None:
    assert {pair: matrix()[pair] for pair in TESTED} == dict.fromkeys(TESTED, "tested")
    assert set(AT_THE_START) <= set(matrix()) and not set(AT_THE_START) & set(TESTED)
    assert ", ".join(MEANING).split(", ") == [*FEATURES]


def test_a_pair_is_one_recipe_with_both() -> None:
    fields, processes = together("FSDP2", "replay")
    assert fields["run"] == {"device": "cpu", "parallel": "fsdp"} and processes == 2
    assert fields["policy"] == {"source": "scratch:moe-tiny"}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("tools", "environment"), "tools and an environment in one run are not there yet"),
        (("tools", "vLLM"), "leave vllm out"),
        (("FSDP2", "files"), "a server that gets weights by files samples for one process"),
    ],
    ids=str,
)
def test_what_cannot_be_together_is_said_by_the_recipe(pair: tuple[str, str], said: str) -> None:
    assert said in matrix()[pair]


def test_the_page_has_the_tables_of_now() -> None:
    text = page().read_text(encoding="utf-8")
    found = re.search(r"<!-- the combinations -->\n\n(.*?)\n<!-- their end -->", text, re.DOTALL)
    assert found and found[1] == tables(), "run: python docs/matrix.py"
