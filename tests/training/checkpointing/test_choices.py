"""What was chosen by measurement is in a checkpoint, and a resumed trainer takes it from there."""

import json
import os
from pathlib import Path
from unittest import mock

from rl_reasoner import GRPOTrainer
from rl_reasoner.kernels import products
from rl_reasoner.machine import VARIABLE, choices, choices_file
from support.stock import gradients, never_flat, saved_policies

CHOSEN = {"forward": "onednn", "input": "torch", "weight": "torch", "rates": {}}


def test_a_resumed_trainer_takes_the_choices_of_its_checkpoint(tmp_path: Path) -> None:
    policy = saved_policies(tmp_path)("dense")
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    with mock.patch.dict(os.environ, {VARIABLE: json.dumps({"native": False, "products": CHOSEN})}):
        gradients(GRPOTrainer, policy, tmp_path / "run", never_flat, **saving)
    folder = str(tmp_path / "cache")
    fixed = {VARIABLE: json.dumps({"native": False}), "RL_REASONER_CACHE": folder}
    with mock.patch.dict(os.environ, fixed):
        choices_file().parent.mkdir(parents=True)
        other = {**CHOSEN, "forward": "torch"}
        choices_file().write_text(json.dumps({"choices": {"products": other}}))
        seen: list[str] = []

        class Resumed(GRPOTrainer):
            def train(self, *given: object, **named: object) -> object:
                return super().train(str(tmp_path / "run" / "checkpoint-1"))

            def training_step(self, *given: object, **named: object) -> object:
                seen.append(products.chosen()["forward"])
                return super().training_step(*given, **named)

        gradients(Resumed, policy, tmp_path / "run", never_flat, **{**saving, "max_steps": 2})
        assert set(seen) == {"onednn"}
        assert choices.get("products", dict)["forward"] == "torch", "outside of the run"
