"""Old names of recipe fields: they work in every form, and each is pointed out once."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.errors import OldName, UserError
from rl_reasoner.recipe import old_names
from rl_reasoner.recipe.flags import apply_flags
from rl_reasoner.recipe.load import load_recipe, read_recipe
from rl_reasoner.recipe.recipe import Recipe

OLD = """
policy: scratch:dense-tiny
data: {task: modular}
rewards: {least: 1}
stages:
- {kind: sft, use: mine, optim: {schedule: linear, final: 0.2}}
- {kind: sample, least: 0.5}
- kind: grpo
  group: {schedule: true}
  vllm: {most: 3}
evals:
  asked: {use: {max_tokens: 9}}
"""
NEW = {
    "use:": "reuse:",
    "final:": "final_lr_share:",
    "{kind: sample, least:": "{kind: sample, min_score:",
    "group: {schedule:": "group: {curriculum:",
    "most:": "clip_max:",
    "asked: {reuse:": "overrides: {use:",
}


def written(folder: Path, text: str) -> str:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return str(folder / "r.yaml")


def renamed(text: str) -> str:
    for old, new in NEW.items():
        text = text.replace(old, new)
    return text


@pytest.fixture(autouse=True)
def unsaid() -> Iterator[None]:
    """Each test as in a process of its own, in which nothing was pointed out yet."""
    before = set(old_names._noted)
    old_names._noted.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield
    old_names._noted.clear()
    old_names._noted.update(before)


def test_a_file_with_old_names_is_the_same_recipe_and_each_is_pointed_out_once(
    tmp_path: Path,
) -> None:
    new = load_recipe(written(tmp_path, renamed(OLD)))
    with pytest.warns(OldName) as noted:
        for _ in range(2):
            assert load_recipe(written(tmp_path, OLD)) == new
    assert sorted(str(warning.message) for warning in noted) == [
        "the recipe field evals.asked is now called evals.overrides",
        "the recipe field group.schedule is now called group.curriculum",
        "the recipe field least is now called min_score",
        "the recipe field optim.final is now called optim.final_lr_share",
        "the recipe field use is now called reuse",
        "the recipe field vllm.most is now called vllm.clip_max",
    ]
    assert new.stages[0].reuse == "mine"
    assert list(new.rewards) == ["least"] and list(new.evals.overrides) == ["use"]


def test_the_python_form_takes_them() -> None:
    stage = {"kind": "grpo", "data": {"task": "modular"}, "group": {"schedule": True}}
    with pytest.warns(OldName, match=r"group\.curriculum"):
        recipe = Recipe(policy="x", rewards={"boxed": 1}, stages=[stage])
    assert recipe.to_yaml().count("curriculum: true") == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--sft.use", "there"),
        ("--stages.0.use", "there"),
        ("--least", "0.25"),
        ("--sft.optim.final", "0.5"),
        ("--group.schedule", "false"),
        ("--grpo.vllm.most", "4"),
        ("--evals.asked.use.max_tokens", "3"),
    ],
)
def test_flags_take_them(flag: str, value: str, tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, renamed(OLD)))
    new = flag
    for old, now in old_names.OLD_NAMES.items():
        new = ".".join(now if p == old else p for p in new.lstrip("-").split("."))
    new = new.replace("overrides.reuse", "overrides.use")
    with pytest.warns(OldName, match=f"{flag} is now called --{new}"):
        changed = apply_flags(recipe, (flag, value))
    assert changed == apply_flags(recipe, (f"--{new}", value)) != recipe


def test_a_mistake_by_an_old_name_has_its_line(tmp_path: Path) -> None:
    source = written(tmp_path, OLD.replace("most: 3", "most: 0"))
    with pytest.warns(OldName), pytest.raises(UserError, match=r":10: stages.2.vllm.clip_max"):
        load_recipe(source)
    _, where = read_recipe(written(tmp_path, OLD), ("--least", "0.3"))
    assert where(("evals", "overrides")).endswith(":12")
    assert where(("stages", 1, "min_score")) == "--least 0.3"


def test_both_names_at_once_are_a_mistake(tmp_path: Path) -> None:
    both = OLD.replace("most: 3", "most: 3, clip_max: 2")
    with pytest.warns(OldName), pytest.raises(UserError, match=r"old name of vllm\.clip_max"):
        load_recipe(written(tmp_path, both))


@pytest.mark.parametrize("typo", ["mst", "clip_maks"])
def test_a_misspelt_name_old_or_new_gets_the_new_one(typo: str, tmp_path: Path) -> None:
    text = renamed(OLD)
    with pytest.raises(UserError, match="Did you mean 'clip_max'"):
        load_recipe(written(tmp_path, text.replace("clip_max:", f"{typo}:")))
    recipe = load_recipe(written(tmp_path, text))
    with pytest.raises(UserError, match=r"Did you mean '--\S*vllm\.clip_max'"):
        apply_flags(recipe, (f"--vllm.{typo}", "2"))


def test_the_command_line_notes_an_old_name(tmp_path: Path) -> None:
    written(tmp_path, OLD)
    argv = [sys.executable, "-m", "rl_reasoner.cli", "train", "r.yaml", "--until", "none"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown stage" in done.stderr
    assert done.stderr.count("note: the recipe field use is now called reuse\n") == 1
    assert "Warning" not in done.stderr


def test_what_a_run_wrote_down_is_read_without_a_word(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "recipe.yaml").write_text(OLD, encoding="utf-8")
    (tmp_path / "lock.json").write_text("{}", encoding="utf-8")
    assert load_recipe(str(tmp_path / "recipe.yaml")).evals.overrides
    assert not recwarn.list


def test_facts_of_an_older_run_are_compared_by_the_names_of_now() -> None:
    facts: dict[str, Any] = {"kind": "grpo", "group": {"schedule": False}, "files": {"use": "x"}}
    now = {"kind": "grpo", "group": {"curriculum": False}, "files": {"use": "x"}}
    assert old_names.current_stage(facts) == now
