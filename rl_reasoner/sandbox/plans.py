"""What each form of test asks of the sandbox, and the verdict on what came back.

A test becomes a plan before anything runs: mistakes in it are the user's and raise `UserError`.
The plan keeps what is expected; only its `inputs` go to the jail. `verdict` decides in the host, on
data alone: nothing that comes back says "passed". An assertion of the form `f(ARGS) == LITERAL` is
planned as a call, so that even its comparison happens here.
"""

import ast
import math
import re
import signal
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rl_reasoner.errors import UserError, did_you_mean
from rl_reasoner.sandbox import child, data, reasons, zygote
from rl_reasoner.sandbox.claims import only_defines
from rl_reasoner.sandbox.host import MAX_OUTPUT, Finished

Verdict = Literal["passed", "failed", "error", "timeout", "memory", "crash", "refused"]
_NUMBER = re.compile(r"[+-]?(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_NAME = re.compile(r"[^\W\d]\w*((\(\))?\.[^\W\d]\w*)*")
_VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "error", "memory")
_LONG_ANSWER = 1 << 16
_LAST_LINES = 100  # of standard error: the reason is looked for in them
_LEFT = "it ended before it answered"
_STDIO_KEYS = ("stdin", "stdout", "tolerance")
_CALL_KEYS = ("call", "args", "kwargs", "expected", "tolerance")
_OTHERS_NAMES = ("function", "func", "fn", "fn_name")
_OTHERS_STDIO = {"input": "stdin", "inputs": "stdin", "output": "stdout", "outputs": "stdout"}
_OTHERS_CALL = {
    **dict.fromkeys((*_OTHERS_NAMES, "name"), "call"),
    **dict.fromkeys(("input", "inputs", "arguments"), "args"),
    **dict.fromkeys(("output", "outputs", "result", "returns"), "expected"),
}


class TestPlan(Protocol):
    """One test, ready to run."""

    @property
    def mode(self) -> bytes:
        """The zygote's mode for it."""

    @property
    def text(self) -> str:
        """The code in the test itself, where it has any."""

    def inputs(self, program: str) -> list[bytes]:
        """What goes into the jail to run it on `program`."""

    def verdict(self, finished: Finished) -> Verdict:
        """The verdict on a run that ended by itself with exit status 0."""

    def why(self, finished: Finished) -> str:
        """Why that verdict is not "passed", for people; nothing where its standard error tells."""


@dataclass(frozen=True)
class Stdio:
    """A whole program: what it reads, and what it must print."""

    stdin: str
    stdout: str
    tolerance: float
    mode: bytes = zygote.SCRIPT
    text: str = ""

    def inputs(self, program: str) -> list[bytes]:
        return [_payload(program), self.stdin.encode("utf-8", "surrogatepass")]

    def verdict(self, finished: Finished) -> Verdict:
        if len(finished.stdout) > MAX_OUTPUT:
            return "failed"
        try:
            said = finished.stdout.decode()
        except UnicodeDecodeError:
            return "failed"
        return "passed" if same_output(said, self.stdout, self.tolerance) else "failed"

    def why(self, finished: Finished) -> str:
        if len(finished.stdout) > MAX_OUTPUT:
            return f"printed more than {MAX_OUTPUT >> 20} MB"
        try:
            return reasons.of_output(_lines(finished.stdout.decode()), _lines(self.stdout))
        except UnicodeDecodeError:
            return "printed what is not UTF-8"


@dataclass(frozen=True)
class Call:
    """A call of one of the program's functions, and the value it must return."""

    name: str
    args: data.Tree
    kwargs: data.Tree
    expected: data.Tree
    tolerance: float
    loose: bool  # tuples equal lists
    mode: bytes = zygote.CALL
    text: str = ""

    def inputs(self, program: str) -> list[bytes]:
        return [_payload(program, call=self.name, args=self.args, kwargs=self.kwargs)]

    def verdict(self, finished: Finished) -> Verdict:
        if not finished.answer:
            return "crash"  # it left before it answered
        size = len(finished.answer)
        if size > _LONG_ANSWER and size > 8 * len(data.dump(self.expected)):
            return "refused" if size > data.MAX_BYTES else "failed"  # without reading it all
        try:
            answer = data.load(finished.answer)
            right = data.equal_trees(answer, self.expected, self.tolerance, self.loose)
        except data.Malformed:
            return "refused"
        return "passed" if right else "failed"

    def why(self, finished: Finished) -> str:
        if not finished.answer:
            return _LEFT
        return reasons.of_values(self.name, finished.answer, self.expected)


