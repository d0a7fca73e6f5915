"""What stands in a chain of thought that never ends, is no answer to any reward."""

import json
from typing import Any

import pytest

from rl_reasoner.dataset.code_rows import continue_program
from rl_reasoner.judging.rubric import read_rubric
from rl_reasoner.judging.verdicts import Points, read_points
from rl_reasoner.language.thinking import (
    answer_part,
    behind_chain,
    chain_of,
    ends_within_chain,
    has_chain,
)
from rl_reasoner.rewards.code_tests import program_of
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.types import Rollout

DRAFT = "Perhaps {}? No, that cannot be"
BEGINS = ("<think>", "<thinking>", "[THINK]", "◁think▷", "<|begin_of_thought|>", "Sure. <think>")
ENDS = ("</think>", "</thinking>", "[/THINK]", "◁/think▷", "<|end_of_thought|>", "</think>")
BLOCK = "\n```python\nx = 1\n```\n"
ANSWERS: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("math_answer", {}, {"answer": "5"}, "\\boxed{5}"),
    ("math_answer", {"tags": ["<ans>", "</ans>"]}, {"answer": "5"}, "<ans>5</ans>"),
    ("countdown", {}, {"numbers": [4, 6], "target": 24}, "<answer>4*6</answer>"),
    ("instructions", {}, {"instructions": [{"name": "keyword", "word": "x", "exactly": 1}]}, "x"),
]


@pytest.mark.parametrize(("begin", "end"), zip(BEGINS, ENDS, strict=True))
@pytest.mark.parametrize(("name", "options", "columns", "right"), ANSWERS)
def test_an_answer_is_paid_behind_the_reasoning_alone(
    name: str, options: dict[str, Any], columns: dict[str, Any], right: str, begin: str, end: str
) -> None:
    judge, draft = load_reward(name, options), begin + DRAFT.format(right)
    assert judge(draft, **columns).value == 0.0
    assert judge(f"{draft}{end}\nI give up", **columns).value == 0.0
    assert judge(f"{draft}{end}\n{right}", **columns).value == 1.0


@pytest.mark.parametrize(("begin", "end"), zip(BEGINS, ENDS, strict=True))
@pytest.mark.parametrize("extract", ["last", "first", "only", "any"])
def test_a_program_stands_behind_the_reasoning(extract: str, begin: str, end: str) -> None:
    draft = begin + DRAFT.format(BLOCK)
    assert program_of(draft, extract) is None
    assert program_of(draft + end + BLOCK.replace("1", "2"), extract) == "x = 2"


@pytest.mark.parametrize(("begin", "end"), zip(BEGINS, ENDS, strict=True))
def test_a_chain_is_one_with_something_in_it(begin: str, end: str) -> None:
    assert has_chain(f"{begin}so{end}5") and has_chain(f"{begin}so")
    assert has_chain(f"so{end}5"), "the prompt begins it"
    if begin == "<think>":
        assert not has_chain(f"{begin}\n\n{end}5"), "as models write it that do not think"
    assert not has_chain("<think></think>5</think>"), "it answers at once"
    assert not has_chain("5") and not has_chain(f"It stands in `{begin}`: 5")


def test_a_prompt_that_begins_the_chain_ends_within_it() -> None:
    assert ends_within_chain("<|im_start|>assistant\n<think>\n")
    assert ends_within_chain("Q: 1\nA: [THINK]")
    for prompt in ("", "Think in <think> tags.", "A: <think>\n\n</think>\n\n", "Q: 1\nA:"):
        assert not ends_within_chain(prompt)


def test_the_reason_names_reasoning_that_never_ends() -> None:
    said = load_reward("countdown")("<think>4*6", numbers=[4, 6], target=24).reason
    assert said == "no final answer: the reasoning never ends"


def test_tags_are_read_up_to_a_chat_marker() -> None:
    judge = load_reward("math_answer", {"tags": ["<ans>", "</ans>"]})
    assert judge("<ans>4</ans><|im_end|>\n<ans>5</ans>", answer="4").value == 1.0


def test_a_draft_in_a_channel_of_reasoning_is_no_program() -> None:
    draft = f"<|channel|>analysis<|message|>so{BLOCK}no<|end|>"
    assert program_of(draft, "last") is None
    final = "<|start|>assistant<|channel|>final<|message|>" + BLOCK.replace("1", "2")
    assert program_of(draft + final, "last") == "x = 2"


