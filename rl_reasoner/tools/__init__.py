"""What a policy may call in the middle of a completion: tools, and finding them by name.

`tool` says what a tool is, `calculator` and `python` are the built-in ones, `formats` reads calls
out of completions and writes results behind them, `runner` runs calls and tells the policy what
came of them. May import the scoring of rewards, the sandbox and the ground; torch-free. Knows
nothing of tokens, trainers and engines.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.scoring.registry import function_of, import_module_of
from rl_reasoner.tools.tool import Tool

__all__ = ["BUILT_IN", "load_tool", "load_tools"]

BUILT_IN = ("calculator", "python")
"""Names of the tools that come with the package: each is in the module of its name."""


def load_tools(given: Iterable[str | Callable[..., Any]]) -> list[Tool]:
    """The tools of several references (`load_tool`).

    Raises `UserError`, also where two of them have one name.
    """
    tools = [load_tool(one) for one in given]
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two tools are called {name!r}: give one of them another name")
    return tools


def load_tool(given: str | Callable[..., Any]) -> Tool:
    """The tool that a reference names, or that a function is.

    A reference is the name of a built-in tool, "path/file.py:function" or
    "package.module:function". A function that is not decorated becomes a tool as it is. Raises
    `UserError`.
    """
    if not isinstance(given, str):
        return given if isinstance(given, Tool) else Tool(given)
    module, _, name = given.rpartition(":")
    if module:
        found = function_of(import_module_of(module, given, "tool"), name, given)
        return found if isinstance(found, Tool) else Tool(found)
    if given.endswith(".py"):
        raise UserError(f"tool {given!r} names no function: write {given}:NAME")
    if given not in BUILT_IN:
        raise unknown("tool", given, BUILT_IN)
    built_in: Tool = getattr(importlib.import_module(f"rl_reasoner.tools.{given}"), given)
    return built_in
