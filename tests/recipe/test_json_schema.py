"""The JSON schema of YAML recipes: in step with the recipe, true to what the loader takes."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from rl_reasoner.cli import main
from rl_reasoner.recipe.json_schema import SCHEMA_FILE, recipe_schema, schema_text
from rl_reasoner.recipe.load import load_recipe, shipped_recipes
from rl_reasoner.recipe.recipe import Recipe, RecipeLoader
from support.places import ROOT

SHORT: dict[str, Any] = {
    "policy": "scratch:dense-tiny",
    "data": "problems.jsonl",
    "rewards": {"math_answer": 1, "boxed": {"weight": 0.1}},
    "stages": [{"kind": "grpo", "optim": {"lr": 1e-4, "betas": [0.9, 0.99]}}],
}


def valid(recipe: Any) -> bool:
    return jsonschema.Draft202012Validator(recipe_schema()).is_valid(recipe)


def read(text: str) -> Any:
    return yaml.load(text, Loader=RecipeLoader)  # noqa: S506 (it is a SafeLoader)


def test_the_shipped_schema_is_that_of_the_recipe() -> None:
    shipped = (ROOT / "recipes" / SCHEMA_FILE).read_text(encoding="utf-8")
    assert shipped == schema_text(), "write it anew: make schema"


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("name", shipped_recipes())
def test_it_takes_every_recipe_written_out_in_full(name: str) -> None:
    assert valid(read(load_recipe(name).to_yaml()))


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda f: f.name)
def test_it_takes_the_shipped_yaml_which_names_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert valid(read(text))
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")


def test_it_takes_the_short_forms() -> None:
    assert valid(SHORT)
    assert valid({**SHORT, "policy": {"source": "x", "lora": {"rank": 8}}})
    assert valid({**SHORT, "data": {"task": "modular", "levels": [2, 3]}})
    assert valid({**SHORT, "data": ["a.jsonl", {"task": "modular"}]})


@pytest.mark.parametrize(
    "short",
    [
        {"rewards": ["math_answer"]},
        {"tools": ["calculator", "python"]},
        {"tools": "calculator"},
        {"tools": {"use": ["calculator"], "calls": 2}},
        {"environment": "guess"},
        {"environment": {"use": "guess", "turns": 4}},
        {"controls": "random_reward", "evals": {"sets": ["modular_test"]}},
        {"policy": {"source": "x", "lora": {"targets": "q_proj,v_proj"}}},
        {"stages": [{"kind": "grpo", "vllm": read("correction: off")}]},
    ],
    ids=str,
)
def test_it_takes_each_short_form_that_the_recipe_takes(short: dict[str, Any]) -> None:
    Recipe.model_validate({**SHORT, **short})
    assert valid({**SHORT, **short})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rewads",), {}),
        (("stages",), [{"kind": "ppo"}]),
        (("stages",), [{"steps": 10}]),
        (("stages", 0, "optim", "lr"), -1.0),
        (("stages", 0, "optim", "schedule"), "sine"),
        (("stages", 0, "gruop"), {"size": 8}),
        (("rewards", "math_answer"), "much"),
        (("data",), 7),
        (("data",), {"task": "modular", "path": "x.jsonl"}),
        (("policy",), None),
        (("rewards",), [{"math_answer": 1}]),
        (("tools",), []),
        (("tools",), {"use": ["calculator"], "call": 2}),
        (("environment",), ["guess"]),
        (("controls",), "a_third"),
        (("run",), {"seed": 2**32}),
    ],
)
def test_it_refuses_what_the_loader_refuses(path: tuple[str | int, ...], value: Any) -> None:
    recipe = copy.deepcopy(SHORT)
    holder: Any = recipe
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    assert not valid(recipe)
    with pytest.raises(ValidationError):
        Recipe.model_validate(recipe)


def test_described_are_the_fields_that_the_recipe_describes() -> None:
    group = recipe_schema()["$defs"]["Group"]["properties"]
    assert group["size"]["description"].startswith("completions per prompt")
    assert group["size"]["minimum"] == 2


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "schema"]) == 0
    assert capsys.readouterr().out == schema_text()


def test_a_copied_recipe_still_finds_it(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert main(["copy", "quickstart.yaml", str(target)]) == 0
    named = target.read_text(encoding="utf-8").splitlines()[0].partition("$schema=")[2]
    assert json.loads((tmp_path / named).read_text(encoding="utf-8"))["$defs"]
