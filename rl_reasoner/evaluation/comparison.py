"""Two evaluations of the same problems, compared problem by problem.

Each set has its difference with interval, a paired test, the least difference that this many
problems could show, and the rows that flipped with their reasons. Where rows have lenient marks,
the same of these, and how much of the difference is form: what strict judging sees and lenient
judging does not; where there are several completions, the same of pass@k. Several sets are several
tests: p-values are adjusted by Holm's method, those of strict accuracy, lenient accuracy and pass@k
apart. Knows saved rows only.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.formatting import fixed, p_value, points
from rl_reasoner.evaluation.judging import as_given
from rl_reasoner.evaluation.manifest import digest_of
from rl_reasoner.evaluation.metrics import has_lenient, problems, share_right
from rl_reasoner.evaluation.notebook import comparison_html, difference
from rl_reasoner.evaluation.statistics import (
    detectable_difference,
    holm,
    mcnemar,
    paired_interval,
    pass_at_k,
    sign_flips,
)
from rl_reasoner.foreign import mapping
from rl_reasoner.types import Row

_FLIPS_SHOWN = 50
_PAIRED_BY = ("id", "problem", "answer")
_PARTS = {
    0.0: "next to none", 0.1: "a tenth", 0.2: "a fifth", 0.25: "a quarter", 1 / 3: "a third",
    0.5: "half", 2 / 3: "two thirds", 0.75: "three quarters", 0.8: "four fifths",
    0.9: "nine tenths", 1.0: "nearly all",
}  # fmt: skip
_SURE = 0.05  # p below which b differs from a
_WHOLE = 0.005  # of a share: so near to none or all is told as that


class Comparison(dict[str, dict[str, Any]]):
    """Set -> its paired comparison, as `rl_reasoner.compare` gives it; a table in a notebook."""

    def __repr__(self) -> str:
        sets = [f"{name}: {difference(entry)}" for name, entry in self.items()]
        return f"Comparison({'; '.join(sets)})"

    def _repr_html_(self) -> str:
        return comparison_html(self)


def compare_rows(
    a: Mapping[str, Sequence[Row]], b: Mapping[str, Sequence[Row]]
) -> dict[str, dict[str, Any]]:
    """Compare b with a on every set that both have; see `rl_reasoner.compare`."""
    common = [name for name in a if name in b]
    if not common:
        own = [", ".join(rows) or "none" for rows in (a, b)]
        raise UserError(
            f"the two results have no set in common: one has {own[0]}, the other {own[1]}"
        )
    entries = {}
    for name in common:
        pairs = _pairs(name, a[name], b[name])
        entries[name] = _paired(a[name], b[name], pairs)
        clean = [(i, j) for i, j in pairs if not _contaminated(a[name][i], b[name][j])]
        if 0 < len(clean) < len(pairs):
            entries[f"{name}@clean"] = _paired(a[name], b[name], clean)
    for family in families(entries):
        for entry, p in zip(family, holm([entry["p"] for entry in family]), strict=True):
            entry["p_holm"] = p
    return entries


def families(entries: Mapping[str, dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The tests of strict accuracy, of lenient accuracy and of pass@k, each with its p-value."""
    others = [[e[key] for e in entries.values() if key in e] for key in ("lenient", "pass_at_k")]
    return [[*entries.values()], *others]


