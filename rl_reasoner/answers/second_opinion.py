"""Sympy's second opinion on a verdict, from a worker process that is killed at its deadline."""

import time
from typing import Any

from rl_reasoner.answers.pool import START_S, NoneFree, worker_pool
from rl_reasoner.answers.symbolic import admissible, pack_tree
from rl_reasoner.answers.tree import Node
from rl_reasoner.answers.verdict import AnswerVerdict
from rl_reasoner.types import Score
from rl_reasoner.workers import WorkerDied, WorkerLate

ATTEMPTS = 2
MAX_REPLIES = 4_096
JUDGE_S = 3.0
"""Seconds that sympy gets for one pair at most, its start not counted."""


def settle(verdict: AnswerVerdict, timeout_s: float) -> Score:
    """The score of a verdict, sympy asked where it is undecided, for `timeout_s` seconds a pair.

    A worker is waited for besides, `START_S` at most. Where none is ready the row abstains, and the
    worker goes on starting: on a busy machine, the next rows find it ready.
    """
    reason = verdict.reason
    for left, right in verdict.undecided:
        if not admissible(left, right):
            reason += "; not a form that sympy decides"
            continue
        try:
            equal, error = _ask_once(left, right, timeout_s)
        except NoneFree:
            return Score(None, f"abstained: no worker with sympy was ready within {START_S:g} s")
        except WorkerLate:
            return Score(0.0, f"{reason}; sympy did not decide in time")
        except WorkerDied as death:
            return Score(None, f"abstained: sympy's worker died {ATTEMPTS} times ({death})")
        if equal:
            place = reason.rpartition(": ")[0]
            return Score(1.0, f"{place}: equal by sympy")
        reason += f"; sympy cannot decide ({error})" if error else "; not equal by sympy"
    return Score(verdict.value, reason)


def _ask_once(left: Node, right: Node, timeout_s: float) -> list[Any]:
    """`_ask_sympy`, replies kept: a group of completions repeats its answers."""
    if (left, right) not in _REPLIES:
        reply = _ask_sympy(left, right, timeout_s)
        if len(_REPLIES) >= MAX_REPLIES:
            _REPLIES.clear()
        _REPLIES[left, right] = reply
        return reply
    return _REPLIES[left, right]


def _ask_sympy(left: Node, right: Node, timeout_s: float) -> list[Any]:
    """Sympy's reply on one pair; a death of the worker is answered by one more attempt."""
    trees = {"left": pack_tree(left), "right": pack_tree(right)}
    request = {"kind": "judge", **trees, "timeout_s": JUDGE_S}
    for attempt in range(ATTEMPTS):
        ready_by = time.monotonic() + START_S
        try:
            with worker_pool().lease(ready_by) as worker:
                if worker.warm(ready_by):
                    deadline = time.monotonic() + min(timeout_s, JUDGE_S)
                    worker.send(request, deadline)
                    reply: list[Any] = worker.receive(deadline)
                    return reply
            raise NoneFree("it is still starting")
        except WorkerDied:
            if attempt + 1 == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


_REPLIES: dict[tuple[Node, Node], list[Any]] = {}
