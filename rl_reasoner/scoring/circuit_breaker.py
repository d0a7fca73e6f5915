"""Stops a run whose reward broke down: it would train on nothing, or on something else."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from rl_reasoner.errors import RunStopped


class RewardsFailed(RunStopped):
    """A reward broke down: going on would train on nothing, or on something else."""

    title = "a reward kept failing"
    code = 3


class Breaker:
    """Counts the failures of each reward; raises `RewardsFailed` when one has broken down.

    That is when more than half of its calls failed, in a window of its last `WINDOW` calls and not
    fewer than its last `STEPS` steps: a bad step alone ends no run, however many rows it has. Also
    when no row got a reward in `BARREN` steps in a row.
    """

    WINDOW = 256
    STEPS = 4
    SHARE = 0.5
    BARREN = 64

    def __init__(self) -> None:
        self._last: dict[str, deque[tuple[int, int]]] = {}  # by step: failures, calls
        self._barren = self._judged = self._steps = 0
        self._first = 0  # step that was added first
        self._failed = False

    def add(
        self,
        step: int,
        faults: Mapping[str, Sequence[bool]],
        messages: Iterator[str],
        *,
        judged: bool,
    ) -> None:
        """Take one step's calls into account: by reward, whether each row failed.

        `messages` are those of the faults, with their rows; `judged`: a row has got a reward.
        """
        broken = []
        for name, flags in faults.items():
            last = self._last.setdefault(name, deque())
            if flags:
                last.append((sum(flags), len(flags)))
            while len(last) > self.STEPS and sum(n for _, n in last) - last[0][1] >= self.WINDOW:
                last.popleft()
            bad, calls = (sum(column) for column in zip(*last, strict=True)) if last else (0, 0)
            enough = len(last) >= self.STEPS
            if enough and bad > self.SHARE * max(self.WINDOW, calls):
                broken.append(f"{name}: {bad} of its last {calls} calls faulted")
            self._failed |= any(flags)
        self._first = self._first or step
        self._steps += 1
        self._judged += judged
        self._barren = 0 if judged else self._barren + 1
        if self._barren >= self.BARREN:
            broken.append(f"no row got a reward in the last {self._barren} steps")
        if broken:
            raise RewardsFailed("\n".join([*broken, *messages]))

    def end(self, messages: Iterator[str], *, strict: bool) -> None:
        """The last step was added: raise where no row of the training got a reward.

        Unless `strict`, only where rewards failed: in trl, abstaining on everything is no error. Of
        a resumed training the steps before are not known.
        """
        if self._first <= 1 and self._judged == 0 and (self._failed or strict):
            barren = f"no row got a reward in any of {self._steps} steps"
            raise RewardsFailed("\n".join([barren, *messages]))