@pytest.mark.parametrize(
    "text",
    [
        '{"points": 4, "reason": "its \\"<think>\\" never closes"}',
        "The tag `<think>` begins a chain.",
        f'{BLOCK}```python\ns = """\n<thinking>\n"""\n```',
        "~~~\n[THINK]\n~~~",
        "It writes '<think>' first.",
    ],
)
def test_a_tag_that_is_spoken_of_begins_no_chain(text: str) -> None:
    assert behind_chain(text) == text == answer_part(text)
    assert behind_chain(f"<think>so</think>{text}") == text
    assert behind_chain(f"<think>so</think>{text}\n<think>But wait") is None


WRITES = [
    "def f(s):\n    return '<reason>' + s + '</reason>'",
    'def f(s):\n    return s.replace("<think>", "").replace("</think>", "")',
    "def f():\n    return ET.fromstring('<Thought>x</Thought>')",
    "def f():\n    return '<html><thinking>x</thinking></html>'",
]


@pytest.mark.parametrize("program", WRITES)
@pytest.mark.parametrize("before", ["", "<think>so</think>\n", "so</think>\n"])
@pytest.mark.parametrize("extract", ["last", "any"])
def test_a_program_that_writes_marks_is_read(program: str, before: str, extract: str) -> None:
    text = f"{before}```python\n{program}\n```"
    assert program_of(text, extract) == program
    assert program_of(f"<think>Perhaps\n{text}", "last") in (None, program if before else None)


@pytest.mark.parametrize(
    "prose",
    [
        "No <think> block is needed.",
        "(<think>) marks a chain.",
        "The <reason> field is XML, with </reason> at its end.",
        "It removes <analysis> tags.",
        "<analysis>A fine day.</analysis>",
    ],
)
def test_prose_that_names_a_tag_is_an_answer(prose: str) -> None:
    assert answer_part(prose) == prose
    assert program_of(f"{prose}{BLOCK}", "last") == program_of(f"{BLOCK}{prose}", "last") == "x = 1"


def test_a_judge_may_say_that_a_chain_never_closes() -> None:
    rubric = read_rubric(None)
    points = {item.name: 1 for item in rubric.items}
    for said in ("It opens a <think> block and never closes it.\n", ""):
        reply = said + json.dumps({"reason": "no </reasoning> at the end", "points": points})
        found = read_points(Rollout(reply, 9, False), rubric)
        assert isinstance(found, Points) and found.points == points


@pytest.mark.parametrize(
    ("tags", "completion"),
    [
        (["<ans>", "</ans>"], "<ans>3</ans> <reason>1+2</reason>"),
        (["<analysis>", "</analysis>"], "<analysis>3</analysis>"),
        (
            ["<|begin_of_solution|>", "<|end_of_solution|>"],
            "<|begin_of_solution|>3<|end_of_solution|>",
        ),
    ],
)
def test_tags_of_ones_own_are_no_marks_of_a_chain(tags: list[str], completion: str) -> None:
    assert load_reward("math_answer", {"tags": tags})(completion, answer="3").value == 1.0


@pytest.mark.parametrize("behind", ["\n<reasoning>4*6=24</reasoning>", " I skipped <think>."])
def test_what_follows_an_answer_does_not_take_it_back(behind: str) -> None:
    judge = load_reward("countdown")
    assert judge(f"<answer>4*6</answer>{behind}", numbers=[4, 6], target=24).value == 1.0


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("</think>", ""),
        ("```\n</think>\n```\n", "\n```\n" + "```\n</think>\n```\n" * 49_999),
        ("<think>", None),
        ("a <think>", "a <think>" * 50_000),
    ],
    ids=["ends", "in a block", "begins", "spoken of"],
)
def test_a_text_of_many_marks_is_read(text: str, read: str | None) -> None:
    assert behind_chain(text * 50_000) == read


@pytest.mark.parametrize(("begin", "end"), zip(BEGINS, ENDS, strict=True))
def test_the_chain_stands_between_any_tags(begin: str, end: str) -> None:
    assert chain_of(f"{begin}a b{end}c d") == "a b" == chain_of(f"a b{end}c d")
    assert chain_of(f"{begin}a b") == "a b"
    judge = load_reward("language", {"target": "zh"})
    assert judge(f"{begin}我们先算一下{end}The answer is here", prompt="?").value == 1.0


def test_a_program_is_continued_behind_any_reasoning() -> None:
    row = {"problem": "import math\n\n\ndef f(x):\n", "entry_point": "f"}
    for before, after in (("", ""), ("<answer>", "</answer>"), ("<answer>\n", "\n</answer>")):
        for code in ("    return x", "```python\n    return x\n```"):
            text = f"<thinking>Perhaps\n    return 0\n</thinking>{before}{code}{after}"
            program = program_of(continue_program(row, text), "last") or ""
            assert program.split() == ["import", "math", "def", "f(x):", "return", "x"], text
    unfinished = "<think>Perhaps\n```python\n    return 0\n```"
    assert continue_program(row, unfinished) == unfinished
