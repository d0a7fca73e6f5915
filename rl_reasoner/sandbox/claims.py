"""What a test's code claims of a program: is there a program that it would fail?

Code that compares without `assert`, or only prints, is passed by every program that defines the
names in it: a policy would be paid for anything. So tests of rows are held to it (`check_claims`);
the sandbox itself runs what it is given, but for code that runs nothing at all (`only_defines`).
Read off the syntax alone, and in doubt for the test: a call may raise. Runs nothing.
"""

import ast
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

from rl_reasoner.errors import UserError

_QUIET = {"print", "repr", "str", "bool", "len", "type", "isinstance", "any", "all", "sorted"}
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_ANY = "any program would pass"


def check_claims(tests: Sequence[object], first: int = 0) -> None:
    """Raise `UserError` for a test among those of a row that any program would pass.

    Tests count from `first`. Code that is not Python is left to those who run it.
    """
    for number, test in enumerate(tests, first):
        if isinstance(test, str) and (why := _why_of(test)):
            raise UserError(f"test {number} {why}")


@lru_cache(maxsize=4096)
def _why_of(test: str) -> str:
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its escapes
        return passed_by_all(ast.parse(test))
    return ""


def only_defines(tree: ast.Module) -> str:
    """Why a test that defines something and does nothing else is none; empty for all others."""
    defined = [node.name for node in tree.body if isinstance(node, _Definition)]
    still = (_Definition, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    runs = any(
        not isinstance(node, still)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in tree.body
    )
    return "" if runs or not defined else _why_nothing(tree.body, defined)


def passed_by_all(tree: ast.Module) -> str:
    """Why any program would pass a test of this code, and the way out; empty where none would."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
            said = "asserts a tuple in line {}, which is always true. Leave out its parentheses"
            return said.format(node.lineno)
    defined = {node.name: node for node in tree.body if isinstance(node, _Definition)}
    running = [node for node in tree.body if not isinstance(node, _Definition)]
    for node in running:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare):
            said = "compares in line {} and drops the result: {}. Write assert before it"
            return said.format(node.lineno, _ANY)
    named = {n.id for node in running for n in ast.walk(node) if isinstance(n, ast.Name)}
    runs = any(isinstance(inner, ast.Call) for node in running for inner in ast.walk(node))
    called = [  # a runner finds test cases by itself
        node
        for name, node in defined.items()
        if name in named or (runs and isinstance(node, ast.ClassDef) and node.bases)
    ]
    if any(_may_fail(inner) for node in (*running, *called) for inner in ast.walk(node)):
        return ""
    return _why_nothing(running, [name for name in defined if name not in named])


def _why_nothing(running: Sequence[ast.stmt], uncalled: Sequence[str]) -> str:
    if uncalled:
        names = ", ".join(uncalled)
        return f"defines {names} and runs nothing: {_ANY}. Call what it defines, as in check(f)"
    if not running:
        return f"is empty: {_ANY}. Expected code that asserts, as in assert f(1) == 2"
    return f"asserts nothing: {_ANY}. Write what must hold, as in assert f(1) == 2"


def _may_fail(node: ast.AST) -> bool:
    """Whether a statement may raise because a program is wrong."""
    match node:
        case ast.Assert(test=ast.Constant(value=value)):
            return not value
        case ast.Assert() | ast.Raise():
            return True
        case ast.Expr(value=value):
            return _judges(value)
        case ast.With(items=items) | ast.AsyncWith(items=items):
            return any(isinstance(item.context_expr, ast.Call) for item in items)
    return False


def _judges(value: ast.expr) -> bool:
    """Whether an expression whose value is dropped may still raise: by a call, or an operator."""
    match value:
        case ast.Call(func=ast.Name(id=name)):
            return name not in _QUIET
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            return any(map(_judges, parts))
        case ast.IfExp(body=body, orelse=orelse):
            return _judges(body) or _judges(orelse)
        case ast.ListComp(elt=part) | ast.SetComp(elt=part) | ast.Await(value=part):
            return _judges(part)
        case ast.UnaryOp() | ast.Compare() | ast.Constant() | ast.Name() | ast.Attribute():
            return False
        case ast.JoinedStr() | ast.Lambda() | ast.GeneratorExp():
            return False
    return True
