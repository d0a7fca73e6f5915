"""A step under another reward, held against a run in which that step had it."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl_reasoner.audit.counterfactual import ask_counterfactual
from rl_reasoner.pipeline.train import train
from support.commands import Cli
from support.tiny import REWARD, grpo, recipe, rows

# From the second step on, what the other reward says; before it, what `near` does.
SWITCHED = f"""{REWARD}

@reward
def short(completion: str, answer: str) -> float:
    return -float(len(completion.strip()))


def switched(completions, answer, trainer_state, **others):
    now = short if trainer_state.global_step >= 1 else near
    return now(completions=completions, answer=answer)
"""
PLAIN = {"lr": 1.0, "schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 1e9}


def trained(folder: Path, name: str) -> Path:
    """Two steps of plain gradient descent with a reward of the file; its grpo stage's folder."""
    stage = grpo(
        steps=2,
        save_every=1,
        optim=PLAIN,
        trainer={"optim": "sgd"},
        group={"size": 4, "prompts": 4, "micro_batch": 8},
        router_replay=True,
    )
    made = recipe(folder, stage, source=SWITCHED, evals={"sets": []})
    near = f"{folder / 'near.py'}:{name}"
    own = made.model_copy(update={"rewards": {near: made.rewards[f"{folder / 'near.py'}:near"]}})
    train(own.in_folder(str(folder / name)), quiet=True)
    return folder / name / "stages" / "1-grpo"


def step_taken(stage: Path) -> torch.Tensor:
    """What the second step moved the weights by: with plain gradient descent its gradient."""
    before, after = (
        load_file(stage / f"checkpoints/checkpoint-{step}/model.safetensors") for step in (1, 2)
    )
    return torch.cat([(before[name] - after[name]).double().flatten() for name in sorted(before)])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and the same one with another reward in its second step."""
    folder = tmp_path_factory.mktemp("both")
    return trained(folder, "near"), trained(folder, "switched")


def test_the_gradient_is_that_of_a_run_with_the_other_reward(both: tuple[Path, Path]) -> None:
    first = [load_file(s / "checkpoints/checkpoint-1/model.safetensors") for s in both]
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])
    then, now = map(step_taken, both)
    run = both[0].parents[1]
    found = ask_counterfactual(run, 2, f"{run.parent / 'near.py'}:short", quiet=True)
    assert found.cosine == pytest.approx(float(then @ now / then.norm() / now.norm()), abs=1e-5)
    assert found.norms == pytest.approx((float(then.norm()), float(now.norm())), rel=1e-4)
    assert abs(found.cosine or 1.0) < 0.999  # the two rewards do differ
    kept = [[r for r in rows(s / "rollouts.jsonl") if r["step"] == 2] for s in both]
    for row, in_run, in_other in zip(found.rows, *kept, strict=True):
        assert row["completion"] == in_run["completion"] == in_other["completion"]
        assert row["then"] == in_run["advantage"]
        assert row["now"] == pytest.approx(in_other["advantage"], abs=1e-5)
    assert [abs(row["now"] - row["then"]) for row in found.most_changed(99)] == sorted(
        (abs(row["now"] - row["then"]) for row in found.rows if row["now"] != row["then"]),
        reverse=True,
    )


def test_under_its_own_reward_a_step_is_what_it_was(both: tuple[Path, Path], cli: Cli) -> None:
    run, near = both[0].parents[1], f"{both[0].parents[2] / 'near.py'}:near"
    ended = cli("why", run, "--step", "2", "--reward", near, "--json", "--run-its-code")
    value = json.loads(ended.out)
    assert ended.code == 0 and math.isclose(value["cosine"], 1.0, abs_tol=1e-6)
    assert value["norm"]["then"] == pytest.approx(value["norm"]["now"], rel=1e-6)
    assert all(row["then"] == pytest.approx(row["now"], abs=1e-6) for row in value["rows"])
    assert value["turned"] == 0


def test_the_other_reward_may_be_given_options(both: tuple[Path, Path], cli: Cli) -> None:
    """As a judge has to be: it needs to know who answers."""
    run, file = both[0].parents[1], both[0].parents[2] / "answers.py"
    file.write_text(
        'def ask(messages, seed):\n    return \'{"points": {"correct": 4, "sound": 2}}\'\n'
    )
    asked = ("--reward", "judge", "--reward-options", f"function={file}:ask", "--json")
    ended = cli("why", run, "--step", "2", *asked, "--run-its-code")
    assert ended.code == 0, ended.err
    value = json.loads(ended.out)
    assert {(row["reward"]["now"], row["now"]) for row in value["rows"]} == {(5 / 6, 0.0)}


def test_mistakes_are_one_line(both: tuple[Path, Path], cli: Cli) -> None:
    run = both[0].parents[1]
    for argv, word in (
        (("--reward", "lenght"), "'length'"),
        (("--reward", "code_tests"), "'tests'"),
        (("--reward", "length", "--row", "1"), "--row"),
        (("--reward", "length", "--reward-options", "limt=3"), "'limit'"),
        (("--reward-options", "limit=3"), "belongs to --reward"),
    ):
        ended = cli("why", run, "--step", "2", *argv, "--run-its-code")
        assert ended.code == 2 and word in ended.err and "Traceback" not in ended.err, ended.err
