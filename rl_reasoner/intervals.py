"""The statistics of evaluations: pure functions from counts and shares to figures with intervals.

Problems are the independent units everywhere: samples of one problem are a cluster. Exact sums are
whole numbers divided once. What is drawn (the bootstrap) is drawn from a seed. Knows nothing of
policies, sets or files.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Interval = tuple[float, float]
Z = 1.959963984540054  # the 97.5% point of the normal distribution
_Z80 = 0.8416212335729143  # the 80% point: the power of `detectable`
_REPEATS = 10_000  # resamples of a bootstrap


def wilson(right: float, n: int) -> Interval:
    """Wilson's 95% score interval for `right` successes in `n` trials (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def standard_error(shares: Sequence[float]) -> float:
    """Standard error of the mean of per-problem shares: sd / sqrt(problems).

    With as many samples for each problem this is the cluster-robust error of the mean over all
    samples (CR1, Cameron and Miller 2015).
    """
    n = len(shares)
    if n < 2:
        return 0.0
    mean = math.fsum(shares) / n
    return math.sqrt(math.fsum((share - mean) ** 2 for share in shares) / (n - 1) / n)


def clustered(shares: Sequence[float]) -> Interval:
    """95% interval of the mean of per-problem shares, problems being the independent units.

    Normal, with `standard_error`; where all shares are equal there is no spread to go by, and
    Wilson's interval over the problems is given.
    """
    n = len(shares)
    mean = math.fsum(shares) / n if n else 0.0
    half = Z * standard_error(shares)
    if half == 0.0:
        return wilson(mean * n, n)
    return max(0.0, mean - half), min(1.0, mean + half)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `right` of `n`.

    1 - C(n - right, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    if not 0 < k <= n:
        raise ValueError(f"pass@{k} cannot be estimated from {n} samples")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority_at_k(right: int, others: Sequence[int], silent: int, k: int) -> float:
    """The chance that the majority of k samples, drawn from those at hand, is right.

    `right` samples agree with the gold, `others` are the sizes of the classes of equal wrong
    answers, `silent` samples have no answer and no vote. Ties are broken evenly. Exact: subsets are
    counted by generating functions, none is drawn.
    """
    n = right + sum(others) + silent
    if not 0 < k <= n:
        raise ValueError(f"maj@{k} cannot be computed from {n} samples")
    won = 0.0
    for votes in range(1, min(right, k) + 1):
        ways = _ways(others, silent, k - votes, votes)
        for ties, count in ways.items():
            won += math.comb(right, votes) * count / math.comb(n, k) / (ties + 1)
    return min(1.0, won)


def _ways(others: Sequence[int], silent: int, size: int, most: int) -> Mapping[int, int]:
    """Subsets of `size` with at most `most` of each class, by how many classes have just `most`."""
    counts = {(j, 0): math.comb(silent, j) for j in range(min(silent, size) + 1)}
    for members in others:
        grown: dict[tuple[int, int], int] = {}
        for (taken, ties), ways in counts.items():
            for more in range(min(members, most, size - taken) + 1):
                at = taken + more, ties + (more == most)
                grown[at] = grown.get(at, 0) + ways * math.comb(members, more)
        counts = grown
    return {ties: ways for (taken, ties), ways in counts.items() if taken == size}


def bootstrap(values: Sequence[float], seed: int = 0, repeats: int = _REPEATS) -> Interval:
    """95% percentile interval of the mean over problems, by resampling problems (Efron 1979).

    Where all values are equal nothing can be resampled: Wilson's interval for shares of 0 to 1.
    """
    if not values or min(values) == max(values):
        return wilson(math.fsum(values), len(values))
    low, high = np.quantile(_resampled(values, seed, repeats), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_p(differences: Sequence[float], seed: int = 0, repeats: int = _REPEATS) -> float:
    """Two-sided p-value of "the mean difference is 0", by resampling the centred differences."""
    mean = math.fsum(differences) / len(differences)
    moved = np.abs(_resampled([d - mean for d in differences], seed, repeats))
    return (1 + int((moved >= abs(mean) - 1e-12).sum())) / (repeats + 1)


def _resampled(values: Sequence[float], seed: int, repeats: int) -> np.ndarray:
    """(repeats,) means of resamples: how often each distinct value is drawn is multinomial."""
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=repeats)
    means: np.ndarray = drawn @ distinct / len(values)
    return means


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: problems that only one of the two has right."""
    n = only_a + only_b
    tail: float = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)


def paired(differences: Sequence[float], seed: int = 0) -> Interval:
    """95% interval of the mean of paired differences: normal for -1, 0 and 1, else by bootstrap.

    Where all differences are equal there is no spread to go by: as far to both sides as Wilson's
    interval for none of so many.
    """
    n, mean = len(differences), math.fsum(differences) / len(differences)
    if min(differences) == max(differences):
        half = wilson(0, n)[1]
    elif set(differences) <= {-1.0, 0.0, 1.0}:
        half = Z * standard_error(differences)
    else:
        return bootstrap(differences, seed)
    return max(-1.0, mean - half), min(1.0, mean + half)


def detectable(differences: Sequence[float]) -> float:
    """The least true difference that a paired test of this many problems finds 4 times in 5.

    (z_0.975 + z_0.8) standard errors of the paired differences: level 5%, power 80%. Where all are
    equal, so many pairs may differ as Wilson's interval for none allows.
    """
    error = standard_error(differences)
    if error == 0.0:
        error = math.sqrt(wilson(0, len(differences))[1] / len(differences))
    return min(1.0, (Z + _Z80) * error)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for several tests at once (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
