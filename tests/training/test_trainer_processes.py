"""Two processes of one job on a CPU: the gradients of one, none waits for ever, exact resume."""

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from rl_reasoner import cli
from rl_reasoner.distributed.sharding import OPTIMIZER_SHARDS
from rl_reasoner.distributed.shards import MODEL_SHARDS, merged_state_dict
from rl_reasoner.errors import UserError
from support.processes import FSDP, Weights, build, plain, same, together, trained, weights

PLAIN: dict[str, Any] = {"save_strategy": "no", "logging_steps": 1}


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({n.removeprefix("module."): plain(p.grad).clone() for n, p in named})


def tens(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
    """Groups of every other prompt are flat."""
    return [
        1.0 if int(prompt[2]) % 2 else len(set(completion)) / 8
        for completion, prompt in zip(completions, prompts, strict=True)
    ]


def gradients(
    folder: Path, policy: str, processes: int, reward: Any = tens, **changes: Any
) -> list[list[Weights]]:
    """The gradients of two steps on the same rows, by process; figures of the first in a file."""

    def job(rank: int) -> None:
        trainer = build(
            policy,
            folder,
            reward=reward,
            **{
                "max_steps": 2,
                "gradient_accumulation_steps": 1,
                "per_device_train_batch_size": 8 // processes,
                "logging_steps": 1,
                "save_strategy": "no",
                "shuffle_dataset": False,
                "max_grad_norm": 0.0,
                "optim": "sgd",
                **changes,
            },
        )
        kept = Gradients()
        trainer.add_callback(kept)
        rows: list[dict[str, Any]] = []
        trainer.rollout_sink = rows.extend
        trainer.train()
        groups = [row["group"] for row in rows]
        assert groups[:8] == ([0] * 4 + [1] * 4 if rank == 0 else [])
        (folder / f"{processes}-{rank}.json").write_text(json.dumps(trainer.state.log_history[0]))
        torch.save(kept.steps, folder / f"{processes}-{rank}.pt")

    assert together(processes, job) == [0] * processes
    return [torch.load(folder / f"{processes}-{rank}.pt") for rank in range(processes)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ("scratch:dense-tiny", {"loss_type": "grpo"}),
        ("scratch:dense-tiny", {"loss_type": "dapo", "num_iterations": 2}),
        ("scratch:moe-tiny", {"router_aux_loss_coef": 0.0}),
        ("scratch:dense-tiny", {"share_prompts": False}),
        ("scratch:dense-tiny", {"keep_sampling_mask": True, "top_p": 0.8}),
    ],
    ids=str,
)
def test_two_processes_have_the_gradients_of_one(
    policy: str, changes: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    """Of the two groups of each step one is flat: only one process has rows that teach."""
    [alone] = gradients(tmp_path, policy, 1, **changes)
    both = gradients(tmp_path, policy, 2, **changes, **(FSDP if kind == "fsdp" else {}))
    assert len(alone) == 2 and any(g.any() for g in alone[0].values())
    for found in both:
        for ours, theirs in zip(found, alone, strict=True):
            close(ours, theirs)


def close(ours: Weights, theirs: Weights) -> None:
    """Each gradient to 1e-5 of its norm, and to 1e-6 of that of all of them."""
    whole = sum(float(g.norm()) ** 2 for g in theirs.values()) ** 0.5
    for name, gradient in theirs.items():
        error = float((ours[name] - gradient).norm())
        assert error <= 1e-5 * float(gradient.norm()) + 1e-6 * whole, name


def halves(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
    """Groups of the first two prompts are flat, those of the next two are not."""
    return [
        1.0 if int(prompt[2]) < 2 else len(set(completion)) / 8
        for completion, prompt in zip(completions, prompts, strict=True)
    ]


@pytest.mark.parametrize("kind", [{}, FSDP], ids=["ddp", "fsdp"])
def test_groups_change_places_so_that_both_have_rows_that_teach(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    """Four groups a step, the first process's two flat: one is exchanged, the gradient stays."""
    four: dict[str, Any] = {"per_device_train_batch_size": 16, "max_steps": 1}
    [alone] = gradients(tmp_path, "scratch:dense-tiny", 1, halves, **four)
    four["per_device_train_batch_size"] = 8
    both = gradients(tmp_path, "scratch:dense-tiny", 2, halves, **four, **kind)
    for found in both:
        close(found[0], alone[0])
    for rank in (0, 1):
        logged = json.loads((tmp_path / f"2-{rank}.json").read_text())
        assert logged["processes/tokens_spread_sampled"] == 2.0
        assert logged["processes/tokens_spread"] < 1.5


def test_figures_of_experts_are_those_of_all_processes(tmp_path: Path) -> None:
    changes = {"router_sequence_loss_coef": 0.1, "router_aux_loss_coef": 0.0, "max_steps": 1}
    for processes in (1, 2):
        gradients(tmp_path, "scratch:moe-tiny", processes, **changes)
    alone, *both = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    names = [name for name in alone if name.startswith("experts/")]
    assert len(names) == 3
    for name in (*names, "router_sequence_loss"):
        assert [row[name] for row in both] == pytest.approx([alone[name]] * 2, rel=1e-5), name


def test_sampling_in_shards_is_corrected_whoever_is_done_first(tmp_path: Path) -> None:
    """The first process's rows are shorter: the second samples on, without calls to the first."""

    def job(rank: int) -> None:
        changes = {**FSDP, **PLAIN, "correct_sampling": True, "top_k": 20, "max_steps": 2}
        changes |= {"per_device_train_batch_size": 4, "shuffle_dataset": False}
        budgets = {"max_tokens": [2, 2, 6, 6] * 2}
        trainer = build("scratch:dense-tiny", tmp_path, columns=budgets, **changes)
        trainer.use_row_settings = True
        trainer.train()
        ratio = trainer.state.log_history[0]["sampling/importance_sampling_ratio/mean"]
        assert 0 < ratio < 1, "top-k makes every token that is drawn likelier"

    assert together(2, job) == [0, 0]


def test_rows_without_numbers_on_one_process_stop_neither(tmp_path: Path) -> None:
    """All rows of the second process have no log-probability: the first trains on its own."""

    def job(rank: int) -> None:
        trainer = build(
            "scratch:dense-tiny", tmp_path, max_steps=2, gradient_accumulation_steps=1, **PLAIN
        )

        class Spoilt(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                embedding = trainer.model.get_input_embeddings()
                embedding.register_forward_hook(lambda *call: call[-1] * torch.nan)

        if rank == 1:
            trainer.add_callback(Spoilt())
        trainer.train()
        left_out = [row.get("rows/not_finite") for row in trainer.state.log_history]
        assert any(left_out), "both tell of rows that the second process has no numbers for"
        torch.save(weights(trainer), tmp_path / f"{rank}.pt")

    before = weights(build("scratch:dense-tiny", tmp_path, **PLAIN))
    assert together(2, job) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(first, second) and not same(first, before)
    assert all(w.isfinite().all() for w in first.values())


def uneven(completions: list[str], prompts: list[str], **columns: Any) -> list[float | None]:
    """Flat groups, groups that abstain wholly, and rows that abstain alone."""
    found: list[float | None] = []
    for completion, prompt in zip(completions, prompts, strict=True):
        kind = int(prompt[2])
        value = None if kind == 1 or len(completion) % 3 == 0 else len(set(completion)) / 8
        found.append(1.0 if kind == 0 else value)
    return found


@pytest.mark.parametrize("kind", [{}, FSDP], ids=["ddp", "fsdp"])
def test_whatever_is_left_out_both_make_the_same_calls(
    kind: dict[str, Any], tmp_path: Path
) -> None:
    """Flat groups refilled, abstentions, rows without numbers in one process: no one waits."""

    def job(rank: int) -> None:
        changes = {**kind, **PLAIN, "max_steps": 8, "dynamic_sampling": 1, "num_iterations": 2}
        changes |= {"router_aux_loss_coef": 0.0, "router_replay": True}
        trainer = build("scratch:moe-tiny", tmp_path, reward=uneven, **changes)

        def broken(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            lost = rank == 1 and trainer.state.global_step % 4 == 2
            return output * torch.nan if lost else output

        trainer.model.get_input_embeddings().register_forward_hook(broken)
        trainer.train()
        assert trainer.state.global_step == 8
        torch.save(weights(trainer), tmp_path / f"{rank}.pt")

    assert together(2, job) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert same(first, second) and all(w.isfinite().all() for w in first.values())


EVAL = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}


@pytest.mark.parametrize(
    ("at", "changes"),
    [
        (4, {"save_steps": 3, "max_steps": 6}),  # the second epoch begins at step 3
        (5, {"steps_per_generation": 4, "num_iterations": 3, "max_steps": 6, "save_steps": 3}),
        (4, {"steps_per_generation": 4, "save_steps": 3, "max_steps": 5, **EVAL}),
        (4, {"save_steps": 3, "max_steps": 6, **FSDP}),
    ],
    ids=str,
)
def test_a_killed_job_of_two_processes_is_resumed_to_the_same_weights(
    at: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = trained(2, tmp_path / "whole", **changes)
    trained(2, tmp_path / "killed", kill=at, **changes)
    resumed = trained(2, tmp_path / "killed", resume=True, **changes)
    assert same(whole, resumed)


@pytest.mark.parametrize(("before", "after", "kind"), [(2, 1, {}), (1, 2, {}), (2, 1, FSDP)])
def test_a_run_goes_on_in_another_number_of_processes(
    before: int, after: int, kind: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With its weights, moments and prompts as they were; new completions are sampled, and said."""

    def changes(count: int) -> dict[str, Any]:
        own = kind if count > 1 else {}
        return {**own, "per_device_train_batch_size": 8 // count, "save_steps": 2, "max_steps": 4}

    trained(before, tmp_path, kill=3, **changes(before))
    checkpoint = tmp_path / "checkpoint-2"
    saved = merged_state_dict(checkpoint) if kind else load_file(checkpoint / "model.safetensors")
    capfd.readouterr()
    kept: dict[str, Any] = {}

    class Begun(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            named = kwargs["model"].named_parameters()
            kept.setdefault("weights", {n.removeprefix("module."): p.clone() for n, p in named})
            kept.setdefault("moments", [*kwargs["optimizer"].state.values()])

    def job(rank: int) -> None:
        logging.getLogger("rl_reasoner").addHandler(logging.StreamHandler())
        trainer = build("scratch:dense-tiny", tmp_path, **changes(after))
        trainer.add_callback(Begun())
        trainer.train(resume_from_checkpoint=True)
        assert all(torch.equal(tensor, saved[name]) for name, tensor in kept["weights"].items())
        assert {int(moments["step"]) for moments in kept["moments"]} == {4}

    assert together(after, job) == [0] * after
    assert f"was written by {before} processes, not {after}" in capfd.readouterr().err


def test_a_checkpoint_in_shards_is_exported_whole(tmp_path: Path) -> None:
    """Experts too, which lie fused in the shards and one by one in what is exported."""

    def job(rank: int) -> None:
        changes = {**FSDP, "max_steps": 2, "save_steps": 2, "logging_steps": 1}
        trainer = build("scratch:moe-tiny", tmp_path, **changes)
        trainer.train()
        torch.save(weights(trainer), tmp_path / f"{rank}.pt")

    assert together(2, job) == [0, 0]
    out = tmp_path / "out"
    assert cli.main(["export", str(tmp_path / "checkpoint-2"), str(out)]) == 0
    found = dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())
    expected = torch.load(tmp_path / "0.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.matrix
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("generation", [1, 4])
def test_the_whole_matrix_of_resumed_runs(
    generation: int, iterations: int, evaluates: bool, processes: int, tmp_path: Path
) -> None:
    """Killed in the second epoch, resumed from a checkpoint within it."""
    epoch = 2 * iterations
    changes: dict[str, Any] = {
        "steps_per_generation": generation,
        "num_iterations": iterations,
        "prompts": 4 * processes,
        "save_steps": epoch + 1,
        "max_steps": epoch + 3,
        **(EVAL if evaluates else {}),
    }
    whole = trained(processes, tmp_path / "whole", **changes)
    trained(processes, tmp_path / "killed", kill=epoch + 3, **changes)
    resumed = trained(processes, tmp_path / "killed", resume=True, **changes)
    assert same(whole, resumed)


class _Opens:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_no_job_unpickles_the_shards_of_a_checkpoint(tmp_path: Path) -> None:
    """The weights' and the optimizer's, in one process or in two as accelerate reads them."""
    trained(2, tmp_path, kill=3, save_steps=2, max_steps=4, **FSDP)
    checkpoint, canary = tmp_path / "checkpoint-2", tmp_path / "canary"
    (checkpoint / "checksums.json").unlink(missing_ok=True)

    for part in (MODEL_SHARDS, OPTIMIZER_SHARDS):
        index = checkpoint / part / ".metadata"
        kept = index.read_bytes()
        index.write_bytes(pickle.dumps(_Opens(canary)))
        for count in (1, 2):

            def job(rank: int, count: int = count, part: str = part) -> None:
                own = FSDP if count > 1 else {}
                trainer = build("scratch:dense-tiny", tmp_path, save_steps=2, max_steps=4, **own)
                with pytest.raises(UserError, match=f"{part} is not loaded"):
                    trainer.train(resume_from_checkpoint=str(checkpoint))

            assert together(count, job) == [0] * count
        index.write_bytes(kept)
    assert not canary.exists()
