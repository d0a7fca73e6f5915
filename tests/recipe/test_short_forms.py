"""What a recipe takes in a short form, and how it refuses what only looks like one."""

from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.flags import apply_flags
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage

TEXT = """policy: scratch:dense-tiny
data: {task: modular}
rewards: [math_answer]
stages:
  - kind: grpo
"""


def read(folder: Path, text: str) -> Recipe:
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(str(folder / "r.yaml"))


def with_lora(targets: Any) -> Recipe:
    return apply_flags(load_recipe("quickstart"), ["--policy.lora.targets", targets])


@pytest.mark.parametrize("entry", ["{math_answer: 1}", "[math_answer]", "1", "null"])
def test_a_list_of_rewards_has_names_alone(tmp_path: Path, entry: str) -> None:
    said = r"expected a list of names, or a mapping such as \{math_answer: 1, length: 0.2\}"
    with pytest.raises(UserError, match=said) as in_file:
        read(tmp_path, TEXT.replace("[math_answer]", f"\n  - {entry}"))
    assert "r.yaml:3: rewards: " in str(in_file.value)
    with pytest.raises(UserError, match=f"--rewards.*{said}"):
        apply_flags(load_recipe("quickstart"), ["--rewards", f"[{entry}]"])


def test_off_in_yaml_is_off(tmp_path: Path) -> None:
    made = read(tmp_path, f"{TEXT}    vllm: {{correction: off}}\n")
    [stage] = made.stages
    assert isinstance(stage, GrpoStage) and stage.vllm is not None
    assert stage.vllm.correction == "off"
    assert read(tmp_path, made.to_yaml()) == made


def test_sampling_ahead_is_gone_and_runs_that_kept_it_off_are_read(tmp_path: Path) -> None:
    plain = read(tmp_path, f"{TEXT}run: {{seed: 3}}\n")
    assert read(tmp_path, f"{TEXT}run: {{seed: 3, overlap: off}}\n") == plain
    with pytest.raises(UserError, match=r"run\.overlap: .* is gone .*: leave the field out"):
        read(tmp_path, f"{TEXT}run: {{overlap: one_step}}\n")


def test_a_seed_is_one_that_every_generator_takes(tmp_path: Path) -> None:
    largest = 2**32 - 1
    assert read(tmp_path, f"{TEXT}run: {{seed: {largest}}}\n").run.seed == largest
    with pytest.raises(UserError, match=r"r\.yaml:6: run\.seed: .*4294967295"):
        read(tmp_path, f"{TEXT}run: {{seed: {largest + 1}}}\n")


@pytest.mark.parametrize("text", ["q_proj,v_proj", "[q_proj, v_proj]", "q_proj, v_proj"])
def test_layers_of_an_adapter_are_names_however_they_are_listed(text: str) -> None:
    lora = with_lora(text).policy.lora
    assert lora is not None and lora.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize("pattern", [".*q_proj", "model.layers...self_attn.q_proj"])
def test_a_pattern_of_layers_stays_one(pattern: str) -> None:
    lora = with_lora(pattern).policy.lora
    assert lora is not None and lora.targets == pattern


@pytest.mark.parametrize(
    ("trls", "ours"), [("num_generations", "group.size"), ("learning_rate", "optim.lr")]
)
def test_a_field_by_its_name_in_trl_is_answered_with_ours(
    trls: str, ours: str, tmp_path: Path
) -> None:
    said = rf"r\.yaml:6: .*{trls}: unknown field\. Did you mean '{ours}'\?"
    with pytest.raises(UserError, match=said):
        read(tmp_path, f"{TEXT}    {trls}: 4\n")
