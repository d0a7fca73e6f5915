"""The prompt schedule by simulation: what it draws, what it does not starve, that it is counted."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.training.curriculum import PromptSchedule

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
