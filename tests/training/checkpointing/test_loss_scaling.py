"""fp16 on a CPU: passes are in it, gradients are fp32's, and the loss's scale is resumed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from rl_reasoner import GRPOTrainer
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.trl_configs import config
from rl_reasoner.policy.device import autocast_dtype
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.training.checkpointing.loss_scaling import scale_losses
from support.processes import build, same, weights


class Fixed(GRPOTrainer):
    """Trains on the same completions, whatever the policy."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any) -> Any:
        random = torch.Generator().manual_seed(self._step)
        counts = [1 + row % 5 for row in range(len(prompt_ids))]
        return [torch.randint(6, 90, (n,), generator=random).tolist() for n in counts], None


Fixed.__name__ = "GRPOTrainer"


class Watch(TrainerCallback):  # type: ignore[misc]
    """What the optimizer gets, the types that a layer gives, and the scale behind each step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.gradients: list[torch.Tensor] = []
        self.types: set[torch.dtype] = set()
        self.scales: list[float] = []
        trainer.add_callback(self)

    def on_train_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        layer = model.model.layers[0].mlp.down_proj
        layer.register_forward_hook(lambda module, given, out: self.types.add(out.dtype))

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if (scaler := self.trainer.accelerator.scaler) is not None:
            self.scales.append(scaler.get_scale())


def test_passes_are_in_fp16_and_gradients_are_fp32s(tmp_path: Path) -> None:
    found = []
    for fp16 in (True, False):
        changes = {"fp16": fp16, "max_steps": 1, "save_strategy": "no"}
        trainer = build("scratch:dense-tiny", tmp_path, kind=Fixed, **changes)
        watch = Watch(trainer)
        trainer.train()
        assert watch.types == {torch.float16 if fp16 else torch.float32}
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        assert watch.scales == ([2.0**16] if fp16 else [])
        found.append(watch.gradients[0])
    assert 0 < (found[0] - found[1]).norm() <= 2e-2 * found[1].norm()


def test_the_scale_is_resumed(tmp_path: Path) -> None:
    """It begins so high that gradients overflow: steps are left out until it is low enough."""
    changes = {"fp16": True, "max_steps": 4, "save_steps": 2}
    whole = build("scratch:dense-tiny", tmp_path / "whole", **changes)
    watch = Watch(whole)
    whole.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    whole.train()
    assert watch.scales[:2] == [2.0**119, 2.0**118]
    resumed = build("scratch:dense-tiny", tmp_path / "resumed", **changes)
    after = Watch(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert after.scales == watch.scales[2:]
    assert same(weights(whole), weights(resumed))


def test_a_whole_run_in_fp16_is_resumed_exactly(tmp_path: Path) -> None:
    changes = {"fp16": True, "max_steps": 4, "save_steps": 2}
    whole = build("scratch:dense-tiny", tmp_path / "whole", **changes)
    before = weights(whole)
    whole.train()
    resumed = build("scratch:dense-tiny", tmp_path / "resumed", **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(whole), weights(resumed)) and not same(before, weights(whole))


def test_a_recipe_asks_for_it(tmp_path: Path) -> None:
    made = Recipe.model_validate(
        {
            "policy": "scratch:dense-tiny",
            "rewards": {"math_answer": 1},
            "stages": [{"kind": "grpo", "data": {"task": "modular", "count": 8}}],
            "run": {"precision": "fp16", "device": "cpu"},
        }
    )
    found = config(made, made.stages[0], tmp_path, choose_placement(made))
    assert (found.fp16, found.bf16) == (True, False)
    assert autocast_dtype("fp16") == torch.float16


def test_shards_on_a_cpu_are_one_error() -> None:
    sharded: Any = SimpleNamespace(
        mixed_precision="fp16", device=torch.device("cpu"), distributed_type=DistributedType.FSDP
    )
    with pytest.raises(UserError, match="fp16 on a CPU is for whole weights"):
        scale_losses(sharded)
