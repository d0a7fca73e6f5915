"""The statistics of evaluations: pure functions from counts and shares to figures with intervals.

Problems are the independent units everywhere: samples of one problem are a cluster. A value is one
problem's; where `groups` says that several are of one problem, these are one cluster. Exact sums
are whole numbers divided once. What is drawn (bootstrap, sign flips) is drawn from a seed. Knows
nothing of policies, sets or files.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
Interval = tuple[float, float]
Groups = Sequence[Hashable] | None  # the problem that each value is of; None: all are different
Z = 1.959963984540054  # the 97.5% point of the normal distribution
Z80 = 0.8416212335729143  # the 80% point: the power of `planned_difference`
_REPEATS = 10_000  # resamples of a bootstrap
_DUST = 1e-12  # what rounding leaves where values are equal; one completion of millions is more
_FEWEST = 6  # problems: where all of five change, an exact p is 2 / 2**5, more than 5%
_ENUMERATED = 12  # pairs that differ, up to which all ways to flip their signs are counted


def wilson(right: float, n: float) -> Interval:
    """Wilson's 95% score interval for `right` successes in `n` trials (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _clusters(values: Sequence[float], groups: Groups) -> list[tuple[float, int]]:
    """Sum and size of each cluster."""
    if groups is None:
        return [(value, 1) for value in values]
    clusters: dict[Hashable, tuple[float, int]] = {}
    for value, group in zip(values, groups, strict=True):
        total, size = clusters.get(group, (0.0, 0))
        clusters[group] = total + value, size + 1
    return [*clusters.values()]


def standard_error(values: Sequence[float], groups: Groups = None) -> float:
    """Cluster-robust standard error of the mean (CR1, Cameron and Miller 2015).

    Without `groups`, sd / sqrt(problems): with as many samples for each problem, shares of right
    ones have the error of the mean over all samples.
    """
    clusters = _clusters(values, groups)
    if len(clusters) < 2:
        return 0.0
    mean, count = math.fsum(values) / len(values), len(clusters)
    rest = math.fsum((total - mean * size) ** 2 for total, size in clusters)
    error = math.sqrt(rest * count / (count - 1)) / len(values)
    return error if error > _DUST else 0.0


def clustered_interval(shares: Sequence[float], groups: Groups = None) -> Interval:
    """95% interval of the mean of shares (0 to 1), problems being the independent units.

    Wilson's for as many independent trials as have the same `standard_error` (the effective sample
    size, Korn and Graubard 1998): the normal interval misses too often for few or hard problems.
    Fewer by what the error itself is unsure of, with few problems: the points of t for the normal
    ones. Problems that are all right or all wrong, as often each, are one trial each; so are those
    whose shares are all equal: there is no spread to go by.
    """
    mean, clusters = math.fsum(shares) / len(shares) if shares else 0.0, _clusters(shares, groups)
    error, trials = standard_error(shares, groups), float(len(clusters))
    whole = all(total in (0.0, size) for total, size in clusters)
    if error and not (whole and len({size for _, size in clusters}) == 1):
        trials = mean * (1 - mean) / error**2 * (Z / t_point(len(clusters) - 1)) ** 2
    return wilson(mean * trials, trials)


