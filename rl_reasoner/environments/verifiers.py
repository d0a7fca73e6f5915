"""A taskset of verifiers (its v1) as an environment of one turn; the package is an extra.

The row's `start` is the number of a task in the taskset; the prompt is the task's, and the reward
is the sum of the task's weighted rewards for a trace that holds the completion. Tasks whose rewards
need a runtime, a tool server or several turns need verifiers' own runner.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.trust import check_typed
from rl_reasoner.types import Message, Row
from rl_reasoner.version import install_extra


class VerifiersTaskset:
    """One task of a taskset of verifiers (https://github.com/PrimeIntellect-ai/verifiers)."""

    def __init__(self, taskset: str, config: Mapping[str, Any] | None = None) -> None:
        """The taskset by its id, as `load_taskset` of verifiers finds it, with its config.

        Raises `UserError` where the package is not there.
        """
        check_typed(taskset, "taskset of verifiers")
        try:
            from verifiers.v1 import trace
            from verifiers.v1.utils import loaders
        except ImportError as error:
            raise UserError(f"verifiers is not installed: {install_extra('verifiers')}") from error
        self._trace = trace
        kind = loaders.taskset_class(taskset)
        self._taskset = kind(loaders.taskset_config_type(taskset)(id=taskset, **(config or {})))
        self._task: Any = None

    def reset(self, row: Row) -> list[Message]:
        """The prompt of the task that the row names."""
        number = int(row["start"])
        found = next(islice(iter(self._taskset), number, None), None)
        if found is None:
            raise IndexError(f"the taskset has no task {number}")
        self._task = found
        data = found.data
        system = data.system_prompt
        asked = [{"role": "system", "content": system}] if system else []
        if isinstance(data.prompt, str):
            return [*asked, {"role": "user", "content": data.prompt}]
        return [*asked, *({"role": m.role, "content": m.content} for m in data.prompt or [])]

    async def step(self, completion: str) -> tuple[str, float, bool]:
        """The task's reward for the completion."""
        trace = self._traced(completion)
        await self._task.score(trace)
        return "", float(trace.reward), True

    def _traced(self, completion: str) -> Any:
        """The trace of an agent that has answered once."""
        from verifiers.v1.graph import MessageNode
        from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage

        data = self._task.data
        messages: list[Any] = []
        if data.system_prompt:
            messages.append(SystemMessage(content=data.system_prompt))
        asked = data.prompt
        messages += [UserMessage(content=asked)] if isinstance(asked, str) else asked or []
        messages.append(AssistantMessage(content=completion))
        nodes = [
            MessageNode(
                parent=place - 1 if place else None,
                message=message,
                sampled=place == len(messages) - 1,
            )
            for place, message in enumerate(messages)
        ]
        task = self._trace.TraceTask(type=type(self._task).__name__, data=data)
        agent = self._trace.AgentInfo(config=self._trace.AgentConfig())
        return self._trace.Trace(task=task, agent=agent, nodes=nodes)
