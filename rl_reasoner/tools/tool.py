"""What a tool is: `@tool`, the class `Tool` it makes, what a call says and what comes of it.

A tool is a typed function with a docstring that a policy may call in the middle of a completion.
Its JSON schema is derived from annotations and docstring, its arguments are checked before the
call, and what it returns becomes text. Finding tools, running them and reading calls out of
completions are the other modules' work; a leaf of the room.
"""

import asyncio
import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticUndefined

from rl_reasoner.errors import UserError, error_text

ToolOutcome = Literal["ok", "malformed", "failed", "timeout", "died", "cut"]
"""How a call ended: as it should; it could not be read, or its arguments do not fit; the tool
raised, or returned no text; it was late; its process ended; it returned more than is shown."""
_MOST_ERRORS = 5
_MOST_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class ToolLimits:
    """What one call may take: seconds, MiB of memory, characters of its result that are shown."""

    timeout_s: float = 10.0
    memory_mb: int = 1024
    output_chars: int = 4000

    def __post_init__(self) -> None:
        for name in ("timeout_s", "memory_mb", "output_chars"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} of a tool must be above 0, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a policy wrote: the tool's name, and its arguments by name, unchecked."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """A call that cannot be read; `message` says why, in words for the policy."""

    message: str


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What the policy is shown of a call, how the call ended, and the seconds that it took."""

    text: str
    kind: ToolOutcome
    seconds: float


class ArgumentsMismatch(ValueError):
    """The arguments of a call do not fit its tool; says which, and what was expected."""


class Tool:
    """A function that a policy may call; made by `@tool`.

    `parameters` is the JSON schema of its arguments and `schema` that of the whole function, in the
    form that chat templates take in `tools=`. Called, it is the function itself; trl takes it, too.
    """

    bounded = False
    """Whether a call takes little time and memory whatever its arguments: it is run in place."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        if not inspect.isroutine(fn):
            raise UserError(f"a tool is a function: this is {type(fn).__name__} ({fn!r:.60})")
        functools.update_wrapper(self, fn)  # name, docstring, annotations: all that trl reads
        self.fn = fn
        self.name: str = fn.__name__
        self._loop: asyncio.Runner | None = None
        self.description, about = _documented(fn)
        self._names, self._model = _arguments_of(fn, about)
        self.parameters = _plain_schema(self._model.model_json_schema())

    @property
    def schema(self) -> dict[str, Any]:
        """Name, description and parameters as chat templates take them."""
        function = {
            "name": self.name, "description": self.description, "parameters": self.parameters
        }  # fmt: skip
        return {"type": "function", "function": function}

    @property
    def body(self) -> str | None:
        """The one parameter without a default, where it is a text: a call may consist of it."""
        required = self.parameters.get("required", [])
        if len(required) != 1 or self.parameters["properties"][required[0]].get("type") != "string":
            return None
        return str(required[0])

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function takes them. Raises `ArgumentsMismatch`."""
        try:
            checked = self._model.model_validate(dict(arguments))
        except ValidationError as error:
            raise ArgumentsMismatch(f"{self.name}: {_mistakes(error)}") from None
        return {self._names[field]: getattr(checked, field) for field in checked.model_fields_set}

    def result(self, arguments: Mapping[str, Any]) -> str:
        """What the function returns for checked arguments, as text.

        Raises what the function raises, and TypeError where it returns what is no text.
        """
        value = self.fn(**arguments)
        if inspect.iscoroutine(value):
            # One loop for all calls: the clients of a tool are bound to the loop they began in.
            self._loop = self._loop or asyncio.Runner()
            value = self._loop.run(value)
        return as_text(value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.name}>"


def tool(fn: Callable[..., Any]) -> Tool:
    """Turn a typed function with a docstring into a `Tool` (see there).

    Descriptions of parameters are taken from the docstring's section `Args:`, else from a `Field`
    that annotates them. Raises `UserError` where the docstring, or a parameter's annotation, is
    missing or says nothing that JSON can.
    """
    return Tool(fn)


def as_text(value: object) -> str:
    """What a tool returned as text: a str as it is; numbers, lists and dicts as JSON.

    Numbers and arrays of numpy and torch are as Python's own.
    """
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bytes):
        raise TypeError(f"it returned {type(value).__name__}, not text")
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain_numbers)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"it returned {type(value).__name__}, not text: {error}") from None


def _plain_numbers(value: Any) -> Any:
    """A number or an array of a library's as Python's own; raises TypeError for anything else."""
    if type(value).__module__.partition(".")[0] not in ("numpy", "torch"):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    try:
        return value.tolist()
    except (AttributeError, RuntimeError) as error:  # a dtype, a tensor without data
        raise TypeError(str(error)) from None


def failure(name: str, error: BaseException) -> str:
    """What the policy is told of an exception of the tool `name`."""
    message = error_text(error)
    if len(message) > _MOST_MESSAGE:
        message = f"{message[:_MOST_MESSAGE]}…"
    return f"{name} failed: {type(error).__name__}{': ' if message else ''}{message}"


def shorten(text: str, most: int) -> tuple[str, bool]:
    """The beginning and the end of `text`, `most` characters of it, and whether any were cut.

    Between them stands how many were.
    """
    if len(text) <= most:
        return text, False
    first = most - most // 2
    last = text[len(text) - most // 2 :]
    return f"{text[:first]}\n[{len(text) - most:,} characters cut]\n{last}", True


# ---------------------------------------------------------------------------------- the schema


def _documented(fn: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description of a function, and of its parameters, from its docstring."""
    text = inspect.getdoc(fn) or ""
    if not text.strip():
        raise UserError(
            f"tool {fn.__name__!r} has no docstring: the policy reads there what it is for"
        )
    head, _, rest = f"\n{text}\n".partition("\nArgs:\n")
    for section in ("\nReturns:\n", "\nRaises:\n"):
        head = head.partition(section)[0]
        rest = rest.partition(section)[0]
    about: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(rest).splitlines():
        before, colon, after = line.partition(":")
        if colon and not line[:1].isspace() and before.partition(" ")[0].isidentifier():
            name = before.partition(" ")[0]
            about[name] = after.strip()
        elif name and line.strip():
            about[name] += f" {line.strip()}"
    return head.strip(), about


