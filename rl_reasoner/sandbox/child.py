"""What happens in the process forked for one test: read the job, enter the jail, run the program.

Roles: `script` runs a whole program, `run_call` calls one of its functions and writes the answer,
`run_server` answers a judge's questions about it, `run_judge` runs a test's text against it. The
program is free to break everything in here: nothing in this process is believed, its output and
answers are only data, and expected values are never in it. Exit codes other than 0 tell failures
apart.
"""

# A zygote does not load pathlib: each fork would pay for it.
# ruff: noqa: PTH109

import atexit
import builtins
import contextlib
import gc
import json
import mmap
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from rl_reasoner.sandbox import data, jail, judging, reasons, remote

FAILED, OUT_OF_MEMORY, GONE = 1, 86, 87
_PLAIN_RECURSION = 1000


@dataclass
class Cell:
    """One process to be: its role, the descriptors of its payload and streams, and further ones.

    `streams` are standard input, output and error, or none: then they stay the zygote's own
    (/dev/null). The further descriptors become 3, 4, ... `entered` is a byte that the zygote reads:
    whether the process has come as far as its program, which has it no more.
    """

    role: Callable[[dict[str, Any], str], int]
    payload: int
    streams: list[int]
    further: list[int]
    entered: mmap.mmap


def main(cell: Cell, built: jail.Jail, box: str, limits: jail.JailLimits) -> NoReturn:
    """Become the process that `cell` describes, and end with it."""
    try:
        payload = json.loads(_read_all(cell.payload))
        stdin = _read_all(cell.streams[0]) if cell.role is script else None
        _arrange((cell.streams or [0, 1, 2]) + cell.further)
        source = payload["source"].encode("utf-8", "surrogatepass")
        built.enter(box, source if cell.role is not run_judge else b"", stdin, limits)
        cell.entered[0] = 1
        cell.entered.close()
        _fresh_streams()
        code = cell.role(payload, f"{box}/main.py")
    except MemoryError:
        code = OUT_OF_MEMORY
    except BaseException as error:
        code = remote.BROKEN
        with contextlib.suppress(OSError):
            os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
    os._exit(code)


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _arrange(descriptors: list[int]) -> None:
    """Make `descriptors` 0, 1, 2 ... and close every other."""
    high = [os.dup2(d, 200 + i) for i, d in enumerate(descriptors)]
    for target, descriptor in enumerate(high):
        os.dup2(descriptor, target)
    os.closerange(len(high), 65536)


def _fresh_streams() -> None:
    streams = (
        ("stdin", "r", "surrogateescape", -1),
        ("stdout", "w", "surrogateescape", -1),
        ("stderr", "w", "backslashreplace", 1),
    )
    for number, (name, mode, errors, buffering) in enumerate(streams):
        stream = open(number, mode, buffering, "utf-8", errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


# ---------------------------------------------------------------------------------- roles


def script(payload: dict[str, Any], path: str) -> int:
    """Run the program as `python main.py` would, to its exit handlers; returns the exit code."""
    namespace, code = _execute(payload["source"], path, "__main__")
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    code = code or _flush()
    namespace.clear()  # files left open are written as their objects go
    gc.collect()
    _flush()
    return code


def run_call(payload: dict[str, Any], path: str) -> int:
    """Run the program, call the function asked for, and write its value to descriptor 3."""
    namespace, code = _execute(payload["source"], path, "main")
    if code:
        _flush()
        return code
    try:
        answer = data.encode(_call(namespace, payload))
    except data.NotData as error:
        print(f"the answer is not plain data: {error}", file=sys.stderr)
        code = FAILED
    except BaseException as error:
        code = _report(error)
    else:
        _write_all(3, data.dump(answer))
    _flush()
    return code


def _call(namespace: dict[str, Any], payload: dict[str, Any]) -> object:
    target: Any = None
    for place, part in enumerate(payload["call"].split(".")):
        name = part.removesuffix("()")
        if place:
            target = getattr(target() if isinstance(target, type) else target, name)
        elif name in namespace:
            target = namespace[name]
        else:
            raise NameError(f"name {name!r} is not defined")  # a builtin would pass for it
        target = target() if name != part else target
    arguments = data.decode(payload["args"])
    return target(*arguments, **data.decode(payload["kwargs"]))


def run_server(payload: dict[str, Any], path: str) -> int:
    """Run the program, then answer the judge on descriptor 3 until it has no more questions."""
    namespace, code = _execute(payload["source"], path, "main")
    if code:
        _flush()
        return code
    remote.Server(namespace, 3).run()
    return _flush()


def run_judge(payload: dict[str, Any], path: str) -> int:
    """Run a test's text against the program on descriptor 4; the verdict goes to descriptor 3.

    Below one that is not "passed" stands why, for people.
    """
    sys.setrecursionlimit(10 * _PLAIN_RECURSION)
    try:
        verdict, why = judging.judge_test(payload["source"], 4)
    except remote.Gone:
        return GONE
    _write_all(3, f"{verdict}\n{reasons.one_line(why)}".encode() if why else verdict.encode())
    return 0


# ---------------------------------------------------------------------------------- running


def _execute(source: str, path: str, name: str) -> tuple[dict[str, Any], int]:
    """Run `source` as a fresh module `name`; its namespace and the exit code so far."""
    module = ModuleType(name)
    namespace = module.__dict__
    namespace.update(__file__=path, __builtins__=builtins)
    for mine in [key for key in sys.modules if key.startswith("rl_reasoner")]:
        del sys.modules[mine]
    sys.modules[name] = sys.modules["__main__"] = module
    sys.path.insert(0, os.getcwd())
    sys.setrecursionlimit(_PLAIN_RECURSION + 8)
    try:
        source = source.removeprefix("\ufeff")  # as Python does with a file
        exec(compile(source, path, "exec", dont_inherit=True), namespace)  # noqa: S102 - in the jail
    except BaseException as error:
        return namespace, _report(error)
    return namespace, 0


def _report(error: BaseException) -> int:
    """Say on standard error what Python would say of `error`; the exit code it means."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return FAILED
    trace = error.__traceback__
    sys.excepthook(type(error), error, trace.tb_next if trace else None)
    return OUT_OF_MEMORY if isinstance(error, MemoryError) else FAILED


def _flush() -> int:
    """Write what the standard streams hold back, also those that the program replaced."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except Exception:
            return FAILED
    return 0


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
