"""Rows that hold conversations: brought to the columns that all rows have, and made prompts again.

A prompt may be a list of messages with `role` and `content`, as trl's data sets have it. A system
prompt goes to the column `system`, a single message of a user to `problem`; of several turns,
`problem` is their text, by which rows are told apart, and the turns themselves are kept in
`TURNS`. Also here: the `context` that a problem is about. Knows nothing of files or models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner.language.thinking import CLOSE_THINK, OPEN_THINK

TURNS = "prompt_messages"  # the column with the turns of a longer conversation
_Message = dict[str, str]
_ROLES = ("system", "developer", "user", "assistant", "tool")
_ASKING = ("user", "tool")  # who may speak last in a prompt
_CALLS = ("tool_calls", "function_call")


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a row to the columns `problem`, `completion` and `system`, with its context added.

    Where there is no `problem`, `prompt` stands for it; where there is no `prompt` either,
    `messages` is both prompt and completion. A `context` goes behind the problem, or behind what
    the user said last, unless it is in it. Raises ValueError for what is no conversation, or none
    that asks for an answer, and for a context that is no text.
    """
    made = dict(row)
    if "problem" not in made and "prompt" not in made and _listed(made.get("messages")):
        messages = check_messages(made.pop("messages"), "messages")
        if messages[-1]["role"] == "assistant":
            made.setdefault("completion", messages.pop()["content"])
        made["prompt"] = messages
    if "problem" not in made and "prompt" in made:
        made["problem"] = made.pop("prompt")
    context = _context_of(made.get("context"))
    if _listed(made.get("problem")):
        messages = check_messages(made["problem"], "the prompt")
        asking = [one for one in messages if one["role"] == "user"][-1:]
        for message in asking:  # a tool may have answered since
            message["content"] = _with_context(message["content"], context)
        made |= _asked(messages)
    elif isinstance(made.get("problem"), str) and TURNS not in made:
        made["problem"] = _with_context(made["problem"], context)
    if _listed(made.get("completion")):
        messages = check_messages(made["completion"], "the completion")
        if [message["role"] for message in messages] != ["assistant"]:
            raise ValueError("the completion is not one message of the assistant")
        made["completion"] = messages[0]["content"]
    if made.get("system") is not None and not isinstance(made["system"], str):
        raise ValueError(f"system is {made['system']!r:.40}, not text")
    return made


def _context_of(value: Any) -> str:
    """The text that a problem is about, of one or several passages; raises ValueError for none."""
    passages = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(passages, (list, tuple)) or not all(isinstance(p, str) for p in passages):
        raise ValueError(f"the context is {value!r:.40}: expected a text, or a list of texts")
    return "\n\n".join(passages).strip()


def _with_context(problem: str, context: str) -> str:
    return problem if context in problem else f"{problem}\n\n{context}"


def _listed(value: Any) -> bool:
    """Whether a value is meant as messages: a list, or (as Arrow has it) lists by field."""
    return isinstance(value, (list, tuple)) or (isinstance(value, Mapping) and "role" in value)


def check_messages(value: Any, what: str) -> list[_Message]:
    """The messages in `value`, with role and content alone; raises ValueError where it has none."""
    if isinstance(value, Mapping):
        roles, contents = value.get("role"), value.get("content")
        if not isinstance(roles, list) or not isinstance(contents, list):
            value = [value]
        else:
            value = _turned(value, what)
    messages, last = [], len(value)
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            has = ", ".join(map(str, message)) if isinstance(message, Mapping) else ""
            given = f"it has: {has}" if has else f"it is {message!r:.40}"
            raise ValueError(f"{what}: message {number} needs role and content; {given}")
        role, content = message["role"], message["content"]
        if role not in _ROLES:
            raise ValueError(
                f"{what}: message {number} has the role {role!r:.40}, none of {', '.join(_ROLES)}"
            )
        if called := next((name for name in _CALLS if message.get(name)), None):
            raise ValueError(
                f"{what}: message {number} has {called}, and of messages the content alone is "
                "read: write the call there, as the policy is to write it"
            )
        if not isinstance(content, str):
            raise ValueError(f"{what}: the content of message {number} is not text")
        messages.append({"role": role, "content": _whole(message) if number == last else content})
    if not messages:
        raise ValueError(f"{what} has no message")
    return messages


def _turned(fields: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Messages of lists by field. A list of another length than the roles is none of theirs."""
    count, contents = len(fields["role"]), len(fields["content"])
    if count != contents:
        raise ValueError(f"{what} has {count} roles and {contents} contents")
    lists = {n: own for n, own in fields.items() if isinstance(own, list) and len(own) == count}
    return [{name: own[turn] for name, own in lists.items()} for turn in range(count)]


def _whole(message: Mapping[str, Any]) -> str:
    """The content of the last message, behind the assistant's reasoning where that is apart.

    It may be what is learned. Of earlier turns chat templates leave it out.
    """
    content, thoughts = str(message["content"]), message.get("reasoning_content")
    if message["role"] != "assistant" or not isinstance(thoughts, str) or not thoughts.strip():
        return content
    return content if OPEN_THINK in content else f"{OPEN_THINK}{thoughts}{CLOSE_THINK}{content}"


def _asked(messages: list[_Message]) -> dict[str, Any]:
    """The columns that a prompt's messages become."""
    columns: dict[str, Any] = {}
    if messages[0]["role"] == "system":
        columns["system"] = messages[0]["content"]
        messages = messages[1:]
    if not messages or messages[-1]["role"] not in _ASKING:
        last = messages[-1]["role"] if messages else "system"
        raise ValueError(f"the prompt asks nothing: its last message is of the {last}")
    if len(messages) == 1 and messages[0]["role"] == "user":
        return columns | {"problem": messages[0]["content"]}
    text = "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)
    return columns | {"problem": text, TURNS: messages}


def chat_of(turns: Sequence[_Message], system: str | None, request: str = "") -> list[_Message]:
    """The chat of a prompt: system prompt, turns, and a `request` at the end of the last one."""
    last = dict(turns[-1])
    last["content"] += request
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *map(dict, turns[:-1]), last]
