"""The names that a test wants of the program: what it looks up and does not bind itself.

Locals and parameters of a test's own functions are none of them, whatever the program calls alike.
Knows nothing of who has them (`judging`).
"""

import ast
import symtable
from typing import NamedTuple


class Wanted(NamedTuple):
    """Names of a test: `used`, of these `handed` on, and any that it takes attributes of.

    Handed on are the arguments of calls, at the top of the test, of functions it defines itself.
    """

    used: set[str]
    dotted: set[str]
    handed: set[str]


def wanted_names(tree: ast.Module, test: str) -> Wanted:
    """The names that a test, of which `tree` is the syntax, wants of the program.

    Raises SyntaxError where Python would.
    """
    bound = _bound(tree)
    used = _looked_up(symtable.symtable(test, "<test>", "exec")) - bound
    used = {name for name in used if not name.startswith("__")}
    dotted = {
        node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    handed: set[str] = set()
    for statement in tree.body:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Name(id=name), args=args)) if name in bound:
                handed |= {argument.id for argument in args if isinstance(argument, ast.Name)}
    return Wanted(used, dotted, handed & used)


def _looked_up(table: symtable.SymbolTable) -> set[str]:
    """Names that code may look up in its module: a class looks there for what it has not yet."""
    found = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_referenced() and (table.get_type() != "function" or symbol.is_global())
    }
    return found.union(*(_looked_up(child) for child in table.get_children()))


def _bound(tree: ast.AST) -> set[str]:
    """Names bound at the top level of a test, not inside its functions and classes."""
    bound: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        bound |= _bound(node)
    return bound
