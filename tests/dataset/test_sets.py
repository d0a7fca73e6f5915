"""The named sets: cards that are right about the rows, and every way to name a set."""

import pytest

from rl_reasoner.cli.arguments import data_of
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.dataset.sets import CARDS, card_of, find_set, read_rows, set_data
from rl_reasoner.evaluation.judging import judge_of
from rl_reasoner.paths import room
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward
from support.places import DATA as SHARED

beside = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the public sets are not beside the repository"
)


def test_a_card_says_all_that_one_asks() -> None:
    for name, card in CARDS.items():
        for field in ("about", "split", "answers", "licence", "source", "prompt"):
            assert getattr(card, field).strip(), f"{name}: {field}"
        assert card.size > 0
    wanted = """gsm8k math500 math aime24 aime25 aime26 amc23 minerva olympiadbench svamp asdiv
        multiarith mawps college_math cmath mgsm_zh gsm_hard gsm_plus humaneval mbpp"""
    assert set(wanted.split()) <= CARDS.keys()


def test_the_projects_own_sets_have_cards() -> None:
    for path in sorted(room("data").glob("*.jsonl")):
        card = card_of(path.stem)
        assert card and card.licence == "Apache-2.0"
        assert card.size == len(read_rows(str(path)))
    assert card_of("none") is None
    assert card_of("gsm8k_test") is CARDS["gsm8k"] and card_of("minerva_math") is CARDS["minerva"]


@beside
@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_public_set_is_found_and_its_card_is_right(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_REASONER_DATA", str(SHARED))
    assert find_set(name) is not None, "in the folder of one's own, not from the hub"
    rows = load_rows(set_data(name))
    raw = read_rows(name)
    assert len(raw) == CARDS[name].size
    assert len(rows) <= len(raw)
    assert len(raw) - len(rows) <= 40, "few bad rows"
    judge = "code_tests" if "tests" in CARDS[name].answers else "math_answer"
    assert {judge_of(row)[0] for row in rows} == {judge}


@beside
@pytest.mark.parametrize("name", ["gsm8k", "math500", "cmath", "mgsm_zh", "aime25", "svamp"])
def test_the_gold_of_a_row_is_right_by_its_own_judge(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_REASONER_DATA", str(SHARED))
    rows = load_rows(set_data(name))[:40]
    texts = [f"so it is \\boxed{{{row['answer']}}}" for row in rows]
    scores = score_batch(
        load_reward("math_answer"), texts, {"answer": [row["answer"] for row in rows]}
    )
    assert [getattr(score, "value", None) for score in scores] == [1.0] * len(rows)


def test_bad_rows_of_ones_own_file_stop_and_of_a_public_set_are_skipped() -> None:
    assert set_data("own.jsonl").on_bad_row == "stop"
    assert {set_data(name).on_bad_row for name in CARDS} == {"skip"}


def test_a_set_without_a_file_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RL_REASONER_DATA", raising=False)
    data = set_data("cmath")
    assert data.path == "weitianwen/cmath" and data.columns["answer"] == "golden"
    assert set_data("aime26").path == "aime26", "no place on the hub is known"


def test_flags_beside_it_leave_a_public_set_its_own_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rl_reasoner.dataset.sets.find_set", lambda name: None)  # from the hub
    assert data_of("gsm8k", {"split": "train"}).columns == {"problem": "question"}
