"""`keep_sampling_mask`: every pass takes the set of tokens that each token was drawn from."""

from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from peft import LoraConfig
from torch import Tensor

from rl_reasoner import GRPOConfig, GRPOTrainer
from rl_reasoner.errors import UserError
from rl_reasoner.kernels.kept_tokens import inflated
from rl_reasoner.training.rollout_batch import RolloutBatch
from rl_reasoner.training.sampling_mask import SamplingMask
from support.processes import build, killed, same, weights
from support.stock import TOLERANCE, Policies, gradients, half_flat, saved_policies, worst

KEEP: dict[str, Any] = {"keep_sampling_mask": True, "save_strategy": "no", "logging_steps": 1}
Sets = dict[tuple[int, ...], Tensor]  # by the tokens of prompt and completion


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """A saved policy by its kind."""
    return saved_policies(tmp_path_factory.mktemp("policies"))


def rows_of(ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[some.bool()].tolist()) for row, some in zip(ids, mask, strict=True)]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Sets:
    """The sets that our trainer keeps, (tokens, V) bool, as it goes."""
    found: Sets = {}
    keep = SamplingMask.keep

    def looked(self: SamplingMask, batch: RolloutBatch, output: dict[str, Any]) -> None:
        keep(self, batch, output)
        parts = [torch.cat([output[f"{part}_{what}"] for part in ("prompt", "completion")], 1)
                 for what in ("ids", "mask")]  # fmt: skip
        vocabulary = self.trainer.model.get_output_embeddings().weight.shape[0]
        for row, deflated in zip(rows_of(*parts), output["kept_tokens"], strict=True):
            bits = inflated(deflated, vocabulary)
            table = (bits[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
            found[row] = table.flatten(1)[:, :vocabulary].bool()

    monkeypatch.setattr(SamplingMask, "keep", looked)
    return found


def masked(sets: Sets) -> type[trl.GRPOTrainer]:
    """trl's trainer, whose log-probs are those of a plain softmax over `sets`."""

    class Masked(trl.GRPOTrainer):  # type: ignore[misc]
        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Tensor, mask: Tensor, width: int, *others: Any, **named: Any
        ) -> Any:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1].float()
            kept = torch.ones_like(logits, dtype=torch.bool)
            for i, row in enumerate(rows_of(ids, mask)):
                kept[i, : len(sets[row])] = sets[row]
            table = (logits / self.temperature).masked_fill(~kept, -torch.inf).log_softmax(-1)
            logps = table.gather(2, ids[:, -width:, None]).squeeze(2)
            entropies = -(table.exp() * table.masked_fill(~kept, 0.0)).sum(-1)
            drawn = mask[:, -width:].bool()
            return logps.where(drawn, 0.0), entropies.detach().where(drawn, 0.0), None

    Masked.__name__ = "GRPOTrainer"
    return Masked


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("dense", {"top_p": 0.5, "temperature": 0.7}),
        ("dense", {"top_k": 3, "beta": 0.04, "num_iterations": 2, "max_steps": 4}),
        ("dense", {"min_p": 0.5, "lora": 0.0, "beta": 0.04, "top_entropy_quantile": 0.5}),
        ("moe", {"top_p": 0.8, "router_replay": True, "router_aux_loss_coef": 0.0}),
    ],
    ids=str,
)
def test_gradients_are_those_of_a_plain_softmax_over_the_sets(
    kind: str, changes: dict[str, Any], told: Sets, policies: Policies, tmp_path: Path
) -> None:
    """Of all passes: training, old log-probs and reference."""
    samples: list[Any] = []
    given = (policies(kind), tmp_path, half_flat)
    kept = {"keep_sampling_mask": True, "samples": samples, **changes}
    ours, logs, trainer = gradients(GRPOTrainer, *given, **kept)
    assert trainer.packed_forward.packs and told
    shares = [sets.float().mean() for sets in told.values()]
    assert all(0 < share < 1 for share in shares), "something is cut off, not all"
    drawn = {name: value for name, value in changes.items() if name != "router_replay"}
    stock, theirs, _ = gradients(masked(told), *given, samples=samples, **drawn)
    assert worst(stock, ours) <= TOLERANCE
    for a, b in zip(theirs, logs, strict=True):
        assert a.get("kl") == pytest.approx(b.get("kl"), abs=1e-6)


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        ("scratch:dense-tiny", {"top_p": 0.9}),
        ("scratch:dense-tiny", {"top_k": 20, "num_iterations": 2}),
        ("scratch:dense-tiny", {"top_k": 20, "dynamic_sampling": 1, "prompt_schedule": True}),
        ("scratch:moe-tiny", {"top_p": 0.9, "router_replay": True}),
    ],
    ids=str,
)
def test_on_policy_the_weights_of_the_correction_are_1(
    policy: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    for keep in (False, True):
        trainer = build(
            policy,
            tmp_path,
            correct_sampling=True,
            vllm_importance_sampling_mode="token_truncate",
            max_steps=1,
            **{**KEEP, "keep_sampling_mask": keep, **changes},
        )
        trainer.train()
        log = trainer.state.log_history[0]
        names = [f"sampling/importance_sampling_ratio/{kind}" for kind in ("min", "max")]
        assert max(abs(log[name] - 1) for name in names) < 1e-5
        assert (log.get("sampling_mask/megabytes", 0.0) > 0) == keep


def test_a_kl_in_the_reward_is_that_over_the_sets(tmp_path: Path) -> None:
    """An adapter that starts at zero is its reference, on the same tokens and experts."""
    trainer = build(
        "scratch:moe-tiny",
        tmp_path,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        max_steps=1,
        top_k=20,
        beta=0.04,
        kl_in="reward",
        kl_estimator="k1",
        router_replay=True,
        **KEEP,
    )
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_killed_run_keeps_the_sets_of_its_completions(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    changes: dict[str, Any] = {"steps_per_generation": 4, "num_iterations": 2, "save_steps": 3}
    changes = {**KEEP, "save_strategy": "steps", "top_k": 20, "max_steps": 5, **changes}
    whole = build("scratch:dense-tiny", tmp_path / "whole", **changes)
    whole.train()
    killed("scratch:dense-tiny", tmp_path / "killed", 5, changes)
    resumed = build("scratch:dense-tiny", tmp_path / "killed", **changes)
    resumed.train(resume_from_checkpoint=True)
    assert 0 < resumed._initial_global_step < 5 and same(weights(whole), weights(resumed))


def test_nothing_is_kept_where_nothing_is_cut_off(tmp_path: Path) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, max_steps=1, **KEEP)
    trainer.train()
    assert "sampling_mask/megabytes" not in trainer.state.log_history[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repetition_penalty": 1.5}, "sampling uses RepetitionPenaltyLogitsProcessor"),
        ({"generation_kwargs": {"temperature": 0.5}}, "sampling uses another temperature than 1"),
        ({"entropy_coef": 0.01}, "a bonus for entropy"),
        ({"fast_rollouts": False}, "our engine tells .* not used for fast_rollouts=False"),
        ({"share_prompts": False}, "our training pass .* not used for share_prompts=False"),
        ({"generation_kwargs": {"num_beams": 2}}, r"not used for generation_kwargs \(num_beams\)"),
    ],
    ids=str,
)
def test_what_the_sets_do_not_go_with_is_one_message(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, top_k=20, max_steps=1, **KEEP, **changes)
    with pytest.raises(UserError, match=f"keep_sampling_mask.*{message}"):
        trainer.train()


