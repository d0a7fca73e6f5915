"""Prompts as lists of messages, system prompts, contexts: in training and evaluation alike."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rl_reasoner import evaluate, open_policy
from rl_reasoner.dataset.rows import lint, load_problems, load_rows
from rl_reasoner.dataset.templates import prompt_of, target_completion
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.train import train
from rl_reasoner.recipe.data import FileData
from rl_reasoner.recipe.recipe import Recipe
from support.commands import Cli, lines, stock
from support.tiny import grpo, recipe, rows, sft

CHATTY = SimpleNamespace(chat_template="{{ messages }}")
PLAIN = SimpleNamespace(chat_template=None)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [message("user", "1+1=")]
TOLD = [message("system", "Be brief."), *ASKED]
CALLS = [{"function": {"name": "add", "arguments": {"a": 1, "b": 1}}}]
LONG = [*ASKED, message("assistant", "2"), message("user", "and 1 more?")]


def one(**row: Any) -> dict[str, Any]:
    good, problems = lint([row], "x")
    assert problems == []
    return good[0]


def chat_policy(folder: Path, template: str = TEMPLATE) -> str:
    """A tiny policy with a chat template, in a folder."""
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.tokenizer.chat_template = template
    policy.save(folder / "chatty")
    return str(folder / "chatty")


@pytest.mark.parametrize("name", ["problem", "prompt"])
def test_a_list_of_messages_is_the_chat_that_it_says(name: str) -> None:
    for messages in (ASKED, TOLD, LONG):
        row = one(**{name: messages}, answer="2")
        assert prompt_of(row, "auto", CHATTY) == messages
        assert one(**row) == row  # read again, as from a data set of a run
    assert one(**{name: TOLD}, answer="2")["problem"] == "1+1="


def test_turns_are_boxed_at_their_end_and_are_no_text() -> None:
    row = one(prompt=LONG, answer="3")
    boxed = prompt_of(row, "boxed", CHATTY)
    assert isinstance(boxed, list) and [m["content"] for m in boxed[:-1]] == ["1+1=", "2"]
    assert boxed[-1]["content"].startswith("and 1 more?\nPlease reason")
    for template, said in (("plain", "makes a text"), ("auto", "no chat template")):
        with pytest.raises(UserError, match=said):
            prompt_of(row, template, PLAIN)
    assert prompt_of(one(prompt=ASKED, answer="2"), "plain", PLAIN) == "1+1="


def test_completions_and_whole_conversations_are_learned() -> None:
    said = [message("assistant", "2")]
    for row in (one(prompt=ASKED, completion=said), one(messages=[*ASKED, *said])):
        assert target_completion(row) == "2" and prompt_of(row, "auto", CHATTY) == ASKED
    kept = {"problem": "q", "answer": "1", "messages": [*ASKED, *said]}  # as NuminaMath has it
    assert one(**kept) == kept


def test_reasoning_beside_the_content_of_what_is_learned_is_learned() -> None:
    """As servers and data sets of R1's completions have it."""
    apart = {"role": "assistant", "content": "2", "reasoning_content": "1 and 1."}
    thought = "<think>1 and 1.</think>2"
    for row in (one(prompt=ASKED, completion=[apart]), one(messages=[*ASKED, apart])):
        assert target_completion(row) == thought
    for other in ({**apart, "content": thought}, {**message("assistant", "2"), "tool_calls": None}):
        assert target_completion(one(prompt=ASKED, completion=[other])) == other["content"]
    by_field = {name: [value] for name, value in apart.items()}  # as Arrow has it
    assert target_completion(one(prompt=ASKED, completion=by_field)) == thought
    for tools in ([], ["add"]):  # a list by field that is none of the messages'
        fields = {"role": ["user", "assistant"], "content": ["1+1=", "2"], "tools": tools}
        assert target_completion(one(messages=fields)) == "2"
    earlier = [*ASKED, apart, message("user", "and 1 more?")]
    assert prompt_of(one(prompt=earlier, answer="3"), "auto", CHATTY) == LONG


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (
            [{"from": "human", "value": "q"}],
            "message 1 needs role and content; it has: from, value",
        ),
        (["q"], "message 1 needs role and content; it is 'q'"),
        ([message("robot", "q")], "message 1 has the role 'robot'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "content of message 1 is not text"),
        ([*ASKED, message("assistant", "2")], "its last message is of the assistant"),
        ([], "the prompt has no message"),
        ({"role": ["user", "user"], "content": ["1+1="]}, "the prompt has 2 roles and 1 contents"),
        (
            [
                *ASKED,
                {"role": "assistant", "content": None, "tool_calls": CALLS},
                message("tool", "2"),
            ],
            "message 2 has tool_calls, and of messages the content alone is read",
        ),
    ],
)
def test_what_is_no_conversation_is_told_with_its_row(prompt: Any, says: str) -> None:
    good, [problem] = lint(
        [{"prompt": ASKED, "answer": "2"}, {"prompt": prompt, "answer": "1"}], "x"
    )
    assert len(good) == 1 and problem.startswith("x, row 2: ") and says in problem


