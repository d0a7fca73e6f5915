"""A typed function with a docstring becomes a tool: its schema, its arguments, its text."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pytest
import torch
from pydantic import Field
from transformers.utils import get_json_schema

import rl_reasoner
from rl_reasoner import Tool, tool
from rl_reasoner.errors import UserError
from rl_reasoner.tools import BUILT_IN, load_tool, load_tools
from rl_reasoner.tools.tool import ArgumentsMismatch, as_text, failure, shorten


def search(query: str, count: int = 3) -> str:
    """Search the notes by words.

    Args:
        query: The words to look for,
            all of them.
        count: How many notes to show.
    """
    return "\n".join([query] * count)


def convert(
    value: float, units: list[str], exact: bool, how: Literal["up", "down"] = "up"
) -> float:
    """Convert a value.

    It is only an example.

    Args:
        value: What to convert.
        units: From which unit to which.
        exact: Whether to round.
        how: In which direction.

    Returns:
        The value.
    """
    return value * len(units)


def table(rows: dict[str, int], names: list[int] | None = None) -> dict[str, int]:
    """Add up.

    Args:
        rows: Values by name.
        names: Which to take.
    """
    return rows


@pytest.mark.parametrize("fn", [search, convert, table])
def test_a_schema_has_what_transformers_reads_out_of_the_same_function(
    fn: Callable[..., Any],
) -> None:
    ours, theirs = tool(fn).schema["function"], get_json_schema(fn)["function"]
    assert (ours["name"], ours["description"]) == (theirs["name"], theirs["description"])
    assert ours["parameters"]["required"] == theirs["parameters"]["required"]
    for name, about in theirs["parameters"]["properties"].items():
        own = ours["parameters"]["properties"][name]
        assert own["description"] == about["description"]
        assert own.get("enum") == about.get("enum")
        if "nullable" not in about:  # ours says anyOf and null, as JSON Schema does
            assert own["type"] == about["type"]


def test_a_description_may_stand_in_the_annotation() -> None:
    def wait(
        minutes: Annotated[int, Field(description="How many.", ge=1)],
        why: Annotated[str, Field(description="Not this one.")] = "",
    ) -> str:
        """Wait.

        Args:
            why: For what.
        """
        return "done"

    properties = tool(wait).parameters["properties"]
    assert properties["minutes"] == {"description": "How many.", "minimum": 1, "type": "integer"}
    assert properties["why"]["description"] == "For what."


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python's own will do")
def test_a_typed_dict_of_pythons_own_is_told() -> None:
    class Place(TypedDict):
        name: str

    def go(to: Place) -> str:
        """Go there."""
        return "there"

    with pytest.raises(UserError, match=r"'to' .*TypedDict has to be that of typing_extensions"):
        tool(go)


def test_the_decorated_function_is_still_one() -> None:
    made = tool(search)
    assert made("x", count=2) == "x\nx"
    assert get_json_schema(made) == get_json_schema(search)  # as trl asks for it
    assert (made.name, made.__doc__) == ("search", search.__doc__)
    assert isinstance(made, Tool)


def test_arguments_are_checked_and_made_what_the_function_takes() -> None:
    made = tool(convert)
    given = {"value": "2.5", "units": ["a", "b"], "exact": True}
    assert made.check(given) == {"value": 2.5, "units": ["a", "b"], "exact": True}
    assert made.result(made.check(given)) == "5.0"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "query: Field required"),
        ({"query": 3}, "query: Input should be a valid string"),
        ({"query": "a", "count": "many"}, "count: Input should be a valid integer"),
        ({"query": "a", "top": 3}, "top: Extra inputs are not permitted"),
        ({"query": None, "count": []}, "count: "),
    ],
)
def test_arguments_that_do_not_fit_are_told_by_name(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentsMismatch) as caught:
        tool(search).check(arguments)
    assert str(caught.value).startswith("search: ")
    assert told in str(caught.value)


def test_parameters_may_be_called_as_anything() -> None:
    @tool
    def odd(schema: str, model_config: int, copy: str = "", _x: int = 0) -> str:
        """Take names that pydantic has itself."""
        return f"{schema}{model_config}{copy}{_x}"

    arguments = {"schema": "a", "model_config": 1, "copy": "b", "_x": 2}
    assert odd.result(odd.check(arguments)) == "a1b2"
    assert list(odd.parameters["properties"]) == list(arguments)


def test_a_coroutine_is_a_tool() -> None:
    @tool
    async def later(word: str) -> str:
        """Say a word, and by which loop."""
        loops.append(asyncio.get_running_loop())
        return word * 2

    loops: list[asyncio.AbstractEventLoop] = []
    for _ in range(2):
        assert later.result(later.check({"word": "ab"})) == "abab"
    assert loops[0] is loops[1]


def no_docstring(query: str) -> str:
    return query


def no_annotation(query) -> str:  # type: ignore[no-untyped-def]
    """Say it."""
    return str(query)


def strange(query: Tool) -> str:
    """Say it."""
    return str(query)


def unknown_type(query: "Missing") -> str:  # type: ignore[name-defined]  # noqa: F821
    """Say it."""
    return str(query)


def many(*words: str) -> str:
    """Say it."""
    return "".join(words)


@pytest.mark.parametrize(
    ("fn", "told"),
    [
        (no_docstring, "tool 'no_docstring' has no docstring"),
        (no_annotation, "tool 'no_annotation': parameter 'query' has no annotation"),
        (strange, "tool 'strange': parameter 'query' is "),
        (unknown_type, "tool 'unknown_type': its annotations cannot be read"),
        (many, "tool 'many': a policy gives arguments by name"),
        (3, "a tool is a function: this is int"),
        (time.sleep, "tool 'sleep' does not say its parameters"),
    ],
)
def test_a_function_that_is_no_tool_is_refused_by_name(fn: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        tool(fn)
    assert told in str(caught.value)
    assert len(caught.value.messages) == 1


def test_what_a_tool_returns_becomes_text() -> None:
    assert as_text("é") == "é"
    assert as_text({"é": [1, 2.5, None, True]}) == '{"é": [1, 2.5, null, true]}'
    for number in (np.float32(2.5), np.array(2.5), torch.tensor(2.5)):
        assert as_text(number) == "2.5"
    assert as_text({"a": np.arange(3), "b": [torch.ones(2)], "c": np.bool_(True)}) == (
        '{"a": [0, 1, 2], "b": [[1.0, 1.0]], "c": true}'
    )
    for value in (
        None,
        b"x",
        object(),
        {1, 2},
        {(1,): 2},
        np.float32,
        [np.datetime64("2026-01-01")],
    ):
        with pytest.raises(TypeError, match=r"^it returned \w+, not text"):
            as_text(value)
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(TypeError):
        as_text(circle)


def test_a_failure_is_one_bounded_line_whatever_the_exception() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert failure("t", KeyError("a")) == "t failed: KeyError: 'a'"
    assert failure("t", SystemExit()) == "t failed: SystemExit"
    assert "cannot be shown" in failure("t", Silent())
    assert len(failure("t", ValueError("x" * 100_000))) < 600


def test_a_long_text_keeps_both_ends_and_says_what_is_missing() -> None:
    text, cut = shorten("a" * 50 + "b" * 950, 100)
    assert cut
    assert text == "a" * 50 + "\n[900 characters cut]\n" + "b" * 50
    assert shorten("ab", 2) == ("ab", False)


# ----------------------------------------------------------------------------- finding tools

FILE = '''
from rl_reasoner import tool

@tool
def shout(text: str) -> str:
    """Shout."""
    return text.upper()

def plain(text: str) -> str:
    """Say."""
    return text
'''


def test_tools_are_found_by_name_in_files_and_as_functions(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    given = ["calculator", f"{file}:shout", f"{file}:plain", search]
    assert [found.name for found in load_tools(given)] == ["calculator", "shout", "plain", "search"]
    assert [load_tool(name).name for name in BUILT_IN] == list(BUILT_IN)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("calculater", "unknown tool 'calculater'. Did you mean 'calculator'?"),
        ("{folder}/mine.py:shuot", "Did you mean 'shout'?"),
        ("{folder}/mine.py", "names no function: write"),
        ("{folder}/yours.py:shout", "there is no file"),
        ("{folder}/broken.py:shout", "tool '{folder}/broken.py:shout': syntax error at"),
        ("{folder}/script.py:shout", "cannot import {folder}/script.py: SystemExit: 0"),
        ("no.such.module:f", "tool 'no.such.module:f': cannot import no.such.module"),
    ],
)
def test_a_reference_that_names_no_tool_is_one_clear_line(
    reference: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("def shout(:")
    (tmp_path / "script.py").write_text("import sys\n\nsys.exit(0)\n")
    with pytest.raises(UserError) as caught:
        load_tool(reference.format(folder=tmp_path))
    assert told.format(folder=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two tools are called 'search'"):
        load_tools([search, tool(search)])


def test_tools_load_no_torch() -> None:
    modules = ["tool", "python", "calculator", "formats", "runner", "apart"]
    code = f"import sys\nfor m in {modules}: __import__('rl_reasoner.tools.' + m)\n"
    code += "from rl_reasoner import tool, Tool\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"tool", "Tool"} <= set(rl_reasoner.__all__)
