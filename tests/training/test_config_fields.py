"""Every field of trl's config: listed with what is done with it, and done so."""

import logging
import re
import sys
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from accelerate.utils import DistributedType

from rl_reasoner import GRPOConfig, GRPOTrainer
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.old_names import TRLS_FIELDS
from rl_reasoner.recipe.stages import GrpoStage
from rl_reasoner.recipe.trainer_arguments import check_trainer_argument, known_arguments
from rl_reasoner.training.packed_forward import settings_obstacle
from support.places import ROOT
from support.processes import build
from support.stock import TOLERANCE, Policies, gradients, half_flat, saved_policies, worst

sys.path.insert(0, str(ROOT / "docs"))

from config_fields import CANNOT_MATTER, FALLS_BACK, HEEDS, PAGE, page


def test_a_field_that_a_new_trl_brings_is_looked_at_first() -> None:
    listed = Counter(
        name
        for part in (HEEDS, FALLS_BACK, CANNOT_MATTER)
        for group in part.values()
        for name in group
    )
    assert {*listed} == {f.name for f in fields(trl.GRPOConfig)}
    assert set(listed.values()) == {1}


@pytest.mark.parametrize(
    ("kind", "config"),
    [("sft", trl.SFTConfig), ("grpo", GRPOConfig), ("distill", trl.DistillationConfig)],
)
def test_what_a_stage_passes_on_is_read_off_the_sources_as_the_classes_have_it(
    kind: str, config: Any
) -> None:
    assert known_arguments(kind) == {f.name for f in fields(config)}


def test_the_page_is_in_step_with_the_list() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "write it anew: make fields"


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """A saved policy by its kind."""
    return saved_policies(tmp_path_factory.mktemp("policies"))


CASES: list[dict[str, Any]] = [
    {  # what sampling and its batches are made of
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 50,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "generation_kwargs": {"min_new_tokens": 1},
        "max_completion_length": 10,
        "num_generations": 2,
        "seed": 5,
        "shuffle_dataset": False,
        "generation_batch_size": 12,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "pad_to_multiple_of": 8,
        "cast_lm_head_to_fp32": True,
    },
    {
        "loss_type": "vespo",
        "num_iterations": 2,
        "vespo_k_pos": 1.0,
        "vespo_lambda_pos": 1.0,
        "vespo_k_neg": 1.0,
        "vespo_lambda_neg": 1.0,
        "reward_weights": [2.0],
        "multi_objective_aggregation": "normalize_then_sum",
        "label_smoothing_factor": 0.1,
        "data_seed": 9,
        "train_sampling_strategy": "group_by_length",
        "average_tokens_across_devices": False,
        "full_determinism": True,
    },
    {
        "loss_type": "sapo",
        "num_iterations": 2,
        "sapo_temperature_neg": 2.0,
        "sapo_temperature_pos": 0.5,
        "steps_per_generation": 1,
        "use_adaptive_entropy": True,
        "entropy_coef": 0.01,
        "entropy_coef_min": 0.005,
        "entropy_coef_max": 0.1,
        "entropy_coef_delta": 0.01,
        "entropy_target": 9.0,
    },
    {
        "loss_type": "grpo",
        "num_iterations": 2,
        "beta": 0.04,
        "use_bias_correction_kl": False,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "ref_model_mixup_alpha": 0.3,
        "top_entropy_quantile": 0.5,
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False, "every_n_layers": 2},
    },
    {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "num_iterations": 2,
        "epsilon": 0.01,
        "epsilon_high": 0.02,
        "off_policy_mask_threshold": 0.01,
        "mask_truncated_completions": True,
        "scale_rewards": "batch",
        "lora": 0.1,
        "disable_dropout": True,
        "remove_unused_columns": True,
    },
    {"router_aux_loss_coef": 0.01, "delta": 2.0, "num_iterations": 2},
]


@pytest.mark.parametrize("changes", CASES, ids=lambda changes: next(iter(changes)))
def test_gradients_are_those_of_stock_trl_with(
    changes: dict[str, Any], policies: Policies, tmp_path: Path
) -> None:
    policy = policies("moe" if "router_aux_loss_coef" in changes else "dense")
    changes = {"max_steps": 2, **changes}
    stock, _, _ = gradients(trl.GRPOTrainer, policy, tmp_path, half_flat, **changes)
    ours, _, trainer = gradients(GRPOTrainer, policy, tmp_path, half_flat, **changes)
    assert trainer.packed_forward.packs and trainer.engine_sampling.on
    assert worst(stock, ours) <= TOLERANCE


def test_every_heeded_field_is_set_in_a_test() -> None:
    """In one of the cases above, or in another file."""
    here = {name for changes in CASES for name in changes}
    others = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__)
    )
    for name in (name for group in HEEDS.values() for name in group if name not in here):
        assert re.search(rf"\b{name}\b", others), name


