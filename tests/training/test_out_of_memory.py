"""Out of memory in the training pass: smaller pieces, the same gradient, or no step at all."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import GRPOTrainer, open_policy
from rl_reasoner.training.out_of_memory import SmallerPieces
from rl_reasoner.training.packed_forward import PackedForward
from support.trainers import Weights, build, digits, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy."""
    path = tmp_path_factory.mktemp("policy")
    open_policy("scratch:dense-tiny", seed=5, device="cpu").save(path)
    return path


def small_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A device that holds the activations of so many rows with a gradient."""
    whole = PackedForward.log_probs

    def limited(self: Any, plain: Any, model: Any, ids: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and len(ids) > rows:
            raise torch.OutOfMemoryError("tried to allocate")
        return whole(self, plain, model, ids, *args, **kwargs)

    monkeypatch.setattr(PackedForward, "log_probs", limited)


def near(a: Weights, b: Weights, start: Weights) -> float:
    """The largest difference of the updates, relative to the largest update."""
    size = max(float((a[n] - start[n]).abs().max()) for n in a)
    return max(float((a[n] - b[n]).abs().max()) for n in a) / size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss_type": "grpo", "beta": 0.04},
        {
            "loss_type": "dr_grpo",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
        },
        {"loss_type": "cispo", "num_iterations": 2, "max_steps": 4},
        {"per_device_train_batch_size": 4, "steps_per_generation": 4, "max_steps": 3},
        {"share_prompts": False, "loss_type": "grpo"},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_smaller_pieces_give_the_same_weights(
    changes: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"optim": "sgd", "learning_rate": 0.1, **changes}
    start = {
        n: p.detach() for n, p in open_policy(str(folder), device="cpu").model.named_parameters()
    }
    whole, _ = trained(build(GRPOTrainer, folder, digits, tmp_path, **changes))
    small_memory(monkeypatch, 3)
    trainer = build(GRPOTrainer, folder, digits, tmp_path, **changes)
    pieces, logged = trained(trainer)
    assert trainer.out_of_memory.pieces == (
        4 if trainer.args.per_device_train_batch_size == 8 else 2
    )
    assert logged[0]["memory/pieces"] >= 2 and "memory/pieces" not in logged[1]
    assert near(whole, pieces, start) < 1e-4
    assert not any("steps/skipped" in row for row in logged)


def breaks_off(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th backward pass runs out of memory after it has changed gradients."""
    build_pieces = SmallerPieces._in_pieces
    calls = [0]

    def limited(self: Any, *given: Any) -> Any:
        calls[0] += 1
        found = build_pieces(self, *given)
        if calls[0] == at:
            raise torch.OutOfMemoryError("tried to allocate")
        return found

    monkeypatch.setattr(SmallerPieces, "_in_pieces", limited)


def test_a_backward_pass_that_breaks_off_is_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {
        n: p.detach() for n, p in open_policy(str(folder), device="cpu").model.named_parameters()
    }
    changes = {"optim": "sgd", "learning_rate": 0.1}
    whole, _ = trained(build(GRPOTrainer, folder, digits, tmp_path, **changes))
    breaks_off(monkeypatch, 1)
    found, logged = trained(build(GRPOTrainer, folder, digits, tmp_path, **changes))
    assert near(whole, found, start) < 1e-4 and "steps/skipped" not in logged[0]


def test_a_gradient_that_is_not_known_any_more_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It broke off on top of the gradients of an earlier micro-batch."""
    breaks_off(monkeypatch, 2)
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1}
    start = dict(open_policy(str(folder), device="cpu").model.named_parameters())
    found, logged = trained(build(GRPOTrainer, folder, digits, tmp_path, **changes))
    assert logged[0]["steps/skipped"] == 1.0
    assert all(torch.equal(start[name], found[name]) for name in found)


def test_one_row_that_does_not_fit_ends_the_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        build(GRPOTrainer, folder, digits, tmp_path).train()


def test_an_optimizer_that_steps_in_the_backward_pass_gets_its_learning_rate(
    folder: Path, tmp_path: Path
) -> None:
    """LOMO's call of accelerate, for each loss once: not for a stand-in of it."""
    trainer = build(GRPOTrainer, folder, digits, tmp_path, max_steps=2)
    trainer.args.optim = "lomo"
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.25)
    trainer.accelerator.has_lomo_optimizer = True
    seen: list[tuple[bool, float]] = []

    def backward(loss: torch.Tensor, rate: float) -> None:
        weight = trainer.model.get_input_embeddings().weight
        weight.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        seen.append((weight.grad is not None, rate))

    trainer.accelerator.lomo_backward = backward
    trainer.train()
    assert len(seen) == 2 and all(real for real, _ in seen)
    assert seen[0][1] > seen[1][1] > 0, "the schedule's rate"
    for name in ("adalomo", "galore_adamw_layerwise"):
        trainer.args.optim = name
        assert not trainer.out_of_memory.splits, "each piece would be a step"
