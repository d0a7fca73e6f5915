"""Reading `rollouts.jsonl` for the report: counts over all of it, and the rollouts that are kept.

A run may have sampled millions of completions; the page holds some thousands. Whole steps are
kept, evenly spread, first and last among them. The file is read twice, line by line, so that memory
holds one completion and those that are kept. What is of the wrong kind counts as absent.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rl_reasoner.files import Line, json_lines
from rl_reasoner.foreign import mapping, number
from rl_reasoner.scoring.ledger import seconds_of_calls
from rl_reasoner.scoring.outcome import NOT_ITS_ROW

ROLLOUTS_KEPT = 10_000  # of a stage
ROLLOUT_BYTES_KEPT = 24_000_000  # of a stage's file, some 3 MB in the page
_CHARACTERS_KEPT = 6000  # of a completion or prompt
_REASON_KEPT = 500
_NAME_KEPT = 60
_FAULTS_KEPT = 1000


@dataclass(frozen=True)
class RewardVerdict:
    """What one reward said of one completion; `outcome` is "score", "abstain" or "fault"."""

    value: float | None
    reason: str
    outcome: str


@dataclass(frozen=True)
class CallTurn:
    """What a tool put into a completion: the characters `start` to `end` of it.

    `seconds` that the call took, where the ledger has told them.
    """

    start: int
    end: int
    tool: str
    kind: str
    seconds: float | None = None

    @property
    def told(self) -> str:
        """Which tool it was, how its call ended and how long it took, in a line."""
        parts = [self.tool or "unreadable call", self.kind]
        if self.seconds is not None:
            parts.append(
                f"{self.seconds:.3g} s" if self.seconds >= 1 else f"{1000 * self.seconds:.3g} ms"
            )
        return " · ".join(parts)


@dataclass(frozen=True)
class Sample:
    """One completion as it was rewarded, of the `group` of a prompt at a `step`."""

    step: int
    group: str
    prompt: str
    answer: str
    completion: str
    reward: float | None
    advantage: float | None
    truncated: bool
    verdicts: Mapping[str, RewardVerdict]
    turns: Sequence[CallTurn] = ()
    calls: int = 0  # with those behind what is kept of the completion


@dataclass
class Rollouts:
    """A stage's rollouts: counts over all of them, and the samples of some steps.

    `end` is the size in bytes of what was read: what is appended later begins there.
    """

    completions: int = 0
    truncated: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)  # by reward
    fault_reasons: Counter[tuple[str, str]] = field(default_factory=Counter)  # (reward, reason)
    samples: list[Sample] = field(default_factory=list)
    steps: int = 0
    broken: int = 0  # lines that could not be read
    end: int = 0

    def add(self, sample: Sample) -> None:
        """Count a sample in."""
        self.completions += 1
        self.truncated += sample.truncated
        for name, verdict in sample.verdicts.items():
            if verdict.reason == NOT_ITS_ROW.reason:
                continue
            self.outcomes.setdefault(name, Counter())[verdict.outcome] += 1
            if verdict.outcome == "fault" and len(self.fault_reasons) < _FAULTS_KEPT:
                self.fault_reasons[name, verdict.reason] += 1


def read_rollouts(path: Path) -> Rollouts:
    """Read a stage's `rollouts.jsonl`."""
    kept = Rollouts()
    spans: dict[int, list[tuple[int, int]]] = {}  # step -> (start, end) in bytes of its rows
    rows: Counter[int] = Counter()
    for line in _lines(path):
        kept.end = line.end
        if line.row is None:
            kept.broken += 1
            continue
        sample = sample_of(line.row)
        kept.add(sample)
        rows[sample.step] += 1
        parts = spans.setdefault(sample.step, [])
        if parts and parts[-1][1] == line.start:
            parts[-1] = (parts[-1][0], line.end)
        else:
            parts.append((line.start, line.end))
    kept.steps = len(spans)
    for step in _chosen(spans, rows):
        for start, end in spans[step]:
            kept.samples += [sample_of(line.row) for line in _lines(path, start, end) if line.row]
    del kept.samples[ROLLOUTS_KEPT:]  # of a single step that is larger than all
    return kept


