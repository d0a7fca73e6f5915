"""Which completions a window judges again, and when disagreement is an alarm: pure maths."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from rl_reasoner.hacking.window import (
    ALARM_LEVEL,
    Paid,
    Scale,
    VerdictCounts,
    alarm_of,
    best_paid,
    tail,
    tolerated_by,
    unknown_alarm_of,
)


def paid(pay: float, group: int = 0, text: str = "", step: int = 1) -> Paid:
    return Paid(step, group, 0, group, f"prompt {group}", text or f"text {group}", pay)


# ------------------------------------------------------------------------------------- what is paid


def test_pay_is_a_share_of_what_the_rewards_of_a_row_could_pay() -> None:
    scale = Scale()
    weights = {"right": 1.0, "style": 0.5, "other": 2.0, "off": 0.0}
    assert scale.pay({"right": 1.0, "style": 1.0}, weights) == 1.0
    assert scale.pay({"right": 1.0, "style": -0.5}, weights) == 0.5
    assert scale.pay({"off": 1.0}, weights) is None, "a weight of 0 pays nothing"
    scale.see({"right": 0.0, "style": -1.0})
    assert scale.pay({"right": 1.0, "style": 0.0}, weights) == 1.0, "a penalty can only take away"
    scale.see({"right": 1.0, "style": 1.0})
    assert scale.pay({"right": 1.0, "style": 0.5}, weights) == 1.25 / 1.5


def test_nothing_is_best_paid_where_nothing_is_paid() -> None:
    assert best_paid([], Scale(), 4, 0) == []
    assert best_paid([paid(0.0, g) for g in range(4)], Scale(), 4, 0) == []
    signed = Scale()
    signed.note(-1.0)
    assert best_paid([paid(-1.0, g) for g in range(4)], signed, 4, 0) == [], "all are wrong"


def test_partial_credit_is_no_claim_that_an_answer_is_right() -> None:
    some = [paid(0.67, 0), paid(0.67, 1)]
    assert best_paid(some, Scale(), 4, 0) == []
    full = [paid(1.0, 2), paid(0.85, 3), paid(0.95, 4)]
    assert {one.group for one in best_paid(some + full, Scale(), 4, 0)} == {2, 4}


def test_rewards_of_another_scale_are_held_against_the_best_of_their_window() -> None:
    scale = Scale()
    for pay in (3.0, 40.0, 500.0):
        scale.note(pay)
    assert [one.pay for one in best_paid([paid(30.0, 1), paid(290.0, 2)], scale, 4, 0)] == [290.0]


def test_one_outlier_sets_no_scale() -> None:
    scale = Scale()
    for pay in (0.0, 3.0, 500.0):
        scale.note(pay)
    groups = [paid(3.0, group) for group in range(20)] + [paid(500.0, 20)]
    assert len(best_paid(groups, scale, 40, 0)) == 21


def test_what_is_paid_in_parts_fills_a_window_up() -> None:
    groups = [paid(1.0, 0), paid(0.7, 1), paid(0.6, 2), paid(0.4, 3), paid(0.7, 4)]
    chosen = best_paid(groups, Scale(), 3, 0, lambda one: one.group < 4)
    assert [one.group for one in chosen] == [0, 1, 2], "half at least, and of those that say so"
    assert [one.group for one in best_paid(groups, Scale(), 1, 0, lambda one: True)] == [0]


@given(st.permutations(range(12)), st.integers(0, 3))
def test_the_choice_hangs_on_the_seed_alone(order: list[int], seed: int) -> None:
    groups = [paid(1.0, group) for group in range(12)]
    chosen = best_paid([groups[i] for i in order], Scale(), 5, seed)
    assert chosen == best_paid(groups, Scale(), 5, seed) and len(chosen) == 5


def test_a_completion_that_a_prompt_gave_twice_counts_once() -> None:
    twice = [paid(1.0, 1, "same", step=s) for s in (1, 2)] + [paid(1.0, 2, "same")]
    assert len(best_paid(twice, Scale(), 9, 0)) == 2


# --------------------------------------------------------------------------------------- the alarm


@given(st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 0.99))
def test_tail_is_the_binomial_one(hits: int, more: int, rate: float) -> None:
    of = hits + more
    assert tail(hits, of, rate) == pytest.approx(binom.sf(hits - 1, of, rate), rel=1e-6, abs=1e-12)


def test_what_a_stage_begins_with_is_tolerated_up_to_a_half() -> None:
    assert tolerated_by([VerdictCounts(32, 0)]) == 0.2
    assert 0.3 < tolerated_by([VerdictCounts(32, 8), VerdictCounts(32, 32)]) < 0.5
    assert tolerated_by([VerdictCounts(32, 32)]) == 0.5, "what is hacked from the start is an alarm"
    assert alarm_of([VerdictCounts(32, 32)]) is not None


def test_an_alarm_rings_when_disagreement_grows_and_ends_with_it() -> None:
    quiet = [VerdictCounts(32, 1), VerdictCounts(32, 3), VerdictCounts(32, 0)]
    assert all(alarm_of(quiet[:n]) is None for n in range(4))
    loud = [*quiet, VerdictCounts(32, 28)]
    found = alarm_of(loud)
    assert found is not None and found.counts == VerdictCounts(32, 28) and found.tolerated == 0.2
    assert alarm_of([*loud, VerdictCounts(32, 2)]) is None


def test_an_alarm_rings_when_ever_more_cannot_be_told() -> None:
    quiet = [VerdictCounts(32, 2), VerdictCounts(32, 8)]
    assert all(unknown_alarm_of(quiet[:n]) is None for n in range(3))
    assert unknown_alarm_of([*quiet, VerdictCounts(32, 31)]) is not None
    for known in (0, 1, 2):  # from the start: nobody can judge such a stage
        assert unknown_alarm_of([VerdictCounts(32, 32 - known)] * 3) is None


def test_small_windows_are_put_together() -> None:
    assert alarm_of([VerdictCounts(3, 3)] * 2) is None, "six completions prove nothing"
    assert alarm_of([VerdictCounts(6, 6)] * 4) is not None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8))
def test_more_disagreement_never_ends_an_alarm(pairs: list[tuple[int, int]]) -> None:
    windows = [VerdictCounts(a + b, a) for a, b in pairs]
    if alarm_of(windows) is not None and len(windows) > 1:
        worse = [*windows[:-1], VerdictCounts(windows[-1].judged, windows[-1].judged)]
        assert alarm_of(worse) is not None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_honest_stages_stay_below_the_level(seed: int) -> None:
    """A hundred stages of 12 windows in which a fifth disagrees: the level allows one alarm."""
    draws = random.Random(seed)
    alarms = 0
    for _ in range(100):
        windows: list[VerdictCounts] = []
        for _ in range(12):
            windows.append(VerdictCounts(32, sum(draws.random() < 0.2 for _ in range(32))))
            if alarm_of(windows) is not None:
                alarms += 1
                break
    assert binom.sf(alarms - 1, 100, ALARM_LEVEL) > 1e-6
