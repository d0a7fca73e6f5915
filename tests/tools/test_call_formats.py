"""Calls are found as they end, read without eval, and answered in the form's own way."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rl_reasoner import tool
from rl_reasoner.errors import UserError
from rl_reasoner.tools import load_tool
from rl_reasoner.tools.formats import (
    FORMATS,
    MOST_CALL_CHARS,
    CallFormat,
    HermesFormat,
    LlamaFormat,
    call_format,
    format_of_template,
)
from rl_reasoner.tools.tool import MalformedCall, ToolCall


@tool
def search(query: str, count: int = 3) -> str:
    """Search."""
    return query * count


@tool
def move(row: int, column: int) -> str:
    """Move."""
    return f"{row}{column}"


TOOLS = [load_tool("python"), load_tool("calculator"), search, move]
EVERY = [FORMATS[name](TOOLS) for name in FORMATS]
every_format = pytest.mark.parametrize("form", EVERY, ids=lambda form: form.name)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
calls = st.one_of(
    st.text().map(lambda code: ToolCall("python", {"code": code})),
    st.text().map(lambda text: ToolCall("calculator", {"expression": text})),
    st.text().map(lambda text: ToolCall("search", {"query": text})),
    st.tuples(st.text(), values).map(lambda v: ToolCall("search", {"query": v[0], "count": v[1]})),
    st.dictionaries(st.sampled_from(["row", "column"]), values).map(lambda a: ToolCall("move", a)),
)
MARKED = [
    "</tool_call>", "<tool_call>", "```\n", "</python>", '"}', "}", "{", "\\", "</tool_response>",
    "\n", "<python>", "```python\n", "é", "a < b", "</output>",
]  # fmt: skip
marked = st.lists(st.sampled_from(MARKED), max_size=6).map("".join)
marked_calls = marked.map(lambda code: ToolCall("python", {"code": code}))


def written_to_its_end(form: CallFormat, before: str, written: str, step: int) -> str:
    """What a policy has written when the format says that it has just finished a call."""
    text = before
    for at in range(0, len(written), step):
        piece = written[at : at + step]
        text += piece
        if form.ended(text, len(piece)):
            return text
    raise AssertionError(f"no call ended in {text!r}")


@every_format
@settings(max_examples=150)
@given(call=calls | marked_calls, step=st.integers(1, 7))
def test_what_is_written_is_read(form: CallFormat, call: ToolCall, step: int) -> None:
    try:
        written = form.write(call)
    except ValueError:
        assume(False)
    thought = "" if isinstance(form, LlamaFormat) else "I think 2 < 3, so:\n"
    text = written_to_its_end(form, thought, written, step)
    assert len(text) >= len(thought + written) - step
    assert form.read(text) == call


@every_format
def test_a_policy_that_calls_again_is_read_again(form: CallFormat) -> None:
    for code in ("1+1", "print('}')\nx = {'a': 1}"):
        call = ToolCall("python", {"code": code})
        text = written_to_its_end(form, "", form.write(call), 3)
        assert form.read(text) == call


@every_format
@given(text=st.text() | marked, new=st.integers(0, 5))
def test_any_text_is_a_call_or_a_reason_or_neither(form: CallFormat, text: str, new: int) -> None:
    if form.ended(text, new):
        assert form.last in text[-new:]  # tokens without it are not looked at
        found = form.read(text)
        assert isinstance(found, ToolCall) or found.message.startswith("malformed call: ")


@pytest.mark.parametrize(
    ("name", "text", "call"),
    [
        (
            "hermes",
            'Let me see.\n<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n'
            "</tool_call>",
            ToolCall("python", {"code": "print(1)"}),
        ),
        (
            "llama3",
            '<|python_tag|>{"name": "search", "parameters": {"query": "a}b", "count": 2}}',
            ToolCall("search", {"query": "a}b", "count": 2}),
        ),
        (
            "fences",
            "First:\n```text\nno call\n```\nnow\n```python\nx = 1\n\nx\n```",
            ToolCall("python", {"code": "x = 1\n\nx"}),
        ),
        ("fences", "```py\n1\n```", ToolCall("python", {"code": "1"})),
        ("fences", "```Python\n1\n```", ToolCall("python", {"code": "1"})),
        ("fences", "```a = 1``` is\n```python\n1\n```", ToolCall("python", {"code": "1"})),
        ("fences", "````python\n1\n```\n2\n````", ToolCall("python", {"code": "1\n```\n2"})),
        (
            "fences",
            '```move\n{"row": 1, "column": 2}\n```',
            ToolCall("move", {"row": 1, "column": 2}),
        ),
        ("tags", "<python>print(1)</python>", ToolCall("python", {"code": "print(1)"})),
        ("tags", "<calculator>\n3*4\n</calculator>", ToolCall("calculator", {"expression": "3*4"})),
        ("tags", "<search>old maps</search>", ToolCall("search", {"query": "old maps"})),
    ],
)
def test_calls_as_policies_write_them(name: str, text: str, call: ToolCall) -> None:
    form = call_format(name, TOOLS)
    whole = written_to_its_end(form, "", text, 1)
    assert whole == text
    assert form.read(text) == call
    assert form.ended(f"{text}\n", 4)  # the last token held more than the mark
    assert form.read(f"{text}\n") == call


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '{"name": "python"}</tool_call>'),
        ("hermes", "<tool_call> and so on"),
        ("llama3", 'I call {"name": "python", "parameters": {}}'),
        ("llama3", '{"name": "python", "parameters": {"code": "}}"'),
        ("fences", "```text\n1\n```"),
        ("fences", "```\n1\n```"),
        ("fences", "I write ```python``` here\n```python\n1"),
        ("fences", "```output\n4\n```"),
        ("tags", "1 < 2</python>"),
        ("tags", "<python>1</calculator>"),
        ("tags", "<think>1</think>"),
    ],
)
def test_what_is_no_call_ends_none(name: str, text: str) -> None:
    form = call_format(name, TOOLS)
    assert not any(form.ended(text[:end], 1) for end in range(len(text) + 1))


@pytest.mark.parametrize(
    ("name", "inside", "told"),
    [
        ("hermes", "{'name': 'python'}", "not JSON: "),
        ("hermes", "", "not JSON: "),
        ("hermes", '["python"]', 'expected {"name": ..., "arguments": {...}}'),
        ("hermes", '{"arguments": {}}', 'expected {"name": ...'),
        ("hermes", '{"name": "pyton", "arguments": {}}', "Did you mean 'python'?"),
        ("hermes", '{"name": ["python"]}', "unknown tool"),
        ("hermes", '{"name": "python", "arguments": "x"}', "the arguments are not a JSON object"),
        ("hermes", '{"name": "python", "arguments": {"code": "a\nb"}}', "not JSON: "),
        ("hermes", "[" * 100_000, "more than 20,000"),
        ("hermes", '{"name": "python", "arguments": {"code": ' + "1" * 5000 + "}}", "5,000 digits"),
        ("hermes", '{"name": "python", "arguments": ' + "[" * 90 + "]" * 90 + "}", "nested"),
        ("llama3", "{name: python}", "not JSON: "),
        ("llama3", '{"name": "mov", "parameters": {}}', "Did you mean 'move'?"),
        ("tags", "1, 2", "move takes its arguments as a JSON object"),
        ("tags", "[1]", "move takes its arguments as a JSON object"),
        ("fences", "row 1", "move takes its arguments as a JSON object"),
        ("fences", "x" * (MOST_CALL_CHARS + 1), "more than 20,000"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(name: str, inside: str, told: str) -> None:
    around = {
        "hermes": "<tool_call>{}</tool_call>",
        "llama3": "{}",
        "tags": "<move>{}</move>",
        "fences": "```move\n{}\n```",
    }[name]
    text = around.replace("{}", inside)
    form = call_format(name, TOOLS)
    assert form.ended(text, 3)
    found = form.read(text)
    assert isinstance(found, MalformedCall)
    assert found.message.startswith("malformed call: ")
    assert told in found.message
    assert len(found.message) < 400


@every_format
@given(text=marked | st.text())
def test_no_result_ends_its_own_frame(form: CallFormat, text: str) -> None:
    _, shown, after = form.turn(text)
    closing = after.strip().split("\n")[0]
    assert not closing or closing not in shown
    if not any(mark in text for mark in ("</tool_response>", "</output>")):
        assert shown == text


def test_results_have_the_frame_of_their_format() -> None:
    shown = {form.name: "".join(form.turn("4")) for form in EVERY}
    assert shown == {
        "hermes": "\n<tool_response>\n4\n</tool_response>\n",
        "llama3": "\n4\n",
        "fences": "\n```output\n4\n```\n",
        "tags": "\n<output>\n4\n</output>\n",
    }
    fenced = "".join(call_format("fences", TOOLS).turn("```\n4"))
    assert fenced == "\n````output\n```\n4\n````\n"


# ------------------------------------------------------------------------- chat templates

QWEN = """{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}{{- '<|im_start|>assistant\\n' }}{# <tool_call> #}"""
LLAMA = """{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (message.content | tojson) }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content }}
    {%- endif %}{{- '<|eot_id|>' }}
{%- endfor %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"""
PLAIN = """{%- for message in messages if message.role != 'tool' %}
    {{- message.content }}
{%- endfor %}"""


def renders(template: str) -> Callable[[list[dict[str, str]]], str]:
    """What renders messages by a template, as transformers does: its JSON escapes no HTML."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    compiled = environment.from_string(template)

    def render(messages: list[dict[str, str]]) -> str:
        return str(compiled.render(messages=messages))

    return render


def test_a_chat_template_gives_the_turns_around_a_result() -> None:
    placed = HermesFormat(TOOLS).in_template(renders(QWEN))
    before, text, after = placed.turn("4")
    assert before == "<|im_end|>\n<|im_start|>user\n<tool_response>\n"
    assert (text, after) == ("4", "\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    quoted = LlamaFormat(TOOLS).in_template(renders(LLAMA))
    before, text, after = quoted.turn('a\n"b"')
    assert before == "<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"
    assert (text, after[:10]) == ('"a\\n\\"b\\""', "<|eot_id|>")
    call: dict[str, Any] = {"code": "1"}
    assert placed.read(placed.write(ToolCall("python", call))) == ToolCall("python", call)


def test_a_template_without_tools_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="does not show the results of tools"):
        HermesFormat(TOOLS).in_template(renders(PLAIN))
    with pytest.raises(UserError, match="takes no messages of tools"):
        HermesFormat(TOOLS).in_template(renders("{{ messages[9].content }}"))


def test_a_templates_own_format_is_known() -> None:
    assert format_of_template(QWEN) == "hermes"
    assert format_of_template(f"{QWEN}<tool_call>\n<function=NAME>\n<parameter=KEY>") is None
    assert format_of_template(f"{QWEN}<tool_call>NAME\n<arg_key>KEY</arg_key>") is None
    assert format_of_template(LLAMA) == "llama3"
    assert format_of_template(PLAIN) is None


def test_an_unknown_format_has_its_nearest_name() -> None:
    with pytest.raises(UserError, match="Did you mean 'hermes'"):
        call_format("hermez", TOOLS)


@every_format
@given(
    pairs=st.lists(st.tuples(marked_calls | calls, st.text() | marked), min_size=1, max_size=3),
    room=st.integers(0, 30),
)
def test_results_are_found_in_a_written_completion(
    form: CallFormat, pairs: list[tuple[ToolCall, str]], room: int
) -> None:
    """As an sft row holds them: each result behind its call, and nothing that only looks so."""
    text, results = "", []
    for call, result in pairs:
        try:
            text += form.write(call)
        except ValueError:
            assume(False)
        if form.name == "llama3":  # without a template a line's end is all that ends a result
            result = " ".join(result.split())
        start = len(text)
        text += "".join(form.turn(result))
        results.append((start, len(text)))
    assert form.given(f"{text}so done") == results
    assert form.given(f"no call{form.turn('42').before}42 is none") == []
    first, last = results[-1]
    cut = min(first + len(form.turn(result).before) + room, last - 1)
    if form.name != "llama3":
        assert form.given(text[:cut]) == [*results[:-1], (first, cut)]


def test_results_with_long_fences_are_found_and_marks_in_a_calls_text_are_its_own() -> None:
    fences, hermes = (call_format(name, TOOLS) for name in ("fences", "hermes"))
    call = fences.write(ToolCall("python", {"code": "print(1)"}))
    turn = fences.turn("`" * 9)
    text = f"{call}{turn.before}{turn.text}{turn.after}so"
    assert fences.given(text) == [(len(call), len(text) - 2)]
    held = ToolCall("python", {"code": 'print("<tool_call>")'})
    assert hermes.read(hermes.write(held)) == held
