"""`overlap="one_step"`: a batch is sampled while the one before it is trained on."""

import base64
import logging
import os
import pickle
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.machine import choices
from rl_reasoner.policy.fp8.layers import fp8
from rl_reasoner.rollout import decode_pass, sampling_worker
from rl_reasoner.rollout.sampling_process import SamplingFailed, SamplingProcess
from rl_reasoner.workers import Worker
from support.processes import Weights, build, killed, same, together, weights
from support.stock import PROMPTS, TOLERANCE, Gradient, half_flat, lora, worst
from support.tiny import QUIET

AHEAD: dict[str, Any] = {"overlap": "one_step", "logging_steps": 1}
DENSE = "scratch:dense-tiny"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # a process with more of them cannot be forked safely


def test_the_first_step_is_on_policy_and_the_others_one_step_off(tmp_path: Path) -> None:
    synchronous = build(DENSE, tmp_path, logging_steps=1, max_steps=1, save_strategy="no")
    synchronous.train()
    trainer = build(DENSE, tmp_path, **AHEAD, max_steps=4, save_strategy="no")
    trainer.train()
    rows = trainer.state.log_history[:-1]
    assert [row["overlap/staleness"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
    name = "sampling/sampling_logp_difference/mean"
    assert rows[0][name] < 1e-5 < rows[1][name], "the policy has moved since"
    assert rows[0]["reward"] == synchronous.state.log_history[0]["reward"]
    assert all(row["overlapped_time/generation"] > 0 for row in rows[1:])


@pytest.mark.parametrize(
    ("policy", "at", "changes"),
    [
        pytest.param(DENSE, 5, {}, marks=pytest.mark.matrix),
        pytest.param(
            DENSE,
            6,
            {"steps_per_generation": 4, "num_iterations": 2, "save_steps": 3},
            marks=pytest.mark.matrix,
        ),
        pytest.param(
            DENSE, 5, {"prompt_schedule": True, "dynamic_sampling": 1}, marks=pytest.mark.matrix
        ),
        ("scratch:moe-tiny", 5, {"router_replay": True}),
    ],
    ids=str,
)
def test_a_run_killed_in_mid_step_is_resumed_to_the_same_weights(
    policy: str, at: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    changes = {**AHEAD, **changes}
    whole = build(policy, tmp_path / "whole", **changes)
    whole.train()
    killed(policy, tmp_path / "killed", at, changes)
    resumed = build(policy, tmp_path / "killed", **changes)
    resumed.train(resume_from_checkpoint=True)
    assert 0 < resumed._initial_global_step < at, "there was a checkpoint, and steps were lost"
    assert same(weights(whole), weights(resumed))
    stale = {row.get("overlap/staleness", 1.0) for row in resumed.state.log_history[1:-1]}
    assert 0.0 not in stale, "what was being sampled is in the checkpoint"


class Kills(TrainerCallback):  # type: ignore[misc]
    """Kills the process that samples at these steps; with `always` also those that follow it."""

    def __init__(self, trainer: GRPOTrainer, steps: set[int], always: bool = False) -> None:
        self.trainer, self.steps, self.always = trainer, steps, always

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.steps:
            return
        process = self.trainer.sampling_ahead._process
        assert process is not None
        started = process._started

        def dead() -> Worker:
            worker = started()
            worker.kill()
            return worker

        os.kill(process.pid, signal.SIGKILL)
        if self.always:
            process._started = dead  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights after a run that nothing happened to."""
    torch.set_num_threads(1)
    trainer = build(DENSE, tmp_path_factory.mktemp("whole"), **AHEAD)
    trainer.train()
    return weights(trainer)


@pytest.mark.parametrize("able", [True, False])
def test_the_process_samples_by_the_same_pass_and_the_same_choices(
    able: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was proved of the policy holds for its copy; the process does not try it again."""
    sent: list[dict[str, Any]] = []
    send = Worker.send

    def sends(worker: Worker, message: dict[str, Any], deadline: float) -> None:
        sent.append(message)
        send(worker, message, deadline)

    monkeypatch.setattr(Worker, "send", sends)
    trainer = build(DENSE, tmp_path, **AHEAD, max_steps=2, save_strategy="no")
    decode_pass.proved(trainer.model, able)
    trainer.train()
    opening = next(message for message in sent if "modules" in message)
    assert opening["proved"] == able
    assert opening["choices"].items() <= choices.taken().items()
    assert opening["choices"]["native"] is False


def test_what_was_proved_is_known_in_the_process() -> None:
    model = open_policy(DENSE, seed=5, device="cpu").model
    for able in (True, False):
        decode_pass.proved(model, able)
        process = SamplingProcess(model, 1)
        try:
            file = process._policy.file.fileno()
            opening = {"modules": process._policy.modules, "answering": pickle.dumps(None)}
            told = {name: base64.b64encode(value).decode() for name, value in opening.items()}
            told |= {"file": file, "size": process._policy.size, "device": "cpu", "threads": 1}
            copy = sampling_worker._Policy({**told, "proved": able, "choices": {}}).opened.model
            assert (decode_pass.decode_pass(copy) is not None) == able
        finally:
            process.close()


def test_a_killed_sampler_is_started_again_and_samples_the_same(
    whole: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(DENSE, tmp_path, **AHEAD, save_strategy="no")
    trainer.add_callback(Kills(trainer, {1}))
    trainer.train()
    assert same(whole, weights(trainer))
    [said] = [r.getMessage() for r in caplog.records if "process that samples" in r.getMessage()]
    assert "killed by SIGKILL" in said and "started again" in said


def test_a_sampler_that_keeps_dying_is_one_message_and_the_run_goes_on_from_its_checkpoint(
    whole: Weights, tmp_path: Path
) -> None:
    trainer = build(DENSE, tmp_path / "failed", **AHEAD)
    trainer.add_callback(Kills(trainer, {4}, always=True))
    with pytest.raises(SamplingFailed, match=r"ended 2 times in one batch \(killed by SIGKILL\)"):
        trainer.train()
    resumed = build(DENSE, tmp_path / "failed", **AHEAD)
    resumed.train(resume_from_checkpoint=True)
    assert same(whole, weights(resumed))


def test_an_error_of_the_sampler_is_one_message(tmp_path: Path) -> None:
    trainer = build(DENSE, tmp_path, **AHEAD, save_strategy="no")
    order = trainer.engine_sampling.order
    trainer.engine_sampling.order = lambda rows, prompts, *given: order(rows, [[10**6]], *given)
    with pytest.raises(SamplingFailed, match="the process that samples failed: IndexError"):
        trainer.train()


@pytest.mark.parametrize(
    ("sends", "ended"), [(signal.SIGKILL, signal.SIGKILL), (signal.SIGINT, 256)], ids=str
)
def test_the_sampler_ends_with_a_trainer_that_is_killed_or_interrupted(
    sends: int, ended: int, tmp_path: Path
) -> None:
    def job(rank: int) -> None:
        trainer = build(DENSE, tmp_path, **AHEAD)

        class Dies(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *given: Any, **named: Any) -> None:
                (tmp_path / "pid").write_text(str(trainer.sampling_ahead._process.pid))
                os.killpg(0, sends)

        trainer.add_callback(Dies())
        trainer.train()

    assert together(1, job) == [ended]
    there = Path("/proc") / (tmp_path / "pid").read_text()
    for _ in range(300):
        if not there.exists() or "\nState:\tZ" in (there / "status").read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the process that samples lives on")


@pytest.mark.parametrize(
    ("mode", "most"), [("token_truncate", 1.01), ("token_mask", 1.5), ("sequence_mask", 2.0)]
)
def test_gradients_are_those_of_trls_correction_for_the_same_log_probs(
    mode: str, most: float, tmp_path: Path
) -> None:
    """On the same completions and the log-probs that they were drawn with, as trl has from vLLM."""
    open_policy(DENSE, seed=3, device="cpu").save(tmp_path / "policy")
    drawn: list[Any] = []

    class Ours(GRPOTrainer):
        def _generate_single_turn(self, *given: Any) -> Any:
            drawn.append(super()._generate_single_turn(*given))
            return drawn[-1]

    class Stock(trl.GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, *given: Any) -> Any:
            return drawn.pop(0)

    Ours.__name__ = Stock.__name__ = "GRPOTrainer"
    found = []
    for kind in (Ours, Stock):
        policy = open_policy(str(tmp_path / "policy"), device="cpu")
        ahead = {"overlap": "one_step"} if kind is Ours else {}
        config = (GRPOConfig if kind is Ours else trl.GRPOConfig)(
            output_dir=str(tmp_path / "out"),
            max_steps=4,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=12,
            learning_rate=0.05,
            optim="sgd",
            max_grad_norm=0.0,
            vllm_importance_sampling_mode=mode,
            vllm_importance_sampling_clip_max=most,
            **QUIET,
            **ahead,
        )
        trainer = kind(
            policy.model,
            reward_funcs=half_flat,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=policy.tokenizer,
        )
        trainer.use_vllm = kind is Stock  # it corrects; nothing asks it to sample
        kept = Gradient()
        trainer.add_callback(kept)
        torch.manual_seed(11)
        trainer.train()
        found.append(kept)
    ours, stock = found
    assert worst(ours.steps, stock.steps) < TOLERANCE
    ratio = "sampling/importance_sampling_ratio/mean"
    means = [log[ratio] for log in ours.logs if ratio in log]
    assert any(abs(mean - 1) > 1e-4 for mean in means), "the correction did something"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlap": "two_step"}, "overlap"),
        ({"fast_rollouts": False}, "overlap='one_step'.*fast_rollouts=False"),
        ({"stream": True}, "overlap='one_step'.*must not be iterable"),
        ({"vllm_importance_sampling_correction": False}, "overlap='one_step' corrects by trl's"),
        ({"cache_implementation": "static"}, "overlap='one_step'.*cache_implementation"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_ahead_is_one_clear_error(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        build(DENSE, tmp_path, **{**AHEAD, **changes})


def test_other_prompts_than_were_expected_are_sampled_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(DENSE, tmp_path, **AHEAD, max_steps=3, save_strategy="no")
    caplog.set_level(logging.WARNING)
    trainer.sampling_ahead._numbers = lambda generation, every: [0, 0]
    trainer.train()
    rows = trainer.state.log_history[:-1]
    assert [row["overlap/staleness"] for row in rows] == [0.0, 0.0, 0.0]
    assert "other prompts came than were sampled ahead" in caplog.text


@pytest.mark.parametrize("policy", [DENSE, "scratch:moe-tiny"])
def test_in_fp8_the_process_that_samples_multiplies_as_the_trainer_does(
    policy: str, tmp_path: Path
) -> None:
    """Its linear layers, too; with a rate of 0 nothing moves."""
    given = {**AHEAD, "save_strategy": "no", "learning_rate": 0.0, "router_replay": True}
    trainer = build(policy, tmp_path, **given, max_steps=2)
    with fp8(trainer.model):
        trainer.train()
    apart = [row["sampling/sampling_logp_difference/mean"] for row in trainer.state.log_history[:2]]
    assert max(apart) < 3e-3, "FP8 moves log-probs by a hundredth and more"


@pytest.mark.parametrize(
    ("policy", "checkpointing"), [(DENSE, False), (DENSE, True), ("scratch:moe-tiny", False)]
)
def test_an_adapter_is_sampled_ahead(policy: str, checkpointing: bool, tmp_path: Path) -> None:
    """Also with gradient checkpointing, for which transformers hooks the model; and in FP8."""
    config = lora(0.0)
    given = {**AHEAD, "gradient_checkpointing": checkpointing, "save_strategy": "no"}
    trainer = build(policy, tmp_path, **given, peft_config=config, max_steps=2)
    with fp8(trainer.model) if policy != DENSE else nullcontext():
        trainer.train()
    first, second = trainer.state.log_history[:2]
    name = "sampling/sampling_logp_difference/mean"
    assert first[name] < 1e-5 < second[name] < 0.5