@dataclass(frozen=True)
class Judged:
    """A test's text, to be run by a judge against the program."""

    text: str
    mode: bytes = zygote.JUDGED

    def inputs(self, program: str) -> list[bytes]:
        return [_payload(program), _payload(self.text)]

    def verdict(self, finished: Finished) -> Verdict:
        # The judge wrote it: no program can reach its descriptor. Nothing stands below "passed".
        said, newline, _ = finished.answer.partition(b"\n")
        for verdict in _VERDICTS:
            if said == verdict.encode() and not (newline and verdict == "passed"):
                return verdict
        return "crash"

    def why(self, finished: Finished) -> str:
        if not finished.answer:
            return _LEFT
        return finished.answer.partition(b"\n")[2].decode(errors="replace")


def verdict_on(plan_test: TestPlan, finished: Finished, cpu_s: float) -> Verdict:
    """The verdict on a finished run of `plan_test` that was allowed `cpu_s` seconds of CPU."""
    for ended in (finished.first, finished.second):
        killed = ended.how == zygote.SIGNALLED and ended.code in (signal.SIGKILL, signal.SIGXCPU)
        spent = ended.cpu_s > cpu_s * (0.9 if killed else 1.1) + (0.0 if killed else 0.1)
        if spent or ended.how == zygote.DEADLINE:
            return "timeout"
        if ended.how == zygote.QUOTA or ended.code == child.OUT_OF_MEMORY:
            return "memory"
    first = finished.first
    if first.how != zygote.EXITED or first.code == child.GONE:
        return _why_gone(plan_test, finished)
    if first.code:
        return "error"
    return plan_test.verdict(finished)


def why_not_passed(plan_test: TestPlan, verdict: Verdict, finished: Finished) -> str:
    """Why a verdict is not "passed", in one line for people; nothing where there is no more to say.

    What the program wrote itself is only shown where it failed by itself.
    """
    if verdict in ("passed", "timeout", "memory"):
        return ""
    judged = plan_test.mode == zygote.JUDGED
    ended = finished.second if judged and finished.first.code == child.GONE else finished.first
    by_itself = ended.how != zygote.EXITED or ended.code != 0
    if not by_itself or (judged and finished.answer):
        return reasons.one_line(plan_test.why(finished))
    if ended.how == zygote.SIGNALLED:
        return f"ended by signal {ended.code}"
    # all of it may be millions of lines
    said = finished.stderr.strip().rsplit(b"\n", _LAST_LINES)[-_LAST_LINES:]
    told = [line for line in said if b"Warning: " not in line]  # some come at the very end
    last = (told or said)[-1].decode(errors="replace")
    return reasons.one_line(last) or f"exit status {ended.code}"


def _why_gone(plan_test: TestPlan, finished: Finished) -> Verdict:
    """Why a program died, or left its judge alone."""
    if plan_test.mode != zygote.JUDGED or finished.first.code != child.GONE:
        return "crash"
    program = finished.second
    return "error" if program.how == zygote.EXITED and program.code == child.FAILED else "crash"


