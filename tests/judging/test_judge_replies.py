"""Replies that a judge keeps: what they are kept by, and how many are asked in all."""

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rl_reasoner import ModelJudge
from rl_reasoner.scoring.registry import import_module_of
from rl_reasoner.types import Fault, Score

RUBRIC = {"items": [{"name": "right", "text": "It is right."}], "points": 4}


@pytest.mark.parametrize("by_name", [True, False])
def test_a_judge_is_asked_anew_when_its_helper_is_edited(by_name: bool, tmp_path: Path) -> None:
    asked = "import json, worth\n\ndef ask(m, s): return json.dumps({'points': worth.POINTS})\n"
    (tmp_path / "asked.py").write_text(asked)
    reference, values = f"{tmp_path}/asked.py:ask", []
    for points in (4, 0):
        told = {"correct": points, "sound": points}
        (tmp_path / "worth.py").write_text(f"POINTS = {told}\n")
        sys.modules.pop("worth", None)
        module = import_module_of(f"{tmp_path}/asked.py", reference)
        function = reference if by_name else module.ask
        judge = ModelJudge.of(function=function, cache=str(tmp_path / "cache"))
        [outcome] = judge.points([("Is 7 prime?", "Yes.", None)])
        values.append(outcome.value if isinstance(outcome, Score) else outcome)
    sys.modules.pop("worth", None)
    assert values == [1.0, 0.0]


def test_judges_of_one_cache_share_a_limit_while_they_ask(tmp_path: Path) -> None:
    """The second judge begins in the middle of the first one's questions."""
    given: dict[str, Any] = {"max_requests": 6, "cache": str(tmp_path), "rubric": RUBRIC}
    state = SimpleNamespace()  # empty when both judges are made: they are one by what it holds
    lock = threading.Lock()

    def ask(messages: list[dict[str, str]], seed: int) -> str:
        with lock:
            state.asked += 1
            first = state.asked == 1
        if first:
            state.second = second.points([("p", f"second {i}", None) for i in range(6)])
        return '{"points": {"right": 4}}'

    first = ModelJudge.of(function=ask, **given)
    second = ModelJudge.of(function=ask, **given)
    state.asked = 0
    outcomes = first.points([("p", f"first {i}", None) for i in range(4)])
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    refused = [outcome.message for outcome in state.second if isinstance(outcome, Fault)]
    assert refused == ["judge: max_requests of 6 are spent"] * 4 and state.asked == 6