def test_a_context_stays_with_its_problem() -> None:
    dolly = {"instruction": "Who?", "context": "Ann came.", "response": "Ann"}
    file = FileData(path="x", columns={"problem": "instruction", "completion": "response"})
    renamed = {ours: dolly[theirs] for ours, theirs in file.columns.items()}
    row = one(**renamed, context=dolly["context"])
    assert prompt_of(row, "plain", PLAIN) == "Who?\n\nAnn came."
    assert one(**row)["problem"] == row["problem"]  # once, however often it is read
    assert one(problem="q", answer="1", context="")["problem"] == "q"
    _, problems = lint([{"problem": "Who?", "context": c, "answer": c} for c in "AB"], "x")
    assert problems == []  # other problems, not one with two answers


def test_a_context_goes_behind_what_the_user_said_last() -> None:
    told = [*LONG, message("tool", "3")]
    for turns, at in ((LONG, 2), (told, 2)):
        row = one(prompt=turns, context="Ann came.", answer="3")
        said = [m["content"] for m in prompt_of(row, "auto", CHATTY)]  # type: ignore[index]
        assert said[at] == "and 1 more?\n\nAnn came." and said[:at] == ["1+1=", "2"]
        assert "Ann came." in row["problem"] and one(**row) == row
    assert turns[2]["content"] == "and 1 more?"  # the row given is left as it is
    row = one(prompt=TOLD, context="Ann came.", tests=["assert f()"])
    assert row["problem"].startswith("1+1=\n\nAnn came.") and row["system"] == "Be brief."


def test_a_context_of_several_passages_is_read_and_no_other_value_is() -> None:
    assert one(problem="q", answer="1", context=["a", "b"])["problem"] == "q\n\na\n\nb"
    assert one(problem="q", answer="1", context=[])["problem"] == "q"
    _, [said] = lint([{"problem": "q", "answer": "1", "context": {"title": ["a"]}}], "x")
    assert said == "x, row 1: the context is {'title': ['a']}: expected a text, or a list of texts"


