"""Runs from recipe to policy: what lies in the folder, and that a stop costs nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import REWARD, grpo, recipe, same, sft, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_reasoner import Recipe, Run, open_policy, train
from rl_reasoner.cli import main
from rl_reasoner.errors import UserError
from rl_reasoner.live import LiveView
from rl_reasoner.stages import Interrupted
from rl_reasoner.trainer import RewardsFailed

# The reward of tiny.py, which at its TRAP_AT-th call in the trainer sends a signal to its process.
TRAPPED = (
    REWARD.replace("from rl_reasoner", "import os\nimport signal\n\nfrom rl_reasoner", 1).replace(
        "    if answer",
        """    global CALLS
    CALLS += 1
    if str(CALLS) == os.environ.get("TRAP_AT"):
        os.kill(os.getpid(), int(os.environ["TRAP_SIGNAL"]))
    if answer""",
    )
    + "\n\nCALLS = 0\n"
)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def untimed(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file without what the clock says.

    And without the tokens seen so far: trl's SFTTrainer counts them anew after a resume.
    """
    timed = ("time", "timing/", "tokens_per_second", "num_tokens")
    return [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in rows(path)]


def signals_at(monkeypatch: pytest.MonkeyPatch, at: tuple[str, int], *numbers: int) -> None:
    """Send signals to this process when the step `at` = (stage, step) is shown."""
    update, start = LiveView.update, LiveView.start_stage
    now = [""]

    def started(view: LiveView, name: str, *of: int) -> None:
        now[0] = name
        start(view, name, *of)

    def shown(view: LiveView, metrics: Any, step: int) -> None:
        update(view, metrics, step)
        if (now[0], step) == at:
            for number in numbers:
                os.kill(os.getpid(), number)

    monkeypatch.setattr(LiveView, "start_stage", started)
    monkeypatch.setattr(LiveView, "update", shown)


# --------------------------------------------------------------------------------- a whole run

LONG = {"steps": 7, "save_every": 2}


