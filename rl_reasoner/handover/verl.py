"""verl: a parquet file of prompts, a hydra configuration over its `ppo_trainer`, a reward function.

Names and meanings are those of verl 0.9.1 (https://github.com/volcengine/verl): its
`trainer/config`, `trainer/ppo/core_algos.py`, `experimental/reward_loop` and
`utils/dataset/rl_dataset.py`.
"""

import io
import math
from typing import Any

from rl_reasoner.handover.common import (
    BY_NONE,
    KL,
    OTHERS_NOTE,
    OURS_ALONE,
    data_field,
    epsilon_high,
    longest_field,
    most_tokens,
    of_kl,
    of_lora,
    of_vllm,
    overlong_tokens,
    policy_field,
    replays,
    template_field,
    text_template,
    yaml_text,
)
from rl_reasoner.handover.fields import UNSET, Field, nested, same, settings
from rl_reasoner.handover.subject import Subject
from rl_reasoner.version import INSTALL

_ACTOR = "actor_rollout_ref.actor."
_ROLLOUT = "actor_rollout_ref.rollout."
_MODEL = "actor_rollout_ref.model."
_AGGREGATION = {
    "dapo": "token-mean",
    "bnpo": "token-mean",
    "cispo": "token-mean",
    "grpo": "seq-mean-token-mean",
    "sapo": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
    "vespo": "token-mean",
}
_ESTIMATORS = {
    "rloo": "rloo",
    "reinforce++": "reinforce_plus_plus",
    "reinforce++-baseline": "reinforce_plus_plus_baseline",
}


def _mode(subject: Subject) -> str:
    loss = subject.stage.loss
    if loss.type in ("cispo", "sapo"):
        return loss.type
    return "gspo" if loss.ratio == "sequence" else "vanilla"


def _clip_low(subject: Subject) -> float:
    """CISPO here has no lower bound: the ratio itself is at least 1 - 1."""
    return 1.0 if subject.stage.loss.type == "cispo" else subject.stage.loss.epsilon


def _clip_high(subject: Subject) -> float:
    """CISPO here bounds the ratio itself, there its distance from 1."""
    high = epsilon_high(subject)
    return max(high - 1.0, 0.0) if subject.stage.loss.type == "cispo" else high


def _kl_loss(subject: Subject) -> str:
    loss = subject.stage.loss
    name = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}[loss.kl_estimator]
    return f"{name}+" if loss.kl_ratio and loss.kl_estimator != "k2" else name


def _correction(level: str) -> Any:
    def value(subject: Subject) -> Any:
        vllm = subject.stage.vllm
        if vllm is None or vllm.correction == "off":
            return UNSET
        how, _, what = vllm.correction.partition("_")
        if level == "threshold":
            return vllm.clip_max
        return how if what == "truncate" else UNSET

    return value


def _when_overlong(value: Any) -> Any:
    return lambda s: (value(s) if callable(value) else value) if overlong_tokens(s) else UNSET


def _epochs(subject: Subject) -> int:
    """Passes over the rows; each leaves out what does not fill a batch."""
    batches = len(subject.tasks) // subject.stage.group.prompts
    return math.ceil(subject.stage.steps / max(batches, 1))


def _tokens_per_gpu(subject: Subject) -> int:
    return max(16384, subject.prompt_bytes + most_tokens(subject))


def _batched_whitening(subject: Subject) -> bool:
    loss = subject.stage.loss
    return loss.scale_rewards == "batch" and loss.algorithm not in _ESTIMATORS


