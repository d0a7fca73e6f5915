"""Trainers of one's own, and several on one model: trl's gradients, and a model left as it was."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl

from rl_reasoner import GRPOTrainer, open_policy
from rl_reasoner.errors import OldName, UserError
from support.stock import (
    TOLERANCE,
    Policies,
    gradients,
    half_flat,
    never_flat,
    saved_policies,
    worst,
)

Kind = type[trl.GRPOTrainer]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """A saved policy by its kind."""
    return saved_policies(tmp_path_factory.mktemp("policies"))


# ------------------------------------------------------------------- several trainers on a model


def left_on(model: torch.nn.Module) -> list[str]:
    """What a trainer of ours might leave: hooks, an attention, parameters out of training."""
    found = [
        name
        for name, module in model.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if getattr(hook, "func", hook).__module__.startswith("rl_reasoner")  # or transformers' own
    ]
    found += [name for name, p in model.named_parameters() if not p.requires_grad]
    config: Any = model.config
    return found + [config._attn_implementation] * (config._attn_implementation != "sdpa")


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_second_trainer_on_a_model_trains_as_the_first(
    kind: str, policies: Policies, tmp_path: Path
) -> None:
    found = []
    for trainer_class in (trl.GRPOTrainer, GRPOTrainer):
        policy = open_policy(str(policies(kind)), device="cpu")
        gradients(trainer_class, policy, tmp_path, half_flat, max_steps=1)
        steps, _, trainer = gradients(trainer_class, policy, tmp_path, half_flat, max_steps=2)
        found.append(steps)
    assert trainer.packed_forward.packs and trainer.packed_forward.obstacle is None
    assert worst(*found) <= TOLERANCE
    assert left_on(policy.model) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("moe-tiny", {"router_replay": True, "router_sequence_loss_coef": 0.01}),
        ("moe-tiny", {"freeze_router": True, "gradient_checkpointing": True}),
        ("deepseek-tiny", {"router_bias_update": 0.01}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_nothing_is_left_on_a_model_whose_training_broke_off(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    class Breaks(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            if self.state.global_step:
                raise ZeroDivisionError
            return loss

    policy = open_policy(f"scratch:{kind}", device="cpu")
    with pytest.raises(ZeroDivisionError):
        gradients(Breaks, policy, tmp_path, half_flat, **changes)
    assert left_on(policy.model) == []
    again, _, trainer = gradients(GRPOTrainer, policy, tmp_path, half_flat, max_steps=1)
    assert trainer.packed_forward.packs and trainer.last_expert_load
    assert any("gate.weight" in name for name in again[0]), "the router is trained again"
    assert left_on(policy.model) == []


# -------------------------------------------------------------------------- trainers of one's own


def scaled(base: Kind) -> Kind:
    class Scaled(base):  # type: ignore[misc,valid-type]
        def compute_loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().compute_loss(*args, **kwargs) * 0.1

    return Scaled


def squared(base: Kind) -> Kind:
    """What counts is in which micro-batch a row stands."""

    class Squared(base):  # type: ignore[misc,valid-type]
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            return loss + loss**2

    return Squared


def passing(base: Kind) -> Kind:
    """One more pass, over padded rows."""

    class Passing(base):  # type: ignore[misc,valid-type]
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            logits = model(input_ids=ids, attention_mask=mask).logits
            return loss + 0.01 * (logits.logsumexp(-1) * mask).square().mean()

    return Passing


def looking(base: Kind) -> Kind:
    """A term of the log-probs themselves, of rows without advantage too."""

    class Looking(base):  # type: ignore[misc,valid-type]
        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            self.seen = found[0]
            return found

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss: torch.Tensor = super().compute_loss(model, inputs, *args, **kwargs)
            return loss - 0.01 * (self.seen * inputs["completion_mask"]).mean()

    return Looking


def by_hand(base: Kind) -> Kind:
    """A loss of one's own, which asks for the old log-probs that trl puts into the batch."""

    class ByHand(base):  # type: ignore[misc,valid-type]
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            width = inputs["completion_ids"].shape[1]
            logps, _, _ = self._get_per_token_logps_and_entropies(model, ids, mask, width)
            ratio = (logps - inputs["old_per_token_logps"]).exp()
            weights = inputs["completion_mask"] * inputs["advantages"][:, None]
            return -(ratio * weights).mean() / self.current_gradient_accumulation_steps

    return ByHand


