"""A worker process of one reward: `python -m rl_reasoner.scoring.worker MEMORY_MB`.

Reads requests as JSON lines from its standard input: first the reward (`pack_reward`; once more
where it has changed), then batches of rows, each row answered by a line on the pipe that was
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
import signal
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, TextIO

from rl_reasoner.scoring.call import call_reward
from rl_reasoner.scoring.transport import is_edited, snapshot, unpack_reward
from rl_reasoner.types import Fault, Outcome
from rl_reasoner.workers import as_worker

_WATCH_S = 1.0


def line_of(outcome: Outcome) -> list[Any]:
    """An outcome as JSON values; `Process.receive` reads it."""
    if isinstance(outcome, Fault):
        return ["fault", outcome.message, outcome.kind, outcome.seconds]
    return ["score", outcome.value, outcome.reason, dict(outcome.parts), outcome.seconds]


def _load(packed: dict[str, Any], out: TextIO) -> Any:
    """The reward; replies whether it could be had."""
    try:
        fn = unpack_reward(packed)
    except BaseException as error:  # a module may raise anything, SystemExit too
        _put(out, {"failed": f"{type(error).__name__}: {error}"})
        return None
    _put(out, {"loaded": True, "edited": is_edited(packed)})
    return fn


def _judge(
    fn: Any, request: dict[str, Any], loop: asyncio.Runner, log: list[Any], out: TextIO
) -> list[list[Any]]:
    """Reply with each row's outcome; what the function logged through trl's arguments."""
    completions, columns = pickle.loads(base64.b64decode(request["rows"]))  # noqa: S301 (the parent's)
    logged: list[list[Any]] = []
    if request["state"] is not None:  # what trl hands to functions of its own form
        columns["trainer_state"] = _state(request, log)
        columns["log_metric"] = lambda name, value: logged.append(["metric", name, float(value)])
        columns["log_extra"] = lambda column, values: logged.append(["extra", column, [*values]])
    outcomes = call_reward(fn, completions, columns, request["timeout_s"], loop)
    for seed in request["seeds"] or [None] * len(completions):
        if seed is not None:  # each row has its own: which rows come together is a matter of time
            _seed(seed)
        _put(out, line_of(next(outcomes)))
    return logged


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
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    lines, out = as_worker(int(sys.argv[1]))
    try:
        _serve(lines, out)
    except SystemExit as error:  # of the reward; what it has left open does not hold up the end
        sys.stderr.flush()
        os._exit(_exit_code(error))


def _serve(lines: TextIO, out: TextIO) -> None:
    """Answer the requests, until there are no more."""
    fn: Any = None
    packed: dict[str, Any] = {}
    held = b""
    loop = asyncio.Runner()
    log: list[Any] = []  # of the trainer's state
    for line in lines:
        request = json.loads(line)
        if "reward" in request:
            packed = request["reward"]
            fn = _load(packed, out)
            held = snapshot(packed, fn)
        else:
            logged = _judge(fn, request, loop, log, out)
            _put(out, {"logged": logged, "changed": snapshot(packed, fn) != held})


def _exit_code(error: SystemExit) -> int:
    """The code that the process would end with."""
    if error.code is None or isinstance(error.code, int):
        return (error.code or 0) & 0xFF
    return 1


if __name__ == "__main__":
    main()
