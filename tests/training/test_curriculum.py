"""The schedules by simulation: what they draw, what they do not starve, that they are counted."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta

from rl_reasoner.dataset.levels import levels_of
from rl_reasoner.errors import UserError
from rl_reasoner.training.curriculum import LevelSchedule, PromptSchedule, Schedule, expected_use

CHANCES = torch.tensor([0.0] * 40 + [1.0] * 40 + [0.5] * 20)  # hopeless, trivial, worth it


def simulated(batches: int, seed: int, chances: torch.Tensor = CHANCES) -> list[list[int]]:
    """The prompts of each batch of 10, with completions that succeed by `chances`."""
    schedule = PromptSchedule(len(chances))
    random = torch.Generator().manual_seed(seed)
    drawn = []
    for batch in range(batches):
        prompts = schedule.order((seed, batch))[:10]
        successes = torch.rand(10, 8, generator=random) < chances[prompts][:, None]
        schedule.update(prompts, successes.float())
        drawn.append(prompts)
    return drawn


def test_prompts_of_intermediate_difficulty_are_drawn_more_often_and_no_other_starves() -> None:
    counts: Counter[int] = Counter()
    for seed in range(4):
        for prompts in simulated(120, seed)[20:]:
            counts.update(prompts)
    middle = sum(counts[i] for i in range(80, 100)) / sum(counts.values())
    assert middle > 0.4, "twice their share of the data, and more"
    assert all(counts[i] >= 4 for i in range(100)), "each once a run at the least"


def test_a_prompt_that_becomes_solvable_comes_back() -> None:
    schedule = PromptSchedule(4)
    for _ in range(6):
        schedule.update([0, 1, 2, 3], torch.tensor([[0.0] * 8, [0.0] * 8, [1.0] * 8, [1.0] * 8]))
    hopeless = schedule.probabilities()[0].item()
    for _ in range(2):
        schedule.update([0], torch.tensor([[0.0, 1.0] * 4]))
    assert schedule.probabilities()[0].item() > 2 * hopeless


def test_the_scale_of_the_rewards_does_not_matter() -> None:
    one, other = PromptSchedule(3), PromptSchedule(3)
    rewards = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    one.update([0, 1, 2], rewards)
    other.update([0, 1, 2], 20 * rewards - 7)
    assert torch.allclose(one.counts, other.counts)


def test_nothing_is_learned_from_nothing() -> None:
    schedule = PromptSchedule(2)
    schedule.update([0, 1], torch.tensor([[1.0, 1.0], [1.0, torch.nan]]))
    assert schedule.counts.eq(1).all(), "equal rewards may be success or failure"
    schedule.update([0, 1], torch.tensor([[torch.nan] * 2, [0.0, 1.0]]))
    assert schedule.counts[0].eq(1).all() and not schedule.counts[1].eq(1).all()


@given(
    st.lists(
        st.lists(st.floats(-9, 9) | st.just(float("nan")), min_size=4, max_size=4), max_size=20
    )
)
def test_the_posterior_stays_a_posterior(rows: list[list[float]]) -> None:
    schedule = PromptSchedule(3)
    for i, row in enumerate(rows):
        schedule.update([i % 3], torch.tensor([row]))
    assert (schedule.counts >= 1).all() and (schedule.counts.sum(1) <= 2 + 2 * 4).all()
    assert schedule.probabilities().sum().item() == pytest.approx(1)
    assert (schedule.probabilities() >= 0.2 / 3 - 1e-9).all()


def test_the_draw_follows_from_the_key_and_the_state() -> None:
    whole = PromptSchedule(30)
    rewards = torch.rand(30, 4, generator=torch.Generator().manual_seed(1))
    whole.update(range(30), rewards)
    resumed = PromptSchedule(30)
    resumed.restore(whole.state())
    orders = [resumed.order((3, batch)) for batch in range(8)]
    assert orders == [whole.order((3, batch)) for batch in range(8)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert all(a != b for a, b in pairwise(orders))


# ------------------------------------------------------------------------------------ levels

BAND = (0.3, 0.7)


def of_levels(*counts: int) -> LevelSchedule:
    """A schedule of levels 1, 2, ..., with so many rows each."""
    rows = [{"level": 1 + place} for place, count in enumerate(counts) for _ in range(count)]
    return LevelSchedule(levels_of(rows), BAND)


@given(
    st.tuples(st.floats(1, 60), st.floats(1, 60)),
    st.tuples(*[st.integers(0, 1000).map(lambda n: n / 1000)] * 2).filter(
        lambda ends: ends[1] - ends[0] > 0.05
    ),
)
def test_the_expected_use_is_the_integral_over_the_posterior(
    counts: tuple[float, float], band: tuple[float, float]
) -> None:
    low, high = band

    def use(p: float) -> float:
        flanks = [p / low if low else 1.0, (1 - p) / (1 - high) if high < 1 else 1.0]
        return min(1.0, *flanks) ** 2 * float(beta.pdf(p, *counts))

    whole, _ = quad(use, 0, 1, points=sorted({low, high}), limit=200)
    found = expected_use(torch.tensor([counts], dtype=torch.float64), band).item()
    assert found == pytest.approx(whole, abs=5e-3)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-2, 2) | st.just(float("nan"))), max_size=30)
)
def test_every_level_keeps_a_chance_and_rows_of_a_level_have_the_same(
    seen: list[tuple[int, float]],
) -> None:
    schedule = of_levels(3, 1, 7, 2, 5)
    for level, reward in seen:
        schedule.update([sum((3, 1, 7, 2, 5)[:level])], torch.tensor([[reward, 0.5]]))
    shares, chances = schedule.shares(), schedule.probabilities()
    assert shares.sum().item() == pytest.approx(1) and (shares >= 0.1 / 5 - 1e-9).all()
    assert (schedule.counts >= 1).all()
    for level, (part, share) in enumerate(
        zip(chances.split([3, 1, 7, 2, 5]), shares, strict=True), 1
    ):
        assert part.sum().item() == pytest.approx(share.item()), level
        assert part.max() == part.min()


def test_levels_move_as_a_policy_learns() -> None:
    """Each level is learned by practice, the next one only when the one before it is known."""
    schedule, random = of_levels(*[400] * 6), torch.Generator().manual_seed(0)
    skill, means, first = torch.zeros(7), [], []
    for batch in range(80):
        prompts = schedule.order((0, batch))[:16]
        chances = 0.97 * skill[1:] + 0.02
        of = torch.tensor([schedule.levels.of_rows[prompt] for prompt in prompts])
        schedule.update(prompts, (torch.rand(16, 8, generator=random) < chances[of, None]).float())
        ready = torch.tensor([1.0, *skill[1:6]])
        skill[1:] = (skill[1:] + 0.02 * ready * of.bincount(minlength=6)).clamp(max=1.0)
        means.append(schedule.metrics(prompts)["curriculum/level_mean"])
        first.append(schedule.shares()[0].item())
    early, late = sum(means[2:10]) / 8, sum(means[-8:]) / 8
    assert early < 3 and late > early + 1
    # one batch's share is up to the draws: what is not tried is forgotten, and tried again
    assert sum(first[-20:]) / 20 < sum(first[:10]) / 10 / 2, "known by then"


def test_a_level_in_the_band_is_drawn_most() -> None:
    schedule = of_levels(50, 50, 50)
    for _ in range(5):
        schedule.update([0, 50, 100], torch.tensor([[1.0] * 8, [0.0, 1.0] * 4, [0.0] * 8]))
    easy, medium, hard = schedule.shares().tolist()
    assert medium > 2 * easy and medium > 2 * hard
    [drawn] = {schedule.levels.of_rows[row] for row in schedule.order((1, 2, 3))[:1]}
    firsts = Counter(schedule.levels.of_rows[schedule.order((9, i))[0]] for i in range(400))
    assert firsts[1] / 400 == pytest.approx(medium, abs=0.08) and drawn in (0, 1, 2)
    for _ in range(40):
        schedule.update([50], torch.tensor([[0.0, 1.0] * 4]))
    assert schedule.shares()[2] > 2 * hard, "what is not tried is forgotten, and tried again"


@pytest.mark.parametrize(
    "schedule", [PromptSchedule(9), of_levels(4, 5)], ids=["prompts", "levels"]
)
def test_a_schedule_of_other_rows_is_refused(schedule: Schedule) -> None:
    with pytest.raises(UserError, match="counts 3 prompts or levels"):
        schedule.restore(PromptSchedule(3).state())


def test_levels_follow_from_the_key_and_the_state() -> None:
    whole, resumed = of_levels(9, 9, 9), of_levels(9, 9, 9)
    random = torch.Generator().manual_seed(3)
    for _ in range(4):
        whole.update([0, 9, 18], torch.rand(3, 4, generator=random))
    resumed.restore(whole.state())
    for _ in range(3):
        rewards = torch.rand(3, 4, generator=random)
        whole.update([1, 10, 19], rewards)
        resumed.update([1, 10, 19], rewards)
    assert torch.equal(whole.counts, resumed.counts)
    assert [whole.order((4, n)) for n in range(5)] == [resumed.order((4, n)) for n in range(5)]
