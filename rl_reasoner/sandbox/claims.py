"""What a test's code claims of a program: is there a program that it would fail?

Code that compares without `assert`, or only prints, is passed by every program that defines the
names in it and does not raise: a policy would be paid for anything. So tests of rows are held to it
(`check_claims`); the sandbox itself runs what it is given, but for code that runs nothing at all
(`only_defines`). Read off the syntax alone, and in doubt for the test: what is called may raise.
Runs nothing.
"""

import ast
import builtins
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

from rl_reasoner.errors import UserError

_SHOWS = {"print", "repr", "str", "bool", "type", "isinstance"}
_READS = {"len", "any", "all", "sorted"}
_ENDS = {"exit", "quit", "eval", "exec", "next"}  # builtins that raise as often as not
_BUILTINS = set(dir(builtins)) - _ENDS
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_ANY = "any program would pass"


def check_claims(tests: Sequence[object]) -> None:
    """Raise `UserError` for a test among those of a row that any program would pass.

    Tests count from 0, as in all that the sandbox says of them. Code that is not Python is left to
    those who run it.
    """
    for number, test in enumerate(tests):
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
    if not defined or not all(map(_is_still, tree.body)):
        return ""
    return _why_nothing(tree.body, defined)


def _is_still(node: ast.stmt) -> bool:
    """Whether a statement only binds names, and calls nothing for that but builtins."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return not node.decorator_list
        case ast.ClassDef():
            return not node.decorator_list and all(map(_is_still, node.body))
        case ast.Assign() | ast.AnnAssign():
            return not any(_may_raise(inner, frozenset()) for inner in ast.walk(node))
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom() | ast.Pass():
            return True
    return False


def passed_by_all(tree: ast.Module) -> str:
    """Why any program would pass a test of this code, and the way out; empty where none would."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Tuple) and node.test.elts:
            said = "asserts a tuple in line {}, which is always true. Leave out its parentheses"
            return said.format(node.lineno)
    defined = frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, _Definition) and not _by_others(node)
    )
    live, named = _running(tree)
    if any(_may_fail(node, defined) for node in live):
        return ""
    for node in live:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare):
            said = "compares in line {} and drops the result: {}. Write assert before it"
            return said.format(node.lineno, _ANY)
    own = [node for node in tree.body if isinstance(node, _Definition)]
    uncalled = [node.name for node in own if not (node.name in named or node.decorator_list)]
    return _why_nothing([node for node in tree.body if node not in own], uncalled)


def _by_others(node: _Definition) -> bool:
    """Whether a definition's own text does not say all that a call of it does."""
    return bool(node.decorator_list) or (isinstance(node, ast.ClassDef) and bool(node.bases))


def _running(tree: ast.Module) -> tuple[list[ast.stmt], set[str]]:
    """The statements that may run, and the names in them.

    A function's are among them where it is decorated, or where one of them names it or its class.
    """
    bodies: dict[str, list[ast.stmt]] = {}
    for node in ast.walk(tree):
        if isinstance(node, _Definition):
            bodies.setdefault(node.name, []).extend(_bodies(node))
    live: list[ast.stmt] = []
    named: set[str] = set()
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        live.append(node)
        found = [inner for part in _expressions(node) for inner in ast.walk(part)]
        for name in dict.fromkeys(inner.id for inner in found if isinstance(inner, ast.Name)):
            named.add(name)
            waiting += bodies.pop(name, [])
        if not isinstance(node, _Function) or node.decorator_list:
            waiting += _inside(node)
    return live, named


def _bodies(node: ast.AST) -> list[ast.stmt]:
    """What runs by a call of a definition: its body, and for a class, that of each method."""
    if isinstance(node, ast.ClassDef):
        return [one for inner in node.body if isinstance(inner, _Function) for one in inner.body]
    return _inside(node)


def _inside(node: ast.AST) -> list[ast.stmt]:
    """The statements in a statement, not those within these."""
    found: list[ast.stmt] = []
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.stmt):
            found.append(inner)
        elif isinstance(inner, (ast.ExceptHandler, ast.match_case)):
            found += _inside(inner)
    return found


def _expressions(node: ast.stmt) -> list[ast.AST]:
    """What a statement itself evaluates."""
    apart = (ast.stmt, ast.ExceptHandler, ast.match_case, ast.arguments)
    return [inner for inner in ast.iter_child_nodes(node) if not isinstance(inner, apart)]


def _why_nothing(running: Sequence[ast.stmt], uncalled: Sequence[str]) -> str:
    if uncalled:
        names = ", ".join(uncalled)
        return f"defines {names} and runs nothing: {_ANY}. Call what it defines, as in check(f)"
    if not running:
        return f"is empty: {_ANY}. Expected code that asserts, as in assert f(1) == 2"
    return f"asserts nothing: {_ANY}. Write what must hold, as in assert f(1) == 2"


def _may_fail(node: ast.stmt, defined: frozenset[str]) -> bool:
    """Whether a statement itself may raise because a program is wrong.

    What calls of the functions `defined` in the test do is seen in these.
    """
    match node:
        case ast.Assert(test=ast.Constant(value=value)):
            return not value
        case ast.Assert() | ast.Raise():
            return True
        case ast.Expr(value=dropped) | ast.Return(value=ast.expr() as dropped):
            return _judges(dropped, defined)
        case ast.If():  # a comparison that only chooses what is shown
            return False
        case ast.With(items=items) | ast.AsyncWith(items=items):
            return any(isinstance(item.context_expr, ast.Call) for item in items)
    parts = _expressions(node)
    return any(_may_raise(inner, defined) for part in parts for inner in ast.walk(part))


def _may_raise(node: ast.AST, defined: frozenset[str]) -> bool:
    """Whether a part of an expression whose value is kept may raise: by a call, or a division."""
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name not in defined and name not in _BUILTINS
        case ast.Call(func=ast.Attribute(value=ast.Constant())):
            return False
        case ast.BinOp(op=ast.Div() | ast.FloorDiv() | ast.Mod(), right=right):
            return not isinstance(right, ast.Constant)
    return isinstance(node, ast.Call)


def _judges(value: ast.expr, defined: frozenset[str]) -> bool:
    """Whether an expression whose value is dropped may still raise: by a call, or an operator."""
    match value:
        case ast.Call(func=ast.Name(id=name), args=args):
            if name in defined:
                return any(_may_raise(inner, defined) for inner in ast.walk(value))
            if name in _READS:
                return any(_judges(_element(part), defined) for part in args)
            return name not in _SHOWS
        case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
            return any(_judges(part, defined) for part in parts)
        case ast.IfExp(body=body, orelse=orelse):
            return _judges(body, defined) or _judges(orelse, defined)
        case ast.ListComp(elt=part) | ast.SetComp(elt=part) | ast.Await(value=part):
            return _judges(part, defined)
        case ast.UnaryOp() | ast.Compare() | ast.Constant() | ast.Name() | ast.Attribute():
            return False
        case ast.JoinedStr() | ast.Lambda() | ast.GeneratorExp():
            return False
    return True


def _element(value: ast.expr) -> ast.expr:
    """What a generator yields, where a builtin reads it to its end; else the value itself."""
    return value.elt if isinstance(value, ast.GeneratorExp) else value
