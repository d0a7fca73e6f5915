"""The statistics of evaluations against scipy, statsmodels and enumeration."""

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from rl_reasoner.evaluation.statistics import (
    Z,
    bootstrap,
    bootstrap_of_sums,
    clustered_interval,
    detectable_difference,
    holm,
    majority_at_k,
    mcnemar,
    paired_interval,
    pass_at_k,
    sign_flips,
    standard_error,
    tango,
    wilson,
)

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
sampled = st.integers(1, 40).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))
)
shares = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=80)


@given(counts)
def test_wilson_is_statsmodels(count: tuple[int, int]) -> None:
    right, n = count
    reference = proportion_confint(right, n, alpha=0.05, method="wilson")
    assert wilson(right, n) == pytest.approx(reference, abs=1e-12)


def test_wilson_without_trials_knows_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(sampled)
def test_pass_at_k_is_the_hypergeometric_chance(case: tuple[int, int, int]) -> None:
    n, right, k = case
    reference = 1 - stats.hypergeom.pmf(0, n, right, k)
    assert pass_at_k(n, right, k) == pytest.approx(reference, abs=1e-12)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case: tuple[int, int]) -> None:
    n, right = case
    marks = [i < right for i in range(n)]
    for k in range(1, n + 1):
        hits = [any(chosen) for chosen in combinations(marks, k)]
        assert pass_at_k(n, right, k) == pytest.approx(sum(hits) / len(hits), abs=1e-12)


@pytest.mark.parametrize("k", [0, -1, 5])
def test_estimates_want_enough_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated from 4 samples"):
        pass_at_k(4, 2, k)
    with pytest.raises(ValueError, match=f"maj@{k} cannot be computed from 4 samples"):
        majority_at_k(2, [1], 1, k)


@settings(max_examples=60)
@given(
    st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.integers(1, 9)
)
def test_majority_is_the_mean_over_all_subsets(
    right: int, others: list[int], silent: int, k: int
) -> None:
    """Each subset votes; a tie is won as often as the right class is among the first."""
    votes = [0] * right + [i for i, size in enumerate(others, 1) for _ in range(size)]
    everyone = [*votes, *[-1] * silent]
    if k > len(everyone):
        return
    won = []
    for chosen in combinations(everyone, k):
        tally = Counter(vote for vote in chosen if vote >= 0)
        most = max(tally.values(), default=0)
        first = [vote for vote, count in tally.items() if count == most]
        won.append(Fraction(int(0 in first), max(1, len(first))))
    expected = float(sum(won, Fraction(0)) / len(won))
    assert majority_at_k(right, others, silent, k) == pytest.approx(expected, abs=1e-12)


def test_majority_of_all_samples_is_their_vote() -> None:
    assert majority_at_k(3, [2, 2], 5, 12) == 1.0
    assert majority_at_k(2, [2], 0, 4) == 0.5
    assert majority_at_k(2, [3], 0, 5) == 0.0
    assert majority_at_k(0, [], 4, 4) == 0.0, "nobody said anything"
    assert majority_at_k(20, [1] * 44, 0, 64) == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_statsmodels(only_a: int, only_b: int) -> None:
    reference = reference_mcnemar([[7, only_a], [only_b, 5]], exact=True).pvalue
    for kind in (int, np.int64):
        assert mcnemar(kind(only_a), kind(only_b)) == pytest.approx(reference, abs=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_counts_the_outcomes_that_are_no_likelier(only_a: int, only_b: int) -> None:
    """Every way that fair coins could fall for the discordant problems."""
    n = only_a + only_b
    extreme = abs(only_a - only_b)
    ways = [abs(2 * sum(coins) - n) >= extreme for coins in product((0, 1), repeat=n)]
    found = Fraction(mcnemar(only_a, only_b)).limit_denominator(2**12)
    assert found == Fraction(sum(ways), len(ways))


def test_mcnemar_of_many_problems() -> None:
    assert mcnemar(3000, 3000) == 1.0
    assert 0.0 <= mcnemar(0, 5000) < 1e-300


@settings(max_examples=40)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=30))
def test_the_error_is_the_cluster_robust_one(groups: list[list[bool]]) -> None:
    """Of the mean over all samples: a regression on a constant, problems being the clusters."""
    means = [sum(group) / 4 for group in groups]
    flat = np.array(groups, dtype=float).ravel()
    clusters = np.repeat(np.arange(len(groups)), 4)
    fitted = OLS(flat, np.ones_like(flat)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": True}
    )
    assert standard_error(means) == pytest.approx(float(fitted.bse[0]), abs=1e-12)