@pytest.mark.parametrize(
    ("changes", "reason", "packs"),
    [
        ({"torch_compile": True, "torch_compile_backend": "eager"}, "torch_compile", False),
        ({"neftune_noise_alpha": 5.0}, "the noise of NEFTune", False),
        ({"cache_implementation": "static"}, "cache_implementation", True),
        ({"generation_kwargs": {"num_beams": 2}}, "generation_kwargs (num_beams)", True),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_goes_trls_way_is_said_once_and_has_its_gradients(
    changes: dict[str, Any],
    reason: str,
    packs: bool,
    policies: Policies,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = {"max_steps": 1, **changes}
    stock, _, _ = gradients(trl.GRPOTrainer, policies("dense"), tmp_path, half_flat, **changes)
    with caplog.at_level(logging.WARNING, "rl_reasoner"):
        ours, _, trainer = gradients(GRPOTrainer, policies("dense"), tmp_path, half_flat, **changes)
    [said] = [r.getMessage() for r in caplog.records if r.name.startswith("rl_reasoner")]
    assert (
        reason in said and not trainer.engine_sampling.on and trainer.packed_forward.packs == packs
    )
    assert worst(stock, ours) <= TOLERANCE


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("use_vllm", True, "vLLM"),
        ("use_transformers_continuous_batching", True, "continuous batching"),
        ("rollout_func", print, "tools, environments or a rollout function"),
    ],
)
def test_who_else_samples_is_said(attribute: str, value: Any, said: str, tmp_path: Path) -> None:
    """By the words of the list: none of them runs on this machine."""
    trainer = build("scratch:dense-tiny", tmp_path)
    assert trainer.engine_sampling.obstacle() is None
    setattr(trainer, attribute, value)
    assert trainer.engine_sampling.obstacle() == said
    assert any(f'"{said}"' in what for what in FALLS_BACK)


def test_models_in_parts_of_tensors_and_deepspeed_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither runs on this machine: what the trainer would be told is put in its place."""
    trainer = build("scratch:dense-tiny", tmp_path)
    trainer.args.parallelism_config = SimpleNamespace(tp_enabled=True)
    assert settings_obstacle(trainer) == "tensor parallelism"
    kind = DistributedType.DEEPSPEED
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", kind)
    said = settings_obstacle(trainer)
    assert said == "training under DEEPSPEED" and f'"{said}"' in "".join(FALLS_BACK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlong_share": "0.2"}, "overlong_share is '0.2'; it is a share"),
        (
            {"overlong_share": 0.2, "max_completion_length": None},
            "max_completion_length, which is None",
        ),
        ({"dynamic_sampling": 2.5}, r"dynamic_sampling is 2\.5; it is a whole number of rounds"),
        ({"positive_advantage_weight": "1"}, "positive_advantage_weight is '1'; .* from 0 up"),
        ({"reward_timeout_s": None}, "reward_timeout_s is None; it has to be more than 0"),
    ],
    ids=str,
)
def test_a_setting_of_another_kind_is_one_clear_error(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        GRPOConfig(str(tmp_path), use_cpu=True, **changes)


def test_a_run_of_an_earlier_version_keeps_arguments_that_fields_set() -> None:
    with pytest.raises(UserError, match=r"is what the recipe's optim\.weight_decay sets"):
        check_trainer_argument("grpo", "grpo", "weight_decay")
    check_trainer_argument("grpo", "grpo", "weight_decay", begun=True)
    with pytest.raises(UserError, match=r"loss\.algorithm"):
        check_trainer_argument("grpo", "grpo", "algorithm", begun=True)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("max_prompt_length", "prompts are never cut"),
        ("warmup_ratio", "warmup_steps now"),
        ("num_generation", "Did you mean 'num_generations'"),
    ],
)
def test_a_field_that_trl_has_no_more_is_answered_with_what_to_write(field: str, told: str) -> None:
    @dataclass
    class Own(GRPOConfig):
        mine: int = 0

    class ByHand(GRPOConfig):
        def __init__(self, mine: int = 0, **named: Any) -> None:
            super().__init__(**named)

    for kind in (GRPOConfig, Own):
        with pytest.raises(UserError, match=told):
            kind(output_dir="x", **{field: 1})
    assert Own(output_dir="x", mine=1).mine == 1
    ByHand(output_dir="x", mine=1)


def test_every_field_of_trls_that_a_recipe_answers_is_one_and_has_its_place() -> None:
    names = {f.name for f in fields(trl.GRPOConfig)}
    assert {*TRLS_FIELDS} - names == {"warmup_ratio"}
    for path in TRLS_FIELDS.values():
        kind: Any = GrpoStage
        for name in path.split("."):
            kind = kind.model_fields[name].annotation
