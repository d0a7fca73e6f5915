"""Sympy's second opinion on a verdict, from a worker process that is killed at its deadline."""

import time
from typing import Any

from rl_reasoner.answers.pool import worker_pool
from rl_reasoner.answers.symbolic import admissible, pack_tree
from rl_reasoner.answers.tree import Node
from rl_reasoner.answers.verdict import AnswerVerdict
from rl_reasoner.types import Score
from rl_reasoner.workers import WorkerDied, WorkerLate

ATTEMPTS = 2
MAX_REPLIES = 4_096
JUDGE_S = 2.0
"""Seconds that sympy gets for one pair, its start not counted."""


def settle(verdict: AnswerVerdict, timeout_s: float) -> Score:
    """The score of a verdict, sympy asked where it is undecided; bounded by `timeout_s` seconds."""
    reason = verdict.reason
    deadline = time.monotonic() + timeout_s
    for left, right in verdict.undecided:
        if not admissible(left, right):
            reason += "; not a form that sympy decides"
            continue
        try:
            equal, error = _ask_once(left, right, deadline)
        except WorkerLate:
            return Score(0.0, f"{reason}; sympy did not decide in time")
        except WorkerDied as death:
            return Score(None, f"abstained: sympy's worker died {ATTEMPTS} times ({death})")
        if equal:
            place = reason.rpartition(": ")[0]
            return Score(1.0, f"{place}: equal by sympy")
        reason += f"; sympy cannot decide ({error})" if error else "; not equal by sympy"
    return Score(verdict.value, reason)


def _ask_once(left: Node, right: Node, deadline: float) -> list[Any]:
    """`_ask_sympy`, replies kept: a group of completions repeats its answers."""
    if (left, right) not in _REPLIES:
        reply = _ask_sympy(left, right, deadline)
        if len(_REPLIES) >= MAX_REPLIES:
            _REPLIES.clear()
        _REPLIES[left, right] = reply
        return reply
    return _REPLIES[left, right]


def _ask_sympy(left: Node, right: Node, deadline: float) -> list[Any]:
    """Sympy's reply on one pair; a death of the worker is answered by one more attempt."""
    request = {
        "kind": "judge",
        "left": pack_tree(left),
        "right": pack_tree(right),
        "timeout_s": JUDGE_S,
    }
    for attempt in range(ATTEMPTS):
        try:
            with worker_pool().lease(deadline) as worker:
                if not worker.served:
                    warm = {"kind": "judge", "left": pack_tree(_ONE), "right": pack_tree(_ONE)}
                    worker.send({**warm, "timeout_s": deadline - time.monotonic()}, deadline)
                    worker.receive(deadline)
                worker.send(request, deadline)
                reply: list[Any] = worker.receive(min(deadline, time.monotonic() + JUDGE_S))
                return reply
        except WorkerDied:
            if attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


_ONE = Node("sym", name="x")
_REPLIES: dict[tuple[Node, Node], list[Any]] = {}
