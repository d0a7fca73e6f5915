"""trl's `environment_factory` classes as environments: their public methods are tools.

As in trl (`GRPOTrainer(environment_factory=...)`, 1.16): `reset(**row)` gives nothing or a text
that follows the question, every other public method is a tool that the policy may call, and
`get_reward`, where there is one, is the reward. Here a turn of the policy is one call, or the end
of the episode.
"""

import inspect
import json
from collections.abc import Callable
from typing import Any

from rl_reasoner.environments.environment import SEED
from rl_reasoner.errors import UserError
from rl_reasoner.scoring.registry import function_of, import_module_of
from rl_reasoner.tools.formats import call_format
from rl_reasoner.tools.tool import (
    ArgumentsMismatch,
    MalformedCall,
    Tool,
    ToolCall,
    failure,
)
from rl_reasoner.types import Message, Row

_NOT_TOOLS = ("reset", "get_reward")


class TrlEnvironment:
    """An instance of a class that was written for trl's `environment_factory`."""

    code_options = ("factory",)
    """Options that name a user's code: what it answers depends on that, too."""

    def __init__(self, factory: str, call_format: str = "hermes", tell: bool = True) -> None:
        """The class as FILE.py:NAME or module:NAME, and the form of calls (docs/tools.md).

        `tell`: a system prompt says what may be called. Raises `UserError` where the class is not
        there.
        """
        module, _, name = factory.rpartition(":")
        if not module:
            raise UserError(f"factory {factory!r} names no class: write FILE.py:NAME")
        self._make = function_of(import_module_of(module, factory, "environment"), name, factory)
        self._format_name, self._tell = call_format, tell
        self._paid = 0.0

    async def reset(self, row: Row) -> list[Message]:
        """The row's question with what the environment adds to it."""
        self._own = self._make()
        methods = inspect.getmembers(self._own, predicate=inspect.ismethod)
        tools = [Tool(fn) for name, fn in methods if name[0] != "_" and name not in _NOT_TOOLS]
        self._tools = {tool.name: tool for tool in tools}
        self._format = call_format(self._format_name, tools)
        columns = {
            name: value
            for name, value in row.items()
            if name != SEED or _takes(self._own.reset, SEED)  # the data may have none
        }
        said = await _awaited(self._own.reset(**columns))
        asked = f"{row.get('problem', '')}{said or ''}"
        system = [{"role": "system", "content": self._manual()}] if self._tell else []
        return [*system, {"role": "user", "content": asked}]

    async def step(self, completion: str) -> tuple[list[Message], float | None, bool]:
        """The result of the call that the turn ends with; without one the episode is done."""
        text = completion.rstrip()
        if not self._format.ended(text, len(text) or 1):
            return [], await self._reward(), True
        call = self._format.read(text)
        result = call.message if isinstance(call, MalformedCall) else await self._called(call)
        return [{"role": "tool", "content": result}], await self._reward(), False

    async def _called(self, call: ToolCall) -> str:
        tool = self._tools[call.tool]
        try:
            value = await _awaited(tool(**tool.check(call.arguments)))
        except ArgumentsMismatch as error:
            return f"malformed call: {error}"
        except Exception as error:  # trl, too, hands a tool's exception to the policy
            return failure(tool.name, error)
        return value if isinstance(value, str) else json.dumps(value, default=str)

    async def _reward(self) -> float | None:
        """What the last step has added to the environment's own reward."""
        if not hasattr(self._own, "get_reward"):
            return None
        total = float(await _awaited(self._own.get_reward()))
        added, self._paid = total - self._paid, total
        return added

    def _manual(self) -> str:
        schemas = json.dumps([tool.schema["function"] for tool in self._tools.values()])
        calls = [ToolCall("NAME", {"ARGUMENT": "VALUE"})]
        if self._format.schemas is None:  # how a call is written depends on its tool
            calls = [
                ToolCall(tool.name, dict.fromkeys(tool.parameters.get("required", []), "VALUE"))
                for tool in self._tools.values()
            ]
        form = "\n".join(map(self._format.write, calls))
        may = "You may call these functions, one in a turn, and end the turn behind the call:"
        return f"{may}\n{schemas}\nA call is written so:\n{form}"


def _takes(method: Callable[..., Any], name: str) -> bool:
    """Whether a method takes an argument by this name."""
    parameters = inspect.signature(method).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
