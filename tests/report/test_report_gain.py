"""The report's words on a gain say what the figures support and nothing else."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.evaluation.statistics import wilson
from rl_reasoner.report.gain import explain_gain, moved
from rl_reasoner.report.run_data import Paired, SetResult


def result(accuracy: float, n: int = 400, **more: Any) -> SetResult:
    low, high = wilson(accuracy * n, n)
    return SetResult(accuracy, (low, high), temperature=0.0, **more)


def say(before: dict[str, SetResult], after: dict[str, SetResult]) -> str:
    return " ".join(explain_gain(before, after, by="GRPO"))


def test_a_behaviour_selected_is_told_from_a_skill_added() -> None:
    before = {"": result(0.13, thinking=0.06), "chain-forced": result(0.74)}
    selected = say(before, {"": result(0.745, thinking=0.98), "chain-forced": result(0.75)})
    assert (
        "Habit: GRPO selected a behaviour the policy already had (thinking first: 6.0%" in selected
    )
    assert "did not measurably add skill" in selected
    assert "74.0% before and 75.0% after" in selected
    added = say(before, {"": result(0.9, thinking=0.98), "chain-forced": result(0.91)})
    assert "Skill: with the chain forced" in added
    assert "made the thinking itself better" in added
    assert "selected" not in added
    open_ = say(before, {"": result(0.745, thinking=0.98), "chain-forced": result(0.79)})
    assert "not settled" in open_
    assert "selected" not in open_


def test_a_habit_that_was_not_measured_is_no_skill() -> None:
    """The quickstart's gain, which its forced chain shows to be a habit, without that chain."""
    before, after = lenient(0.482, 0.482, thinking=0.4), lenient(0.999, 0.999, thinking=1.0)
    words = say({"": before}, {"": after})
    assert "Habit or skill: not measured" in words and "--evals.forced true" in words
    assert words.index("not measured") < words.index("none of the gain is form")
    assert "Skill:" not in words and "Habit:" not in words
    forced = say(
        {"": before, "chain-forced": result(1.0)}, {"": after, "chain-forced": result(1.0)}
    )
    assert "Habit: GRPO selected" in forced and "not measured" not in forced
    plain = say({"": lenient(0.2, 0.2)}, {"": lenient(0.5, 0.5)})
    assert "in its best prompt, with as many tokens" in plain, "there is no chain to force"
    lost = say({"": after}, {"": before})
    assert "a behaviour used less often and a skill that is lost cannot be told apart" in lost


def test_thinking_is_named_only_where_its_share_rose() -> None:
    before = {"": result(0.13, thinking=0.9), "chain-forced": result(0.74)}
    after = {"": result(0.74, thinking=0.91), "chain-forced": result(0.74)}
    assert "thinking first" not in say(before, after)
    assert "selected a behaviour" in say(before, after)


def test_a_gain_beyond_the_forced_chain_is_not_put_down_to_it() -> None:
    before = {"": result(0.1, thinking=0.0), "chain-forced": result(0.3)}
    words = say(before, {"": result(0.9, thinking=1.0), "chain-forced": result(0.31)})
    assert "does not account for the gain" in words
    assert "selected" not in words


def test_what_was_not_measured_is_said() -> None:
    assert "cannot be told apart" in say({"": result(0.1)}, {"": result(0.9)})
    bare = {"": SetResult(0.1)}
    assert "without intervals nothing more can be said" in say(bare, {"": SetResult(0.9)})
    assert explain_gain({}, {"": result(0.5)}, by="GRPO") == []


def test_other_modes_speak_when_their_intervals_are_apart() -> None:
    before = {"": result(0.5), "direct-forced": result(0.2), "sampled": result(0.3)}
    after = {"": result(0.5), "direct-forced": result(0.1), "sampled": result(0.6)}
    words = say(before, after)
    assert "this run shows no change" in words
    assert "With direct answers forced, accuracy fell from 20.0% to 10.0%" in words
    assert "Sampled accuracy rose from 30.0% to 60.0%" in words


def test_at_the_edge_of_the_scale_a_move_of_one_problem_is_no_move() -> None:
    before = {"": result(0.268, 1000), "chain-forced": result(0.999, 1000)}
    after = {"": result(1.0, 1000), "chain-forced": result(1.0, 1000)}
    assert "selected a behaviour the policy already had" in say(before, after)


shares = st.floats(0, 1)
results = st.builds(result, shares, st.integers(5, 3000), thinking=shares)


@given(results, results)
def test_moves_mirror_each_other(a: SetResult, b: SetResult) -> None:
    mirror = {"rose": "fell", "fell": "rose"}
    assert moved(b, a) == mirror.get(moved(a, b), moved(a, b))


@given(st.floats(0, 0.5), st.floats(0.2, 1), shares, st.floats(-0.1, 0.1), st.integers(50, 1000))
def test_selected_is_said_only_of_a_gain_that_the_forced_chain_covers(
    before: float, after: float, chain: float, shift: float, n: int
) -> None:
    forced = result(chain, n), result(min(1.0, max(0.0, chain + shift)), n)
    words = say(
        {"": result(before, n), "chain-forced": forced[0]},
        {"": result(after, n), "chain-forced": forced[1]},
    )
    before_high, after_low = wilson(before * n, n)[1], wilson(after * n, n)[0]
    chain_low, chain_high = wilson(chain * n, n)
    covered = after_low > before_high and after_low <= chain_high
    back_low, back_high = wilson(forced[1].accuracy * n, n)
    narrower = min(chain_high - chain_low, back_high - back_low)
    same = abs(forced[1].accuracy - chain) <= narrower / 2
    assert ("selected a behaviour" in words) == (covered and same)


