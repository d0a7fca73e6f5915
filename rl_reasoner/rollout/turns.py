"""Several turns in a completion: what the engine asks of whoever answers (tools, environments).

A row stops where its `TurnTaker` says so, leaves the batch, and comes back with the answer's token
ids behind its own; other rows go on meanwhile. Token in, token out: what was sampled is handed
over as ids and stays as it is, and what is given is ids too. A row's budget counts both kinds of
tokens: an answer that leaves no room for one more sampled token is not appended (as in trl), and
the completion ends before it, by length.

`policy_ids` and `policy_text` are what is left of a completion without what was given.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Given(Protocol):
    """What a completion was given in one turn: its tokens `at` to `at + given`."""

    @property
    def at(self) -> int: ...

    @property
    def given(self) -> int: ...


def policy_ids(ids: Sequence[int], turns: Iterable[Given]) -> list[list[int]]:
    """The tokens of a completion that the policy wrote, a list for each stretch of them."""
    runs, begin = [], 0
    for turn in sorted(turns, key=lambda turn: turn.at):
        runs.append([*ids[begin : turn.at]])
        begin = max(begin, turn.at + turn.given)
    return [run for run in (*runs, [*ids[begin:]]) if run]


def policy_text(tokenizer: Any, ids: Sequence[int], turns: Iterable[Given]) -> str:
    """What the policy wrote of a completion, its stretches on lines of their own."""
    runs = policy_ids(ids, turns)
    return "\n".join(tokenizer.decode(run, skip_special_tokens=True) for run in runs)


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
