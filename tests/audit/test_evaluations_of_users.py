"""An audit of a run whose folder a user has added evaluations to, or whose weights are torn."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_reasoner.audit import Audit
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.publishing.folder import publish_run
from rl_reasoner.report import write_report
from support.audits import audit_run
from support.commands import Cli, lines, run_outside

RECIPE = """
name: tiny
policy: scratch:dense-tiny
template: plain
data: {task: modular, count: 8}
rewards: {math_answer: 1}
stages:
- {kind: sft, name: taught, steps: 1, batch: 4, data: {task: modular, count: 8}}
- kind: grpo
  name: rl
  steps: 1
  group: {size: 2, prompts: 2}
  sampling: {max_tokens: 4}
evals: {sets: [modular_test], limit: 4, max_tokens: 4, stages: true}
run: {folder: run, device: cpu, report_to: none}
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run that is evaluated on a set of the package."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    done = run_outside(folder, "train", "recipe.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test is."""
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(audit: Audit, *words: str) -> list[str]:
    """What could not be checked, as far as it has these words."""
    said = [finding.said for finding in audit.of("unchecked")]
    return [one for one in said if all(word in one for word in words)]


def of_gcd(accuracy: float | None = None) -> None:
    """The run's last evaluation, as one of another set and fewer rows."""
    result = EvalResult.load("run/evals/after.json")
    figures, rows = result.sets.pop("modular_test"), result.rows.pop("modular_test")
    figures |= {} if accuracy is None else {"accuracy": accuracy}
    result.sets["gcd_test"], result.rows["gcd_test"] = figures, rows
    result.save("run/evals/mine.json")


def test_an_evaluation_of_the_users_makes_no_run_a_forgery(copied: Path, cli: Cli) -> None:
    argv = ("--sets", "gcd_test", "--limit", "2", "--max-tokens", "4")
    ended = cli("eval", "run", *argv, "--out", "run/evals/mine.json", "--quiet")
    assert ended.code == 0, ended.err
    argv = ("--sets", "modular_test", "--limit", "3", "--max-tokens", "4")
    ended = cli("eval", "run", *argv, "--out", "run/evals/fewer.json", "--quiet")
    assert ended.code == 0, ended.err
    audit = audit_run(Path("run"), replays=False)
    assert audit.holds, audit.of("differs")
    for name in ("mine", "fewer"):
        assert told(audit, f"evals/{name}.json is not of the run")
    publish_run(Path("run"), copied / "published", note=lambda text: None)
    assert audit_run(Path("published/run"), replays=False).holds


def test_a_report_with_them_is_told(copied: Path) -> None:
    of_gcd()
    write_report(Path("run"))
    audit = audit_run(Path("run"), replays=False)
    assert audit.holds, audit.of("differs")
    assert told(audit, "it shows what is not of the run: mine")


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}'])
def test_files_that_are_no_evaluations_are_told(text: str, copied: Path) -> None:
    Path("run/evals/notes.json").write_text(text, encoding="utf-8")
    audit = audit_run(Path("run"), replays=False)
    assert audit.holds, audit.of("differs")
    assert told(audit, "evals/notes.json is not of the run")


def test_what_is_wrong_in_them_is_told(copied: Path) -> None:
    of_gcd(accuracy=0.99)
    audit = audit_run(Path("run"), replays=False)
    assert audit.holds, audit.of("differs")
    assert told(audit, "evals/mine.json", "accuracy is 0.99", "(not of the run)")


@pytest.mark.parametrize("name", ["before", "after", "taught", "rl"])
def test_an_evaluation_that_the_run_writes_has_the_recipes_sets(name: str, copied: Path) -> None:
    of_gcd()
    for end in (".json", ".rows.jsonl"):
        shutil.move(f"run/evals/mine{end}", f"run/evals/{name}{end}")
    said = [finding.said for finding in audit_run(Path("run"), replays=False).of("differs")]
    assert any(f"evals/{name}.json has no figures of modular_test" in one for one in said), said


@pytest.mark.parametrize("folder", ["policy", "stages/2-rl/policy"])
def test_weights_that_are_torn_are_named(folder: str, copied: Path, cli: Cli) -> None:
    os.truncate(f"run/{folder}/model.safetensors", 2000)
    ended = cli("audit", "run", "--no-replay", "--run-its-code")
    assert ended.code == 1 and "Traceback" not in ended.err
    audit = audit_run(Path("run"), replays=False)
    said = [finding.said for finding in audit.of("differs") if finding.part == "weights"]
    assert any(f"{folder}/model.safetensors cannot be read" in one for one in said), said
    assert audit.of("held")[-1].part == "report", "what follows is checked"


def test_weights_of_another_type_are_others(copied: Path) -> None:
    for folder, kind in (("policy", torch.bfloat16), ("stages/2-rl/policy", torch.float32)):
        file = f"run/{folder}/model.safetensors"
        ones = {name: torch.ones_like(t, dtype=kind) for name, t in load_file(file).items()}
        save_file(ones, file, metadata={"format": "pt"})
    said = [finding.said for finding in audit_run(Path("run"), replays=False).of("differs")]
    assert any("policy/ is not what the last stage made" in one for one in said), said


