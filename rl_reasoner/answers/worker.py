"""A worker process of the verifier: `python -m rl_reasoner.answers.worker`.

Reads requests as JSON lines from its standard input and answers each on its standard output, until
its input ends. Three kinds: "verify", a block of rows, answered row by row by the fast verdict;
"warm", which imports sympy; "judge", two trees for sympy. Memory is capped by the operating system,
and an alarm ends a worker whose parent has died in the middle of a request.
"""

import gc
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Any, TextIO

from rl_reasoner.answers.symbolic import symbolically_equal, unpack_tree
from rl_reasoner.answers.tree import Node
from rl_reasoner.answers.verdict import fast_verdict

MEMORY_BYTES = 2 << 30
FLUSH_S = 0.01


def answered(request: dict[str, Any], out: TextIO) -> None:
    """Answer one request with one JSON line a row, or one for a judgement."""
    limit = int(request["timeout_s"]) + 2
    signal.alarm(limit)
    if request["kind"] == "warm":
        unit = Node("sym", name="x")
        _put(out, [symbolically_equal(unit, unit)])
    elif request["kind"] == "judge":
        _put(out, _judged(request))
    else:
        flushed = time.monotonic()
        for completion, answer in request["rows"]:
            verdict = fast_verdict(completion, answer)
            _put(out, [verdict.value, verdict.reason, bool(verdict.undecided)])
            if time.monotonic() - flushed > FLUSH_S:
                out.flush()
                signal.alarm(limit)
                flushed = time.monotonic()
    out.flush()
    signal.alarm(0)


def _judged(request: dict[str, Any]) -> list[Any]:
    try:
        equal = symbolically_equal(unpack_tree(request["left"]), unpack_tree(request["right"]))
    except Exception as error:  # sympy raises anything; the verdict stays "not shown"
        return [False, type(error).__name__]
    return [bool(equal), ""]


def _put(out: TextIO, reply: list[Any]) -> None:
    out.write(json.dumps(reply) + "\n")


def main() -> None:
    """Serve until the input ends. What else prints goes nowhere."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setrecursionlimit(5_000)
    gc.set_threshold(100_000)  # trees have no cycles; sympy's are few
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        answered(json.loads(line), out)


if __name__ == "__main__":
    main()
