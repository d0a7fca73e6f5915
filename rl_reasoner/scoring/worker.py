"""A worker process of one reward: `python -m rl_reasoner.scoring.worker MEMORY_MB`.

Reads requests as JSON lines from its standard input: first the reward (`reward_calls.packed`; once
more where it has changed), then batches of rows, each row answered by a line on the pipe that was
its standard output; what the reward prints goes to standard error. The reward runs on the main
thread, so that it may use signals. Memory is capped by the operating system. When the parent is
gone the process ends.
"""

import asyncio
import base64
import json
import os
import pickle
import random
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, TextIO

from rl_reasoner.scoring.call import outcomes, unpacked
from rl_reasoner.types import Fault, Outcome

_WATCH_S = 1.0


def line_of(outcome: Outcome) -> list[Any]:
    """An outcome as JSON values; `outcome_of` in `isolation` reads it."""
    if isinstance(outcome, Fault):
        return ["fault", outcome.message, outcome.kind, outcome.seconds]
    return ["score", outcome.value, outcome.reason, dict(outcome.parts), outcome.seconds]


def _loaded(request: dict[str, Any], earlier: Any, out: TextIO) -> Any:
    """The reward, in place of the `earlier` one; says whether it could be had."""
    try:
        found = unpacked(request["reward"], earlier)
    except BaseException as error:  # a module may raise anything, SystemExit too
        _put(out, {"failed": f"{type(error).__name__}: {error}"})
        return None
    _put(out, {"loaded": True})
    return found


def _judge(
    fn: Any, request: dict[str, Any], loop: asyncio.Runner, log: list[Any], out: TextIO
) -> None:
    completions, columns = pickle.loads(base64.b64decode(request["rows"]))  # noqa: S301 (the parent's)
    logged: list[list[Any]] = []
    if request["state"] is not None:  # what trl hands to functions of its own form
        columns["trainer_state"] = _state(request, log)
        columns["log_metric"] = lambda name, value: logged.append(["metric", name, float(value)])
        columns["log_extra"] = lambda column, values: logged.append(["extra", column, [*values]])
    found = outcomes(fn, completions, columns, request["timeout_s"], loop)
    for seed in request["seeds"] or [None] * len(completions):
        if seed is not None:  # each row has its own: which rows come together is a matter of time
            _seed(seed)
        _put(out, line_of(next(found)))
    _put(out, {"logged": logged})


def _state(request: dict[str, Any], log: list[Any]) -> SimpleNamespace:
    """The fields of trl's trainer state; its own class would bring torch along."""
    values = json.loads(request["state"])
    log[request["log_since"] :] = values["log_history"]
    return SimpleNamespace(**{**values, "log_history": [*log]})


def _seed(seed: int) -> None:
    """Let rewards that draw at random draw from `seed`."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)


def _put(out: TextIO, reply: Any) -> None:
    try:
        out.write(json.dumps(reply, default=str) + "\n")
        out.flush()
    except BrokenPipeError:  # the parent is gone: nobody is left to be told
        os._exit(0)


def _watch(parent: int) -> None:
    """End this process, and what it started, when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    with suppress(OSError):
        os.killpg(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Serve one reward until the input ends."""
    cap = int(sys.argv[1]) << 20
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    fn: Any = None
    loop = asyncio.Runner()
    log: list[Any] = []  # of the trainer's state
    for line in lines:
        request = json.loads(line)
        if "reward" in request:
            fn = _loaded(request, fn, out)
        else:
            _judge(fn, request, loop, log, out)


if __name__ == "__main__":
    main()