def same_output(said: str, expected: str, tolerance: float = 0.0) -> bool:
    """Whether two outputs agree as judges of programming contests see it.

    White space at the ends of lines and empty lines at the end never count. Where the expected
    output has no indented line and no run of spaces, so that its layout says nothing, words may
    also be on other lines. With a tolerance, numbers may differ by it, absolutely or relative to
    the expected one.
    """
    wanted = _lines(expected)
    if _lines(said) == wanted:
        return True
    if not tolerance and any("  " in line or line[:1].isspace() for line in wanted):
        return False
    ours, theirs = said.split(), expected.split()
    return len(ours) == len(theirs) and all(
        a == b or (tolerance and _near(a, b, tolerance)) for a, b in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _near(said: str, expected: str, tolerance: float) -> bool:
    if len(said) > 400 or not (_NUMBER.fullmatch(said) and _NUMBER.fullmatch(expected)):
        return False
    a, b = float(said), float(expected)
    allowed = tolerance * max(1.0, abs(b))  # infinite where b is: then nothing else is near
    return math.isfinite(allowed) and abs(a - b) <= allowed


# -------------------------------------------------------------------------------- planning


def is_known(test: object) -> bool:
    """Whether a test is in a form of the sandbox's, if not without a mistake: all its keys are."""
    if isinstance(test, Mapping):
        given = {key for key, value in test.items() if value is not None}
        return bool(given) and given <= {*_STDIO_KEYS, *_CALL_KEYS}
    return isinstance(test, str)


def plan_test(test: object, place: str) -> TestPlan:
    """The plan of one test; `place` names it in the `UserError` for a test of no known form."""
    if isinstance(test, str):
        return _plan_code(test, place)
    if not isinstance(test, Mapping):
        raise UserError(
            f"{place} is {type(test).__name__}: expected code (str), "
            '{"stdin", "stdout"} or {"call", "args", "expected"}'
        )
    # Tables give every row all columns: a key without a value is one the test does not have.
    given = [key for key, value in test.items() if value is not None]
    calls = not {"call", "args", "kwargs", "expected"}.isdisjoint(given)
    calls |= not set(_OTHERS_NAMES).isdisjoint(given) and {"stdin", "stdout"}.isdisjoint(given)
    keys = _CALL_KEYS if calls else _STDIO_KEYS
    others = _OTHERS_CALL if calls else _OTHERS_STDIO
    for key in given:
        if key not in keys:
            hint = did_you_mean(str(key), keys, others)
            raise UserError(f"{place} has the unknown key {key!r}.{hint} Known: {', '.join(keys)}.")
    tolerance = test.get("tolerance") or 0.0
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < float("inf"):
        raise UserError(f"{place}: tolerance must be a number >= 0, not {tolerance!r}")
    if calls:
        return _plan_call(test, place, float(tolerance))
    return Stdio(_text(test, "stdin", place), _text(test, "stdout", place), float(tolerance))


def _text(test: Mapping[Any, Any], key: str, place: str) -> str:
    value = "" if key == "stdin" and test.get(key) is None else test.get(key)
    if not isinstance(value, str):
        several = ". Make a test of each of its texts" if isinstance(value, list) else ""
        raise UserError(f"{place}: {key} must be a str, not {type(value).__name__}{several}")
    return value


def _plan_call(test: Mapping[Any, Any], place: str, tolerance: float) -> Call:
    name = test.get("call")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        forms = '"function", "Class.method" or "Class().method"'
        raise UserError(f"{place}: call must be {forms}, not {name!r}")
    if "expected" not in test:
        raise UserError(f"{place} calls {name} without saying what is expected")
    args, kwargs = test.get("args") or [], test.get("kwargs") or {}
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
        raise UserError(f"{place}: args must be a list and kwargs a dict")
    try:
        trees = [data.encode(value) for value in (list(args), dict(kwargs), test["expected"])]
    except data.NotData as error:
        raise UserError(f"{place} holds {error}, which is not plain data") from error
    return Call(name, trees[0], trees[1], trees[2], tolerance, loose=True)


def _plan_code(text: str, place: str) -> TestPlan:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{place} is not Python: {error}") from error
    if why := only_defines(tree):
        raise UserError(f"{place} {why}")
    return _as_call(tree) or Judged(text)


def _as_call(tree: ast.Module) -> Call | None:
    """The call that `assert f(LITERALS) == LITERAL` stands for; None for any other code."""
    match tree.body:
        case [
            ast.Assert(
                test=ast.Compare(
                    left=ast.Call(func=called, args=args, keywords=keywords),
                    ops=[ast.Eq()],
                    comparators=[expected],
                )
            )
        ] if all(word.arg for word in keywords) and (name := _called(called)):
            try:
                values = [ast.literal_eval(node) for node in args]
                named = {str(word.arg): ast.literal_eval(word.value) for word in keywords}
                trees = [data.encode(v) for v in (values, named, ast.literal_eval(expected))]
            except (ValueError, TypeError, data.NotData, RecursionError, MemoryError):
                return None
            return Call(name, trees[0], trees[1], trees[2], 0.0, loose=False)
    return None


def _called(node: ast.expr) -> str:
    """The name of what is called, `f` or `Class().method`; nothing for anything else."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(ast.Call(ast.Name(id=name), args=[], keywords=[]), attr=method):
            return f"{name}().{method}"
    return ""


def _payload(source: str, **more: Any) -> bytes:
    return data.dump({"source": source, **more})