def _arguments_of(
    fn: Callable[..., Any], about: Mapping[str, str]
) -> tuple[dict[str, str], type[BaseModel]]:
    """The model that checks a function's arguments, and the parameter of each of its fields.

    Fields have names of their own, for a parameter may be called as a method of models is.
    """
    owner = f"tool {fn.__name__!r}"
    try:
        hints = typing.get_type_hints(fn, include_extras=True)
    except Exception as error:  # an annotation may be any expression
        raise UserError(f"{owner}: its annotations cannot be read: {error}") from error
    names: dict[str, str] = {}
    fields: dict[str, Any] = {}
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError as error:  # some functions in C
        raise UserError(f"{owner} does not say its parameters: wrap it into a def") from error
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UserError(f"{owner}: a policy gives arguments by name, {parameter} takes none")
        if parameter.name not in hints:
            raise UserError(
                f"{owner}: parameter {parameter.name!r} has no annotation: write "
                f"{parameter.name}: str, or the type that it has"
            )
        required = parameter.default is parameter.empty
        told: dict[str, Any] = {}
        if parameter.name in about:  # None would take the annotation's own away
            told["description"] = about[parameter.name]
        field = Field(
            default=PydanticUndefined if required else parameter.default,
            alias=parameter.name,
            **told,
        )
        hint, key = hints[parameter.name], f"argument_{len(names)}"
        try:  # alone first: the message names the parameter
            create_model("One", value=(hint, ...)).model_json_schema()
        except (PydanticUserError, TypeError) as error:
            shown = inspect.formatannotation(hint)
            raise UserError(
                f"{owner}: parameter {parameter.name!r} is {shown}: {_fitting(error)}"
            ) from error
        names[key], fields[key] = parameter.name, (hint, field)
    return names, create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)


def _fitting(error: Exception) -> str:
    """What an annotation may be, where pydantic has refused one with `error`."""
    if getattr(error, "code", None) == "typed-dict-version":
        return "before Python 3.12 a TypedDict has to be that of typing_extensions"
    return "a policy can give texts, numbers, lists, dicts and what pydantic makes of them"


def _plain_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without what is not the policy's concern: titles, defaults, closed objects."""
    schema.pop("title", None)
    schema.pop("additionalProperties", None)
    for about in schema.setdefault("properties", {}).values():
        about.pop("title", None)
        about.pop("default", None)
    return schema


def _mistakes(error: ValidationError) -> str:
    """What does not fit, in words, the first few of it."""
    told = [
        f"{'.'.join(map(str, one['loc'])) or 'arguments'}: {one['msg']}"
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    more = f"; and {len(told) - _MOST_ERRORS} more" if len(told) > _MOST_ERRORS else ""
    return "; ".join(each[:_MOST_MESSAGE] for each in told[:_MOST_ERRORS]) + more
