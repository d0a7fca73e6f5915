"""What the page's browser of completions is given: a run's rollouts, an evaluation's rows.

Both are `EntrySource`s: entries (completions) in groups (the completions of one prompt). A source
travels inside the page as compressed packs that the script opens when they are needed: an index
with what is filtered and listed, the texts in parts of `PART` entries, the experts' load by step.
Pure; what a pack holds is told in `EntrySource.packs`.
"""

import base64
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rl_reasoner.environments.environment import OPENED
from rl_reasoner.foreign import number, printable
from rl_reasoner.report.rollouts import CallTurn, Sample, cut

PART = 512  # entries whose texts are unpacked together
_TITLE = 160  # characters
TRUNCATED, FAULT, ABSTAINED = 1, 2, 4  # bits of an entry's flags


@dataclass(frozen=True)
class Entry:
    """One completion: where it is from (a step, an evaluation's name), its group, what was said.

    `said` has (reward, value, reason, outcome).
    """

    where: int | str
    group: str
    prompt: str
    answer: str
    completion: str
    reward: float | None
    advantage: float | None
    truncated: bool
    said: Sequence[tuple[str, float | None, str, str]]
    turns: Sequence[CallTurn] = ()

    @property
    def flags(self) -> int:
        """Truncated, fault, abstained as bits."""
        outcomes = {outcome for _, _, _, outcome in self.said}
        return (
            TRUNCATED * self.truncated
            | FAULT * ("fault" in outcomes)
            | ABSTAINED * ("abstain" in outcomes)
        )

    def listed(self) -> list[Any]:
        """Its columns in an index, without its group."""
        size = len(self.completion)
        return [self.where, self.reward, self.advantage, self.flags, size]

    def texts(self) -> list[Any]:
        """Its texts in a part: the completion, each reward's reason, where tools wrote.

        Of those: the characters as the page's script counts them, and what is told of the call.
        """
        scores = [
            [printable(name), value, printable(why), out] for name, value, why, out in self.said
        ]
        turns = [
            [_place(self.completion, turn.start), _place(self.completion, turn.end), turn.kind,
             printable(turn.told)]
            for turn in self.turns
        ]  # fmt: skip
        return [printable(self.completion), scores, *([turns] if turns else [])]


def _place(text: str, index: int) -> int:
    """Where in the printable `text` its character `index` is, in the script's units (UTF-16)."""
    return len(printable(text[:index]).encode("utf-16-le")) // 2


@dataclass(frozen=True)
class EntrySource:
    """Entries that are browsed together. `key` is its id in the page, `name` what a reader sees.

    `place` is the stage's id or the set's name; `experts` is the load of each layer by step; `end`
    is where the file of a run that still trains will go on.
    """

    key: str
    name: str
    entries: Sequence[Entry]
    note: str = ""
    place: str = ""
    experts: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    end: int = 0

    def packs(self) -> Iterator[tuple[str, Any]]:
        """(id, content) of every pack: `KEY`, `KEY-0`, `KEY-1` … and `KEY-experts`.

        The index has a column for each of `Entry.listed`, group numbers, and for each group its
        key and the prompt without what all prompts share.
        """
        ends = shared_ends([entry.prompt for entry in self.entries])
        numbers: dict[str, int] = {}
        groups = [numbers.setdefault(entry.group, len(numbers)) for entry in self.entries]
        first = {entry.group: entry for entry in reversed(self.entries)}
        columns = zip(*(entry.listed() for entry in self.entries), strict=True)
        names = ("where", "reward", "advantage", "flags", "size")
        yield (
            self.key,
            {
                **dict(zip(names, map(list, columns), strict=True)),
                "group": groups,
                "groups": [[key, titled(first[key].prompt, ends)] for key in numbers],
                "ends": ends,
                "part": PART,
            },
        )
        for part, start in enumerate(range(0, len(self.entries), PART)):
            entries = list(islice(self.entries, start, start + PART))
            prompts = {
                numbers[e.group]: [printable(e.prompt), printable(e.answer)]
                for e in reversed(entries)
            }
            rows = [entry.texts() for entry in entries]
            yield f"{self.key}-{part}", {"prompts": prompts, "rows": rows}
        if self.experts:
            yield f"{self.key}-experts", self.experts


