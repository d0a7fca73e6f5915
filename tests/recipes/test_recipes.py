"""Every shipped recipe runs as it is started, with two steps a stage and small evaluations.

`gsm8k` needs a real model: tests/project/test_real.py runs it. test_real_recipes.py has those that
are measured with real models, test_moe_recipes.py those for large mixtures.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from rl_reasoner.cli import main
from rl_reasoner.recipe.load import load_recipe, shipped_recipes
from support.places import ROOT

SMALL = {
    "quickstart": [
        *("--chains.steps", "2", "--chains.data.count", "200", "--chains.batch", "8"),
        *("--habit.steps", "2", "--habit.data.count", "100", "--habit.batch", "8"),
    ],
    "noisy_start": [
        *("--careless.steps", "2", "--careless.data.count", "200", "--careless.batch", "8"),
    ],
    "skill": [
        *("--half_learned.steps", "2", "--half_learned.data.count", "200"),
        *("--half_learned.batch", "8"),
    ],
    "moe_tiny": [
        *("--chains.steps", "2", "--chains.data.count", "200", "--chains.batch", "8"),
    ],
    "tool_tiny": [
        *("--calls.steps", "2", "--calls.batch", "8", "--habit.steps", "2", "--habit.batch", "8"),
    ],
    "game_tiny": [
        *("--form.steps", "2", "--form.data.count", "50", "--form.batch", "8"),
    ],
    "code_tiny": [
        *("--careless.steps", "2", "--careless.data.count", "50", "--careless.batch", "8"),
    ],
    "instructions_tiny": [
        *("--forgetful.steps", "2", "--forgetful.data.count", "50", "--forgetful.batch", "8"),
    ],
}
R1 = ("r1_tiny", "r1_zero_tiny", "r1_distill_tiny", "r1_qwen_7b", "r1_moe_30b")  # test_r1_recipes
REAL = (
    "mbpp_qwen_coder",
    "gsm8k_qwen_coder",
    "tool_qwen_coder",
    "instructions_smollm2",
    "word_problems_smollm2",
    "word_problems_moe",
)  # test_real_recipes
GRPO = [
    *("--grpo.steps", "2"),
    *("--grpo.group.size", "4", "--grpo.group.prompts", "2", "--grpo.sampling.max_tokens", "12"),
    *("--evals.limit", "4", "--evals.max_tokens", "12", "--evals.every", "1"),
    *("--run.device", "cpu"),
]


def flags(name: str) -> list[str]:
    """What makes the recipe `name` tiny."""
    rows = [] if name == "tool_tiny" else ["--grpo.data.count", "50"]  # a mix has no count
    return [*SMALL[name], *GRPO, *rows]


def looked_over(folder: Path, name: str) -> None:
    """The finished run in `folder` is one of the recipe `name`."""
    AutoModelForCausalLM.from_pretrained(folder / "policy")
    recipe = load_recipe(name)
    finished = sorted(p.parent.name for p in (folder / "stages").glob("*/done.json"))
    assert finished == [f"{i}-{stage.name}" for i, stage in enumerate(recipe.stages, 1)]
    for stage in (folder / "stages").iterdir():
        steps = [json.loads(line)["step"] for line in (stage / "metrics.jsonl").open()]
        assert steps == [1, 2]
    for file in ("before.json", "after.json"):
        sets: dict[str, Any] = json.loads((folder / "evals" / file).read_text())["sets"]
        for wanted in recipe.evals.sets:
            assert sets[wanted]["problems"] == 4
            assert sets[f"{wanted}@sampled"]["samples"] == recipe.evals.samples
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert name in page and "data-chart=" in page


def test_every_recipe_is_run_here_or_with_a_real_model() -> None:
    elsewhere = {"gsm8k", "code_mbpp", "moe_qwen3", "moe_deepseek", *R1, *REAL}
    assert {*SMALL} | elsewhere == {*shipped_recipes()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(["train", name, "--json", *flags(name), "--run.folder", str(folder)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["run"] == str(folder) and shown["evals"].keys() == {"before", "after"}
    looked_over(folder, name)


def test_as_a_script_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    """`python recipes/noisy_start.py`: runs go to runs/ in the working folder."""
    script = ROOT / "recipes" / "noisy_start.py"
    command = [sys.executable, str(script), *flags("noisy_start")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("noisy_start-")
    assert "modular_test" in done.stdout and "policy" in done.stdout
    looked_over(folder, "noisy_start")


def test_mbpp_rows_with_a_tiny_policy(tmp_path: Path) -> None:
    """`code_mbpp` on rows of a file: no model or data set is fetched."""
    rows = [
        {
            "prompt": f"Write a function to add {n} to a number.",
            "tests": [f"assert add_{n}({at}) == {at + n}" for at in range(3)],
        }
        for n in range(8)
    ]
    file, folder = tmp_path / "mbpp.jsonl", tmp_path / "run"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = [
        *("--policy", "scratch:dense-tiny", "--data.path", str(file), "--data.columns", "{}"),
        *("--template", "plain", "--evals.sets", f"[{file}]", "--run.folder", str(folder)),
        *("--grpo.group.micro_batch", "8", *GRPO),
    ]
    flags = [flag for flag in flags if flag not in ("--grpo.data.count", "50")]
    assert main(["train", "code_mbpp", *flags, "--json"]) == 0
    first = json.loads((folder / "stages" / "1-grpo" / "rollouts.jsonl").open().readline())
    assert "must satisfy this test:\nassert add_" in json.dumps(first).replace("\\n", "\n")
    sets = json.loads((folder / "evals" / "after.json").read_text())["sets"]
    assert sets[str(file)]["judged"] == 1.0