def rows_after(path: Path, start: int, most: int | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Read what was appended to a JSONL file after the byte `start`: (new end, rows).

    Whole lines only, at most some `most` bytes. A file that is shorter than `start` was cut back:
    (-1, []).
    """
    size = path.stat().st_size if path.is_file() else 0
    if size < start:
        return -1, []
    end, rows = start, []
    for line in _lines(path, start) if size > start else ():
        end = line.end
        if line.row is not None:
            rows.append(line.row)
        if most is not None and end - start >= most:
            break
    return end, rows


def samples_after(path: Path, start: int, most: int | None = None) -> tuple[int, list[Sample]]:
    """`rows_after` of a stage's `rollouts.jsonl`."""
    end, rows = rows_after(path, start, most)
    return end, [sample_of(row) for row in rows]


def _lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Line]:
    """The lines from `start` to `stop`, without a last one that is being written."""
    for line in json_lines(path, start):
        if (stop is not None and line.start >= stop) or (line.row is None and not line.whole):
            return
        yield line


def _chosen(spans: Mapping[int, list[tuple[int, int]]], rows: Counter[int]) -> list[int]:
    """The steps that are kept whole: all, or as many as fit, evenly spread, with both ends."""
    steps = sorted(spans)
    size = sum(end - start for parts in spans.values() for start, end in parts)
    share = min(1.0, ROLLOUTS_KEPT / max(rows.total(), 1), ROLLOUT_BYTES_KEPT / max(size, 1))
    count = max(1, int(len(steps) * share))
    if count >= len(steps):
        return steps
    if count == 1:
        return steps[-1:]
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def sample_of(row: Mapping[str, Any]) -> Sample:
    """A line of `rollouts.jsonl` as a sample."""
    completion = cut(row.get("completion"))
    return Sample(
        step=int(number(row.get("step")) or 0),
        group=str(row.get("group")),
        prompt=cut(row.get("prompt")),
        answer=cut(row.get("answer")),
        completion=completion,
        reward=number(row.get("reward")),
        advantage=number(row.get("advantage")),
        truncated=row.get("truncated") is True,
        verdicts={
            name: RewardVerdict(
                number(mapping(raw).get("value")),
                str(mapping(raw).get("reason") or "")[:_REASON_KEPT],
                str(mapping(raw).get("outcome") or "score"),
            )
            for name, raw in mapping(row.get("scores")).items()
        },
        turns=turns_of(row, len(completion)),
        calls=len(called) if isinstance(called := row.get("turns"), list) else 0,
    )


def turns_of(row: Mapping[str, Any], length: int) -> list[CallTurn]:
    """The turns of a rollout that lie within `length` characters, in order, none within another.

    Of rollouts that do not tell where in the text a result stands: none.
    """
    raw = row.get("turns")
    turns: list[CallTurn] = []
    for one in map(mapping, raw if isinstance(raw, list) else ()):
        places = one.get("text")
        if not isinstance(places, list) or len(places) != 2:
            continue
        start, end = (int(number(place) or 0) for place in places)
        if (turns[-1].end if turns else 0) <= start <= end <= length:
            told = str(one.get("tool") or "")[:_NAME_KEPT], str(one.get("kind") or "")[:_NAME_KEPT]
            turns.append(CallTurn(start, end, *told, number(one.get("seconds"))))
    return turns


def with_seconds(samples: Iterable[Sample], folder: Path) -> list[Sample]:
    """The samples of a stage with the seconds of their calls, which its ledger has."""
    found = [*samples]
    steps = {sample.step for sample in found if sample.turns}
    told = seconds_of_calls(folder, steps) if steps else {}
    for place, sample in enumerate(found):
        waiting = told.get((sample.step, sample.group)) if sample.calls else None
        seconds = waiting.popleft() if waiting else []
        if len(seconds) == sample.calls:
            pairs = zip(sample.turns, seconds, strict=False)
            turns = [replace(turn, seconds=number(took)) for turn, took in pairs]
            found[place] = replace(sample, turns=turns)
    return found


def in_turns(text: str, turns: Sequence[CallTurn]) -> Iterator[tuple[str, CallTurn | None]]:
    """A completion's text in pieces: what the policy wrote, and what each call gave."""
    at = 0
    for turn in turns:
        yield text[at : turn.start], None
        yield text[turn.start : turn.end], turn
        at = turn.end
    yield text[at:], None


def cut(value: Any) -> str:
    """A text, or a chat's messages as one text, cut to what is shown."""
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        value = "\n\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in value)
    text = "" if value is None else str(value)
    more = len(text) - _CHARACTERS_KEPT
    return text if more <= 0 else f"{text[:_CHARACTERS_KEPT]}\n… {more:,} more characters"