FIELDS: tuple[Field, ...] = (
    Field(
        "name",
        {
            "trainer.project_name": lambda s: s.recipe.name,
            "trainer.experiment_name": lambda s: s.stage.name,
        },
    ),
    policy_field(f"{_MODEL}path"),
    Field(
        "policy.lora.rank",
        {f"{_MODEL}lora_rank": of_lora("rank", 0)},
    ),
    Field(
        "policy.lora.alpha",
        {f"{_MODEL}lora_alpha": of_lora("alpha")},
    ),
    Field(
        "policy.lora.dropout",
        lost=lambda s: bool(s.recipe.policy.lora and s.recipe.policy.lora.dropout),
    ),
    Field(
        "policy.lora.targets",
        {f"{_MODEL}target_modules": of_lora("targets")},
    ),
    data_field(
        {
            "data.train_files": lambda s: "${handover.folder}/train.parquet",
            "data.val_files": lambda s: "${handover.folder}/train.parquet",
            "data.val_max_samples": lambda s: 8,
        }
    ),
    template_field(
        {f"{_MODEL}custom_chat_template": lambda s: UNSET if s.chats else text_template(s)},
        "prompts are written out; texts come with a template that adds the tokenizer's BOS alone",
    ),
    Field(
        "rewards",
        {
            "reward.custom_reward_function.path": lambda s: "${handover.folder}/rewards.py",
            "reward.custom_reward_function.name": lambda s: "compute_score",
        },
        "with weights, options and rules, in the reward file",
    ),
    Field(
        "evals",
        {"trainer.val_before_train": lambda s: False, "trainer.test_freq": lambda s: -1},
        "after training: `rl-reasoner eval`",
    ),
    Field(
        "run.seed",
        {
            "data.seed": same("run.seed"),
            f"{_ACTOR}data_loader_seed": same("run.seed"),
            f"{_ROLLOUT}seed": same("run.seed"),
        },
        "other draws follow",
    ),
    Field("run.folder", {"trainer.default_local_dir": lambda s: "${handover.folder}/checkpoints"}),
    Field(
        "run.precision",
        {
            f"{_ACTOR}fsdp_config.dtype": lambda s: {"fp32": "float32", "fp16": "float16"}.get(
                s.recipe.run.precision, "bfloat16"
            )
        },
        "auto: bf16; master weights in fp32",
        lambda s: s.recipe.run.precision == "fp8",
        "trains in bf16",
    ),
    Field(
        "run.parallel",
        {f"{_ACTOR}strategy": lambda s: "fsdp"},
        "always FSDP, which computes the same",
    ),
    Field("run.report_to", {"trainer.logger": lambda s: ["console"]}, "console; add your own"),
    Field(
        "steps",
        {"trainer.total_training_steps": same("steps"), "trainer.total_epochs": _epochs},
    ),
    Field("optim.lr", {f"{_ACTOR}optim.lr": same("optim.lr")}),
    Field(
        "optim.schedule",
        {
            f"{_ACTOR}optim.lr_scheduler_type": lambda s: (
                "cosine" if s.stage.optim.schedule == "cosine" else "constant"
            )
        },
        "no linear one",
        lambda s: s.stage.optim.schedule == "linear",
        "the learning rate stays constant: it has no linear schedule",
    ),
    Field("optim.warmup", {f"{_ACTOR}optim.lr_warmup_steps": same("optim.warmup")}),
    Field("optim.final_lr_share", {f"{_ACTOR}optim.min_lr_ratio": same("optim.final_lr_share")}),
    Field("optim.betas", {f"{_ACTOR}optim.betas": lambda s: list(s.stage.optim.betas)}),
    Field("optim.weight_decay", {f"{_ACTOR}optim.weight_decay": same("optim.weight_decay")}),
    Field(
        "optim.max_grad_norm",
        {
            f"{_ACTOR}grad_clip": same("optim.max_grad_norm"),
            f"{_ACTOR}optim.clip_grad": same("optim.max_grad_norm"),
        },
    ),
    Field("router_aux", lost=lambda s: bool(s.stage.router_aux)),
    Field("save_every", {"trainer.save_freq": same("save_every")}),
    Field("group.size", {f"{_ROLLOUT}n": same("group.size")}),
    Field(
        "group.prompts",
        {
            "data.train_batch_size": same("group.prompts"),
            f"{_ACTOR}ppo_mini_batch_size": same("group.prompts"),
        },
        "one optimiser step a batch",
    ),
    Field(
        "group.micro_batch",
        {
            f"{_ACTOR}use_dynamic_bsz": lambda s: s.stage.group.micro_batch is None,
            f"{_ACTOR}ppo_micro_batch_size_per_gpu": lambda s: s.stage.group.micro_batch or UNSET,
            f"{_ROLLOUT}log_prob_micro_batch_size_per_gpu": lambda s: (
                s.stage.group.micro_batch or UNSET
            ),
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": lambda s: (
                s.stage.group.micro_batch or UNSET
            ),
            f"{_ACTOR}ppo_max_token_len_per_gpu": _tokens_per_gpu,
        },
        "per GPU; where it is left out, by tokens",
    ),
    Field("sampling.temperature", {f"{_ROLLOUT}temperature": same("sampling.temperature")}),
    longest_field("data.max_response_length"),
    Field("sampling.top_p", {f"{_ROLLOUT}top_p": same("sampling.top_p")}),
    Field("sampling.top_k", {f"{_ROLLOUT}top_k": lambda s: s.stage.sampling.top_k or -1}),
    Field(
        "loss.algorithm",
        {
            "algorithm.adv_estimator": lambda s: _ESTIMATORS.get(
                s.stage.loss.algorithm or "", "grpo"
            )
        },
        OTHERS_NOTE,
        lambda s: s.stage.loss.algorithm in OURS_ALONE,
        "has GRPO's advantage, with the fields below",
    ),
    Field(
        "loss.type",
        {
            f"{_ACTOR}loss_agg_mode": lambda s: _AGGREGATION[s.stage.loss.type],
            f"{_ACTOR}policy_loss.loss_mode": _mode,
            f"{_ACTOR}loss_scale_factor": lambda s: (
                most_tokens(s) if s.stage.loss.type == "dr_grpo" else UNSET
            ),
        },
        "all but vespo",
        lambda s: s.stage.loss.type == "vespo",
        "trains PPO's clipped loss: it has no vespo",
    ),
    Field("loss.ratio", note=f"`{_ACTOR}policy_loss.loss_mode`: gspo, vanilla"),
    Field(
        "loss.epsilon",
        {f"{_ACTOR}clip_ratio_low": _clip_low, f"{_ACTOR}clip_ratio_c": lambda s: 1e6},
        "dual clip off, as here",
    ),
    Field(
        "loss.epsilon_high",
        {f"{_ACTOR}clip_ratio_high": _clip_high},
        "cispo: less 1, it bounds the distance from 1",
    ),
    Field(
        "loss.scale_rewards",
        {"algorithm.norm_adv_by_std_in_grpo": lambda s: s.stage.loss.scale_rewards != "none"},
        "batch: only with the REINFORCE++ pair",
        _batched_whitening,
        "divides by the group's standard deviation",
    ),
    Field("loss.iterations", {f"{_ACTOR}ppo_epochs": same("loss.iterations")}),
    Field(
        "loss.beta",
        {
            f"{_ACTOR}kl_loss_coef": lambda s: s.stage.loss.beta if of_kl(s, "loss") else UNSET,
            "algorithm.kl_ctrl.kl_coef": lambda s: (
                s.stage.loss.beta if of_kl(s, "reward") else UNSET
            ),
        },
    ),
    Field(
        "loss.kl_estimator",
        {
            f"{_ACTOR}kl_loss_type": lambda s: _kl_loss(s) if of_kl(s, "loss") else UNSET,
            "algorithm.kl_penalty": lambda s: "kl" if of_kl(s, "reward") else UNSET,
        },
        "in the reward: k1",
    ),
    Field(
        "loss.kl_in",
        {
            f"{_ACTOR}use_kl_loss": lambda s: of_kl(s, "loss"),
            "algorithm.use_kl_in_reward": lambda s: of_kl(s, "reward"),
        },
    ),
    Field("loss.kl_ratio", note=f"`+` in `{_ACTOR}kl_loss_type`: {KL}"),
    Field(
        "loss.overlong_share",
        {
            "reward.reward_manager.name": lambda s: "dapo" if overlong_tokens(s) else "naive",
            "reward.reward_kwargs.overlong_buffer_cfg.enable": _when_overlong(True),
            "reward.reward_kwargs.overlong_buffer_cfg.len": _when_overlong(overlong_tokens),
            "reward.reward_kwargs.overlong_buffer_cfg.penalty_factor": _when_overlong(1.0),
            "reward.reward_kwargs.overlong_buffer_cfg.log": _when_overlong(True),
            "reward.reward_kwargs.max_resp_len": _when_overlong(most_tokens),
        },
    ),
    Field(
        "loss.dynamic_sampling",
        {
            "algorithm.filter_groups.enable": lambda s: s.stage.loss.dynamic_sampling > 0,
            "algorithm.filter_groups.metric": lambda s: "reward",
        },
        "in as many rounds as it takes",
    ),
    Field(
        "long_prompts",
        {
            "data.filter_overlong_prompts": lambda s: s.stage.long_prompts == "skip",
            "data.truncation": lambda s: "error",
            "data.max_prompt_length": lambda s: s.prompt_bytes,
        },
        "longest prompt: its UTF-8 bytes, since no tokenizer is opened; lower it when you know",
    ),
    Field(
        "vllm.mode",
        {f"{_ROLLOUT}name": lambda s: "vllm"},
        "always vLLM, on the training's GPUs",
        lambda s: s.stage.vllm is not None and s.stage.vllm.mode == "server",
        "starts vLLM itself, on the training's GPUs",
    ),
    Field("vllm.memory", {f"{_ROLLOUT}gpu_memory_utilization": of_vllm("memory")}),
    Field(
        "vllm.gpus",
        {f"{_ROLLOUT}tensor_model_parallel_size": of_vllm("gpus", 1)},
    ),
    Field("vllm.sleep", {f"{_ROLLOUT}free_cache_engine": of_vllm("sleep")}),
    Field(
        "vllm.correction",
        {"algorithm.rollout_correction.rollout_is": _correction("how")},
        "the truncating two; masks: `rollout_rs`, with other statistics",
        lambda s: s.stage.vllm is not None and s.stage.vllm.correction.endswith("mask"),
        "no correction: its rejection (rollout_rs) goes by other statistics",
    ),
    Field(
        "vllm.clip_max",
        {"algorithm.rollout_correction.rollout_is_threshold": _correction("threshold")},
    ),
    replays(
        "trains with experts that it chooses again (its Megatron engine can replay them)",
        "`actor_rollout_ref.actor.router_replay`, of its Megatron engine",
    ),
    *BY_NONE,
)