def pack_content(content: Any) -> str:
    """`content` as gzipped JSON in base 64: no character of it means anything in HTML."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = gzip.compress(text.encode(errors="replace"), compresslevel=4, mtime=0)
    return base64.b64encode(data).decode("ascii")


def shared_ends(prompts: Iterable[str]) -> tuple[int, int]:
    """How many characters all prompts begin and end with alike, up to the edge of a word."""
    different = set(prompts)
    if len(different) < 2:
        return 0, 0
    start = _shared(different)
    start = start[: max(start.rfind(" "), start.rfind("\n")) + 1]
    end = _shared({prompt[len(start) :][::-1] for prompt in different})
    return len(start), max(end.rfind(" "), end.rfind("\n"), 0)


def _shared(texts: set[str]) -> str:
    """What all texts begin with: what the first and the last in order do."""
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))]


def titled(prompt: str, ends: tuple[int, int]) -> str:
    """A prompt on one line, without its shared ends."""
    text = prompt[ends[0] : len(prompt) - ends[1]].strip() or prompt
    return printable(" ".join(text[: 4 * _TITLE].split()))[:_TITLE]


def entry_of(sample: Sample) -> Entry:
    """A rollout as an entry."""
    return Entry(
        where=sample.step,
        group=f"{sample.step}:{sample.group}",
        prompt=sample.prompt,
        answer=sample.answer,
        completion=sample.completion,
        reward=sample.reward,
        advantage=sample.advantage,
        truncated=sample.truncated,
        said=[(name, v.value, v.reason, v.outcome) for name, v in sample.verdicts.items()],
        turns=sample.turns,
    )


def evaluated(
    label: str, rows: Iterable[Mapping[str, Any]], judge: str = "score"
) -> Iterator[Entry]:
    """The completions in an evaluation's rows as entries; `label` names the evaluation.

    A group is a problem with its answer, whatever its place: two evaluations are paired by it. Of
    an environment, whose rows may ask alike, it is the row that was opened.
    """
    times: Counter[str] = Counter()
    for row in rows:
        problem, answer = cut(row.get("problem")), cut(row.get("answer"))
        group = f"{row.get(OPENED) or problem}:{answer}"
        index = times[group]
        times[group] += 1
        for place, completion in enumerate(_list(row, "completions")):
            score = number(_at(row, "scores", place))
            reason = str(_at(row, "reasons", place) or "")
            outcome = str(_at(row, "outcomes", place) or ("abstain" if score is None else "score"))
            said = [(judge, score, reason, outcome)]
            if leniently := _at(row, "lenient_reasons", place):
                mark = number(_at(row, "lenient", place))
                said.append(("lenient", mark, str(leniently), "score"))
            yield Entry(
                where=label,
                group=f"{index}:{group}",
                prompt=problem,
                answer=answer,
                completion=cut(completion),
                reward=score,
                advantage=None,
                truncated=_at(row, "truncated", place) is True,
                said=said,
            )


def appended(samples: Iterable[Sample]) -> list[list[Any]]:
    """New rollouts of a run that still trains, in the form that the page's script appends."""
    return [
        [*e.listed(), printable(e.group), printable(e.prompt), printable(e.answer), *e.texts()]
        for e in map(entry_of, samples)
    ]


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    return value if isinstance(value, list) else []


def _at(row: Mapping[str, Any], key: str, index: int) -> Any:
    values = _list(row, key)
    return values[index] if index < len(values) else None


def experts_of(
    metrics: Sequence[Mapping[str, Any]], layers: Sequence[str], steps: Iterable[int]
) -> dict[int, dict[str, list[float]]]:
    """The experts' load of `layers` (names of metrics) at each of `steps` that has it."""
    wanted = set(steps)
    loads_of = {}
    for row in metrics:
        if row["step"] in wanted:
            loads = {name: _shares(row.get(name)) for name in layers}
            if kept := {printable(name): load for name, load in loads.items() if load}:
                loads_of[row["step"]] = kept
    return loads_of


def _shares(value: Any) -> list[float]:
    shares = [number(v) for v in value] if isinstance(value, list) else []
    return [round(v, 4) for v in shares if v is not None]
