"""A recipe that trains several models: whom its card describes, and what is no gain of one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from rl_reasoner.audit import Audit
from rl_reasoner.publishing.card import write_card
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.report import write_report
from rl_reasoner.report.first_screen import gains
from rl_reasoner.report.run_data import read_run
from support.report_runs import Parsed, evaluation

ROWS = {"task": "modular", "count": 8}
ZERO = {"kind": "grpo", "name": "zero", "steps": 2}
STUDENT = {"kind": "distill", "policy": "me/student", "teacher": "zero", "steps": 3}
SAMPLES = {"kind": "sample", "name": "samples"}
BY_SAMPLES = {"kind": "sft", "policy": "me/student", "steps": 4, "data": {"stage": "samples"}}


def run_of(folder: Path, *stages: dict[str, Any]) -> Recipe:
    """A run of these stages, evaluated at both ends: its files, and its recipe."""
    fields = {"name": "chain", "policy": "me/base", "rewards": {"boxed": 1}}
    made = Recipe.model_validate(
        {**fields, "stages": [{"data": ROWS, **stage} for stage in stages]}
    )
    (folder / "evals").mkdir()
    (folder / "recipe.yaml").write_text(made.to_yaml(), encoding="utf-8")
    lock = {"rl_reasoner": "0.1", "policy": {"source": "me/base", "parameters": 543_000}}
    (folder / "lock.json").write_text(json.dumps(lock), encoding="utf-8")
    for name, greedy in (("before", 0.2), ("after", 0.8)):
        figures = json.dumps(evaluation(name, greedy, greedy, greedy))
        (folder / "evals" / f"{name}.json").write_text(figures, encoding="utf-8")
    return made


def card_of(folder: Path, *stages: dict[str, Any]) -> str:
    """The card of a run of these stages with twelve published weights."""
    made = run_of(folder, *stages)
    weights = folder / "model.safetensors"
    save_file({"one": np.zeros((2, 5), "float32"), "two": np.zeros(2, "float32")}, weights)
    return write_card(folder, made, Audit([]), "pub", [weights], records=True)


def front_of(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---")[1])
    return front


def test_a_student_is_described_by_its_own_policy_and_names_its_teacher(tmp_path: Path) -> None:
    card = card_of(tmp_path, ZERO, STUDENT)
    assert "`me/student`, 12 parameters, trained with" in card
    assert "recipe `chain`: distill (distill, 3 steps); seed 0. The teacher of stage" in card
    assert "is the policy of stage zero, which comes from `me/base`. Other stages of" in card
    assert "Other stages of the recipe: zero (grpo, 2 steps)." in card
    assert front_of(card)["base_model"] == "me/student"
    assert front_of(card)["tags"] == ["rl-reasoner", "reasoning", "distill"]


def test_two_models_are_no_gain_of_one(tmp_path: Path) -> None:
    card = card_of(tmp_path, ZERO, STUDENT)
    assert '"before" comes from `me/base`, the one "after", with which the run ends, from' in card
    assert "## What the gain is" not in card and "accuracy rose" not in card
    assert "20.0%" in card and "80.0%" in card, "the figures of both are there"


def test_a_report_and_the_terminal_compare_two_models_and_explain_no_gain(tmp_path: Path) -> None:
    run_of(tmp_path, ZERO, STUDENT)
    page = Parsed(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "How do two models compare?" in page and "What the difference is" in page
    assert "from `me/student`: their difference is not a gain of one model." in page
    assert "20.0%" in page and "80.0%" in page, "the figures of both are there"
    for claim in ("Did it get better?", "Skill or form?", "What the gain is", "accuracy rose"):
        assert claim not in page
    told = dict(gains(read_run(tmp_path)))
    assert told and all("not a gain of one model" in words for words in told.values())


def test_a_report_of_one_policy_explains_its_gain(tmp_path: Path) -> None:
    run_of(tmp_path, {"kind": "sft", "steps": 1}, ZERO)
    page = Parsed(write_report(tmp_path).read_text(encoding="utf-8")).text
    for claim in ("Did it get better?", "Skill or form?", "What the gain is", "accuracy rose"):
        assert claim in page
    assert "two models" not in page


def test_a_chain_of_one_policy_has_its_gain(tmp_path: Path) -> None:
    card = card_of(tmp_path, {"kind": "sft", "steps": 1}, ZERO)
    assert "recipe `chain`: sft (sft, 1 steps), zero (grpo, 2 steps); seed 0.\n" in card
    assert "## What the gain is" in card and "accuracy rose" in card and "two models" not in card
    front = front_of(card)
    assert (front["base_model"], front["tags"][2:]) == ("me/base", ["grpo", "sft"])


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ((ZERO, {**STUDENT, "teacher": "hub/large"}), "stage distill is `hub/large`."),
        (
            (ZERO, SAMPLES, BY_SAMPLES),
            "recipe `chain`: samples (sample), sft (sft, 4 steps); seed 0. The samples of stage "
            "samples are of the policy of stage zero, which comes from `me/base`. Other",
        ),
        (
            ({"kind": "sft", "name": "fit", "policy": "me/student", "steps": 1}, ZERO),
            "`me/student`, 12 parameters",
        ),
        (({**ZERO, "name": "one"}, {**ZERO, "start": "base"}), "recipe: one (grpo, 2 steps)."),
        (
            ({**ZERO, "reuse": "my/folder"}, {"kind": "sft", "steps": 1}),
            "`my/folder`, 12 parameters",
        ),
    ],
    ids=["a teacher of the hub", "samples", "policy at the start", "from the base", "reused"],
)
def test_where_weights_come_from(
    stages: tuple[dict[str, Any], ...], says: str, tmp_path: Path
) -> None:
    assert says in card_of(tmp_path, *stages)


def test_a_folder_that_was_reused_is_no_base_model_of_the_hub(tmp_path: Path) -> None:
    assert "base_model" not in front_of(card_of(tmp_path, {**ZERO, "reuse": "my/folder"}))


def test_rows_of_a_stage_that_was_reused_are_not_what_was_trained_on(tmp_path: Path) -> None:
    card = card_of(tmp_path, {**ZERO, "reuse": "my/folder"}, {"kind": "sft", "steps": 1})
    assert "- stage zero: it was not run, `my/folder` is in its place\n- stage sft: the" in card
    assert "- rewards:" not in card, "nothing was paid in this run"
