"""What an evaluation can show: the least difference that its paired test finds 4 times in 5.

The power is exact: all outcomes of McNemar's exact test are counted.
"""

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rl_reasoner import EvalResult, compare
from rl_reasoner.evaluation.comparison import sentence_of
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.evaluation.statistics import (
    Z,
    detectable_difference,
    mcnemar,
    planned_difference,
    sign_flips,
)
from rl_reasoner.report.evaluation import build_evaluation_page


def of(scores: list[float], samples: int = 1) -> EvalResult:
    rows = [
        {
            "problem": str(i),
            "answer": "1",
            "completions": ["text"] * samples,
            "scores": [score] * samples,
            "reasons": [""] * samples,
            "outcomes": ["score"] * samples,
            "tokens": [3] * samples,
            "truncated": [False] * samples,
        }
        for i, score in enumerate(scores)
    ]
    return EvalResult("p", sets={"s": compute_figures(rows)}, rows={"s": rows})


def pair(n: int, better: int, worse: int, samples: int = 1) -> tuple[EvalResult, EvalResult]:
    """Two results of `n` problems, of which so many came to be right, and to be wrong."""
    rest = [1.0] * (n - better - worse)
    a, b = [0.0] * better + [1.0] * worse, [1.0] * better + [0.0] * worse
    return of(a + rest, samples), of(b + rest, samples)


@cache
def most_losses(changed: int) -> int:
    """The most losses among so many changes with which p is below 5%; -1 for none."""
    losses = -1
    while 2 * losses < changed and mcnemar(losses + 1, changed - losses - 1) < 0.05:
        losses += 1
    return losses


def power(n: int, better: float, worse: float) -> float:
    """How often the exact test finds a difference where problems move with these chances."""
    found = 0.0
    for changed in range(n + 1):
        chance = float(stats.binom.pmf(changed, n, min(1.0, better + worse)))
        if chance > 1e-9 and (most := most_losses(changed)) >= 0:
            losses = stats.binom(changed, worse / (better + worse))
            found += chance * float(losses.cdf(most) + losses.sf(changed - most - 1))
    return found


@pytest.mark.parametrize(
    ("n", "better", "worse"),
    [
        *[(8, 0, 0), (20, 0, 0), (100, 0, 0), (1000, 0, 0), (20, 2, 1), (50, 2, 3)],
        *[(100, 5, 1), (100, 5, 5), (100, 20, 20), (200, 10, 8), (1000, 60, 50)],
    ],
)
def test_what_a_comparison_could_show_is_found_four_times_in_five(
    n: int, better: int, worse: int
) -> None:
    found = compare(*pair(n, better, worse))["s"]
    lost = min(better, worse) / n
    assert 0.77 < power(n, lost + found["detectable"], lost) < 0.9
    assert compare(*pair(n, worse, better))["s"]["detectable"] == found["detectable"]
    assert f"{100 * found['detectable']:.1f} points would show" in sentence_of("s", found)


@pytest.mark.parametrize("samples", [1, 4])
def test_five_problems_show_nothing_and_that_is_said(samples: int) -> None:
    a, b = pair(5, 5, 0, samples)
    found = compare(a, b)["s"]
    assert found["p"] == sign_flips([1.0] * 5) > 0.05, "all changed, and still"
    assert found["detectable"] is None
    sentence = sentence_of("s", found)
    assert "so few problems can show none, however large" in sentence and "4 times" not in sentence
    page = build_evaluation_page([a, b])
    assert "<span>none</span></td>" in page and "fewer than six problems show none" in page
    six = compare(*pair(6, 6, 0, samples))["s"]
    assert six["p"] < 0.05 and six["detectable"] <= 1.0


def test_pairs_that_are_all_alike_show_less_the_fewer_they_are() -> None:
    few, many = (detectable_difference([0.0] * n) or math.nan for n in (20, 2000))
    assert few > 0.3 > 0.01 > many
    assert detectable_difference([0.0] * 20, ["a", "b"] * 10) is None  # two problems, ten times
    thrice = [*range(20)] * 3
    moves = [1.0, -1.0, *[0.0] * 18]
    assert detectable_difference(moves * 3, thrice) == pytest.approx(
        detectable_difference(moves), abs=0.01
    )


@given(st.integers(6, 5000), st.floats(0, 0.5), st.integers(1, 16))
def test_more_problems_samples_and_agreement_show_smaller_gains(
    n: int, differ: float, samples: int
) -> None:
    wanted = [(n, differ, samples), (2 * n, differ, samples)]
    wanted += [(n, differ, 2 * samples), (n, differ / 2, samples)]
    found, *others = (planned_difference(*each) or math.nan for each in wanted)
    assert 0 < found <= 1 and all(other <= found for other in others)


@pytest.mark.parametrize(("n", "differ"), [(8, 0.0), (200, 0.3), (500, 0.1), (1000, 0.45)])
def test_mcnemar_finds_the_planned_difference_four_times_in_five(n: int, differ: float) -> None:
    """Each problem changes with chance d for good, and differs by chance otherwise."""
    d = planned_difference(n, differ) or math.nan
    assert 0.78 < power(n, differ / 2 + d, differ / 2) < 0.88


def test_no_problems_show_nothing() -> None:
    assert planned_difference(3, 0.5) is planned_difference(5, 0.0, 16) is None
    assert power(5, 1.0, 0.0) == 0.0 and power(6, 1.0, 0.0) == 1.0
    assert 0.9 < (planned_difference(6, 1.0) or math.nan) <= 1.0
    with pytest.raises(ValueError, match="0 problems"):
        planned_difference(0, 0.5)


def test_an_even_difference_of_several_completions_is_found_four_times_in_five() -> None:
    """By a normal test at level 5%, of differences with that spread and mean."""
    spread = [0.5, -0.5] * 60
    shift = detectable_difference(spread) or math.nan
    rng = np.random.default_rng(5)
    draws = rng.normal(shift, np.std(spread, ddof=1), (4000, 120))
    errors = draws.std(axis=1, ddof=1) / math.sqrt(120)
    assert np.mean(np.abs(draws.mean(axis=1)) > Z * errors) == pytest.approx(0.8, abs=0.025)