def with_tests(row: dict[str, Any]) -> None:
    """Judged by what it has, then: by tests that every program passes."""
    del row["task"], row["id"]
    row["tests"] = [{"call": "f", "args": [1], "expected": 1}]
    row["completions"] = ["```python\ndef f(x):\n    return x\n```"]


def without_id(row: dict[str, Any]) -> None:
    del row["id"]


def with_more(row: dict[str, Any]) -> None:
    row["target_length"] = 1


@pytest.mark.parametrize("change", [with_tests, without_id, with_more])
def test_columns_that_the_set_has_not_are_named(
    change: Callable[[dict[str, Any]], None], copied: Path
) -> None:
    result = EvalResult.load("run/evals/after.json")
    row = result.rows["modular_test"][0]
    change(row)
    made = replay(result)  # its figures are those of its rows
    made.rows["modular_test"][0] = {**row, **made.rows["modular_test"][0]}
    made.save("run/evals/after.json")
    said = [finding.said for finding in audit_run(Path("run"), replays=False).of("differs")]
    words = "its rows ask for math_answer" if change is with_tests else "in the set"
    named = [one for one in said if one.startswith("evals/after.json, modular_test: ")]
    assert any(words in one for one in named), said


@pytest.mark.parametrize(
    ("reward", "options", "words"),
    [
        ("length", {"target": 1}, "its judge is 'length', in the recipe 'by the rows'"),
        ("by the rows", {"extract": "whole"}, "options of its judge"),
    ],
)
def test_another_judge_than_the_recipes_is_named(
    reward: str, options: dict[str, Any], words: str, copied: Path
) -> None:
    result = EvalResult.load("run/evals/after.json")
    result.settings |= {"reward": reward, "reward_options": options}
    result.save("run/evals/after.json")
    said = [finding.said for finding in audit_run(Path("run"), replays=False).of("differs")]
    assert any(words in one for one in said), said


def test_completions_that_the_policy_did_not_write_are_found(copied: Path) -> None:
    """Right answers in place of its own: figures, judged scores and hashes follow from them."""
    audit = audit_run(Path("run"), replays=False)
    assert audit.holds
    file = Path("run/evals/after.json")
    saved = EvalResult.load(file)
    for rows in saved.rows.values():
        for row in rows:
            row["completions"] = [f"<think></think><answer>{row['answer']}</answer>"]
    replay(saved).save(file)
    write_report(Path("run"))
    RunFolder(Path("run")).seal()
    assert audit_run(Path("run"), replays=False).holds, "nothing of the files speaks against it"
    audit = audit_run(Path("run"))
    [found] = audit.of("differs")
    assert found.part == "results"
    assert "evals/after.json: 4 greedy completions sampled again, 4 of them other" in found.said


def test_what_is_not_made_again_is_named(copied: Path) -> None:
    audit = audit_run(Path("run"))
    assert audit.holds
    assert [f.said for f in audit.of("held") if "sampled again, as kept" in f.said] == [
        f"evals/{name}.json: 4 greedy completions sampled again, as kept"
        for name in ("after", "before", "rl", "taught")
    ]
    assert told(audit, "not made again: hacking.jsonl of stage rl, forecast.json of stage rl")


def test_who_forges_does_not_decide_whether_he_is_asked_again(copied: Path) -> None:
    """He writes that his answers were drawn by chance, and shows figures of a part of them."""
    file = Path("run/evals/after.json")
    saved = EvalResult.load(file)
    for row in saved.rows["modular_test"]:
        row["completions"] = [f"<think></think><answer>{row['answer']}</answer>"]
    forged = replay(saved)
    forged.sets["modular_test"]["temperature"] = 0.7
    forged.sets["modular_test@clean"] = dict(forged.sets["modular_test"])
    forged.save(file)
    said = [finding.said for finding in audit_run(Path("run")).of("differs")]
    assert any("modular_test: temperature is 0.7" in one for one in said), said
    assert any("4 greedy completions sampled again, 4 of them other" in one for one in said), said


def test_evaluations_with_a_system_prompt_are_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An honest one holds; one other answer in a set of four is not outweighed by other sets."""
    monkeypatch.chdir(tmp_path)
    policy = open_policy("scratch:dense-tiny")
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    policy.save(tmp_path / "chatty")
    asked = RECIPE.replace("scratch:dense-tiny", "chatty").replace("template: plain", "system: Hm.")
    asked = asked.replace("[modular_test]", "[modular_test, own.jsonl]").replace("stages: true", "")
    text = lines(*({"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(4)))
    Path("own.jsonl").write_text(text, encoding="utf-8")
    Path("recipe.yaml").write_text(asked, encoding="utf-8")
    done = run_outside(tmp_path, "train", "recipe.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    audit = audit_run(Path("run"))
    assert audit.holds, audit.of("differs")
    again = [f.said for f in audit.of("held") if "8 greedy completions sampled again" in f.said]
    assert len(again) == 2, audit.findings

    saved = EvalResult.load("run/evals/after.json")
    saved.rows["own.jsonl"][0]["completions"] = ["<think></think><answer>1</answer>"]
    replay(saved).save("run/evals/after.json")
    said = [finding.said for finding in audit_run(Path("run")).of("differs")]
    assert any("1 of them other; first own.jsonl" in one for one in said), said

    Path("own.jsonl").unlink()
    assert told(audit_run(Path("run")), "made again", "evals/after.json on own.jsonl")
