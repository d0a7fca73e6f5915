"""The program that runs a session's blocks in the sandbox: earlier ones quietly, the last shown.

Its text is what `python` hands to the sandbox; nothing of it is run outside. A token and the blocks
come as JSON on standard input. The output begins with room for the token, which is written there
when the last block has come to its end: a block that ends the process itself, with whatever status,
leaves it empty. Blocks share one namespace, as the cells of a notebook do; the value of a last
expression is printed, and of an exception the policy sees the frames of its own blocks. What is
random draws from fixed seeds, for the blocks run again before each call. Whatever a block breaks in
this process, it breaks for itself.
"""

import ast
import json
import os
import random
import sys
from types import CodeType, ModuleType
from typing import Any

# How it ends: the last block ran to its end, or raised. Any other status, or one without the token,
# is a block's own doing.
RAN, RAISED = 64, 65
TOKEN = 32  # bytes
_MOST_FRAMES = 5
_MOST_MESSAGE = 2000
_KEPT = 1 << 20  # bytes of an output that has become too large for a file


def run_blocks(token: str, blocks: list[str]) -> int:
    """Run the blocks one after the other, and show what the last one does; the exit status."""
    stream = sys.stdout
    stream.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    os.dup2(1, 2)
    module = ModuleType("__main__")
    sys.modules["__main__"] = module
    _settle()
    names = [f"<block {number}>" for number in range(1, len(blocks) + 1)]
    texts = dict(zip(names, blocks, strict=True))
    raised = False
    _empty()
    for name in names:
        sys.stdout = sys.stderr = stream
        raised = _run(name, texts, module.__dict__, stream)
        if name != names[-1]:  # its output has been seen
            _empty()
    os.pwrite(1, token.encode(), 0)
    return RAISED if raised else RAN


def _empty() -> None:
    """Leave nothing of the output but the room for the token."""
    os.ftruncate(1, 0)
    os.ftruncate(1, TOKEN)
    os.lseek(1, 0, os.SEEK_END)


def _settle() -> None:
    """Let what is random be the same in every run, numpy's generators and `secrets` included."""
    random.seed(0)
    random._urandom = os.urandom = random.Random(0).randbytes  # type: ignore[attr-defined]
    if loaded := sys.modules.get("numpy.random"):  # where it is not yet, it will draw from these
        loaded.seed(0)


def _run(name: str, texts: dict[str, str], space: dict[str, Any], stream: Any) -> bool:
    """Run one block, show its last value or its error; whether it raised."""
    raised, shown = False, ""
    try:
        value = None
        for code in _compiled(texts[name], name):
            value = eval(code, space)  # noqa: S307 (in the jail)
        shown = "" if value is None else f"{value!r}\n"
    except SystemExit as end:
        raised = end.code not in (None, 0)
        shown = f"SystemExit: {end.code}\n" if raised else ""
    except BaseException as error:
        raised, shown = True, f"{_told(error, texts)}\n"
    _write(shown, stream)
    return raised


def _write(text: str, stream: Any) -> None:
    """Write what is held back and `text`; of an output that has grown too large, the beginning."""
    try:
        print(text, end="", file=stream, flush=True)
    except OSError:
        os.ftruncate(1, _KEPT)
        os.lseek(1, 0, os.SEEK_END)
        print(text, end="", file=stream, flush=True)


def _compiled(text: str, name: str) -> list[CodeType]:
    """The code of a block: its statements, and its last expression apart, whose value is shown."""
    tree = ast.parse(text, name)
    last: ast.expr = ast.Constant(None)
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = tree.body.pop().value  # type: ignore[attr-defined]
    shown = ast.fix_missing_locations(ast.Expression(last))
    return [compile(tree, name, "exec"), compile(shown, name, "eval")]


def _told(error: BaseException, texts: dict[str, str]) -> str:
    """An exception as Python shows it, of its frames those of the blocks, the innermost few."""
    import linecache
    import traceback

    for name, text in texts.items():
        linecache.cache[name] = (len(text), None, f"{text}\n".splitlines(keepends=True), name)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in texts]
    lines = ["Traceback (most recent call last):\n"] if frames else []
    if len(frames) > _MOST_FRAMES:
        lines.append(f"  [{len(frames) - _MOST_FRAMES} frames left out]\n")
    lines += traceback.format_list(frames[-_MOST_FRAMES:])
    message = "".join(traceback.format_exception_only(type(error), error)).strip()
    if len(message) > _MOST_MESSAGE:
        half = _MOST_MESSAGE // 2
        message = f"{message[:half]}…{message[-half:]}"
    return "".join(lines) + message


if __name__ == "__main__":
    os._exit(run_blocks(**json.loads(sys.stdin.read())))
