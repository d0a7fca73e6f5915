"""Several turns in a completion: what the engine asks of whoever answers (tools, environments).

A row stops where its `TurnTaker` says so, leaves the batch, and comes back with the answer's token
ids behind its own; other rows go on meanwhile. Token in, token out: what was sampled is handed
over as ids and stays as it is, and what is given is ids too. A row's budget counts both kinds of
tokens: an answer that leaves no room for one more sampled token is not appended (as in trl), and
the completion ends before it, by length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """What follows the completion so far of `row`: the token ids `ids`, then the policy goes on.

    No ids: it just goes on. Where `ended` says why (one word: "done", "turns", "calls", "seconds"),
    the completion ends as it is, and there are no `ids`.
    """

    row: int
    ids: Sequence[int] = ()
    ended: str = ""


class TurnTaker(Protocol):
    """Answers the rows of one call of `rl_reasoner.rollout.engine.generate`, each in its turns.

    `row` is the number of a row among the prompts of that call. All methods are called in the
    thread that samples, which they keep from sampling: whatever takes time belongs in threads or
    processes of the taker. What one of them raises ends the call. A row's completion must follow
    from its own ids alone, in whatever order answers come; then it is the same in every batch.
    """

    def stops(self, row: int, ids: Sequence[int]) -> bool:
        """Whether the row stops for an answer, now that the last of `ids` was sampled.

        `ids` is the whole completion so far, with what was given; it may not be changed or kept.
        Called for every sampled token, so it has to be cheap: look at the last few. Also asked
        where that token ends the completion (an end token, a stop string): a turn of a chat ends
        with one, and the next turn's text begins behind it. Not asked where the row's budget is
        used up, or its logits were no numbers.
        """
        ...

    def submit(self, row: int, ids: list[int]) -> None:
        """Take the completion so far of a row that stopped; return at once.

        The row waits, without a limit of time, until `answers` gives its one answer.
        """
        ...

    def answers(self, wait: bool) -> Sequence[Answer]:
        """The answers that are ready, each once, in any order; of rows that wait for one.

        With `wait`: at least one, however long it takes; asked so only where no row can be sampled.
        """
        ...
