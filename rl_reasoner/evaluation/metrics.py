"""From the scored rows of a set to its figures: what is shown, saved and compared.

A scored row is a dict with `problem`, `answer`, and a list with one value a sample for each of
`completions`, `scores`, `reasons`, `outcomes` ("score", "abstain", "fault"), `tokens`, `truncated`;
where answers were sorted into classes of equal ones, also `classes` (0: right, above: wrong, -1: no
answer); where an answer and its form are two things, also `lenient` marks (see the module of that
name). `tokens` are None where a server does not tell them. A completion is right when its score is
1.0; what abstained or failed is not right, and is counted. Pure; the statistics are `statistics`'.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from rl_reasoner.dataset.levels import LEVEL, in_order
from rl_reasoner.environments.environment import OPENED
from rl_reasoner.evaluation.statistics import (
    Groups,
    Interval,
    bootstrap,
    clustered_interval,
    majority_at_k,
    pass_at_k,
    standard_error,
    wilson,
)
from rl_reasoner.language.repetition import repeats_itself
from rl_reasoner.language.thinking import OPEN_THINK, has_chain
from rl_reasoner.types import Row

_SILENT = ("no final answer", "no closed Python block")  # how the shipped rewards' reasons begin
_GROUPED_BY = ("task", "level", "subject")
_MOST_GROUPS = 24
_BINS = 5  # of lengths, with about as many completions each


def share_right(row: Row, marks: str = "scores") -> float:
    """The share of a row's completions that are right, by its `scores` or its `lenient` marks."""
    right: int = sum(mark == 1.0 for mark in row[marks])
    return right / len(row[marks])


def has_lenient(rows: Sequence[Row]) -> bool:
    """Whether all rows have lenient marks beside their scores."""
    return all("lenient" in row for row in rows)


def problems(
    rows: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]] = ()
) -> list[str]:
    """Which problem each row is of: some sets have one several times.

    An environment may ask the same of all its rows: then it is the row that it opened, where all
    rows, and those `beside` them, say so.
    """
    key = OPENED if all(OPENED in row for row in (*rows, *beside)) else "problem"
    return [str(row.get(key)) for row in rows]


def compute_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Compute all figures of a set, as JSON values; each row has the same number of samples.

    `accuracy` is strict: the answer as asked. `lenient` has the same figures of lenient marks.
    """
    samples = len(rows[0]["scores"])
    figures = {**_accuracy(rows), **_shares(rows), **_lengths(rows)}
    if has_lenient(rows):
        lenient = _accuracy(rows, "lenient")
        figures["lenient"] = {k: v for k, v in lenient.items() if k not in ("problems", "samples")}
    if samples > 1:
        figures |= _at_k(rows, samples)
    groups = {name: _groups(rows, name) for name in _GROUPED_BY}
    by = {name: group for name, group in groups.items() if group}
    return {**figures, **({"by": by} if by else {})}


def _accuracy(rows: Sequence[Row], marks: str = "scores") -> dict[str, Any]:
    shares = [share_right(row, marks) for row in rows]
    samples, n = len(rows[0]["scores"]), len(rows)
    groups = problems(rows)
    figures: dict[str, Any] = {
        "problems": n,
        "samples": samples,
        "accuracy": math.fsum(shares) / n,
        "interval": [*accuracy_interval(shares, groups)],
    }
    return figures | ({"standard_error": standard_error(shares, groups)} if samples > 1 else {})


def accuracy_interval(shares: Sequence[float], groups: Groups = None) -> Interval:
    """Wilson's interval where each problem has one completion, else the clustered one."""
    if set(shares) <= {0.0, 1.0} and (groups is None or len(set(groups)) == len(groups)):
        return wilson(sum(shares), len(shares))
    return clustered_interval(shares, groups)


def _shares(rows: Sequence[Row]) -> dict[str, Any]:
    """What became of the completions, as shares of all."""
    count = sum(len(row["scores"]) for row in rows)
    outcomes = Counter(outcome for row in rows for outcome in row["outcomes"])
    silent = sum(reason.startswith(_SILENT) for row in rows for reason in row["reasons"])
    texts = [text for row in rows for text in row["completions"]]
    shares = {
        "truncated": sum(cut for row in rows for cut in row["truncated"]) / count,
        "no_answer": silent / count,
        "abstained": outcomes["abstain"] / count,
        "faults": outcomes["fault"] / count,
        "repeating": sum(map(repeats_itself, texts)) / count,
        "judged": sum(score is not None for row in rows for score in row["scores"]) / count,
    }
    chains = sum(map(has_chain, texts))
    if chains or any(OPEN_THINK in text for text in texts):
        shares["thinking"] = chains / count
    return shares


def _lengths(rows: Sequence[Row]) -> dict[str, Any]:
    """Lengths in tokens, and how often completions of a length are right; {} where not known."""
    marks = sorted(
        (tokens, float(score == 1.0), problem)
        for problem, row in zip(problems(rows), rows, strict=True)
        for tokens, score in zip(row["tokens"], row["scores"], strict=True)
        if tokens is not None
    )
    if not marks:
        return {}
    tokens = [length for length, _, _ in marks]
    n = len(tokens)
    cuts = [tokens[n * part // _BINS] for part in range(1, _BINS)]  # equal lengths together
    edges = sorted({0, n, *(bisect_left(tokens, cut) for cut in cuts)})
    return {
        "mean_length": sum(tokens) / n,
        "length": {
            "median": median(tokens),
            "p95": tokens[min(n - 1, math.ceil(0.95 * n) - 1)],
            "longest": tokens[-1],
        },
        "by_length": [_bin(marks[i:j]) for i, j in pairwise(edges)],
    }


def _bin(marks: Sequence[tuple[int, float, str]]) -> dict[str, Any]:
    """Completions of about one length: (tokens, right, problem) each."""
    lengths, right, groups = zip(*marks, strict=True)
    return {
        "tokens": [lengths[0], lengths[-1]],
        "completions": len(marks),
        "accuracy": sum(right) / len(marks),
        "interval": [*accuracy_interval(right, groups)],
    }


def _at_k(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """pass@k and, where answers were sorted into classes, maj@k, with bootstrap intervals."""
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < samples] + [samples]
    right = [round(share_right(row) * samples) for row in rows]
    passes = {k: [pass_at_k(samples, count, k) for count in right] for k in ks}
    curves = _curve("pass_at", passes, problems(rows))
    if all("classes" in row for row in rows):
        votes = {k: [_majority(row["classes"], k) for row in rows] for k in ks}
        curves |= _curve("maj_at", votes, problems(rows))
    return curves


def _curve(
    name: str, values: Mapping[int, Sequence[float]], groups: Sequence[str]
) -> dict[str, Any]:
    intervals = {str(k): [*bootstrap(each, groups=groups)] for k, each in values.items()}
    return {
        name: {str(k): math.fsum(each) / len(each) for k, each in values.items()},
        f"{name}_interval": intervals,
    }


def _majority(classes: Sequence[int], k: int) -> float:
    counts = Counter(classes)
    others = [count for number, count in counts.items() if number > 0]
    return majority_at_k(counts[0], others, counts[-1], k)


def _groups(rows: Sequence[Row], column: str) -> dict[str, Any]:
    """Accuracy by the values of a column; empty for one value or for too many."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        if row.get(column) not in (None, ""):
            parts.setdefault(str(row[column]), []).append(row)
    if not 1 < len(parts) <= _MOST_GROUPS:
        return {}
    values = sorted(parts, key=in_order) if column == LEVEL else sorted(parts)
    return {value: _accuracy(parts[value]) for value in values}
