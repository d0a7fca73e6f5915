"""How long completions become: the trend that goes on, the pull of what is best in its group."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.evaluation.length_course import LengthCourse, MeasuredGroup, course_of

slopes = st.floats(-0.3, 0.3)
lengths = st.integers(1, 400)


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


@given(slopes, st.floats(-2, 2), st.integers(0, 40), st.integers(0, 300))
def test_a_course_stays_within_what_was_seen(
    trend: float, pull: float, seen: int, steps: int
) -> None:
    """The trend goes on for at most as many steps again, and half of those seen are made up for."""
    factors = LengthCourse(trend, pull, seen).factors(steps)
    assert len(factors) == steps and all(factor > 0 for factor in factors)
    again = max(0, seen - 1)
    bound = 1.5 * abs(trend) * again + abs(pull)
    assert all(abs(math.log(factor)) <= bound + 1e-9 for factor in factors)


@given(st.integers(0, 20), st.integers(1, 100))
def test_nothing_seen_is_nothing_expected(seen: int, steps: int) -> None:
    assert LengthCourse(seen=seen).factors(steps) == [1.0] * steps


def test_the_pull_has_done_its_work_halfway() -> None:
    factors = LengthCourse(pull=math.log(0.25)).factors(8)
    assert factors == pytest.approx([0.25 ** (i / 4) for i in (1, 2, 3, 4)] + [0.25] * 4)


@given(st.integers(4, 12), st.sampled_from([-0.2, -0.1, 0.1, 0.2]), st.integers(0, 99))
def test_a_trend_is_found(steps: int, slope: float, seed: int) -> None:
    found = course_of(sampled(steps, slope, seed), steps)
    assert found.trend == pytest.approx(slope, abs=0.1) and found.trend * slope > 0
    assert found.seen == steps


@given(st.sampled_from([0.4, 0.7, 1.5, 3.0]), st.integers(0, 99))
def test_the_best_of_a_group_pull(best: float, seed: int) -> None:
    found = course_of(sampled(4, 0.0, seed, best), 4)
    assert math.exp(found.pull) == pytest.approx(2 * best / (1 + best), rel=0.05)


def test_noise_alone_counts_for_little() -> None:
    """Over many draws: most trends are nothing, and none is larger than its noise."""
    trends = [course_of(sampled(8, 0.0, seed), 8).trend for seed in range(200)]
    assert sum(trend == 0 for trend in trends) > 100
    assert max(map(abs, trends)) < 0.04


@given(st.lists(st.lists(lengths, min_size=1, max_size=4), min_size=1, max_size=8))
def test_where_all_are_equally_good_nothing_pulls(groups: list[list[int]]) -> None:
    for reward in (0.5, None):
        given = [MeasuredGroup(1, [(n, reward) for n in group]) for group in groups]
        assert course_of(given, 1) == LengthCourse(seen=1)


def test_what_was_left_out_is_not_the_best() -> None:
    groups = [MeasuredGroup(1, [(100, None), (50, 0.0), (25 + i, 1.0)]) for i in range(9)]
    pull = math.exp(course_of(groups, 1).pull)
    assert pull == pytest.approx(29 / (179 / 3), rel=0.02)


def test_an_empty_completion_counts_as_one_token() -> None:
    groups = [MeasuredGroup(step, [(0, 1.0), (9, 0.0)]) for step in (1, 2, 3)]
    found = course_of([*groups, MeasuredGroup(3, [])], 3)
    assert math.exp(found.pull) == pytest.approx(1 / 5) and found.trend == 0