def test_vllm_does_not_tell_its_sets() -> None:
    with pytest.raises(UserError, match="vLLM does not tell which tokens its cut-off left"):
        GRPOConfig("x", keep_sampling_mask=True, use_vllm=True)


def test_a_pass_of_the_users_own_has_to_call_ours(tmp_path: Path) -> None:
    class Own(GRPOTrainer):
        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Any, mask: Any, width: int, *others: Any, **named: Any
        ) -> Any:
            table = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
            logps = table.log_softmax(-1).gather(2, ids[:, -width:, None]).squeeze(2)
            return logps, logps.detach(), None

    trainer = build("scratch:dense-tiny", tmp_path, kind=Own, top_k=20, max_steps=1, **KEEP)
    with pytest.raises(UserError, match="call super"):
        trainer.train()


def test_completions_of_the_users_own_have_no_sets(tmp_path: Path) -> None:
    class Own(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any) -> Any:
            return [[5, 6, 7] for _ in prompt_ids], [[-1.0] * 3 for _ in prompt_ids]

    trainer = build("scratch:dense-tiny", tmp_path, kind=Own, top_k=20, **KEEP)
    with pytest.raises(UserError, match=r"came without the tokens .*super\(\) in Own"):
        trainer.train()


def test_sets_of_other_rows_are_not_taken(tmp_path: Path) -> None:
    class Turned(GRPOTrainer):
        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Tensor, *others: Any, **named: Any
        ) -> Any:
            return super()._get_per_token_logps_and_entropies(model, ids.flip(0), *others, **named)

    trainer = build("scratch:dense-tiny", tmp_path, kind=Turned, top_k=5, **KEEP)
    with pytest.raises(UserError, match="none of those that it was drawn from"):
        trainer.train()