def counterparts(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> list[int | None]:
    """For each row the index of its counterpart among the others; None where it has none.

    That is the row of the same problem with the same answer. Of several the first is that of the
    first, and so on.
    """
    places: dict[tuple[str, str], list[int]] = {}
    for j, problem in reversed([*enumerate(_asked(others, rows))]):
        places.setdefault(problem, []).append(j)
    return [found.pop() if (found := places.get(one)) else None for one in _asked(rows, others)]


def _asked(
    rows: Sequence[Mapping[str, Any]], beside: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Problem and answer of each row: a text may be there twice, with two answers."""
    return [
        (p, str(r.get("answer", ""))) for p, r in zip(problems(rows, beside), rows, strict=True)
    ]


def _pairs(name: str, a: Sequence[Row], b: Sequence[Row]) -> list[tuple[int, int]]:
    """For each row of a its index, and the index of its counterpart in b."""
    of_a, of_b = problems(a, b), problems(b, a)
    if Counter(of_a) != Counter(of_b):
        raise UserError(
            f"set {name!r} holds different problems in the two results, {len(a):,} and {len(b):,}: "
            "evaluate both with the same rows and --limit"
        )
    found = counterparts(a, b)
    pairs = [(i, j) for i, j in enumerate(found) if j is not None]
    if len(pairs) < len(a):
        first = found.index(None)
        taken = {j for _, j in pairs}
        other = next(j for j, one in enumerate(of_b) if one == of_a[first] and j not in taken)
        answers = [row.get("answer", "") for row in (a[first], b[other])]
        raise UserError(
            f"set {name!r}: {a[first]['problem']!r:.60} has the answer {answers[0]!r:.40} in the "
            f"one result and {answers[1]!r:.40} in the other"
        )
    return pairs


def unlike_columns(a: Sequence[Row], b: Sequence[Row]) -> dict[str, list[str]]:
    """The columns of a set's rows that paired rows have other values in, such as their tests.

    Beside the problem and its answer, which are paired by. Each with a hash of either side's.
    """
    pairs = [(as_given(a[i]), as_given(b[j])) for i, j in _pairs("", a, b)]
    names = dict.fromkeys(name for x, y in pairs for name in x if name in y)
    others = [name for name in names if name not in _PAIRED_BY]
    unlike = [name for name in others if any(x.get(name) != y.get(name) for x, y in pairs)]
    sides = [*zip(*pairs, strict=True)]
    hashes = {
        f"{name} of the rows": [digest_of([row.get(name) for row in side])[:8] for side in sides]
        for name in unlike
    }
    return {name: both for name, both in hashes.items() if both[0] != both[1]}  # NaN is not NaN


def _contaminated(*rows: Row) -> bool:
    return any(mapping(row.get("overlap")).get("contaminated") for row in rows)


def _paired(a: Sequence[Row], b: Sequence[Row], pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    def moved(marks: str) -> list[float]:
        return [share_right(b[j], marks) - share_right(a[i], marks) for i, j in pairs]

    strict, groups = moved("scores"), problems([a[i] for i, _ in pairs], b)
    single = all(len(row["scores"]) == 1 for row in (*a, *b)) and len({*groups}) == len(groups)
    entry = {"problems": len(pairs), **_tested(strict, groups, single=single)}
    k = min(len(row["scores"]) for row in (*a, *b))
    if k > 1:
        passes = [_pass_at_k(b[j], k) - _pass_at_k(a[i], k) for i, j in pairs]
        entry["pass_at_k"] = {"k": k, **_tested(passes, groups, single=False)}
    if has_lenient((*a, *b)):
        lenient = moved("lenient")
        entry["lenient"] = _tested(lenient, groups, single=single)
        entry["form"] = _form(strict, lenient, groups, clear=entry["p"] < _SURE)
    return {**entry, "flips": _flips(a, b, pairs, strict)}


def _pass_at_k(row: Row, k: int) -> float:
    samples = len(row["scores"])
    return pass_at_k(samples, round(share_right(row) * samples), k)


def _tested(differences: Sequence[float], groups: Sequence[str], *, single: bool) -> dict[str, Any]:
    """The mean of paired differences with interval and test; `single`: of one completion each."""
    entry: dict[str, Any] = {
        "difference": math.fsum(differences) / len(differences),
        "interval": [*paired_interval(differences, groups=groups)],
        "better": sum(d > 0 for d in differences),
        "worse": sum(d < 0 for d in differences),
    }
    if single:
        only_a, only_b = entry["worse"], entry["better"]
        entry |= {"test": "McNemar, exact", "p": mcnemar(only_a, only_b)}
        entry |= {"only_a": only_a, "only_b": only_b}
    else:
        p = sign_flips(differences, groups=groups)
        drawn = not set(differences) <= {-1.0, 0.0, 1.0}  # else `paired_interval` draws nothing
        entry |= {"test": f"{'paired bootstrap, ' if drawn else ''}p by sign flips", "p": p}
    return {**entry, "detectable": detectable_difference(differences, groups)}


def _form(
    strict: Sequence[float], lenient: Sequence[float], groups: Sequence[str], *, clear: bool
) -> dict[str, Any]:
    """How much of the strict difference is form: there strictly and not leniently."""
    form = [x - y for x, y in zip(strict, lenient, strict=True)]
    means = [math.fsum(values) / len(values) for values in (strict, lenient, form)]
    return {
        "difference": means[2],
        "interval": [*paired_interval(form, groups=groups)],
        "share": means[2] / means[0] if clear else None,
        "words": form_words(means[0], means[1], clear=clear),
    }


def form_words(strict: float, lenient: float, *, clear: bool) -> str:
    """How much of a strict difference is form, in words: "of +18.2 points strict, 6.1 are …".

    Differences are shares of 1; `clear`: whether the strict one is clear of 0. Without that there
    is nothing to take a share of.
    """
    of = f"of {points(strict)} points strict"
    words = f"{of}, {fixed(100 * lenient)} are also there leniently"
    if not clear or strict == 0.0:
        return f"{words}: too little is sure to say how much of it is form"
    share, what = 1 - lenient / strict, "gain" if strict > 0 else "loss"
    if share > 1 + _WHOLE:
        return f"{of}, none are there leniently ({points(lenient)}): it is all form"
    if share < _WHOLE or share > 1 - _WHOLE:
        return f"{words}: {'none' if share < 0.5 else 'all'} of the {what} is form"
    nearest = min(_PARTS, key=lambda part: abs(part - share))
    return f"{words}: {_PARTS[nearest]} of the {what} is form"


def _flips(
    a: Sequence[Row],
    b: Sequence[Row],
    pairs: Sequence[tuple[int, int]],
    differences: Sequence[float],
) -> list[dict[str, Any]]:
    """The rows whose share of right completions changed, the largest changes first."""
    order = sorted(range(len(pairs)), key=lambda n: (-abs(differences[n]), n))
    changed = [(*pairs[n], differences[n]) for n in order if differences[n]][:_FLIPS_SHOWN]
    return [
        {
            "row": i,
            "row_b": j,
            "id": a[i].get("id"),
            "problem": a[i]["problem"],
            "answer": a[i].get("answer", ""),
            "difference": difference,
            "a": _telling(a[i], right=difference < 0),
            "b": _telling(b[j], right=difference > 0),
        }
        for i, j, difference in changed
    ]


def unlike(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each set that was measured under other conditions in b than in a."""
    return [
        f"{name}: apart from the policy, "
        + ", ".join(f"{key} differs ({x} in a, {y} in b)" for key, (x, y) in values.items())
        for name, entry in entries.items()
        if (values := entry.get("unlike"))
    ]


def sentence_of(name: str, entry: Mapping[str, Any]) -> str:
    """One sentence: whether b is better, worse or neither, by how much, and what of it is form.

    What of a difference is form is not asked where none is shown. pass@k is named where it moved.
    """
    moved, p = points(entry["difference"]), p_value(entry["p_holm"])
    if entry["p_holm"] < _SURE:
        how = "better" if entry["difference"] > 0 else "worse"
        words = f"b is {how} than a: {moved} points, p {p} after Holm's correction"
        words += f"; {entry['form']['words']}" if "form" in entry else ""
    else:
        least = entry["detectable"]
        words = f"no difference is shown ({moved} points, p {p} after Holm's correction); "
        words += (
            "so few problems can show none, however large"
            if least is None
            else f"a true difference of {fixed(100 * least)} points would show 4 times in 5"
        )
    at_k = entry.get("pass_at_k")
    if at_k and at_k["p_holm"] < _SURE:
        how = "better" if at_k["difference"] > 0 else "worse"
        words += f"; pass@{at_k['k']} is {how}: {points(at_k['difference'])} points"
        words += f", p {p_value(at_k['p_holm'])}"
    return f"{name}: {words}."


def _telling(row: Row, *, right: bool) -> dict[str, Any]:
    """The share that is right, and one completion that is right or is not, with its reason."""
    scores = row["scores"]
    at = next((i for i, score in enumerate(scores) if (score == 1.0) == right), 0)
    one = {name: row[f"{name}s"][at] for name in ("completion", "reason") if f"{name}s" in row}
    return {"share": share_right(row), **one}
