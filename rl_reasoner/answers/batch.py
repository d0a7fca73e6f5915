"""Many rows on worker processes, all cores at work."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from rl_reasoner.answers.pool import WorkerPool, cores, worker_pool
from rl_reasoner.answers.second_opinion import ATTEMPTS, settle
from rl_reasoner.answers.verdict import fast_verdict
from rl_reasoner.types import Score
from rl_reasoner.workers import Worker, WorkerDied, WorkerLate

Pair = tuple[str, str]
PARALLEL_FROM = 1_000
BLOCK_ROWS = 128
BLOCK_CHARACTERS = 200_000
LEASE_S = 3_600.0
FIRST_ROW_S = 10.0  # more, for the start of a worker's process


def verify_rows(rows: Sequence[Pair], timeout_s: float, workers: int | None) -> list[Score]:
    """Scores of `rows` in order; see `verify_many`."""
    count = workers or cores()
    if count == 1 or (len(rows) < PARALLEL_FROM and workers is None):
        return [settle(fast_verdict(*row), timeout_s) for row in rows]
    batch = _Batch(rows, timeout_s, worker_pool(count))
    with ThreadPoolExecutor(count) as threads:
        for work in [threads.submit(batch.run) for _ in range(count)]:
            work.result()
        list(threads.map(batch.settle, batch.undecided))
    return batch.scores()


class _Batch:
    """The state of one batch: blocks of rows waiting, scores given.

    A block whose worker dies or is late comes back row by row, so that only a row that fails alone
    as well abstains.
    """

    def __init__(self, rows: Sequence[Pair], timeout_s: float, workers: WorkerPool) -> None:
        self.rows = rows
        self.timeout_s = timeout_s
        self.pool = workers
        self.blocks = deque(self._cut())
        self.given: list[Score | None] = [None] * len(rows)
        self.undecided: list[int] = []

    def scores(self) -> list[Score]:
        """The finished scores."""
        return [score for score in self.given if score is not None]

    def _cut(self) -> Iterator[list[int]]:
        """The rows in blocks, few and short enough for one request."""
        most = max(1, min(BLOCK_ROWS, len(self.rows) // 16))
        block: list[int] = []
        size = 0
        for index, (completion, _) in enumerate(self.rows):
            block.append(index)
            size += len(completion)
            if len(block) >= most or size >= BLOCK_CHARACTERS:
                yield block
                block, size = [], 0
        if block:
            yield block

    def run(self) -> None:
        """One thread's work: blocks to a worker until none is waiting."""
        while True:
            try:
                block = self.blocks.popleft()
            except IndexError:
                return
            try:
                with self.pool.lease(time.monotonic() + LEASE_S) as worker:
                    self._answer(worker, block)
            except (WorkerDied, WorkerLate) as failure:
                self._failed(block, failure)

    def _answer(self, worker: Worker, block: list[int]) -> None:
        """Send `block` and store each reply."""
        request = {
            "kind": "verify",
            "rows": [self.rows[index] for index in block],
            "timeout_s": self.timeout_s,
        }
        start_s = 0.0 if worker.served else FIRST_ROW_S
        worker.send(request, time.monotonic() + self.timeout_s + start_s)
        for index in block:
            deadline = time.monotonic() + self.timeout_s + start_s
            value, reason, undecided = worker.receive(deadline)
            self.given[index] = Score(value, reason)
            if undecided:
                self.undecided.append(index)
            start_s = 0.0

    def _failed(self, block: list[int], failure: WorkerDied | WorkerLate) -> None:
        """Open rows of a block once more, each alone; a row that was alone abstains."""
        if len(block) > 1:
            self.blocks.extend([index] for index in block if self.given[index] is None)
            return
        why = f"its worker failed {ATTEMPTS} times ({failure})"
        self.given[block[0]] = Score(None, f"abstained: {why}")

    def settle(self, index: int) -> None:
        """Ask sympy about a row that the fast verdict left open."""
        self.given[index] = settle(fast_verdict(*self.rows[index]), self.timeout_s)
