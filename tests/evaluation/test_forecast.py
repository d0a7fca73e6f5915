"""The maths of a forecast: pass@k, flat groups, useful completions, the verdict."""

import math
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.evaluation.forecast import (
    FEW_GROUPS,
    FLAT,
    PlannedEvals,
    SampledGroups,
    StagePlan,
    StepPace,
    disagreement,
    flat_groups,
    forecast,
    groups_sampled,
    pass_curve,
    reward_moved,
    right_of,
    useful_groups,
    widened,
)
from rl_reasoner.evaluation.length_course import LengthCourse
from rl_reasoner.evaluation.statistics import planned_difference

rewards = st.sampled_from([0.0, 0.5, 1.0, None])
groups = st.lists(st.lists(rewards, min_size=4, max_size=4), min_size=1, max_size=12)
shares = st.floats(0, 1)


def made(given: list[list[float | None]], **changes: Any) -> Any:
    plan = StagePlan("grpo", 100, 8, len(given[0]), 1.0)
    plan = StagePlan(**{**vars(plan), **changes.pop("plan", {})})
    pace = StepPace({"generation": 2.0, "reward": 1.0, "training": 3.0, "rest": 0.0}, 30.0)
    pace = changes.pop("pace", pace)
    evals = changes.pop("evals", PlannedEvals())
    return forecast(plan, SampledGroups(given, "tests", **changes), pace, evals)


def test_a_stage_learns_from_each_batch_not_from_each_step() -> None:
    half: list[list[float | None]] = [[0.0, 1.0], [0.0, 0.0]] * 8
    plans = [{"steps": 40, "prompts": 4, "iterations": once} for once in (1, 2, 4)]
    assert [made(half, plan=plan).verdict for plan in plans] == ["likely", "too few", "too few"]
    assert "40 groups with a difference" in made(half, plan=plans[1]).sentence


@given(groups)
def test_pass_at_k_counts_every_way_to_draw_k(given: list[list[float | None]]) -> None:
    counts = right_of(given, 1.0)
    curve = pass_curve(counts, 4)
    for k, share in curve.items():
        drawn = []
        for group in given:
            known = [value for value in group if value is not None]
            ways = [*combinations(known, k)]
            drawn += [sum(1.0 in way for way in ways) / len(ways)] if ways else []
        assert math.isclose(share, sum(drawn) / len(drawn), abs_tol=1e-12)
    whole = [group for group in given if None not in group]
    rising = [*pass_curve(right_of(whole, 1.0), 4).values()]
    assert rising == sorted(rising)


def test_the_curve_has_powers_of_two_and_the_size_of_a_group() -> None:
    assert [*pass_curve([(6, 1)], 6)] == [1, 2, 4, 6]
    assert [*pass_curve([(8, 1)], 8)] == [1, 2, 4, 8]


@given(groups)
def test_two_completions_differ_as_often_as_pairs_do(given: list[list[float | None]]) -> None:
    shares = []
    for group in given:
        pairs = [*combinations([value == 1.0 for value in group if value is not None], 2)]
        shares += [sum(a != b for a, b in pairs) / len(pairs)] if pairs else []
    found = disagreement(right_of(given, 1.0))
    assert (found is None) == (not shares)
    assert found is None or math.isclose(found, sum(shares) / len(shares), abs_tol=1e-12)


@given(groups, st.sampled_from([1.0, None]))
def test_each_group_is_flat_in_one_place_or_useful(
    given: list[list[float | None]], full: float | None
) -> None:
    flat = flat_groups(given, full)
    useful = sum(len({v for v in group if v is not None}) > 1 for group in given)
    assert math.isclose(flat.share, 1 - useful / len(given), abs_tol=1e-12)
    assert flat.interval[0] <= flat.share + 1e-9 and flat.share <= flat.interval[1] + 1e-9
    assert full is not None or flat.at_1 == 0


