"""What a stage was made from: what makes it run again, and what does not."""

from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Recipe
from rl_reasoner.pipeline.lineage import (
    differences,
    facts_of,
    files_of_evaluation,
    files_of_options,
    hash_of,
    with_new_fields,
)
from rl_reasoner.recipe.recipe import Evals


def facts(recipe: Recipe) -> dict[str, Any]:
    """What the first stage of `recipe` is made from."""
    return facts_of(recipe, recipe.stages[0], {})


def one_stage(**changes: Any) -> Recipe:
    """A recipe with one sft stage."""
    data = {"task": "modular", "count": 20}
    fields: dict[str, Any] = {"policy": "scratch:dense-tiny", "stages": [{"kind": "sft"}]}
    return Recipe.model_validate({"data": data, **fields, **changes})


def test_the_scales_of_fp8_are_a_fact_where_it_is_trained_in() -> None:
    block, tensor = (
        one_stage(run={"precision": "fp8", "fp8": scale}) for scale in ("block", "tensor")
    )
    assert differences(facts(block), facts(tensor)) == "fp8 block -> tensor"
    plain = [facts(one_stage(run={"fp8": scale})) for scale in ("block", "tensor")]
    assert plain[0] == plain[1] and "fp8" not in plain[0]
    older = {name: value for name, value in facts(tensor).items() if name != "fp8"}
    assert with_new_fields(tensor, tensor.stages[0], older, facts(tensor)) == facts(tensor)


def test_of_a_run_as_policy_only_its_policy_counts(tmp_path: Path) -> None:
    run = tmp_path / "first"
    (run / "policy").mkdir(parents=True)
    for name in ("recipe.yaml", "report.html", "policy/config.json"):
        (run / name).write_text("{}")
    teacher = {"kind": "distill", "teacher": str(run)}
    for recipe in (one_stage(policy=str(run)), one_stage(stages=[teacher])):
        before, stage = facts(recipe), recipe.stages[0]
        for name in ("report.html", "checkpoint"):
            (run / name).write_text("written again")
        assert facts(recipe) == before
        # an older version hashed all of the folder
        older = {**before, "from": hash_of(run)}
        if recipe.policy.source != str(run):
            older = {**before, "teacher": hash_of(run)}
        assert with_new_fields(recipe, stage, older, before) == before
        (run / "report.html").write_text("and again")
        assert with_new_fields(recipe, stage, older, before) == older
        (run / "policy/config.json").write_text(str(before))
        assert facts(recipe) != before


def test_what_came_and_went_is_not_called_changed() -> None:
    before = {"files": {"a.jsonl": "1", "b.jsonl": "2"}, "code": {"x.py:f": "3"}}
    now = {"files": {"a.jsonl": "9"}, "code": {"x.py:f": "3", "x.py:g": "4"}}
    told = differences(before, now)
    assert told == "a.jsonl changed, b.jsonl left out, x.py:g added"


def test_what_a_users_code_is_of_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.py"
    sampling = {"kind": "filter", "reward": "own.py:mine"}
    for recipe, told in (
        (one_stage(tools=["own.py:look", "calculator"]), "own.py:look changed"),
        (one_stage(environment="own.py:Game"), "the environment's code changed"),
        (one_stage(stages=[sampling, {"kind": "sft"}]), "its reward's code changed"),
    ):
        file.write_text("A = 1\n", encoding="utf-8")
        before = facts(recipe)
        file.write_text("A = 22\n", encoding="utf-8")
        assert differences(before, facts(recipe)) == told


def test_code_that_an_older_version_hashed_otherwise_is_not_other_code(tmp_path: Path) -> None:
    (tmp_path / "aid.py").write_text("WORTH = 1\n")
    file = tmp_path / "mine.py"
    file.write_text("import aid\ndef f(completion): return aid.WORTH\n")
    named = f"{file}:f"
    paid = one_stage(rewards={named: 1.0}, stages=[{"kind": "grpo"}])
    sampled = {"kind": "sample", "name": "rows", "reward": named}
    judged = one_stage(stages=[sampled, {"kind": "sft", "data": {"stage": "rows"}}])
    for recipe, older in ((paid, {named: hash_of(file)}), (judged, hash_of(file))):
        stage, now = recipe.stages[0], facts(recipe)
        assert now["code"] != older
        assert with_new_fields(recipe, stage, {**now, "code": older}, now) == now
        for other in ({named: "other"}, "other", None):
            assert with_new_fields(recipe, stage, {**now, "code": other}, now) != now


def test_tools_without_code_of_the_users_stay_as_they_are() -> None:
    recipe = one_stage(tools={"use": ["calculator"]})
    now = facts(recipe)
    assert "code" not in now["tools"]
    assert with_new_fields(recipe, recipe.stages[0], now, now) == now


@pytest.mark.parametrize(
    ("option", "value", "file"),
    [
        ("function", "own.py:ask", "own.py"),
        ("function", "own.py:ask", "aid.py"),
        ("rubric", "rubric.yaml", "rubric.yaml"),
        ("policy", "judging", "judging/config.json"),
    ],
)
def test_what_options_of_a_judge_name_is_part_of_what_it_judges(
    option: str, value: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judging").mkdir()
    (tmp_path / "own.py").write_text("import aid\n")
    for name in ("aid.py", "rubric.yaml", "judging/config.json"):
        (tmp_path / name).write_text("{}")
    options = {option: value}
    sampled = {"kind": "filter", "reward": "judge", "reward_options": options}
    paid = {"judge": {"options": options}}
    for recipe in (
        one_stage(rewards=paid, stages=[{"kind": "grpo"}]),
        one_stage(stages=[sampled, {"kind": "sft"}]),
    ):
        before, evals = facts(recipe), Evals(reward="judge", reward_options=options)
        read = files_of_evaluation(recipe, evals)
        older = {name: fact for name, fact in before.items() if name != "named"}
        assert with_new_fields(recipe, recipe.stages[0], older, before) == before
        (tmp_path / file).write_text(f"{before}")
        assert differences(before, facts(recipe)) == f"{value} changed"
        assert files_of_evaluation(recipe, evals) != read


def test_the_class_behind_the_environment_of_trl_is_part_of_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "counter.py"
    file.write_text("A = 1\n")
    recipe = one_stage(
        environment={"use": "trl", "options": {"factory": "counter.py:Counter"}},
        rewards={"environment": 1.0},
        stages=[{"kind": "grpo"}],
    )
    before, read = facts(recipe), files_of_evaluation(recipe, recipe.evals)
    file.write_text("A = 22\n")
    assert differences(before, facts(recipe)) == "counter.py:Counter changed"
    assert files_of_evaluation(recipe, recipe.evals) != read
    file.unlink()
    assert "named" not in facts(recipe)


@pytest.mark.parametrize("text", ["~~~", "x" * 400, "a\0b", "."])
def test_options_of_other_rewards_are_texts_whatever_they_are_called(text: str) -> None:
    names = ("separator", "rubric", "policy", "function", "factory")
    assert files_of_options(dict.fromkeys(names, text)) == {}
