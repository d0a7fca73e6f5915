"""Instruction following: does the response do what its row's instructions ask, each checked?

Verifiable instructions in the manner of IFEval (arXiv 2311.07911): counts, words, case, form, JSON,
language. The kinds, their arguments and what counts as what are in docs/rewards-language.md.
"""

import json
from functools import lru_cache
from typing import Any

from rl_reasoner import Score, reward
from rl_reasoner.errors import check_one_of
from rl_reasoner.language.instructions import Instruction, parsed, verdicts
from rl_reasoner.language.thinking import answer_part

_CREDIT = ("all", "fraction")


@reward(policy_text=True)
def instructions(
    completion: str,
    instructions: list[dict[str, Any]] | str,
    credit: str = "all",
    loose: bool = False,
) -> Score:
    """1.0 when the answer follows all `instructions`, else 0.0; or the share that it follows.

    Judged is what stands behind the chain of thought, without answer tags. With `loose`, its first
    or last line and asterisks may be left out, as in IFEval. Parts are both counts.
    """
    _check_options(credit)
    given = instructions  # a cell of a CSV holds them as JSON; tables give numpy's numbers
    wanted = _parsed(given if isinstance(given, str) else json.dumps(given, default=_plain))
    judged = verdicts(answer_part(completion), wanted, loose)
    right = sum(followed for followed, _ in judged)
    wrong = [
        f"{one.name}: {why}"
        for one, (followed, why) in zip(wanted, judged, strict=True)
        if not followed
    ]
    parts = {"followed": float(right), "instructions": float(len(wanted))}
    reason = "; ".join(wrong)[:300] or "follows all instructions"
    share = right / len(wanted)
    return Score(share if credit == "fraction" else float(share == 1.0), reason, parts)


@instructions.checks
def _check_options(credit: str, **others: object) -> None:
    check_one_of("credit of instructions", credit, _CREDIT)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Instruction, ...]:
    return tuple(parsed(text))
