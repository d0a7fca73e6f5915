"""Contamination: training rows that are also in evaluation sets.

Three looks at the texts of the problems, case and white space folded: the same text; shared runs of
13 words, punctuation left out (a row of the set is bad from half of its runs on: one alone is often
a stock phrase of contests); near copies, found by MinHash and confirmed by the share of common runs
of 3 words with their punctuation. The set is indexed and the training rows pass by once, so that
memory follows the set. Chinese characters are words. Knows nothing of models.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.version import install_extra

RUN = 13  # words, as in the GPT-3 paper (arXiv 2005.14165, appendix C)
HALF = 0.5  # share of a row's runs from which on it counts as trained on
NEAR = 0.7  # Jaccard similarity from which on two texts are near copies
_SHORT_RUN = 3
_HAN = "\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[a-z0-9]+|[{_HAN}]|[^\W\d_a-z{_HAN}]+")
_PIECE = re.compile(rf"[{_HAN}]|[^\s{_HAN}]+")
_PERMUTATIONS = 128
_CANDIDATES = 0.4  # a pair at the threshold itself is found half of the time


@dataclass(frozen=True)
class Overlap:
    """The overlap of training rows with a set.

    `hits` has an entry for each row of the set, None where nothing is shared: `exact`, `runs` (the
    share of its runs of 13 words that were trained on), `near` (similarity to the nearest copy, or
    None), `train_row` (the first one found, from 0), `contaminated`.
    """

    hits: Sequence[Mapping[str, Any] | None]

    def counts(self) -> dict[str, int]:
        """How many rows there are, and how many of each kind of overlap."""
        hits = [hit for hit in self.hits if hit]
        return {
            "rows": len(self.hits),
            "exact": sum(hit["exact"] for hit in hits),
            "shared_run": sum(hit["runs"] > 0 for hit in hits),
            "half": sum(hit["runs"] >= HALF for hit in hits),
            "near": sum(hit["near"] is not None for hit in hits),
            "contaminated": sum(hit["contaminated"] for hit in hits),
        }


def find_overlap(
    train: Iterable[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], near: bool = True
) -> Overlap:
    """The overlap of training rows with the rows of a set, by their `problem`.

    `near=False` leaves out the near copies, which need datasketch; `UserError` where it is missing.
    """
    texts = [fold(row) for row in rows]
    shared = _Found(texts)
    copies = _Copies(texts) if near else None
    for number, row in enumerate(train):
        text = fold(row)
        shared.see(number, text)
        if copies is not None:
            copies.see(number, text)
    return Overlap([_hit(i, shared, copies) for i in range(len(rows))])


def fold(row: Mapping[str, Any]) -> str:
    """The text of a row's problem, case and white space folded."""
    return " ".join(str(row["problem"]).casefold().split())


def _runs(kind: re.Pattern[str], text: str, length: int) -> set[tuple[str, ...]]:
    """The runs of `length` words of a kind in a folded text."""
    words = kind.findall(text)
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _hit(index: int, shared: "_Found", copies: "_Copies | None") -> dict[str, Any] | None:
    exact = shared.exact.get(index)
    own = shared.sizes[index]
    part = len(shared.shared[index]) / own if own else 0.0
    copy = copies.nearest.get(index) if copies else None
    rows = [
        at for at in (exact, copy[1] if copy else None, shared.first.get(index)) if at is not None
    ]
    if not rows:
        return None
    return {
        "exact": exact is not None,
        "runs": part,
        "near": copy[0] if copy else None,
        "train_row": rows[0],
        "contaminated": exact is not None or part >= HALF or copy is not None,
    }


class _Found:
    """A set's texts and runs of 13 words, and which of them training rows have."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts: dict[str, list[int]] = {}
        self.runs: dict[tuple[str, ...], list[int]] = {}
        self.sizes = []
        self.shared: list[set[tuple[str, ...]]] = [set() for _ in texts]
        self.exact: dict[int, int] = {}  # row of the set -> first training row
        self.first: dict[int, int] = {}
        for index, text in enumerate(texts):
            self.texts.setdefault(text, []).append(index)
            own = _runs(_WORD, text, RUN)
            self.sizes.append(len(own))
            for run in own:
                self.runs.setdefault(run, []).append(index)

    def see(self, number: int, text: str) -> None:
        """Record what training row `number` shares with the set."""
        for index in self.texts.get(text, ()):
            self.exact.setdefault(index, number)
        for run in _runs(_WORD, text, RUN):
            for index in self.runs.get(run, ()):
                self.shared[index].add(run)
                self.first.setdefault(index, number)


class _Copies:
    """Near copies of a set's texts: candidates by MinHash, confirmed on the texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise UserError(
                f"finding near copies needs datasketch: {install_extra('contamination')}"
            ) from error
        self.hash = MinHash
        self.runs = [_runs(_PIECE, text, _SHORT_RUN) for text in texts]
        self.index = MinHashLSH(threshold=_CANDIDATES, num_perm=_PERMUTATIONS)
        self.nearest: dict[int, tuple[float, int]] = {}  # row of the set -> similarity, train row
        for index, runs in enumerate(self.runs):
            if runs:
                self.index.insert(index, self._sketch(runs))

    def _sketch(self, runs: Iterable[tuple[str, ...]]) -> Any:
        sketch = self.hash(num_perm=_PERMUTATIONS)
        sketch.update_batch([" ".join(run).encode("utf-8", "surrogatepass") for run in runs])
        return sketch

    def see(self, number: int, text: str) -> None:
        """Record the set's texts that training row `number` is a near copy of."""
        runs = _runs(_PIECE, text, _SHORT_RUN)
        if not runs:
            return
        for index in self.index.query(self._sketch(runs)):
            own = self.runs[index]
            similarity = len(own & runs) / len(own | runs)
            if similarity >= max(NEAR, self.nearest.get(index, (0.0, 0))[0] + 1e-12):
                self.nearest[index] = (similarity, number)
