"""What the trainer leans on in trl, name by name: another trl breaks a test, not a run."""

import ast
import inspect
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from rl_reasoner.distributed.sharding import Sharding
from rl_reasoner.rollout import decode_pass
from rl_reasoner.training import trl_internals
from rl_reasoner.training.checkpointing.exact_resume import ExactResume
from support.passes import counted_passes
from support.processes import build

# Everything of trl's trainer that ours and its parts touch.
ATTRIBUTES = {
    "accelerator",
    "args",
    "aux_loss_enabled",
    "beta",
    "callback_handler",
    "control",
    "current_gradient_accumulation_steps",
    "environment_factories",
    "environments",
    "eos_token_ids",
    "generation_config",
    "importance_sampling_level",
    "is_deepspeed_enabled",
    "is_fsdp_enabled",
    "loss_type",
    "lr_scheduler",
    "mask_truncated_completions",
    "max_completion_length",
    "model",
    "model_wrapped",
    "multi_objective_aggregation",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
    "off_policy_mask_threshold",
    "optimizer",
    "processing_class",
    "ref_model",
    "reward_func_names",
    "reward_funcs",
    "reward_weights",
    "rollout_func",
    "scale_rewards",
    "state",
    "temperature",
    "tools",
    "top_entropy_quantile",
    "train_dataset",
    "use_transformers_continuous_batching",
    "use_vllm",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "_buffered_inputs",
    "_entropy_bonus_enabled",
    "_initial_global_step",
    "_is_vlm",
    "_logs",
    "_metrics",
    "_pending_extra_logs",
    "_standalone_tools",
    "_step",
    "_tokenizer",
}
WITH_TOOLS = {"_async_tool_dicts", "_sync_tool_dicts"}  # only there where trl has `tools`
CALLED = {
    "_get_output_dir": ["trial"],
    "add_callback": ["callback"],
    "_log_completion_extra": ["column", "values"],
    "_log_metric": ["name", "value"],
}
OVERRIDDEN = {
    "create_accelerator_and_postprocess": [],
    "_save_checkpoint": ["model", "trial"],
    "_get_train_sampler": ["dataset"],
    "_init_training_state": [
        "max_steps",
        "num_update_steps_per_epoch",
        "num_train_epochs",
        "resume_from_checkpoint",
        "trial",
    ],
    "_load_best_model": [],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_save_rng_state": ["output_dir"],
    "evaluation_loop": [
        "dataloader",
        "description",
        "prediction_loss_only",
        "ignore_keys",
        "metric_key_prefix",
    ],
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
    "_compute_loss": ["model", "inputs"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "_get_per_token_logps_and_entropies": [
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
        "compute_entropy",
        "compute_aux_loss",
        "pixel_values",
        "image_grid_thw",
        "num_images",
        "pixel_attention_mask",
        "spatial_shapes",
        "num_tiles",
        "image_sizes",
        "token_type_ids",
        "mm_token_type_ids",
        "image_position_ids",
    ],
    "_prepare_inputs": ["generation_batch"],
    "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
    "_generate": ["prompts"],
    "_tokenize_prompts": ["prompts"],
    "_generate_single_turn": [
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_tool_call_loop": [
        "prompts",
        "prompt_ids",
        "completion_ids",
        "completions",
        "logprobs",
        "images",
        "multimodal_fields",
    ],
    "_generate_and_score_completions": ["inputs"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "log": ["logs", "start_time"],
}


KINDS = (GRPOTrainer, ExactResume, Sharding)
ROOM = Path(trl_internals.__file__).parent
INTERNALS = "trl_internals.py"


def attributes(tree: ast.AST, *owners: str) -> set[str]:
    """The names that are taken from `owners`: `self`, `trainer`, `self.trainer`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owners
    }


def leaned_on() -> set[str]:
    """The names that our trainer and its parts take from the trainer, and that are trl's."""
    used: set[str] = set()
    for file in ROOM.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        used |= attributes(tree, "trainer", "self.trainer")
    own = {name for kind in KINDS for name in vars(kind)}
    for kind in KINDS:
        tree = ast.parse(inspect.getsource(kind))
        used |= attributes(tree, "self")
        own |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
    return used - (own - ATTRIBUTES) - OVERRIDDEN.keys()


def test_every_internal_of_trl_that_the_trainer_leans_on(tmp_path: Path) -> None:
    changes = {"max_steps": 1, "save_strategy": "no"}
    every = ATTRIBUTES | WITH_TOOLS | CALLED.keys()
    assert leaned_on() == every, "the list in this test is out of date"
    assert all(f"self.{name} = " in inspect.getsource(trl.GRPOTrainer) for name in WITH_TOOLS)
    stock = build("scratch:moe-tiny", tmp_path, kind=trl.GRPOTrainer, **changes)
    stock.train()  # some are set only then
    assert {name for name in ATTRIBUTES if not hasattr(stock, name)} == set()
    for name, parameters in {**CALLED, **OVERRIDDEN}.items():
        signature = list(inspect.signature(getattr(trl.GRPOTrainer, name)).parameters)
        assert signature == ["self", *parameters], name


def test_what_others_keep_for_themselves_is_touched_in_one_file() -> None:
    """Of trl, and of our own parts: each has its state to itself."""
    touched = {
        (file.name, node.attr)
        for file in ROOM.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_")
        if not node.attr.endswith("__") and ast.unparse(node.value) not in ("self", "super()")
    }
    assert {name for name, attribute in touched - {("faults.py", "_save_checkpoint")}} == {
        INTERNALS
    }


def test_each_method_of_trls_is_overridden_once() -> None:
    """By three classes in all, so that a step is read from top to bottom."""
    assert [k for k in GRPOTrainer.__mro__ if k.__module__.startswith("rl_reasoner")] == [*KINDS]
    overridden = Counter(
        name
        for kind in KINDS
        for name, value in vars(kind).items()
        if callable(value) and hasattr(trl.GRPOTrainer, name) and name != "__init__"
    )
    assert overridden == Counter(OVERRIDDEN.keys())


def test_a_rollout_function_needs_no_model_that_is_opened() -> None:
    """As trl's own test: what it returned is looked at, whatever else the trainer has."""
    trainer = object.__new__(GRPOTrainer)
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"))
    trainer.model = SimpleNamespace(training=True)
    trainer.use_vllm = False
    trainer.rollout_func = lambda prompts, trainer: {"prompt_ids": [[1]], "completion_ids": [[2]]}
    with pytest.raises(ValueError, match="rollout_func must return keys"):
        trainer._generate(["prompt"])


@pytest.mark.parametrize(
    ("policy", "adapter"),
    [
        ("scratch:dense-tiny", None),
        ("scratch:moe-tiny", None),
        ("scratch:dense-tiny", LoraConfig(r=2, target_modules="all-linear")),
    ],
)
def test_training_samples_without_calling_modules(
    policy: str, adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """trl gives the model a forward of its own: it must not be mistaken for another's."""
    rows = counted_passes(monkeypatch)
    settings: dict[str, Any] = {"max_steps": 1, "save_strategy": "no", "peft_config": adapter}
    build(policy, tmp_path, **settings).train()
    assert len(rows) >= 5, "a pass for each token behind the first"


def test_a_forward_of_the_users_is_still_one(tmp_path: Path) -> None:
    opened = open_policy("scratch:dense-tiny", seed=1, device="cpu")
    forward = opened.model.forward
    opened.model.forward = lambda *args, **named: forward(*args, **named)
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    data = Dataset.from_dict({"prompt": ["1+1="] * 8})
    named = {"train_dataset": data, "processing_class": opened.tokenizer}
    trainer = GRPOTrainer(opened.model, lambda completions, **_: [0.0] * 8, args, **named)
    assert "forward of its own" in str(decode_pass.decode_obstacle(trainer.model))
