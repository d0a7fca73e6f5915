"""Reading what a judge replied, and holding its votes against each other.

A reply is foreign text: it is read as JSON within bounds and validated, and what does not fit is an
abstention with its kind, never a score. Knows nothing of who replied.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rl_reasoner.foreign import json_value
from rl_reasoner.judging.rubric import Rubric
from rl_reasoner.language.thinking import behind_chain
from rl_reasoner.types import Rollout

REPLY_CHARS = 1 << 16
"""What a reply may have; a verdict has some hundred."""
_WHOLE = re.compile(r"(?:```\w*\s*)?(\{.*\})\s*(?:```)?", re.DOTALL)
_REFUSED = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I can(?:'t|not| not)|I won't|as an AI)\b",
    re.IGNORECASE,
)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Whole = Annotated[int, BeforeValidator(_whole)]  # some servers write 4.0


class _Reply(BaseModel):
    """The fields of a verdict; others are passed over."""

    model_config = ConfigDict(strict=True)

    points: dict[str, _Whole] | None = None
    ranking: list[str] | None = Field(default=None, max_length=64)
    reason: str | None = None
    unsure: bool = False


@dataclass(frozen=True)
class Void:
    """A vote that does not count: its kind, and what was seen."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class Points:
    """A vote: points of each item."""

    points: Mapping[str, int]
    reason: str


def read_points(reply: Rollout, rubric: Rubric) -> Points | Void:
    """The points that a reply gives, each 0 to `rubric.points`; or why it gives none."""
    found = _read(reply)
    if isinstance(found, Void):
        return found
    if found.points is None:
        return Void("malformed", "it has no points")
    names = {item.name for item in rubric.items}
    if found.points.keys() != names:
        return Void("wrong length", f"points of {_listed(found.points)}, not of {_listed(names)}")
    for name, points in found.points.items():
        if not 0 <= points <= rubric.points:
            return Void("malformed", f"{name} has {points} of {rubric.points} points")
    return Points(found.points, (found.reason or "")[:200])


def read_ranking(reply: Rollout, labels: Sequence[str]) -> list[str] | Void:
    """The labels from the best to the worst; or why the reply does not say."""
    found = _read(reply)
    if isinstance(found, Void):
        return found
    if found.ranking is None:
        return Void("malformed", "it has no ranking")
    if sorted(found.ranking) != sorted(labels):
        return Void("wrong length", f"it ranks {_listed(found.ranking)}, not {_listed(labels)}")
    return found.ranking


def _read(reply: Rollout) -> _Reply | Void:
    text = reply.text.strip()
    if not _is_a_verdict(text):
        text = (behind_chain(text) or "").strip()
    if len(text) > REPLY_CHARS:
        return Void("huge", f"{len(text):,} characters")
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return Void(*_kind_of_prose(text, reply.truncated))
    try:
        value: Any = json_value(text[start : end + 1])
        found = _Reply.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return Void("malformed", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:120])
    except ValueError as error:
        return Void("malformed", str(error)[:120])
    return Void("unsure") if found.unsure else found


def _is_a_verdict(text: str) -> bool:
    """Whether a reply is JSON, and no more: then no reasoning ends in it, whatever it quotes."""
    found = _WHOLE.fullmatch(text) if len(text) <= REPLY_CHARS else None
    try:
        return found is not None and isinstance(json_value(found[1]), dict)
    except ValueError:
        return False


def _kind_of_prose(text: str, truncated: bool) -> tuple[str, str]:
    if _REFUSED.search(text[:500]):
        return "refusal", repr(text[:80])
    if truncated:
        return "cut off", "max_tokens is too small"
    return ("not JSON", repr(text[:80])) if text else ("empty", "")


def vote_spread(values: Sequence[float]) -> float:
    """How far votes are apart: the largest less the smallest, 0 for none."""
    return max(values, default=0.0) - min(values, default=0.0)


def discord(orders: Sequence[Sequence[int]]) -> float:
    """How far rankings are apart, 0 to 1: the mean share of pairs that two of them order otherwise.

    Kendall's tau distance (Kendall 1938). `orders`: the place of each completion in each ranking.
    """
    pairs = [*combinations(range(len(orders[0])), 2)] if orders else []
    votes = [*combinations(orders, 2)]
    if not pairs or not votes:
        return 0.0
    turned = sum((a[i] < a[j]) != (b[i] < b[j]) for a, b in votes for i, j in pairs)
    return turned / (len(pairs) * len(votes))


def _listed(names: Any) -> str:
    shown = [str(name)[:20] for name in sorted(names)]
    return ", ".join(shown[:8]) + (", …" if len(shown) > 8 else "") or "nothing"