def test_a_loss_is_told_as_a_gain_is() -> None:
    before = {"": result(0.745, thinking=0.98), "chain-forced": result(0.75)}
    lost = say(before, {"": result(0.13, thinking=0.06), "chain-forced": result(0.74)})
    assert "accuracy fell from 74.5% to 13.0%, with intervals apart." in lost
    assert "GRPO made the policy use less of what it can do (thinking first: 98.0%" in lost
    assert "did not measurably cost skill" in lost
    worse = say(before, {"": result(0.5, thinking=0.98), "chain-forced": result(0.5)})
    assert "made the thinking itself worse" in worse
    assert "cannot be told apart" in say({"": result(0.9)}, {"": result(0.1)})


def test_pass_at_k_is_told_with_its_intervals() -> None:
    ends = [
        SetResult(p, (p - 0.04, p + 0.04), pass_at={1: p, 8: q}, pass_interval={8: (0.5, 0.7)})
        for p, q in ((0.364, 0.6), (0.244, 0.61))
    ]
    words = say({"": ends[0]}, {"": ends[1]})
    assert (
        "pass@1 fell from 36.4% [32.4–40.4%] to 24.4% [20.4–28.4%] (with intervals apart)" in words
    )
    assert "pass@8 went from 60.0% [50.0–70.0%] to 61.0% [50.0–70.0%] (no change shown)" in words
    bare = SetResult(0.3, pass_at={1: 0.3, 8: 0.5})
    assert "(no intervals given)" in say({"": bare}, {"": bare})


def test_pass_at_1_and_accuracy_are_one_verdict() -> None:
    test = Paired(500, 0.039, (0.016, 0.062), 0.0017, 0.01, "paired")
    first = SetResult(0.137, (0.12, 0.156), pass_at={1: 0.137, 4: 0.37})
    last = SetResult(0.176, (0.149, 0.205), pass_at={1: 0.176, 4: 0.3}, paired=test)
    words = say({"": result(0.1), "sampled": first}, {"": result(0.1), "sampled": last})
    assert "Sampled accuracy rose from 13.7% to 17.6%, by the paired test." in words
    assert "pass@1 rose from 13.7% [12.0–15.6%] to 17.6% [14.9–20.5%] (by the paired test)" in words


def test_the_paired_test_settles_what_intervals_leave_open() -> None:
    test = Paired(500, -0.056, (-0.097, -0.015), 0.0097, 0.019, "McNemar, exact")
    words = say({"": result(0.364, 500)}, {"": result(0.308, 500, paired=test)})
    assert "accuracy fell from 36.4% to 30.8%, by the paired test." in words
    assert "On the same 500 problems: −5.6 points [−9.7, −1.5], p 0.0097 (0.019 by Holm)" in words
    weak = replace(test, adjusted=0.2)
    assert "do not settle it" in say(
        {"": result(0.364, 500)}, {"": result(0.308, 500, paired=weak)}
    )


def lenient(strict: float, leniently: float, n: int = 400, **more: Any) -> SetResult:
    return result(strict, n, lenient=result(leniently, n), **more)


def test_of_a_policy_that_cannot_be_forced_the_form_is_told_from_the_rest() -> None:
    formed = say({"": lenient(0.1, 0.3)}, {"": lenient(0.282, 0.31)})
    assert "Form, which is where the answer stands: of +18.2 points strict, 1.0 are" in formed
    assert "also there leniently: nine tenths of the gain is form" in formed
    assert "GRPO did not measurably change how often it is right in any form (30.0% " in formed
    assert "Habit or skill: not measured" in formed, "form says nothing of it"
    learned = say({"": lenient(0.1, 0.3)}, {"": lenient(0.6, 0.65)})
    assert "of +50.0 points strict, 35.0 are also there leniently: a third of" in learned
    assert "apart from form, accuracy rose as well (30.0% before and 65.0% after, " in learned
    open_ = say({"": lenient(0.1, 0.3)}, {"": lenient(0.6, 0.35)})
    assert "whether it is right more or less often in any form is not settled" in open_
    lost = say({"": lenient(0.6, 0.65)}, {"": lenient(0.1, 0.3)})
    assert "of −50.0 points strict, −35.0 are" in lost and "fell as well" in lost
    crossed = say({"": lenient(0.1, 0.6)}, {"": lenient(0.3, 0.3)})
    assert "none are there leniently (−30.0)" in crossed
    assert "apart from form, accuracy fell (60.0% before" in crossed


def test_beside_a_forced_chain_form_is_told_where_there_is_some() -> None:
    before = {"": lenient(0.13, 0.13), "chain-forced": result(0.74)}
    plain = say(before, {"": lenient(0.745, 0.745), "chain-forced": result(0.75)})
    assert "selected a behaviour" in plain and "leniently" not in plain
    before[""] = lenient(0.13, 0.5)
    formed = say(before, {"": lenient(0.745, 0.75), "chain-forced": result(0.75)})
    assert "selected a behaviour" in formed and "of the gain is form" in formed


def test_figures_without_lenient_ones_on_both_sides_say_nothing_of_form() -> None:
    words = say({"": result(0.1)}, {"": lenient(0.9, 0.9)})
    assert "cannot be told apart" in words and "leniently" not in words


def test_the_paired_test_of_lenient_marks_settles_what_intervals_leave_open() -> None:
    test = Paired(500, 0.056, (0.015, 0.097), 0.0097, 0.0097, "McNemar, exact")
    last = replace(result(0.364, 500), paired=test)
    after = replace(result(0.9, 500), lenient=last)
    words = say({"": lenient(0.1, 0.308, 500)}, {"": after})
    assert "accuracy rose as well (30.8% before and 36.4% after, by the paired test)" in words