def test_conversations_are_looked_through_for_overlaps(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(lines({"prompt": TOLD}, {"prompt": 3}))
    [row] = load_problems(FileData(path=str(tmp_path / "chats.jsonl")))
    assert row["problem"] == "1+1="


def test_training_and_evaluation_ask_as_the_messages_say(tmp_path: Path) -> None:
    asked = [[message("system", "Add."), message("user", f"{n}+1=")] for n in range(4)]
    data = [{"prompt": p, "answer": str(n + 1)} for n, p in enumerate(asked)]
    (tmp_path / "chats.jsonl").write_text(lines(*data))
    whole = [{"messages": [*p, message("assistant", "1")]} for p in asked]
    (tmp_path / "whole.jsonl").write_text(lines(*whole))
    policy = chat_policy(tmp_path)
    wanted = recipe(
        tmp_path,
        sft(steps=1, batch=2, data={"path": str(tmp_path / "whole.jsonl")}),
        grpo(steps=1, data={"path": str(tmp_path / "chats.jsonl")}),
        policy=policy,
        template="auto",
        evals={"sets": []},
    )
    train(wanted, quiet=True)
    kept = rows(tmp_path / "run" / "stages" / "2-grpo" / "rollouts.jsonl")
    prompts = {row["prompt"] for row in kept}
    assert prompts and all("Add." in prompt and "'role'" not in prompt for prompt in prompts)
    found = evaluate(policy, [str(tmp_path / "chats.jsonl")], max_tokens=4)
    example = found.manifest["policy"]["prompt_example"]
    tokenizer = open_policy(policy, device="cpu").tokenizer
    assert tokenizer.decode(example["token_ids"]) == "<system>Add.<user>0+1=<assistant>"


def test_a_system_prompt_is_the_first_message_where_rows_have_none(
    tmp_path: Path, cli: Cli
) -> None:
    stock(tmp_path)
    policy = chat_policy(tmp_path)
    evals = {"sets": ["modular_test"], "limit": 1, "max_tokens": 4}
    wanted = recipe(
        tmp_path, grpo(steps=1), policy=policy, template="auto", system="Be brief.", evals=evals
    )
    train(wanted, quiet=True)
    kept = rows(tmp_path / "run" / "stages" / "1-grpo" / "rollouts.jsonl")
    assert all("Be brief." in row["prompt"] for row in kept)
    for flags, first in (((), "Be brief."), (("--system", "No."), "No.")):
        out = tmp_path / "out.json"
        done = cli("eval", "run", "--sets", "modular_test", "--limit", "1", "--max-tokens", "4",
                   "--out", out, "--no-cache", *flags)  # fmt: skip
        assert done.code == 0, done.err
        asked = json.loads(out.read_text())["manifest"]["policy"]["prompt_example"]["prompt"]
        assert asked[0] == message("system", first)


def test_a_system_prompt_without_a_place_is_refused(tmp_path: Path) -> None:
    fields = recipe(tmp_path, grpo()).model_dump()
    with pytest.raises(ValueError, match="the template 'plain' makes plain text"):
        Recipe.model_validate({**fields, "system": "Be brief."})
    wanted = recipe(tmp_path, grpo(), template="auto", system="Be brief.", evals={"sets": []})
    with pytest.raises(UserError, match="no chat template, and a system prompt needs a chat"):
        train(wanted, quiet=True)
    assert load_rows(wanted.data_of(wanted.stages[0]))  # the rows themselves are sound


STRICT = (  # as Gemma's and Mistral's are
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}"
) + TEMPLATE


def test_a_chat_that_the_policys_template_refuses_is_told_before_the_run(tmp_path: Path) -> None:
    policy, twice = chat_policy(tmp_path, STRICT), [message("user", "Add."), *ASKED]
    asked = [{"prompt": one, "answer": "2"} for one in (ASKED, LONG, twice)]
    (tmp_path / "rows.jsonl").write_text(lines(*({**row, "completion": "2"} for row in asked)))
    data, fine = {"path": str(tmp_path / "rows.jsonl")}, {"task": "modular", "count": 8}
    roles = "row 3: the chat template of .* refuses a chat of user, user .'1.1='.: Conversation"
    for stage, system, said in (
        (grpo(steps=1, data=fine), "Be brief.", "a chat of system, user .*: System role not"),
        (grpo(steps=1, data=data), None, roles),
        (sft(steps=1, batch=2, data=data), None, roles),
    ):
        wanted = recipe(
            tmp_path, stage, policy=policy, template="auto", system=system, evals={"sets": []}
        )
        with pytest.raises(UserError, match=said):
            train(wanted, quiet=True)
        assert not (tmp_path / "run").exists(), "the same command may be given again"
