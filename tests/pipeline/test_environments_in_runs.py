"""Runs whose policy plays with an environment: training, evaluation, mistakes, kill -9."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_reasoner.cli.arguments import environment_of
from support.commands import Cli, whole_and_resumed
from support.environments import FILE
from support.tiny import rows, same
from support.vllm_stand_in import serving

RECIPE: dict[str, Any] = {
    "name": "plays",
    "policy": "scratch:dense-tiny",
    "template": "plain",
    "environment": {"use": "own.py:Slow", "turns": 3, "processes": 1},
    "rewards": {"environment": 1.0, "length": {"weight": 0.1}},
    "stages": [
        {
            "kind": "sft",
            "data": {"task": "guess", "count": 32, "noise": 1.0},
            "steps": 12,
            "batch": 16,
            "optim": {"lr": 5e-3},
        },
        {
            "kind": "grpo",
            "data": {"task": "guess", "count": 16},
            "steps": 3,
            "group": {"size": 4, "prompts": 2},
            "sampling": {"max_tokens": 48},
            "save_every": 1,
        },
    ],
    "evals": {"sets": ["guess_validation"], "limit": 4, "max_tokens": 48},
    "run": {"seed": 1, "report_to": "none"},
}


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with a recipe and its environment."""
    shutil.copy(FILE, tmp_path / "own.py")
    (tmp_path / "plays.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def rollouts(run: Path) -> list[dict[str, Any]]:
    """The rollouts of a run's second stage."""
    return rows(run / "stages" / "2-grpo" / "rollouts.jsonl")


@pytest.mark.matrix
def test_the_same_in_the_middle_of_a_turn_after_kill_9(room: Path, cli: Cli) -> None:
    """Killed while its environment takes a step; weights and rollouts are those of a whole run."""
    whole_and_resumed(room, "plays.yaml", "stages/2-grpo/metrics.jsonl", 1)
    assert same(room / "whole" / "policy", room / "killed" / "policy")
    assert rollouts(room / "whole") == rollouts(room / "killed")

    rows = rollouts(room / "whole")
    assert {row["ended"] for row in rows} <= {"done", "length"}
    done = [row for row in rows if row["ended"] == "done"]
    assert done, "after 12 steps on played games the policy ends its turns"
    for row in done:
        assert [turn["kind"] for turn in row["turns"]] == ["ok"] * 3
        paid = sum(turn["reward"] for turn in row["turns"])
        assert row["scores"]["environment"]["value"] == pytest.approx(paid)
        assert not row["truncated"] and "\n1 of 3\n" in row["completion"]
    lines = (room / "whole" / "stages" / "2-grpo" / "metrics.jsonl").read_text()
    assert {"environment/turns", "environment/done", "rewards/environment/mean"} <= json.loads(
        lines.splitlines()[0]
    ).keys()

    sets = ("--sets", "guess_validation", "--limit", "2", "--max-tokens", "48", "--json")
    own = json.loads(cli("eval", "whole", *sets, "--run-its-code").out)
    assert own["settings"]["environment"]["use"] == "own.py:Slow"
    assert own["sets"]["guess_validation"]["reward"] == "environment"
    told = cli("chat", "whole")
    assert told.code == 2 and "environment" in told.err, told.err
    told = cli("filter", "whole", "guess_validation")
    assert told.code == 2 and "nobody who answers its turns" in told.err, told.err
    told = cli("eval", "whole", *sets, "--tools", "calculator", "--tool-format", "tags")
    assert told.code == 2 and "tools and an environment" in told.err, told.err


def test_a_vllm_server_samples_the_turns(room: Path, cli: Cli) -> None:
    with serving("scratch:dense-tiny") as server:
        sft, grpo = RECIPE["stages"]
        grpo = {**grpo, "vllm": {"mode": "server", "url": server.url}}
        changed = {**RECIPE, "stages": [sft, grpo], "evals": {"sets": []}}
        (room / "plays.yaml").write_text(yaml.safe_dump(changed))
        assert cli("train", "plays.yaml", "--run.folder", "run").code == 0
    rows = rollouts(room / "run")
    assert {row["ended"] for row in rows} <= {"done", "length"}
    done = [row for row in rows if row["ended"] == "done"]
    assert done and all([turn["kind"] for turn in row["turns"]] == ["ok"] * 3 for row in done)
    assert all("\n1 of 3\n" in row["completion"] for row in done)


def test_a_stages_policy_plays_as_its_run_does(room: Path) -> None:
    policy = room / "run" / "stages" / "2-grpo" / "policy"
    policy.mkdir(parents=True)
    assert environment_of(str(policy)) is None
    shutil.copy(room / "plays.yaml", room / "run" / "recipe.yaml")
    for one in (room / "run", policy):
        found = environment_of(str(one))
        assert found is not None and found.use == "own.py:Slow", one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": "gues"}, "Did you mean 'guess'"),
        ({"environment": {"use": "guess", "options": {"guess": 3}}}, "Did you mean 'guesses'"),
        ({"environment": {"use": "guess", "turn": 3}}, "environment.turn"),
        ({"environment": "own.py:Echoes"}, "Did you mean 'Echo'"),
        ({"environment": None}, "rewards.environment"),
        ({"tools": ["calculator"]}, "not there yet"),
    ],
)
def test_mistakes_are_one_line(change: dict[str, Any], message: str, room: Path, cli: Cli) -> None:
    (room / "plays.yaml").write_text(yaml.safe_dump({**RECIPE, **change}))
    ended = cli("train", "plays.yaml", "--run.folder", "run")
    assert ended.code == 2 and message in ended.err, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--environment.use", "gues"), "Did you mean 'guess'"),
        (("--environment.use", "guess", "--environment.turns", "0"), "environment.turns"),
        (("--environment.used", "guess"), "Did you mean '--environment.use'"),
    ],
)
def test_its_fields_are_flags(flags: tuple[str, ...], message: str, room: Path, cli: Cli) -> None:
    ended = cli("train", "plays.yaml", *flags, "--run.folder", "run")
    assert ended.code == 2 and message in ended.err, ended.err


def test_check_plays_a_turn_before_the_run(room: Path, cli: Cli) -> None:
    told = json.loads(cli("check", "plays.yaml", "--run-its-code", "--json").out)
    [found] = [notice for notice in told["notices"] if notice["check"] == "environment"]
    assert found["status"] == "passed" and "a turn takes" in found["message"]