@given(shares)
def test_clustered_is_wilsons_interval_for_the_effective_number_of_trials(
    values: list[float],
) -> None:
    low, high = clustered_interval(values)
    mean = math.fsum(values) / len(values)
    if len(set(values)) == 1:
        assert (low, high) == wilson(mean * len(values), len(values))
        assert low < high, "no spread seen is not certainty"
    elif set(values) == {0.0, 1.0}:
        assert (low, high) == pytest.approx(wilson(sum(values), len(values)))
    else:
        unsure = float(stats.norm.ppf(0.975) / stats.t.ppf(0.975, len(values) - 1))
        trials = mean * (1 - mean) / float(stats.sem(values)) ** 2 * unsure**2
        reference = proportion_confint(mean * trials, trials, method="wilson")
        assert (low, high) == pytest.approx(reference, abs=1e-3)


def test_clustered_is_the_normal_interval_where_there_are_many() -> None:
    values = np.random.default_rng(0).choice([0.0, 0.25, 0.5, 1.0], 50_000).tolist()
    half = Z * float(stats.sem(values))
    mean = math.fsum(values) / len(values)
    assert clustered_interval(values) == pytest.approx((mean - half, mean + half), abs=1e-5)


@pytest.mark.parametrize(("problems", "least"), [(30, 0.88), (100, 0.92)])
def test_clustered_covers_hard_sets_too(problems: int, least: float) -> None:
    """8 samples of problems that are solved 1 time in 20; a normal interval has 85% at 30."""
    rng = np.random.default_rng(problems)
    covered = []
    for _ in range(1000):
        shares = rng.binomial(8, rng.beta(0.1, 1.9, problems)) / 8
        low, high = clustered_interval(shares.tolist())
        covered.append(low <= 0.05 <= high)
    assert np.mean(covered) > least


@pytest.mark.parametrize("problems", [3, 5, 8])
def test_clustered_covers_where_problems_are_few(problems: int) -> None:
    """16 samples of as few as a level may have: by points of the normal distribution, 82 to 92 of
    100 intervals cover the truth."""
    rng = np.random.default_rng(problems)
    covered = []
    for _ in range(1000):
        low, high = clustered_interval((rng.binomial(16, rng.random(problems)) / 16).tolist())
        covered.append(low <= 0.5 <= high)
    assert np.mean(covered) > 0.935


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=3, max_size=12), st.integers(2, 5))
def test_problems_that_stand_several_times_are_no_more_problems(
    values: list[float], copies: int
) -> None:
    groups = [*range(len(values))] * copies
    alone = (
        clustered_interval(values),
        standard_error(values),
        bootstrap(values),
        paired_interval(values),
    )
    often = values * copies
    assert (
        clustered_interval(often, groups),
        standard_error(often, groups),
        bootstrap(often, groups=groups),
        paired_interval(often, groups=groups),
    ) == (
        pytest.approx(alone[0], abs=1e-12),
        pytest.approx(alone[1], abs=1e-12),
        pytest.approx(alone[2], abs=1e-12),
        pytest.approx(alone[3], abs=1e-12),
    )
    assert sign_flips(often, groups=groups) == sign_flips(values)


def test_the_error_of_unequal_clusters_is_statsmodels() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 9, 60)
    values = rng.choice([0.0, 0.5, 1.0], 60) * (groups / 9)
    fitted = OLS(values, np.ones(60)).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}
    )
    found = standard_error(values.tolist(), groups.tolist())
    assert found == pytest.approx(float(fitted.bse[0]), abs=1e-12)


def test_many_samples_of_few_problems_are_not_many_problems() -> None:
    low, high = clustered_interval([1.0] * 5 + [0.0] * 5)  # 8 samples each: 40 of 80 right
    assert high - low > 1.9 * (wilson(40, 80)[1] - wilson(40, 80)[0])


def test_the_bootstrap_is_scipys() -> None:
    values = np.random.default_rng(3).choice([0.0, 0.3, 0.7, 1.0], 150).tolist()
    reference = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(4)
    ).confidence_interval
    assert bootstrap(values) == pytest.approx(tuple(reference), abs=4e-3)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)
    assert bootstrap([1.0] * 20) == wilson(20, 20), "nothing to resample is not certainty"


@pytest.mark.parametrize(("k", "hard"), [(1, 0.5), (4, 0.3)])
def test_bootstrap_intervals_cover_as_often_as_they_say(k: int, hard: float) -> None:
    """pass@k of 8 samples of 150 problems whose chances are known: 93 to 97 of 100 intervals."""
    rng = np.random.default_rng(k)
    covered, rounds = 0, 1000
    for round_ in range(rounds):
        chances = rng.beta(hard, 1.0, 150)  # another draw of problems each time
        right = rng.binomial(8, chances)
        low, high = bootstrap(
            [pass_at_k(8, int(count), k) for count in right], round_, repeats=1000
        )
        truth = 1 - math.gamma(1 + k) * math.gamma(hard + 1) / math.gamma(hard + 1 + k)
        covered += low <= truth <= high  # E[(1-p)^k] of a beta(a, 1) is B(a, 1+k) / B(a, 1)
    assert 0.93 <= covered / rounds <= 0.97


