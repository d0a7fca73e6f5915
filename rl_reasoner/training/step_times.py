"""Where the seconds of a training step go: sampling, rewards, and the training itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("generation", "reward", "training")


class StepTimes:
    """The seconds of each part in the step at hand."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)
        self._counted = 0.0  # of generation and reward, already taken out of the training time

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Inside is a part of the step; what others took in the training is not the training's."""
        started = time.perf_counter()
        yield
        self.spent[part] += time.perf_counter() - started
        if part == "training":
            elsewhere = self.spent["generation"] + self.spent["reward"] - self._counted
            self.spent[part] -= elsewhere
            self._counted += elsewhere

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Inside, time is spent on something else than training."""
        spent = dict(self.spent)
        yield
        self.spent = spent

    def take(self) -> dict[str, float]:
        """The step is complete: its seconds by part."""
        spent, self.spent = self.spent, dict.fromkeys(PARTS, 0.0)
        self._counted = 0.0
        return spent