def test_where_groups_are_flat() -> None:
    found = flat_groups([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 1.0], [None, None]], 1.0)
    assert (found.at_0, found.at_1, found.between) == (0.4, 0.2, 0.2)


@given(shares, st.integers(1, 64), st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_dynamic_sampling_replaces_flat_groups(
    flat: float, prompts: int, refills: int, seed: int
) -> None:
    useful, sampled = (f(flat, prompts, refills) for f in (useful_groups, groups_sampled))
    assert 0 <= useful <= prompts + 1e-9 and prompts <= sampled <= prompts * (refills + 1) + 1e-9
    assert math.isclose(useful, sampled * (1 - flat), abs_tol=1e-6)  # all others are flat


@given(
    st.floats(0.1, 100),
    st.integers(1, 64),
    st.floats(0.1, 100),
    st.integers(1, 64),
    st.integers(1, 512),
)
def test_more_rows_at_once_take_no_less_and_at_most_in_proportion(
    seconds: float, rows: int, other_s: float, other: int, wanted: int
) -> None:
    found = widened(seconds, rows, (other_s, other), wanted)
    assert found <= seconds * wanted / rows * (1 + 1e-9)
    assert wanted < rows or found >= seconds * (1 - 1e-9)


def test_two_measurements_tell_what_reading_the_weights_costs() -> None:
    assert widened(12.0, 8, (20.0, 24), 64) == pytest.approx(8 + 0.5 * 64)
    assert widened(10.0, 8, (10.0, 64), 64) == 10.0


# --------------------------------------------------------------------------- the verdict

NOTHING, ALL, SOME, EQUAL = [0.0] * 4, [1.0] * 4, [0.0, 1.0, 0.0, 1.0], [0.5] * 4


@pytest.mark.parametrize(
    ("given", "verdict", "said"),
    [
        ([SOME] * 6 + [NOTHING] * 4, "likely", "likely to learn: 40% of groups flat, pass@1 30%"),
        ([NOTHING] * 24 + [SOME], "flat at 0", "nothing to learn from: 96% of groups flat at 0"),
        ([ALL] * 10, "too easy", "too easy: 100% of groups flat at 1"),
        ([NOTHING] * 8, "unclear", "not clear: only 8 groups were sampled"),
        ([EQUAL] * 19 + [SOME], "equal rewards", "95% of groups have equal rewards"),
    ],
)
def test_verdicts(given: list[list[float | None]], verdict: str, said: str) -> None:
    found = made(given)
    assert found.verdict == verdict and said in found.sentence
    assert (found.direction == "up") == (verdict == "likely")


def test_tips_follow_from_what_was_seen() -> None:
    never = made([NOTHING] * 20, truncated=0.8, plan={"temperature": 1.5}).sentence
    assert "sampling.max_tokens (80% are cut off)" in never and "sft stage" in never
    assert never.endswith("or a lower sampling.temperature")
    rarely = made([NOTHING] * 24 + [SOME]).sentence
    assert "sometimes solved" in rarely and "group.size 16" in rarely and "sft" not in rarely


@given(groups, st.integers(1, 200))
def test_a_stage_too_short_is_never_likely(given: list[list[float | None]], steps: int) -> None:
    found = made(given, plan={"steps": steps})
    share = found.flat.share
    if share >= FLAT or (1 - share) * 8 * steps < FEW_GROUPS:
        assert found.direction == "none"
    assert found.to_json()["useful_completions"] == pytest.approx((1 - share) * 8 * 4)


def test_what_dynamic_sampling_threw_away_was_flat() -> None:
    assert made([SOME] * 8, thrown_away=0.5, plan={"refills": 3}).verdict == "likely"
    found = made([SOME] * 4 + [NOTHING] * 4, thrown_away=0.9, plan={"refills": 9})
    assert found.verdict == "flat at 0"


def test_rewards_of_another_scale_have_no_curve() -> None:
    found = made([[3.0, 7.0, 5.0, 1.0]] * 8)
    assert found.pass_at == {} and found.detectable == {} and found.verdict == "likely"


# --------------------------------------------------------------------------- the minutes


def test_minutes_of_a_stage() -> None:
    evals = PlannedEvals(ends=60.0, validation=6.0, validations=10, sets={"a": (400, 1)})
    found = made([SOME] * 8, evals=evals)
    minutes = {"step": 0.1, "steps": 10, "validation": 1, "stage": 11, "end": 1}
    assert found.minutes == pytest.approx(minutes)
    assert found.tokens_per_second == 30 * 8 * 4 / 2
    assert found.detectable["a"] == planned_difference(400, found.differ)
    few = made([SOME] * 8, evals=PlannedEvals(sets={"a": (5, 4)}))
    assert few.detectable == few.to_json()["detectable"] == {"a": None}
    half = StepPace({"generation": 6.0}, 30.0, spent=500.0, done=50)
    assert made([SOME] * 8, pace=half).minutes["stage"] == pytest.approx(500 / 60 + 5)


def test_shorter_completions_take_less_time() -> None:
    """Sampling goes by their length; of the training pass, their share of the tokens."""
    pace = StepPace({"generation": 2.0, "reward": 1.0, "training": 4.0}, 30.0, share=0.5)
    assert pace.longer(0.5) == pytest.approx(-2.0) and pace.longer(1.0) == 0
    halves = LengthCourse(pull=math.log(0.5), least=-1.0)
    whole, short = (made([SOME] * 8, pace=pace, course=c) for c in (LengthCourse(), halves))
    assert whole.minutes["steps"] * 60 == pytest.approx(700)
    assert 500 < short.minutes["steps"] * 60 < 560 and short.minutes["step"] == 7 / 60
    assert short.last_length == pytest.approx(15) and whole.last_length == 30
    assert short.to_json()["last_length"] == short.last_length
    assert short.change_of_length == ", with completions from 30 to about 15 tokens"
    assert whole.change_of_length == ""


def test_evaluations_while_it_trains_go_by_the_length_too() -> None:
    evals = PlannedEvals(validation=60.0, validations=10)
    minutes = [
        made([SOME] * 8, evals=evals, course=LengthCourse(pull=pull, least=-9.0)).minutes
        for pull in (0.0, math.log(0.25))
    ]
    assert minutes[0]["validation"] == 10 and 2.5 < minutes[1]["validation"] < 5


def test_no_completion_grows_beyond_the_longest() -> None:
    grows = LengthCourse(trend=0.2, pull=1.0, seen=20)
    pace = StepPace({"generation": 1.0}, 30.0, done=20, spent=20.0)
    found = made([SOME] * 8, pace=pace, course=grows, plan={"longest": 60})
    assert found.last_length == 60
    assert 20 + 80 < 60 * found.minutes["stage"] <= 20 + 160
    cut = made([SOME] * 8, pace=pace, course=grows, plan={"longest": 20})  # with tools' answers
    assert cut.last_length == 30


def test_rounds_that_are_to_come_take_their_time() -> None:
    found = made([SOME] * 4 + [NOTHING] * 4, plan={"refills": 1})
    assert found.minutes["step"] * 60 == pytest.approx(6 + 0.5 * 3)  # half is sampled once more
    assert found.useful == pytest.approx(0.75 * 32)


def test_how_a_reward_moved() -> None:
    noise = [0.01, -0.01, 0.02, -0.02, 0.0]
    rising = [0.3 + e for e in noise] + [0.5] * 15 + [0.8 + e for e in noise]
    assert reward_moved(rising) == "rose" and reward_moved(rising[::-1]) == "fell"
    assert reward_moved(noise * 5) == "stayed" and reward_moved([0.1] * 40) == "stayed"
    assert reward_moved([0.0] * 24) is None
