"""Flags that reach into mappings with free names, and into the list of a mix."""

from typing import Any

import pytest

from rl_reasoner import Recipe
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.flags import apply_flags


def changed(*flags: str, **fields: Any) -> dict[str, Any]:
    """A recipe, dumped, with flags applied."""
    options = {"numbers": 1, "tags": ["<a>"]}
    plain: dict[str, Any] = {
        "policy": "scratch:moe-tiny",
        "data": {"path": "x.jsonl", "columns": {"problem": "q"}},
        "rewards": {"math_answer": {"weight": 3, "options": options}},
        "stages": [{"kind": "grpo", "trainer": {"seed": 1}}],
    }
    return apply_flags(Recipe.model_validate({**plain, **fields}), flags).model_dump(mode="json")


def test_names_of_kinds_of_data_are_plain_names_elsewhere() -> None:
    columns = changed("--data.columns.task", "kind")["data"]["columns"]
    assert columns == {"problem": "q", "task": "kind"}
    for name in ("path", "task", "stage", "mix", "data"):
        made = changed(f"--rewards.math_answer.options.{name}", "p", f"--trainer.{name}", "p")
        options = made["rewards"]["math_answer"]["options"]
        assert options == {"numbers": 1, "tags": ["<a>"], name: "p"}
        assert made["stages"][0]["trainer"] == {"seed": 1, name: "p"}


def test_another_kind_of_data_still_replaces_a_source_of_a_mix() -> None:
    mix = [{"path": "x", "config": "main"}, {"path": "y"}]
    made = changed("--data.mix.0.task", "modular", data=mix)["data"]["mix"]
    assert made[0]["task"] == "modular" and "config" not in made[0] and made[1]["path"] == "y"


@pytest.mark.parametrize(
    ("flag", "mix", "says"),
    [
        ("data.mix.5.share", True, "data.mix has no part 5: it has 1, counted from 0"),
        ("data.mix.0.share", False, "data.mix has no part 0: it is not a list"),
        ("data.mix.x.share", True, "the recipe has no such field"),
    ],
)
def test_a_source_that_a_mix_does_not_have(flag: str, mix: bool, says: str) -> None:
    fields = {"data": [{"path": "x", "share": 1}]} if mix else {}
    with pytest.raises(UserError) as caught:
        changed(f"--{flag}", "3", **fields)
    assert len(caught.value.messages) == 1 and f"--{flag}" in caught.value.messages[0]
    assert says in caught.value.messages[0]


def test_names_with_dots_are_whole() -> None:
    own = {"rewards": {"my.py:fn": {"options": {"a": 1}}}, "evals": {"sets": ["a.jsonl", "a"]}}
    flags = ["--rewards.my.py:fn.weight", "2", "--rewards.my.py:fn.options.b", "2"]
    flags += ["--evals.overrides.a.jsonl.template", "plain", "--rewards.dir/new.py:g", "0.5"]
    made = changed(*flags, "--evals.overrides.a.max_tokens", "5", **own)
    fn = made["rewards"]["my.py:fn"]
    assert (fn["weight"], fn["options"]) == (2.0, {"a": 1, "b": 2})
    assert made["rewards"]["dir/new.py:g"]["weight"] == 0.5
    overrides = made["evals"]["overrides"]
    assert (overrides["a.jsonl"]["template"], overrides["a"]["max_tokens"]) == ("plain", 5)


def test_what_may_be_meant_is_never_the_flag_itself() -> None:
    rewards = {"math_answer": {"options": {"a": {"b": 1}}}}
    with pytest.raises(UserError) as caught:
        changed("--rewards.math_answer.options.a.b", "2", rewards=rewards)
    [message] = caught.value.messages
    assert message.count("options.a.b") == 1


def test_a_weight_by_flag_keeps_the_rewards_other_settings() -> None:
    made = changed("--rewards.math_answer", "2", "--rewards.boxed", "0.5")["rewards"]
    assert made["math_answer"]["weight"] == 2.0 and made["math_answer"]["options"]["numbers"] == 1
    assert made["boxed"]["weight"] == 0.5
    made = changed("--rewards", "{boxed: 3}", "--rewards.boxed.options.x", "1")["rewards"]
    assert (made["boxed"]["weight"], made["boxed"]["options"]) == (3.0, {"x": 1})
    with pytest.raises(UserError, match="rewards is a list by another flag"):
        changed("--rewards", "[boxed]", "--rewards.boxed.weight", "2")