@pytest.mark.parametrize(
    ("own", "changes"),
    [
        (scaled, {}),
        (scaled, {"num_iterations": 2}),
        (squared, {}),
        (passing, {}),
        (passing, {"gradient_checkpointing": True}),
        (looking, {}),
        (by_hand, {"num_iterations": 2}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value),
)
def test_a_loss_of_ones_own_has_the_gradients_that_it_has_in_trl(
    own: Callable[[Kind], Kind],
    changes: dict[str, Any],
    policies: Policies,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stock, _, _ = gradients(own(trl.GRPOTrainer), policies("dense"), tmp_path, half_flat, **changes)
    with caplog.at_level(logging.WARNING, "rl_reasoner"):
        ours, _, trainer = gradients(
            own(GRPOTrainer), policies("dense"), tmp_path, half_flat, **changes
        )
    assert trainer.packed_forward.packs and worst(stock, ours) <= TOLERANCE
    said = [r.getMessage() for r in caplog.records if type(trainer).__name__ in r.getMessage()]
    assert len(said) == 1 and "compute_loss" in said[0] and "regroup_rows" in said[0]


@pytest.mark.parametrize("put", ["in a class", "on the trainer"])
def test_a_step_of_ones_own_may_have_a_backward_pass_more(
    put: str, policies: Policies, tmp_path: Path
) -> None:
    """With checkpointing that pass computes its layers anew, when trl's step is over."""

    def stepping(base: Kind) -> Kind:
        def step(self: Any, plain: Callable[..., Any], model: Any, inputs: Any, n: Any) -> Any:
            loss = plain(model, inputs, n)
            for batch in self._buffered_inputs:
                ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
                mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
                width = batch["completion_ids"].shape[1]
                logps, _, _ = self._get_per_token_logps_and_entropies(model, ids, mask, width)
                self.accelerator.backward(-0.01 * (logps * batch["completion_mask"]).mean())
            return loss

        class Stepping(base):  # type: ignore[misc,valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                if put == "on the trainer":
                    plain = self.training_step
                    self.training_step = lambda *given: step(self, plain, *given)

            def training_step(self, *given: Any) -> Any:
                if put == "on the trainer":
                    return super().training_step(*given)
                return step(self, super().training_step, *given)

        return Stepping

    changes: dict[str, Any] = {"gradient_checkpointing": True, "max_steps": 2}
    found = [
        gradients(stepping(kind), policies("dense"), tmp_path, half_flat, **changes)
        for kind in (trl.GRPOTrainer, GRPOTrainer)
    ]
    assert found[1][2].packed_forward.packs and worst(found[0][0], found[1][0]) <= TOLERANCE


def test_a_step_that_clips_each_micro_batch_gets_those_of_trl(
    policies: Policies, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Which rows are trained on together matters to it."""

    def clipping(base: Kind) -> Kind:
        class Clipping(base):  # type: ignore[misc,valid-type]
            def training_step(self, model: Any, *given: Any) -> Any:
                trained = [p for p in model.parameters() if p.requires_grad]
                before = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
                for p in trained:
                    p.grad = None
                loss = super().training_step(model, *given)
                torch.nn.utils.clip_grad_norm_(trained, 0.1)
                for p, grad in zip(trained, before, strict=True):
                    p.grad = grad if p.grad is None else grad + p.grad
                return loss

        return Clipping

    changes: dict[str, Any] = {"gradient_accumulation_steps": 4, "max_steps": 1}
    stock, ours = (
        gradients(clipping(kind), policies("dense"), tmp_path, half_flat, **changes)[0]
        for kind in (trl.GRPOTrainer, GRPOTrainer)
    )
    assert worst(stock, ours) <= TOLERANCE
    assert "training_step, which gets rows and batches as in trl; turned off: regroup_rows" in (
        caplog.text
    )


def test_a_loss_put_on_the_trainer_itself_counts(policies: Policies, tmp_path: Path) -> None:
    """As notebooks do it."""

    def patched(base: Kind) -> Kind:
        class Patched(base):  # type: ignore[misc,valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                plain = self.compute_loss
                self.compute_loss = lambda *a, **k: plain(*a, **k) * 0.1

        return Patched

    found = [
        gradients(patched(kind), policies("dense"), tmp_path, never_flat, max_steps=1)[0]
        for kind in (trl.GRPOTrainer, GRPOTrainer)
    ]
    assert worst(*found) <= TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [{"dynamic_sampling": 1, "scale_rewards": "none"}, {"algorithm": "rloo", "beta": 0.05}],
    ids=["dynamic-sampling", "advantages"],
)
def test_rewards_changed_by_a_trainer_of_ones_own_count_once(
    changes: dict[str, Any], policies: Policies, tmp_path: Path
) -> None:
    class Doubled(GRPOTrainer):
        factor = 2.0

        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            return super()._calculate_rewards(*args) * self.factor

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            self.advantages = found["advantages"]
            return found

    class Plain(Doubled):
        factor = 1.0

    changes = {**changes, "max_steps": 1, "gradient_accumulation_steps": 2}
    doubled, plain = (
        gradients(kind, policies("dense"), tmp_path, never_flat, **changes)[2].advantages
        for kind in (Doubled, Plain)
    )
    assert plain.abs().max() > 0
    torch.testing.assert_close(doubled, 2 * plain)


def test_rewards_of_a_trainer_of_ones_own_alone_go_through_dynamic_sampling(
    policies: Policies, tmp_path: Path
) -> None:
    class OwnRewards(GRPOTrainer):
        def _calculate_rewards(
            self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
        ) -> torch.Tensor:
            rewards = torch.arange(float(len(completions)))[:, None]
            gathered: torch.Tensor = self.accelerator.gather(rewards)
            return gathered

    changes: dict[str, Any] = {"max_steps": 1}
    chosen, plain = (
        gradients(OwnRewards, policies("dense"), tmp_path, never_flat, **changes, **more)[0]
        for more in ({"dynamic_sampling": 1}, {})
    )
    assert worst(chosen, plain) <= TOLERANCE


def test_the_old_name_of_use_row_settings_is_pointed_out_and_works(
    policies: Policies, tmp_path: Path
) -> None:
    class Old(GRPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            with pytest.warns(OldName, match="use_row_settings"):
                self.heeds_rows = True

    trainer = gradients(Old, policies("dense"), tmp_path, never_flat, max_steps=1)[2]
    assert trainer.use_row_settings and trainer.heeds_rows


def test_an_attribute_under_the_name_of_a_part_is_one_clear_error(
    policies: Policies, tmp_path: Path
) -> None:
    class Mine(GRPOTrainer):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.objective: Any = "maximize"

    with pytest.raises(UserError, match=r"Mine\.objective is 'maximize'.*another name"):
        gradients(Mine, policies("dense"), tmp_path, half_flat)