def two_stages(folder: Path, **changes: Any) -> Recipe:
    evals = {"samples": 2, "forced": True, "validation": "modular_validation", "every": 2}
    return recipe(folder, sft(), grpo(**LONG), source=TRAPPED, **{"evals": evals, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run that the others are held against."""
    return train(two_stages(tmp_path_factory.mktemp("whole")), quiet=True)


def test_the_folder_of_a_run(whole: Run) -> None:
    folder = whole.folder
    for name in (
        "recipe.yaml",
        "lock.json",
        "report.html",
        "evals/before.json",
        "evals/after.json",
        "stages/1-sft/metrics.jsonl",
        "stages/1-sft/checkpoints",
        "stages/2-grpo/metrics.jsonl",
        "stages/2-grpo/rollouts.jsonl",
        "stages/2-grpo/checkpoints/checkpoint-7",
        "policy/model.safetensors",
    ):
        assert (folder / name).exists(), name
    assert whole.report == folder / "report.html"
    assert "tiny" in whole.report.read_text(encoding="utf-8")
    lock = json.loads((folder / "lock.json").read_text())
    assert lock["policy"] == {
        "source": "scratch:moe-tiny",
        "parameters": 543_360,
        "active_parameters": 211_584,
    }
    assert (lock["device"], lock["precision"], lock["seed"]) == ("cpu", "fp32", 0)
    names = {p.name for p in (folder / "stages" / "2-grpo" / "checkpoints").glob("checkpoint-*")}
    assert names == {"checkpoint-6", "checkpoint-7"}, "the two newest are kept"


def test_the_policy_opens_without_us_and_is_the_trained_one(whole: Run) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole.folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(whole.folder / "policy")
    ids = tokenizer("(1+2)%10=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole.policy.model(input_ids=ids).logits)
    assert same(whole.folder / "policy", whole.folder / "stages" / "2-grpo" / "policy")
    assert not same(whole.folder / "policy", whole.folder / "stages" / "1-sft" / "policy")
    out = model.generate(input_ids=ids, max_new_tokens=3)
    assert out.shape[1] > ids.shape[1]
    assert open_policy(str(whole.folder), device="cpu").parameters == whole.policy.parameters


def test_evaluations_before_and_after(whole: Run) -> None:
    sets = [f"modular_test{mode}" for mode in ("", "@sampled", "@chain-forced", "@direct-forced")]
    for name in ("before", "after"):
        data = json.loads((whole.folder / "evals" / f"{name}.json").read_text(encoding="utf-8"))
        assert data["name"] == name and data["policy"] == str(whole.folder)
        assert list(data["sets"]) == sets
        for figures in data["sets"].values():
            assert figures["problems"] == 4
            low, high = figures["interval"]
            assert 0 <= low <= figures["accuracy"] <= high <= 1 and 0 <= figures["truncated"] <= 1
        assert whole.evals[name].sets == data["sets"]


def test_metrics_carry_trls_names(whole: Run) -> None:
    first = rows(whole.folder / "stages" / "1-sft" / "metrics.jsonl")
    assert [row["step"] for row in first] == [1, 2, 3]
    assert {"loss", "grad_norm", "learning_rate", "mean_token_accuracy"} <= first[0].keys()
    second = rows(whole.folder / "stages" / "2-grpo" / "metrics.jsonl")
    assert [row["step"] for row in second] == list(range(1, 8))
    [reward] = two_stages_rewards(whole)
    for row in second:
        assert {
            "reward",
            "reward_std",
            "frac_reward_zero_std",
            f"rewards/{reward}/mean",
            f"rewards/{reward}/faults",
            "completions/mean_length",
            "completions/clipped_ratio",
            "entropy",
            "timing/generation",
            "timing/reward",
            "timing/training",
            "tokens_per_second",
            "experts/max_over_mean",
            "experts/load/layer0",
            "experts/load/layer1",
        } <= row.keys()
        assert sum(row["experts/load/layer0"]) == pytest.approx(1.0)
    evaluated = [row["step"] for row in second if "eval/modular_validation/accuracy" in row]
    assert evaluated == [2, 4, 6]


def two_stages_rewards(run: Run) -> list[str]:
    sampled = rows(run.folder / "stages" / "2-grpo" / "rollouts.jsonl")
    assert [row["step"] for row in sampled] == [step for step in range(1, 8) for _ in range(8)]
    return list(sampled[0]["scores"])


def test_settings_reach_the_trainer(tmp_path: Path) -> None:
    optim = {"lr": 1e-2, "schedule": "linear", "warmup": 2, "final": 0.1}
    run = train(
        recipe(
            tmp_path,
            sft(steps=6, optim=optim),
            grpo(steps=4, optim={"lr": 1e-3, "schedule": "cosine", "final": 0.5}),
        ),
        quiet=True,
    )
    rates = [r["learning_rate"] for r in rows(run.folder / "stages" / "1-sft" / "metrics.jsonl")]
    # the rate of step s+1: up to 0.01 in 2 steps, then down a line that would reach 0.001 at step 6
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.00775, 0.0055, 0.00325])
    rates = [r["learning_rate"] for r in rows(run.folder / "stages" / "2-grpo" / "metrics.jsonl")]
    cosine = [1.0, 0.5 + 0.5 * (0.5 + 2**-1.5), 0.75, 0.5 + 0.5 * (0.5 - 2**-1.5)]
    assert rates == pytest.approx([1e-3 * c for c in cosine])


def test_the_run_follows_its_seed(whole: Run, tmp_path: Path) -> None:
    again = train(two_stages(tmp_path), quiet=True)
    assert same(again.folder / "policy", whole.folder / "policy")
    (tmp_path / "other").mkdir()
    other = two_stages(
        tmp_path / "other",
        run={"folder": str(tmp_path / "other" / "run"), "device": "cpu", "seed": 1},
    )
    assert not same(train(other, quiet=True).folder / "policy", whole.folder / "policy")


def test_evaluating_while_training_changes_no_training_number(whole: Run, tmp_path: Path) -> None:
    evals = {"samples": 2, "validation": "modular_validation", "every": 1}
    often = train(two_stages(tmp_path, evals=evals), quiet=True)
    (tmp_path / "never").mkdir()
    never = train(two_stages(tmp_path / "never", evals={"sets": ()}), quiet=True)
    for run in (often, never):
        assert same(run.folder / "policy", whole.folder / "policy")
    grpo_metrics = Path("stages") / "2-grpo" / "metrics.jsonl"
    found = [
        [{k: v for k, v in row.items() if "eval/" not in k} for row in untimed(r.folder / m)]
        for r, m in ((often, grpo_metrics), (never, grpo_metrics), (whole, grpo_metrics))
    ]
    for other in found[1:]:
        assert [row["loss"] for row in other] == [row["loss"] for row in found[0]]
    assert never.evals == {} and not (never.folder / "evals").exists()


# ------------------------------------------------------------------------- adapters, references


def test_an_adapter_is_trained_and_merged(tmp_path: Path) -> None:
    policy = {"source": "scratch:moe-tiny", "lora": {"rank": 4, "targets": ["q_proj", "o_proj"]}}
    run = train(recipe(tmp_path, sft(), grpo(), policy=policy), quiet=True)
    open_policy("scratch:moe-tiny", device="cpu").save(tmp_path / "start")
    start = weights(tmp_path / "start")
    found = weights(run.folder / "policy")
    changed = {name for name in found if not torch.equal(found[name], start[name])}
    assert changed == {n for n in found if "q_proj" in n or "o_proj" in n}
    for stage in ("1-sft", "2-grpo"):
        assert (run.folder / "stages" / stage / "adapter" / "adapter_config.json").is_file()
    assert not (run.folder / "policy" / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(run.folder / "policy")
    before = weights(run.folder / "stages" / "1-sft" / "policy")
    assert any(not torch.equal(found[name], before[name]) for name in changed)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_reference_is_the_policy_that_enters_the_stage(lora: bool, tmp_path: Path) -> None:
    """The KL term starts at 0: measured from the supervised policy, not from what was opened."""
    source = {"source": "scratch:moe-tiny", "lora": {"rank": 4} if lora else None}
    loss = {"beta": 0.04}
    run = train(recipe(tmp_path, sft(), grpo(loss=loss), policy=source), quiet=True)
    kl = [row["kl"] for row in rows(run.folder / "stages" / "2-grpo" / "metrics.jsonl")]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert all(k > 1e-5 for k in kl[1:])


# ------------------------------------------------------------------------- kill -9 and resuming


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed with signal 9 while step 6 of grpo is scored."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "recipe.yaml").write_text(two_stages(folder).to_yaml())
    calls = 1 + 8 * 5 + 3  # the trial call, five steps, and into the sixth
    trap = {"TRAP_AT": str(calls), "TRAP_SIGNAL": str(int(signal.SIGKILL))}
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", str(folder / "recipe.yaml")]
    done = subprocess.run(command, env={**os.environ, **trap}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(rows(folder / "run" / "stages" / "2-grpo" / "metrics.jsonl")) == 5
    return folder / "run"


def copied(killed: Path, folder: Path) -> Path:
    shutil.copytree(killed, folder / "run")
    return folder / "run"


def resumed(folder: Path) -> Run:
    from rl_reasoner.runs import RunFolder

    run, saved = RunFolder.reopen(folder)
    run.release()
    return train(saved, resume=folder)


def held_against(whole: Run, folder: Path) -> None:
    """Weights, metrics and rollouts equal to those of the uninterrupted run."""
    assert same(folder / "policy", whole.folder / "policy")
    for stage in ("1-sft", "2-grpo"):
        name = Path("stages") / stage / "metrics.jsonl"
        assert untimed(folder / name) == untimed(whole.folder / name)
    name = Path("stages") / "2-grpo" / "rollouts.jsonl"
    assert rows(folder / name) == rows(whole.folder / name)
    for file in ("before.json", "after.json"):
        ours, theirs = (
            json.loads((p / "evals" / file).read_text()) for p in (folder, whole.folder)
        )
        assert ours["sets"] == theirs["sets"]


def test_a_killed_run_continues_to_the_same_weights(
    killed: Path, whole: Run, tmp_path: Path
) -> None:
    folder = copied(killed, tmp_path)
    assert not (folder / "policy").exists() and not (folder / "stages/2-grpo/done.json").exists()
    resumed(folder)
    held_against(whole, folder)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def flip(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", cut), ("optimizer.pt", flip), ("trainer_state.json", cut)],
)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    name: str,
    damage: Callable[[Path], None],
    killed: Path,
    whole: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = copied(killed, tmp_path)
    damage(folder / "stages" / "2-grpo" / "checkpoints" / "checkpoint-4" / name)
    resumed(folder)
    shown = " ".join(capsys.readouterr().err.split())
    assert "checkpoint checkpoint-4 is damaged (" in shown
    assert "going back to the one before" in shown
    held_against(whole, folder)


def test_without_any_whole_checkpoint_the_stage_begins_anew(
    killed: Path, whole: Run, tmp_path: Path
) -> None:
    folder = copied(killed, tmp_path)
    for checkpoint in (folder / "stages" / "2-grpo" / "checkpoints").glob("checkpoint-*"):
        cut(checkpoint / "model.safetensors")
    resumed(folder)
    held_against(whole, folder)


def test_two_processes_in_one_folder(killed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    from rl_reasoner.runs import RunFolder

    run, _ = RunFolder.reopen(folder)
    command = [sys.executable, "-m", "rl_reasoner.cli", "train", "--resume", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    run.release()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"another process is training in {folder}" in " ".join(done.stderr.split())
    assert not (folder / "policy").exists()


def test_a_finished_run_is_not_trained_again(whole: Run, tmp_path: Path) -> None:
    folder = copied(whole.folder, tmp_path)
    (folder / "report.html").unlink()
    run = resumed(folder)
    held_against(whole, folder)
    assert run.report.is_file() and run.evals.keys() == {"before", "after"}


def test_a_run_continues_with_its_own_recipe_alone(killed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    with pytest.raises(UserError, match="is not the one that the run"):
        train(two_stages(tmp_path, name="other"), resume=folder, quiet=True)
    resumed(folder)  # and the folder is free again


# ------------------------------------------------------------------------------- interruptions


def test_ctrl_c_in_the_middle_of_grpo(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(two_stages(tmp_path).to_yaml())
    # while the fifth step is scored; the 20 calls of an evaluation do not reach so far
    monkeypatch.setenv("TRAP_AT", str(1 + 8 * 4 + 3))
    monkeypatch.setenv("TRAP_SIGNAL", str(int(signal.SIGINT)))
    assert main(["train", str(tmp_path / "r.yaml")]) == 130
    shown = capsys.readouterr()
    run = tmp_path / "run"
    assert f"interrupted; continue with: rl-reasoner train --resume {run}" in shown.err
    assert "Traceback" not in shown.err
    metrics = rows(run / "stages" / "2-grpo" / "metrics.jsonl")
    assert len(metrics) == 5, "the step is taken to its end"
    assert (run / "stages" / "2-grpo" / "checkpoints" / "checkpoint-5").is_dir()
    monkeypatch.delenv("TRAP_AT")
    assert main(["train", "--resume", str(run)]) == 0
    held_against(whole, run)


@pytest.mark.parametrize(
    ("at", "signals"),
    [
        (("sft", 1), [signal.SIGINT]),
        (("sft", 3), [signal.SIGTERM]),
        (("grpo", 3), [signal.SIGINT, signal.SIGINT]),
        (("grpo", 7), [signal.SIGINT]),
    ],
    ids=["sft", "last step of sft", "twice", "last step"],
)
def test_a_stop_at_any_step_costs_nothing(
    at: tuple[str, int],
    signals: list[signal.Signals],
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = two_stages(tmp_path)
    signals_at(monkeypatch, at, *signals)
    with pytest.raises(Interrupted) as caught:
        train(wanted, quiet=True)
    assert caught.value.folder == tmp_path / "run"
    monkeypatch.undo()
    train(wanted, resume=tmp_path / "run", quiet=True)
    held_against(whole, tmp_path / "run")
    handler = signal.getsignal(signal.SIGINT)
    assert handler is signal.default_int_handler, "the caller's own handler is back"


@pytest.mark.parametrize(
    ("source", "stage"),
    [
        ({"source": "scratch:moe-tiny", "lora": {"rank": 4}}, {"loss": {"beta": 0.04}}),
        ({"source": "scratch:moe-tiny"}, {"loss": {"beta": 0.04}}),
        ({"source": "scratch:dense-tiny"}, {"group": {"size": 4, "prompts": 2, "micro_batch": 4}}),
    ],
    ids=["adapter", "reference", "micro-batches"],
)
def test_a_stopped_run_of_another_kind_continues_to_the_same_weights(
    source: dict[str, Any], stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        stages = sft(), grpo(steps=4, save_every=2, **stage)
        wanted = recipe(tmp_path / name, *stages, policy=source, evals={"sets": ()})
        if name == "stopped":
            signals_at(monkeypatch, ("grpo", 3), signal.SIGINT, signal.SIGINT)
            with pytest.raises(Interrupted):
                train(wanted, quiet=True)
            monkeypatch.undo()
            train(wanted, resume=tmp_path / name / "run", quiet=True)
        else:
            train(wanted, quiet=True)
        found.append(tmp_path / name / "run")
    assert same(found[0] / "policy", found[1] / "policy")
    metrics = [untimed(run / "stages" / "2-grpo" / "metrics.jsonl") for run in found]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("call", [1, 2], ids=["before", "after"])
def test_a_stop_while_evaluating_costs_nothing(
    call: int, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = two_stages(tmp_path)
    calls = [0]

    def progress(view: LiveView, label: str, done: int, of: int) -> None:
        if label.endswith("@sampled") and done == of:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(LiveView, "progress", progress)
    with pytest.raises(Interrupted):
        train(wanted, quiet=True)
    assert [(tmp_path / "run/evals" / f"{n}.json").exists() for n in ("before", "after")] == [
        call == 2,
        False,
    ]
    train(wanted, resume=tmp_path / "run", quiet=True)
    held_against(whole, tmp_path / "run")


def test_a_reward_that_breaks_down_ends_the_run_and_can_be_mended(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    down = TRAPPED.replace(
        "    if answer",
        f"    if CALLS > 1 + 8 * 4 and os.path.exists({str(tmp_path / 'down')!r}):\n"
        '        raise ConnectionError("the judge is away")\n    if answer',
    )
    wanted = two_stages(tmp_path)
    (tmp_path / "near.py").write_text(down)
    (tmp_path / "r.yaml").write_text(wanted.to_yaml())
    (tmp_path / "down").touch()
    assert main(["train", str(tmp_path / "r.yaml")]) == 3
    shown = " ".join(capsys.readouterr().err.split())
    assert "every reward call of a step failed" in shown and "the judge is away" in shown
    (tmp_path / "down").unlink()
    train(wanted, resume=tmp_path / "run", quiet=True)
    held_against(whole, tmp_path / "run")


def test_rewards_failed_reaches_the_caller(tmp_path: Path) -> None:
    broken = TRAPPED.replace("    if answer", "    if CALLS > 1:\n        1 / 0\n    if answer")
    with pytest.raises(RewardsFailed, match="ZeroDivisionError"):
        train(recipe(tmp_path, grpo(), source=broken), quiet=True)


# ------------------------------------------------------------------ what is said before anything


def refused(wanted: Recipe, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(wanted, quiet=True)
    assert not (folder / "run").exists(), "said before the run's folder is made"


def test_mistakes_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    extra = grpo(trainer={"max_grad_nrm": 1.0})
    refused(
        recipe(tmp_path, sft(), extra), r"'max_grad_nrm'.*Did you mean 'max_grad_norm'", tmp_path
    )
    impossible = grpo(trainer={"num_generations": 3})
    refused(recipe(tmp_path, sft(), impossible), "stage grpo: ", tmp_path)
    refused(recipe(tmp_path, sft(), policy="scratch:moe"), "scratch:moe-tiny", tmp_path)
    refused(recipe(tmp_path, sft(), policy=str(tmp_path)), "without a model in it", tmp_path)
    refused(recipe(tmp_path, grpo(), rewards={"lenght": 1.0}), "Did you mean 'length'", tmp_path)
    refused(recipe(tmp_path, grpo(), evals={"sets": ["modlar_test"]}), "modular_test", tmp_path)
    wrong = REWARD.replace("answer: str", "solution: str").replace("answer in", "solution in")
    refused(recipe(tmp_path, grpo(), source=wrong), r"needs the column 'solution'", tmp_path)
    refused(recipe(tmp_path, grpo(), template="chat"), "no chat template", tmp_path)
    (tmp_path / "plain.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n')
    plain = sft(data=str(tmp_path / "plain.jsonl"))
    refused(recipe(tmp_path, plain), "has no completion, chain or solution", tmp_path)


TRL_FORMS = '''
async def slow(completions, **kwargs):
    return [float(len(c) % 3) for c in completions]


def chats(prompts, completions, completion_ids, trainer_state, log_metric, **kwargs):
    """A reward of trl's own form, for chats alone."""
    log_metric("seen", float(trainer_state.global_step))
    assert all(p[-1]["role"] == "user" for p in prompts)
    assert all(len(ids) for ids in completion_ids)
    return [float(len(c[0]["content"]) % 3) for c in completions]
'''


def test_rewards_of_trls_own_form_train_as_they_are(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    policy.save(tmp_path / "chatty")
    (tmp_path / "forms.py").write_text(TRL_FORMS)
    for name, template in (("chats", "auto"), ("chats", "chat"), ("slow", "plain")):
        folder = tmp_path / f"{name}-{template}"
        folder.mkdir()
        wanted = recipe(
            folder,
            grpo(steps=2),
            policy=str(tmp_path / "chatty"),
            template=template,
            rewards={f"{tmp_path}/forms.py:{name}": 1.0},
            evals={"sets": ()},
        )
        run = train(wanted, quiet=True)
        metrics = rows(run.folder / "stages" / "1-grpo" / "metrics.jsonl")
        assert len(metrics) == 2 and f"rewards/{name}/mean" in metrics[0]
