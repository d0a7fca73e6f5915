"""What the trainer leans on in trl, name by name: another trl breaks a test, not a run."""

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl

from rl_reasoner import GRPOTrainer
from rl_reasoner.training.checkpointing.data_place import PlaceInData
from rl_reasoner.training.checkpointing.exact_resume import ExactResume
from rl_reasoner.training.checkpointing.whole_checkpoints import WholeCheckpoints
from rl_reasoner.training.expert_balance import ExpertBalance
from rl_reasoner.training.objective import Objective
from rl_reasoner.training.old_logprobs import OldLogProbs
from rl_reasoner.training.out_of_memory import SmallerPieces
from rl_reasoner.training.packed_forward import TrainingPass
from rl_reasoner.training.prompt_selection import PromptChoice
from rl_reasoner.training.reward_pass import Rewarding
from rl_reasoner.training.router_replay import RouterReplay
from support.processes import build

# Everything of trl that trainer.py, training_pass.py and resume.py touch through `self`.
ATTRIBUTES = {
    "accelerator",
    "args",
    "aux_loss_enabled",
    "beta",
    "current_gradient_accumulation_steps",
    "environment_factories",
    "environments",
    "eos_token_ids",
    "generation_config",
    "importance_sampling_level",
    "is_deepspeed_enabled",
    "is_fsdp_enabled",
    "loss_type",
    "max_completion_length",
    "model",
    "multi_objective_aggregation",
    "num_generations",
    "num_generations_eval",
    "num_iterations",
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
    "vllm_importance_sampling_correction",
    "_buffered_inputs",
    "_entropy_bonus_enabled",
    "_logs",
    "_metrics",
    "_pending_extra_logs",
    "_step",
    "_tokenizer",
}
CALLED = {
    "add_callback": ["callback"],
    "_log_completion_extra": ["column", "values"],
    "_log_metric": ["name", "value"],
}
OVERRIDDEN = {
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
    "_generate_single_turn": [
        "prompt_ids",
        "images",
        "multimodal_fields",
        "num_generations",
        "has_tool_images",
    ],
    "_generate_and_score_completions": ["inputs"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "log": ["logs", "start_time"],
}


KINDS = (
    TrainingPass,
    RouterReplay,
    ExpertBalance,
    OldLogProbs,
    PlaceInData,
    WholeCheckpoints,
    ExactResume,
    Rewarding,
    SmallerPieces,
    Objective,
    PromptChoice,
    GRPOTrainer,
)


def leaned_on() -> set[str]:
    """The names that our trainer classes take from `self` and do not define."""
    used: set[str] = set()
    own: set[str] = set()
    for kind in KINDS:
        [body] = ast.parse(inspect.getsource(kind)).body
        assert isinstance(body, ast.ClassDef)
        for node in ast.walk(body):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "self":
                used.add(node.attr)
                own |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
        own |= {node.name for node in body.body if isinstance(node, ast.FunctionDef)}
        with_value = (n for n in body.body if isinstance(n, ast.AnnAssign) and n.value)
        own |= {node.target.id for node in with_value if isinstance(node.target, ast.Name)}
    own |= {"__dict__"}
    return used - own | {"_buffered_inputs", "_step", "beta", "use_vllm"}


def test_every_internal_of_trl_that_the_trainer_leans_on(tmp_path: Path) -> None:
    assert leaned_on() == ATTRIBUTES | CALLED.keys(), "the list in this test is out of date"
    changes = {"max_steps": 1, "save_strategy": "no"}
    stock = build("scratch:moe-tiny", tmp_path, kind=trl.GRPOTrainer, **changes)
    stock.train()  # some are set only then
    assert {name for name in ATTRIBUTES if not hasattr(stock, name)} == set()
    for name, parameters in {**CALLED, **OVERRIDDEN}.items():
        found = list(inspect.signature(getattr(trl.GRPOTrainer, name)).parameters)
        assert found == ["self", *parameters], name
    ours = {name: value for kind in KINDS for name, value in vars(kind).items()}
    own = {n for n, v in ours.items() if callable(v) and hasattr(trl.GRPOTrainer, n)}
    assert own - {"__init__"} == OVERRIDDEN.keys()


def test_a_rollout_function_needs_no_model_that_is_opened() -> None:
    """As trl's own test: what it returned is looked at, whatever else the trainer has."""
    trainer = object.__new__(GRPOTrainer)
    trainer.accelerator = SimpleNamespace(device=torch.device("cpu"))
    trainer.model = SimpleNamespace(training=True)
    trainer.use_vllm = False
    trainer.rollout_func = lambda prompts, trainer: {"prompt_ids": [[1]], "completion_ids": [[2]]}
    with pytest.raises(ValueError, match="rollout_func must return keys"):
        trainer._generate(["prompt"])
