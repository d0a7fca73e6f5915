"""Dealing groups out to processes: each as many as before, none lost, the load more even."""

from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.training.token_balance import dealt, spread

COSTS = st.integers(1, 5).flatmap(
    lambda each: st.lists(
        st.lists(st.integers(0, 1000).map(float), min_size=each, max_size=each),
        min_size=1,
        max_size=6,
    )
)


@given(COSTS)
def test_every_unit_has_one_place_and_every_process_as_many_as_before(
    costs: list[list[float]],
) -> None:
    plan = dealt(costs)
    assert [len(own) for own in plan] == [len(own) for own in costs]
    everything = sorted(unit for own in plan for unit in own)
    assert everything == [(p, i) for p, own in enumerate(costs) for i in range(len(own))]


@given(COSTS)
def test_no_process_has_much_more_than_an_equal_share(costs: list[list[float]]) -> None:
    """The bound of a greedy plan: the mean and one unit more, for each unit that it has."""
    plan = dealt(costs)
    loads = [sum(costs[p][i] for p, i in own) for own in plan]
    largest = max(cost for own in costs for cost in own)
    assert max(loads) <= sum(loads) / len(loads) + largest + 1e-9


def test_long_groups_of_one_process_are_shared() -> None:
    costs = [[900.0, 800.0, 100.0], [50.0, 40.0, 0.0]]
    plan = dealt(costs)
    after = [[costs[p][i] for p, i in own] for own in plan]
    assert spread(costs) > 1.9 and spread(after) < 1.06


def test_equal_groups_stay_where_they_are() -> None:
    plan = dealt([[5.0, 5.0], [5.0, 5.0]])
    assert [sorted(own) for own in plan] == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
