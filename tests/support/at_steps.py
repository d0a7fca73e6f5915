"""Acting in the middle of a run: when a step is shown, its figures are written."""

from collections.abc import Callable
from typing import Any

import pytest

from rl_reasoner.report.terminal import LiveView


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Call `act` when `step` has been shown."""
    update = LiveView.update

    def shown(view: LiveView, metrics: Any, now: int) -> None:
        update(view, metrics, now)
        if now == step:
            act()

    monkeypatch.setattr(LiveView, "update", shown)