_REWARDS = '''"""The rewards of the recipe {name!r} for verl, as they score in rl-reasoner.

verl calls `compute_score` for each completion (reward.custom_reward_function). Each reward runs in
a process of its own, under its limits, which lives as long as the worker of verl; programs run in
the sandbox. verl knows one outcome, a number. So of the three outcomes of a reward

- a score is the recipe's weighted sum;
- an abstention and a fault are UNJUDGED, and the metrics `unjudged` and `fault` count them. In
  rl-reasoner such a row leaves its group; here it stays in it, and weighs on its mean: look at
  these metrics, and stop where they are not near 0.
"""

from pathlib import Path

from rl_reasoner import RecipeRewards

UNJUDGED = 0.0
REWARDS = RecipeRewards(Path(__file__).parent / "recipe.yaml")


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **others):
    made = REWARDS.score_task(solution_str, extra_info["task"])
    return {{
        "score": UNJUDGED if made.value is None else made.value,
        "unjudged": float(made.value is None),
        "fault": float(made.outcome == "fault"),
    }}
'''


def _parquet(subject: Subject) -> bytes:
    """The prompts as verl's `RLHFDataset` reads them; the whole row is in `extra_info.task`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "data_source": subject.recipe.name,
            "prompt": (
                [{"role": "user", "content": task.prompt}]
                if isinstance(task.prompt, str)
                else task.prompt
            ),
            "ability": str(task.row.get("task") or "reasoning"),
            "reward_model": {"style": "rule", "ground_truth": task.answer},
            "extra_info": {"index": number, "split": "train", "task": task.text},
        }
        for number, task in enumerate(subject.tasks)
    ]
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), written)
    return written.getvalue()


def files(subject: Subject, folder: str) -> dict[str, str | bytes]:
    """What verl reads, by path in `folder`, the absolute path that they come to lie in."""
    tree = {
        "defaults": ["ppo_trainer", "_self_"],
        "handover": {"folder": folder},
        **nested(settings(FIELDS, subject)),
    }
    return {
        "train.parquet": _parquet(subject),
        "config.yaml": yaml_text(tree, f"{subject.slug} for verl; one line names the folder"),
        "rewards.py": _REWARDS.format(name=subject.slug),
    }


VERSION = "0.9.1"
"""The version whose names the fields have, and whose code the tests call."""
OUTCOMES = "abstentions and faults are 0.0, counted by the metrics `unjudged` and `fault`"
START_LINES = (
    f"pip install 'verl=={VERSION}'",
    INSTALL,
    "python -m verl.trainer.main_ppo --config-dir {folder} --config-name config "
    "trainer.n_gpus_per_node=1",
)
"""Commands that start the training; {folder} is the folder."""
