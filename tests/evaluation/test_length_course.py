"""How long completions become: the trend that goes on, the pull of what is best in its group."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.evaluation.length_course import LengthCourse, MeasuredGroup, course_of

slopes = st.floats(-0.3, 0.3)
lengths = st.integers(1, 400)
mosts = st.floats(0.1, 1e3)


def sampled(
    steps: int, slope: float, seed: int, best: float = 1.0, groups: int = 8
) -> list[MeasuredGroup]:
    """Groups of four that change by `slope` a step; the right half is `best` times as long."""
    rng = random.Random(seed)
    found = []
    for step in range(1, steps + 1):
        for _ in range(groups):
            mean = 2000 * math.exp(slope * step + rng.gauss(0, 0.2))
            drawn = [(mean * rng.uniform(0.9, 1.1), right) for right in (0.0, 0.0, 1.0, 1.0)]
            group = [(int(n * (best if right else 1.0)), right) for n, right in drawn]
            found.append(MeasuredGroup(step, group))
    return found


@given(slopes, st.floats(-2, 2), st.floats(-2, 0), st.integers(0, 400), st.integers(0, 300), mosts)
def test_a_course_stays_within_what_was_seen(
    trend: float, pull: float, least: float, seen: int, steps: int, most: float
) -> None:
    """The trend goes on for at most as many steps again, and half of those seen are made up for."""
    factors = LengthCourse(trend, pull, least, seen).factors(steps, most)
    assert len(factors) == steps
    bound = 1.5 * abs(trend) * max(0, seen - 1) + abs(pull)
    for factor in factors:
        assert math.exp(least) * (1 - 1e-9) <= factor <= max(1.0, most) * (1 + 1e-9)
        assert abs(math.log(factor)) <= bound + 1e-9


@given(st.integers(0, 20), st.integers(1, 100))
def test_nothing_seen_is_nothing_expected(seen: int, steps: int) -> None:
    assert LengthCourse(seen=seen).factors(steps) == [1.0] * steps


def test_the_pull_has_done_its_work_halfway() -> None:
    factors = LengthCourse(pull=math.log(0.25), least=-9.0).factors(8)
    assert factors == pytest.approx([0.25 ** (i / 4) for i in (1, 2, 3, 4)] + [0.25] * 4)


@given(st.integers(4, 12), st.sampled_from([-0.2, -0.1, 0.1, 0.2]), st.integers(0, 99))
def test_a_trend_is_found(steps: int, slope: float, seed: int) -> None:
    found = course_of(sampled(steps, slope, seed), steps)
    assert found.trend == pytest.approx(slope, abs=0.1) and found.trend * slope > 0
    assert found.seen == steps


@given(st.sampled_from([0.4, 0.7, 1.5, 3.0]), st.integers(0, 99))
def test_the_best_of_a_group_pull(best: float, seed: int) -> None:
    found = course_of(sampled(4, 0.0, seed, best), 4)
    assert math.exp(found.pull) == pytest.approx(math.sqrt(best), rel=0.05)


def test_seven_groups_pull_nowhere() -> None:
    groups = [MeasuredGroup(1, [(100, 0.0), (50 + i, 1.0)]) for i in range(8)]
    assert course_of(groups[:7], 1).pull == 0 > course_of(groups, 1).pull


def test_one_movement_is_counted_once() -> None:
    """A trend that is the pull at work: the larger counts. Against each other, both do."""
    trend, pull = LengthCourse(-0.1, 0.0, -9.0, 10), LengthCourse(0.0, -2.0, -9.0, 10)
    both = LengthCourse(-0.1, -2.0, -9.0, 10)
    pairs = zip(trend.factors(20), pull.factors(20), strict=True)
    assert both.factors(20) == [min(pair) for pair in pairs]
    against = LengthCourse(-0.1, 0.5, -9.0, 10)
    grown = LengthCourse(0.0, 0.5, -9.0, 10)
    products = [a * b for a, b in zip(trend.factors(20), grown.factors(20), strict=True)]
    assert against.factors(20) == pytest.approx(products)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_few_steps_show_no_trend(steps: int) -> None:
    assert course_of(sampled(steps, -0.3, 0, groups=32), steps).trend == 0


def test_noise_alone_counts_for_little() -> None:
    """Over many draws: most trends are nothing, and few move the forecast by a fifth."""
    ends = []
    for seed in range(200):
        rng = random.Random(seed)
        noise = {step: rng.gauss(0, 0.1) for step in range(1, 9)}  # shared by a step's groups
        groups = [
            MeasuredGroup(step, [(int(1000 * math.exp(noise[step] + rng.gauss(0, 0.2))), 1.0)])
            for step in noise
            for _ in range(8)
        ]
        ends.append(LengthCourse(course_of(groups, 8).trend, 0.0, -9.0, 8).factors(60)[-1])
    assert sum(end == 1 for end in ends) > 100
    assert sum(not 0.8 < end < 1.25 for end in ends) < 40


@pytest.mark.parametrize(("size", "right"), [(8, 0.3), (16, 0.1), (16, None)])
def test_rewards_that_do_not_go_by_length_pull_nowhere(size: int, right: float | None) -> None:
    """Lengths of a wide spread; `right`: the share of 1, or rewards of any size."""
    rng, pulls = random.Random(0), []
    for _ in range(60):
        groups = [
            MeasuredGroup(
                1, [(int(rng.lognormvariate(6, 1)), _reward(rng, right)) for _ in range(size)]
            )
            for _ in range(64)
        ]
        pulls.append(course_of(groups, 1).pull)
    assert abs(sum(pulls) / len(pulls)) < 0.05


def _reward(rng: random.Random, right: float | None) -> float:
    return rng.random() if right is None else float(rng.random() < right)


@given(st.lists(st.lists(lengths, min_size=1, max_size=4), min_size=8, max_size=12))
def test_where_all_are_equally_good_nothing_pulls(groups: list[list[int]]) -> None:
    for reward in (0.5, None, math.nan):
        given = [MeasuredGroup(1, [(n, reward) for n in group]) for group in groups]
        assert course_of(given, 1).pull == 0
    nearly = [MeasuredGroup(1, [(100, 0.1 + 0.2), (50, 0.3)]) for _ in groups]
    assert course_of(nearly, 1).pull == 0


def test_what_was_left_out_is_not_the_best() -> None:
    groups = [MeasuredGroup(1, [(100, None), (50, 0.0), (25 + i, 1.0)]) for i in range(9)]
    pull = math.exp(course_of(groups, 1).pull)
    assert pull == pytest.approx(29 / (100 * 50 * 29) ** (1 / 3), rel=0.02)


def test_an_empty_completion_counts_as_one_token() -> None:
    groups = [MeasuredGroup(step, [(0, 1.0), (9, 0.0)]) for step in range(1, 9)]
    found = course_of([*groups, MeasuredGroup(3, [])], 8)
    assert math.exp(found.pull) == pytest.approx(1 / 3) and found.trend == 0
    assert course_of([MeasuredGroup(1, [])], 1) == LengthCourse(seen=1)