@pytest.mark.parametrize("problems", [3, 5, 20, 80])
def test_a_test_by_sign_flips_errs_no_more_often_than_it_says(problems: int) -> None:
    rng = np.random.default_rng(0)
    found = []
    for i in range(400):
        chances = rng.beta(0.3, 0.7, problems)
        a, b = (rng.binomial(8, chances) / 8 for _ in "ab")
        found.append(sign_flips((b - a).tolist(), i, 1000))
    least = 0.0 if problems < 20 else 0.025
    assert least <= np.mean(np.array(found) <= 0.05) <= 0.08
    assert sign_flips([0.25] * 30 + [0.0] * 10) < 1e-3
    assert sign_flips([0.0] * 10) == 1.0
    assert sign_flips([0.125]) == 1.0, "one problem proves nothing"
    assert sign_flips([0.125] * 8) == 2 / 2**8


@given(st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.25, 0.75]), min_size=2, max_size=9))
def test_sign_flips_are_scipys_permutation_test(differences: list[float]) -> None:
    reference = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flips(differences) == pytest.approx(float(reference), abs=1e-12)


@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_flips_of_single_completions_are_mcnemars_test(only_a: int, only_b: int) -> None:
    found = sign_flips([-1.0] * only_a + [1.0] * only_b + [0.0] * 3)
    assert found == pytest.approx(mcnemar(only_a, only_b), abs=0.02)  # drawn where there are many


@pytest.mark.slow
@pytest.mark.slow
@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    reference = multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx(reference, abs=1e-12)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=2, max_size=80))
def test_paired_intervals_hold_the_mean_and_are_never_without_width(
    differences: list[float],
) -> None:
    low, high = paired_interval(differences)
    mean = math.fsum(differences) / len(differences)
    assert -1 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1 and low < high
    turned = paired_interval([-d for d in differences])
    assert turned == pytest.approx((-high, -low), abs=1e-9)


def test_the_interval_of_pairs_is_the_published_one() -> None:
    """Airway data of Fagerland, Lydersen and Laake (2014, table IV): 1 and 7 of 21."""
    assert tango(7, 1, 21) == pytest.approx((0.026, 0.517), abs=5e-4)
    assert tango(0, 0, 40)[1] == pytest.approx(wilson(0, 40)[1])  # the limits that both have
    assert tango(30, 0, 30)[0] == pytest.approx(2 * wilson(30, 30)[0] - 1)


@pytest.mark.parametrize(
    ("n", "better", "worse"),
    [(30, 0.1, 0.0), (50, 0.06, 0.0), (100, 0.05, 0.0), (100, 0.05, 0.01), (100, 0.1, 0.02)],
)
def test_intervals_of_pairs_cover_the_truth_where_few_differ(
    n: int, better: float, worse: float
) -> None:
    """All outcomes are counted: the normal interval covers in 85 to 95 of 100."""
    ways = stats.multinomial(n, [better, worse, 1 - better - worse])
    covered = 0.0
    for up in range(n + 1):
        for down in range(n + 1 - up):
            if (chance := float(ways.pmf([up, down, n - up - down]))) > 1e-7:
                differences = [1.0] * up + [-1.0] * down + [0.0] * (n - up - down)
                low, high = paired_interval(differences)
                covered += chance * (low <= better - worse <= high)
    assert covered > 0.93


def test_rounding_is_no_spread() -> None:
    """Three problems with one of five right; equal gains that are not equal in binary."""
    assert clustered_interval([0.2] * 3) == pytest.approx(wilson(0.6, 3))
    gains = [0.3 - 0.2, 0.4 - 0.3, 0.2 - 0.1, 0.9 - 0.8, 0.7 - 0.6, 0.6 - 0.5]
    low, high = paired_interval(gains)
    assert high - low > 0.5 and (detectable_difference(gains) or 0) > 0.3
    assert sign_flips([*gains, *[-0.1] * 6]) == 1.0


def test_sums_that_come_out_alike_have_no_interval() -> None:
    figure, ends = bootstrap_of_sums([(1.0, 1.0)] * 6, lambda s: s[:, 0] / s[:, 1])
    assert figure == 1.0 and all(map(math.isnan, ends))


def test_pairs_that_are_all_alike_do_not_prove_that_nothing_changed() -> None:
    assert paired_interval([0.0] * 20) == (-wilson(0, 20)[1], wilson(0, 20)[1])
    assert paired_interval([0.25, -0.5, 0.0, 0.75]) == bootstrap([0.25, -0.5, 0.0, 0.75])
