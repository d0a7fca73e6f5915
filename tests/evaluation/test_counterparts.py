"""Rows of two results are paired by problem and answer: a text may be there with two answers."""

from pathlib import Path

import pytest

from rl_reasoner import EvalResult, compare
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.report.page import build_page
from rl_reasoner.report.run_data import read_run


def of(rows: list[tuple[str, str, float]]) -> EvalResult:
    """A result whose rows have this problem, answer and score."""
    whole = [
        {
            "problem": problem,
            "answer": answer,
            "completions": [f"said to {answer}: {score:.0f}"],
            "scores": [score],
            "reasons": [""],
            "outcomes": ["score"],
            "tokens": [3],
            "truncated": [False],
        }
        for problem, answer, score in rows
    ]
    return EvalResult("p", sets={"s": compute_figures(whole)}, rows={"s": whole})


TWICE = [("roots?", "3", 0.0), ("roots?", "4", 1.0), ("else?", "1", 0.0)]


def test_a_text_with_two_answers_is_paired_in_any_order() -> None:
    a, b = of(TWICE), of([("else?", "1", 0.0), ("roots?", "4", 1.0), ("roots?", "3", 1.0)])
    found = compare(a, b)["s"]
    assert (found["better"], found["worse"]) == (1, 0)
    assert [(flip["row"], flip["row_b"], flip["answer"]) for flip in found["flips"]] == [
        (0, 2, "3")
    ]


def test_an_answer_that_is_another_in_the_one_result_is_named() -> None:
    with pytest.raises(UserError, match="'4' in the one result and '5' in the other"):
        compare(of(TWICE), of([("roots?", "5", 1.0), ("roots?", "3", 0.0), ("else?", "1", 0.0)]))


def test_the_first_screen_shows_what_was_said_to_the_same_row(tmp_path: Path) -> None:
    of(TWICE).save(tmp_path / "evals" / "before.json")
    of([("roots?", "4", 1.0), ("roots?", "3", 1.0), ("else?", "1", 0.0)]).save(
        tmp_path / "evals" / "after.json"
    )
    page = build_page(read_run(tmp_path))
    assert "wrong before and right after" in page
    assert '<pre class="example">said to 3: 0</pre>' in page
    assert '<pre class="example">said to 3: 1</pre>' in page
