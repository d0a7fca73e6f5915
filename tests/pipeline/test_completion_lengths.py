"""Lengths of completions before a stage: what is advised, what auto takes, and that it stays so."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner import Run, train
from rl_reasoner.cli import main
from rl_reasoner.pipeline.completion_lengths import Lengths
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import AUTO_MOST
from rl_reasoner.types import Rollout
from support.commands import Cli
from support.tiny import TRAPPED, grpo, recipe, same, sft

AUTO = {"max_tokens": "auto"}


def lengths_of(bound: int, tokens: list[int]) -> Lengths:
    """Completions that would have these lengths, sampled with at most `bound` tokens."""
    return Lengths.of([Rollout("", min(n, bound), n > bound) for n in tokens], bound)


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=80),
    st.integers(1, AUTO_MOST),
    st.integers(1, AUTO_MOST),
)
def test_shares_are_those_of_the_true_lengths(tokens: list[int], bound: int, at: int) -> None:
    lengths, longest = lengths_of(bound, tokens), min(at, bound)
    assert lengths.share_cut(longest) == sum(n > longest for n in tokens) / len(tokens)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80), st.integers(1, AUTO_MOST))
def test_auto_is_the_smallest_multiple_of_64_that_cuts_at_most_5_percent(
    tokens: list[int], bound: int
) -> None:
    found = lengths_of(bound, tokens).fitting()

    def cut(longest: int) -> float:
        return sum(n > longest for n in tokens) / len(tokens)

    assert found == bound or (found % 64 == 0 and found < bound and cut(found) <= 0.05)
    assert all(cut(smaller) > 0.05 for smaller in range(64, found, 64))


# ------------------------------------------------------------------------------ given numbers


def notices_of(cli: Cli, made: Recipe, folder: Path) -> list[dict[str, Any]]:
    (folder / "made.yaml").write_text(made.to_yaml(), encoding="utf-8")
    ended = cli("check", "made.yaml", "--run-its-code", "--json")
    assert ended.out, ended.err
    found: list[dict[str, Any]] = json.loads(ended.out)["notices"]
    return found


def test_check_says_which_number_would_not_cut(cli: Cli, tmp_path: Path) -> None:
    """A policy from scratch hardly ever ends: nearly all completions are cut, at any number."""
    made = recipe(tmp_path, grpo(sampling={"max_tokens": 16}))
    [found] = [n for n in notices_of(cli, made, tmp_path) if n["check"] == "truncation"]
    assert found["status"] == "warned"
    assert "median over 64 tokens" in found["message"] and "cut off at 16" in found["message"]
    assert found["fix"].startswith("set sampling.max_tokens 64") and "still cut" in found["fix"]


def test_check_says_what_auto_comes_to(cli: Cli, tmp_path: Path) -> None:
    made = recipe(tmp_path, grpo(sampling=AUTO))
    found = {n["check"]: n for n in notices_of(cli, made, tmp_path)}
    assert "max_tokens auto is" in found["max_tokens"]["message"]
    assert found["prompts"]["status"] == "passed", "auto leaves room for the prompts"


def test_train_says_it_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = train(recipe(tmp_path, grpo(steps=1, save_every=1), evals={"sets": []})).folder
    assert "cut off at 8" in capfd.readouterr().err
    lengths = json.loads((folder / "lock.json").read_text())["max_tokens"]["grpo"]
    assert lengths["max_tokens"] == 8 and lengths["cut"] > 0.5
    assert main(["train", "--resume", str(folder)]) == 0
    assert "cut off at 8" not in capfd.readouterr().err


# --------------------------------------------------------------------------------------- auto


def fitted(folder: Path) -> Recipe:
    """Stages after which completions end, GRPO and evaluations with what that came to."""
    taught = sft(steps=40, batch=16)
    evals = {"max_tokens": "auto", "limit": 2}
    return recipe(folder, taught, grpo(sampling=AUTO), evals=evals, source=TRAPPED)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(fitted(tmp_path_factory.mktemp("whole")), quiet=True)


def found_in(folder: Path) -> tuple[Any, Any]:
    lengths = json.loads((folder / "lock.json").read_text())["max_tokens"]
    return lengths["grpo"]["max_tokens"], lengths["(evals)"]["max_tokens"]


def test_stage_and_evaluations_take_what_was_found(whole: Run) -> None:
    number, evals = found_in(whole.folder)
    assert number == evals and number % 64 == 0 and number < AUTO_MOST
    for name in ("before", "after"):
        saved = json.loads((whole.folder / "evals" / f"{name}.json").read_text())
        assert saved["settings"]["max_tokens"] == number
    rollouts = (whole.folder / "stages/2-grpo/rollouts.jsonl").read_text().splitlines()
    assert rollouts and str(number) in (whole.folder / "report.html").read_text()


@pytest.mark.matrix
def test_a_killed_run_goes_on_with_the_same_number(whole: Run, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(fitted(tmp_path).to_yaml(), encoding="utf-8")
    trap = {"TRAP_AT": str(1 + 8 + 3), "TRAP_SIGNAL": str(int(signal.SIGKILL))}
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", "--quiet"]
    killed = subprocess.run(
        [*command, str(file)], env={**os.environ, **trap}, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    begun = (tmp_path / "run/lock.json").read_bytes()
    done = subprocess.run(
        [*command, "--resume", str(tmp_path / "run")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/lock.json").read_bytes() == begun, "it was measured anew"
    assert found_in(tmp_path / "run") == found_in(whole.folder)
    assert same(tmp_path / "run/policy", whole.folder / "policy")


@pytest.mark.parametrize("value", ["lots", 0, 1.5, "-3", True, None])
def test_other_values_are_one_clear_mistake(value: Any, cli: Cli, tmp_path: Path) -> None:
    fields = f"{{kind: grpo, sampling: {{max_tokens: {json.dumps(value)}}}}}"
    head = "policy: scratch:dense-tiny\ndata: {task: modular}\nrewards: {math_answer: 1.0}\n"
    (tmp_path / "bad.yaml").write_text(f"{head}stages:\n- {fields}\n")
    ended = cli("check", "bad.yaml", "--run-its-code")
    assert ended.code == 2 and ended.err.count("max_tokens") == 1, ended.err
    assert "bad.yaml:5: stages.0.sampling.max_tokens: expected" in ended.err
    assert "or auto" in ended.err


def test_evaluations_take_auto_only_from_a_grpo_stage() -> None:
    fields = {"policy": "scratch:dense-tiny", "data": {"task": "modular"}, "stages": [sft()]}
    with pytest.raises(ValueError, match="first grpo stage, and there is none"):
        Recipe.model_validate({**fields, "evals": {"max_tokens": "auto"}})


def test_an_adapter_s_rate_is_told_to_be_ten_times_the_full_one(cli: Cli, tmp_path: Path) -> None:
    policy = {"source": "scratch:moe-tiny", "lora": {}}
    made = recipe(tmp_path, grpo(), policy=policy)
    [found] = [n for n in notices_of(cli, made, tmp_path) if n["check"] == "learning rate"]
    assert "ten times the rate of full training" in found["message"]


@pytest.mark.matrix
def test_a_changed_recipe_keeps_what_auto_came_to(tmp_path: Path) -> None:
    """A policy that never ends is looked at before sft, one that ends behind it: 64 would do."""
    given: dict[str, Any] = {
        "evals": {"limit": 4, "max_tokens": "auto", "validation": "modular_validation", "every": 9}
    }
    stages = sft(steps=20, batch=16), grpo(steps=1, sampling=AUTO)
    run = tmp_path / "run"
    train(recipe(tmp_path, *stages, **given), quiet=True)
    lock = json.loads((run / "lock.json").read_text())["max_tokens"]
    assert lock["(evals)"]["max_tokens"] > 64, "the test needs a first look that differs"
    train(recipe(tmp_path, *stages, **given, controls=["random_reward"]), resume=run, quiet=True)
    assert json.loads((run / "lock.json").read_text())["max_tokens"] == lock
    assert not [*(run / "old").glob("*/evals")], "nothing is evaluated again"
    stages = stages[0], grpo(steps=1, sampling={"max_tokens": 24})
    train(recipe(tmp_path, *stages, **given), resume=run, quiet=True)
    lock = json.loads((run / "lock.json").read_text())["max_tokens"]
    assert lock["(evals)"]["max_tokens"] == 24, "a number that is given is taken"