def t_point(freedom: int) -> float:
    """The 97.5% point of Student's t distribution with `freedom` degrees of freedom.

    From 3 on by the expansion of Fisher and Cornish (1960): 3.17 for 3, where it is 3.18.
    """
    if freedom < 3:
        return (math.inf, 12.706204736, 4.302652730)[freedom]
    parts = (
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return Z + math.fsum(part / freedom**power for power, part in enumerate(parts, 1))


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


def bootstrap(
    values: Sequence[float], seed: int = 0, repeats: int = _REPEATS, groups: Groups = None
) -> Interval:
    """95% percentile interval of the mean, by resampling problems (Efron 1979).

    Where all values are equal nothing can be resampled: Wilson's interval for shares of 0 to 1.
    """
    clusters = _clusters(values, groups)
    if not values or _alike(values) or len(clusters) == 1:
        return wilson(math.fsum(values) / max(1, len(values)) * len(clusters), len(clusters))
    distinct, counts = np.unique(np.asarray(clusters), axis=0, return_counts=True)
    shares = counts / len(clusters)  # how often each distinct one is drawn is multinomial
    drawn = np.random.default_rng(seed).multinomial(len(clusters), shares, size=repeats)
    low, high = np.quantile((drawn @ distinct[:, 0]) / (drawn @ distinct[:, 1]), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_of_sums(
    rows: Sequence[Sequence[float]],
    statistic: Callable[[Table], Table],
    seed: int = 0,
    repeats: int = _REPEATS,
    groups: Groups = None,
) -> tuple[float, Interval]:
    """A figure that follows from column sums of `rows`, and its 95% percentile interval.

    `statistic` makes of sums, of shape (draws, columns), the figure of each draw; NaN where a draw
    has none. Clusters are resampled, as in `bootstrap`. NaN everywhere where the rows have none;
    the interval is NaN where all draws have the same figure, which tells nothing of how sure it is.
    """
    table = np.asarray(rows, dtype=float).reshape(len(rows), -1)
    names = {name: i for i, name in enumerate(dict.fromkeys(groups or range(len(rows))))}
    clusters = np.zeros((len(names), table.shape[1]))
    for name, row in zip(groups or range(len(rows)), table, strict=True):
        clusters[names[name]] += row
    with np.errstate(divide="ignore", invalid="ignore"):
        figure = float(statistic(table.sum(0, keepdims=True))[0])
        distinct, counts = np.unique(clusters, axis=0, return_counts=True)
        generator = np.random.default_rng(seed)
        drawn = generator.multinomial(len(clusters), counts / len(clusters), size=repeats)
        values = statistic(drawn @ distinct)
    if np.isnan(values).all() or np.nanmax(values) - np.nanmin(values) <= _DUST * abs(figure):
        return figure, (math.nan, math.nan)
    low, high = np.nanquantile(values, [0.025, 0.975])
    return figure, (float(low), float(high))


def cohens_kappa(both: Table, only_a: Table, only_b: Table, neither: Table) -> Table:
    """Agreement of two yes/no judges beyond chance, from counts (Cohen 1960); NaN for no spread."""
    n = both + only_a + only_b + neither
    seen = (both + neither) / n
    a, b = (both + only_a) / n, (both + only_b) / n
    chance = a * b + (1 - a) * (1 - b)
    kappa: Table = (seen - chance) / (1 - chance)
    return kappa


def sign_flips(
    differences: Sequence[float], seed: int = 0, repeats: int = _REPEATS, groups: Groups = None
) -> float:
    """Two-sided p-value under "neither is better": either sign of a difference is equally likely.

    Fisher's randomisation test of pairs, of which McNemar's is the case of single completions. All
    ways are counted where few problems differ, else `repeats` are drawn.
    """
    totals = [abs(total) for total, _ in _clusters(differences, groups)]
    sums = [total for total in totals if total > _DUST]
    seen = abs(math.fsum(differences)) - 1e-9
    if len(sums) <= _ENUMERATED:
        ways = np.array([*product((-1.0, 1.0), repeat=len(sums))])
        return float(np.mean(np.abs(ways @ np.array(sums)) >= seen))
    distinct, counts = np.unique(np.asarray(sums), return_counts=True)
    heads = np.random.default_rng(seed).binomial(counts, 0.5, size=(repeats, len(counts)))
    moved = np.abs((2 * heads - counts) @ distinct)
    return (1 + int((moved >= seen).sum())) / (repeats + 1)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: problems that only one of the two has right."""
    only_a, only_b = int(only_a), int(only_b)  # 2**n is beyond numpy's integers
    n = only_a + only_b
    tail, ways = 0, 1  # ways: n over i
    for i in range(min(only_a, only_b) + 1):
        tail += ways
        ways = ways * (n - i) // (i + 1)
    p: float = 2 * tail / 2**n
    return min(1.0, p)


def paired_interval(differences: Sequence[float], seed: int = 0, groups: Groups = None) -> Interval:
    """95% interval of the mean of paired differences: `tango`'s for -1, 0 and 1, else by bootstrap.

    Several rows of a problem count as so many independent ones as have their `standard_error`.
    Where all differences are equal there is no spread to go by: as far to both sides as Wilson's
    interval for none of so many.
    """
    mean, clusters = math.fsum(differences) / len(differences), len(_clusters(differences, groups))
    if _alike(differences) or clusters == 1:
        half = wilson(0, clusters)[1]
        return max(-1.0, mean - half), min(1.0, mean + half)
    if not set(differences) <= {-1.0, 0.0, 1.0}:
        return bootstrap(differences, seed, groups=groups)
    n, apart = len(differences), _apart(differences, groups)
    better, worse = (sum(d == sign for d in differences) for sign in (1.0, -1.0))
    return tango(better * apart, worse * apart, n * apart)


def _apart(differences: Sequence[float], groups: Groups) -> float:
    """The share of the rows that are as good as independent ones, by their `standard_error`."""
    n, clusters = len(differences), len(_clusters(differences, groups))
    error = standard_error(differences, groups)
    if not error or clusters == n:
        return 1.0
    ratio = standard_error(differences) / error
    return ratio**2 * (1 - 1 / n) / (1 - 1 / clusters)


def tango(better: float, worse: float, n: float) -> Interval:
    """Score interval (95%) of the difference (better - worse) / n of paired proportions.

    Of `n` pairs, `better` have only the second one right, `worse` only the first (Tango 1998,
    Statistics in Medicine 17:891). The normal interval misses too often where few pairs differ.
    """

    def score(d: float) -> float:
        """How many standard errors lie between what was seen and a true difference d."""
        b = (2 * n - better + worse) * d - better - worse
        root = math.sqrt(max(0.0, b * b + 8 * n * worse * d * (1 - d)))
        q = (root - b) / (4 * n)  # how likely `worse` is if d is true
        spread = n * (2 * q + d * (1 - d))
        off = better - worse - n * d
        return off / math.sqrt(spread) if spread > _DUST else math.copysign(math.inf, off)

    seen = (better - worse) / n
    return _crossing(score, -1.0, seen, Z), _crossing(score, seen, 1.0, -Z)


def _crossing(falling: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Where a falling function has the level, between two numbers."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > level else (low, middle)
    return (low + high) / 2


def _alike(values: Sequence[float]) -> bool:
    """Whether all are equal but for rounding."""
    return max(values) - min(values) <= _DUST


def detectable_difference(differences: Sequence[float], groups: Groups = None) -> float | None:
    """The least true difference that a paired test of this many problems finds 4 times in 5.

    `planned_difference` where each row is better, worse or as before, as of single completions, and
    where no spread is seen: changes against the difference are taken to be as frequent as seen. Of
    shares, (z_0.975 + z_0.8) standard errors of the paired differences: a gain as even as what was
    seen. None where no difference could be shown.
    """
    clusters = len(_clusters(differences, groups))
    if clusters < _FEWEST:
        return None
    if not (error := standard_error(differences, groups)):
        return planned_difference(clusters, 0.0)
    if not set(differences) <= {-1.0, 0.0, 1.0}:
        return min(1.0, (Z + Z80) * error)
    better, worse = (sum(d == sign for d in differences) for sign in (1.0, -1.0))
    problems = max(1, round(len(differences) * _apart(differences, groups)))
    return planned_difference(max(_FEWEST, problems), 2 * min(better, worse) / len(differences))


def planned_difference(problems: int, differ: float, samples: int = 1) -> float | None:
    """The least true gain that a paired test of a planned evaluation finds 4 times in 5.

    `differ`: how often two completions of one problem differ in being right
    (`forecast.disagreement`); `samples`: completions a problem. Level 5%, power 80%: Connor's
    formula for McNemar's test (Biometrics 43, 1987), sqrt(n) d = z sqrt(v) + z' sqrt(v - d^2), with
    v = differ / samples + d, and half a completion more, because the exact test is cautious.
    The gain d itself is taken to be as unevenly spread as can be, all or nothing for each problem.
    None for fewer than 6 problems: where all of 5 change, p is 6%. Raises `ValueError` for no
    problem or sample.
    """
    if problems < 1 or samples < 1:
        raise ValueError(f"{problems} problems with {samples} samples: expected 1 or more of both")
    if problems < _FEWEST:
        return None

    def spare(d: float) -> float:
        """How much more than needed a true difference d is; it rises with d."""
        v = min(1.0, differ / samples + d)
        needed = Z * math.sqrt(v) + Z80 * math.sqrt(max(0.0, v - d * d))
        return math.sqrt(problems) * (d - 0.5 / (problems * samples)) - needed

    return -_crossing(lambda d: spare(-d), -1.0, 0.0, 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for several tests at once (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
