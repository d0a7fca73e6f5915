"""OpenRLHF: a JSONL file of prompts, a shell script with its flags, a reward function.

Names and meanings are those of OpenRLHF 0.11.2 (https://github.com/OpenRLHF/OpenRLHF): its
`cli/train_ppo_ray.py`, `utils/agent.py` and `trainer/ppo_utils/experience_maker.py`.
"""

import json
import math
import shlex
from typing import Any

from rl_reasoner.handover.common import (
    BY_NEITHER,
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
    policy_path,
    replays,
    template_field,
)
from rl_reasoner.handover.engine import Engine, Written
from rl_reasoner.handover.fields import UNSET, Field, same, settings
from rl_reasoner.handover.subject import Subject
from rl_reasoner.recipe.adapter import Lora

_HERE = "$PWD/"
"""The folder, for the script; workers of Ray have another working folder."""
_ESTIMATORS = {
    "rloo": "rloo",
    "reinforce++": "reinforce",
    "reinforce++-baseline": "reinforce_baseline",
}
_MEANS = {
    "dapo": "token-mean",
    "bnpo": "token-mean",
    "grpo": "seq-mean-token-mean",
}


def _estimator(subject: Subject) -> str:
    loss = subject.stage.loss
    plain = "dr_grpo" if loss.scale_rewards == "none" else "group_norm"
    return _ESTIMATORS.get(loss.algorithm or "", plain)


def _batch(subject: Subject) -> int:
    return subject.stage.group.size * subject.stage.group.prompts


def _wanted(subject: Subject) -> int:
    """The prompts of all steps."""
    return subject.stage.steps * subject.stage.group.prompts


def _flag(when: bool) -> Any:
    """A flag without a value."""
    return True if when else UNSET


def _targets(subject: Subject) -> Any:
    lora = subject.recipe.policy.lora
    return UNSET if lora is None or isinstance(lora.targets, str) else list(lora.targets)


def _is_pattern(lora: Lora | None) -> bool:
    """Whether an adapter's layers are given by a regular expression."""
    return lora is not None and isinstance(lora.targets, str) and lora.targets != "all-linear"


def _correction(level: str, mode: str) -> Any:
    """(level, mode) of the correction, as OpenRLHF has it; it clips tokens, and masks both."""
    return {"token_truncate": ("token", "clip"), "token_mask": ("token", "mask")}.get(
        f"{level}_{mode}", ("seq", "mask") if mode == "mask" else None
    )


def _corrected(place: int) -> Any:
    def value(subject: Subject) -> Any:
        vllm = subject.stage.vllm
        if vllm is None or vllm.correction == "off":
            return UNSET
        found = _correction(*vllm.correction.split("_"))
        return UNSET if found is None else found[place]

    return value


def _threshold(subject: Subject) -> Any:
    vllm = subject.stage.vllm
    return UNSET if vllm is None or _corrected(0)(subject) is UNSET else [0.0, vllm.clip_max]


_SCHEDULES = {
    "constant": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine_with_min_lr",
}

_FIELDS: tuple[Field, ...] = (
    Field("name", {"logger.wandb.project": lambda s: s.recipe.name}),
    policy_field("actor.model_name_or_path"),
    Field("policy.lora.rank", {"ds.lora.rank": of_lora("rank")}),
    Field("policy.lora.alpha", {"ds.lora.alpha": of_lora("alpha")}),
    Field("policy.lora.dropout", {"ds.lora.dropout": of_lora("dropout")}),
    Field(
        "policy.lora.targets",
        {"ds.lora.target_modules": _targets},
        "names of layers",
        lambda s: _is_pattern(s.recipe.policy.lora),
        "adapts all linear layers: it takes names of layers, and no pattern",
    ),
    data_field(
        {
            "data.prompt_dataset": lambda s: f"{_HERE}train.jsonl",
            "data.input_key": lambda s: "prompt",
            "data.label_key": lambda s: "task",
        }
    ),
    template_field(
        {"data.apply_chat_template": lambda s: _flag(s.chats)},
        "prompts are written out, texts with the tokenizer's BOS",
    ),
    Field(
        "rewards",
        {
            "reward.remote_url": lambda s: f"{_HERE}rewards.py",
            "reward.clip_range": lambda s: [-1e6, 1e6],
        },
        "with weights, options and rules, in the reward file",
    ),
    Field("evals", note="after training: `rl-reasoner eval`"),
    Field("run.seed", {"train.seed": same("run.seed")}, "other draws follow"),
    Field(
        "run.folder",
        {
            "ckpt.path": lambda s: f"{_HERE}checkpoints",
            "ckpt.output_dir": lambda s: f"{_HERE}policy",
        },
    ),
    Field(
        "run.precision",
        {"ds.param_dtype": lambda s: "bf16"},
        "always bf16, master weights in fp32",
        lambda s: s.recipe.run.precision in ("fp32", "fp16", "fp8"),
        "trains in bf16",
    ),
    Field(
        "run.parallel",
        {"ds.zero_stage": lambda s: 2 if s.recipe.run.parallel == "zero2" else 3},
        "always DeepSpeed ZeRO, which computes the same",
    ),
    Field(
        "run.overlap",
        {"train.async_enable": lambda s: _flag(s.recipe.run.overlap == "one_step")},
        "one batch ahead, as here",
    ),
    Field("run.report_to", note="wandb or tensorboard: `--logger.…`"),
    Field(
        "steps",
        {
            "train.num_episodes": lambda s: math.ceil(_wanted(s) / len(s.tasks)),
            "data.max_samples": lambda s: min(_wanted(s), len(s.tasks)),
        },
        "as whole passes over the rows",
        lambda s: _wanted(s) > len(s.tasks) and _wanted(s) % len(s.tasks) > 0,
        "more steps than that, since it makes whole passes over the rows",
    ),
    Field("optim.lr", {"actor.adam.lr": same("optim.lr")}),
    Field(
        "optim.schedule",
        {"actor.lr_scheduler": lambda s: _SCHEDULES[s.stage.optim.schedule]},
    ),
    Field(
        "optim.warmup",
        {"actor.lr_warmup_ratio": lambda s: s.stage.optim.warmup / s.stage.steps},
        "as a share of the steps",
    ),
    Field(
        "optim.final_lr_share",
        {"actor.min_lr_ratio": same("optim.final_lr_share")},
        "cosine only",
        lambda s: s.stage.optim.schedule == "linear" and s.stage.optim.final_lr_share > 0,
        "the linear schedule ends at 0",
    ),
    Field("optim.betas", {"actor.adam.betas": lambda s: list(s.stage.optim.betas)}),
    Field("optim.weight_decay", {"actor.adam.weight_decay": same("optim.weight_decay")}),
    Field("optim.max_grad_norm", {"actor.max_norm": same("optim.max_grad_norm")}),
    Field("router_aux", {"actor.aux_loss_coef": lambda s: s.stage.router_aux or 0.0}),
    Field("save_every", {"ckpt.save_steps": same("save_every")}),
    Field("group.size", {"rollout.n_samples_per_prompt": same("group.size")}),
    Field(
        "group.prompts",
        {"rollout.batch_size": same("group.prompts"), "train.batch_size": _batch},
        "one optimiser step a batch",
    ),
    Field(
        "group.micro_batch",
        {
            "train.micro_batch_size": lambda s: s.stage.group.micro_batch or 1,
            "rollout.micro_batch_size": lambda s: s.stage.group.micro_batch or 1,
        },
        "per GPU; 1 where it is left out",
    ),
    Field("sampling.temperature", {"rollout.temperature": same("sampling.temperature")}),
    longest_field("rollout.max_new_tokens"),
    Field("sampling.top_p", {"rollout.top_p": same("sampling.top_p")}),
    Field("sampling.top_k", lost=lambda s: s.stage.sampling.top_k > 0),
    Field(
        "loss.algorithm",
        {"algo.advantage.estimator": _estimator},
        OTHERS_NOTE,
        lambda s: s.stage.loss.algorithm in OURS_ALONE,
        "has the advantage of GRPO or Dr. GRPO, as `loss.scale_rewards` says",
    ),
    Field(
        "loss.type",
        {"actor.loss_agg_mode": lambda s: _MEANS.get(s.stage.loss.type, "token-mean")},
        "dapo, bnpo, grpo",
        lambda s: s.stage.loss.type not in _MEANS,
        "trains PPO's clipped loss with the mean over tokens",
    ),
    Field(
        "loss.ratio",
        {"actor.policy_loss_type": lambda s: "gspo" if s.stage.loss.ratio == "sequence" else "ppo"},
    ),
    Field(
        "loss.epsilon",
        {"actor.eps_clip_low_high": lambda s: [s.stage.loss.epsilon, epsilon_high(s)]},
    ),
    Field("loss.epsilon_high", note="the second of `actor.eps_clip_low_high`"),
    Field(
        "loss.scale_rewards",
        note="`algo.advantage.estimator`: group_norm, dr_grpo; batch: only with REINFORCE++",
        lost=lambda s: (
            s.stage.loss.scale_rewards == "batch" and s.stage.loss.algorithm not in _ESTIMATORS
        ),
        else_does="divides by the group's standard deviation",
    ),
    Field("loss.iterations", {"train.max_epochs": same("loss.iterations")}),
    Field("loss.beta", {"algo.kl.init_coef": same("loss.beta")}),
    Field(
        "loss.kl_estimator",
        {"algo.kl.estimator": lambda s: s.stage.loss.kl_estimator if of_kl(s, "loss") else "k1"},
        "in the reward: k1",
    ),
    Field("loss.kl_in", {"algo.kl.use_loss": lambda s: _flag(of_kl(s, "loss"))}),
    Field(
        "loss.kl_ratio",
        {"algo.kl.unbiased_gradient": lambda s: _flag(of_kl(s, "loss") and s.stage.loss.kl_ratio)},
        "the same expected gradient",
    ),
    Field(
        "loss.overlong_share",
        {"reward.overlong_buffer_len": lambda s: overlong_tokens(s) or UNSET},
    ),
    Field(
        "loss.dynamic_sampling",
        {
            "algo.dynamic_filtering_enable": lambda s: _flag(s.stage.loss.dynamic_sampling > 0),
            "algo.dynamic_filtering_range": lambda s: [0.0, _most(s)],
        },
        "drops groups whose mean reward is 0 or the most it can be with scores up to 1, in as "
        "many rounds as it takes",
    ),
    Field(
        "long_prompts",
        {"data.max_len": lambda s: s.prompt_bytes + most_tokens(s)},
        "longest prompt: its UTF-8 bytes, since no tokenizer is opened; lower it when you know",
        lambda s: s.stage.long_prompts == "skip",
        "a longer prompt is cut off at its beginning",
    ),
    Field(
        "vllm.mode",
        {
            "vllm.num_engines": lambda s: 1,
            "train.colocate_all": lambda s: True,
            "actor.num_gpus_per_node": lambda s: 1,
            "ref.num_gpus_per_node": lambda s: 1,
        },
        "always vLLM, on the training's GPUs",
        lambda s: s.stage.vllm is not None and s.stage.vllm.mode == "server",
        "starts vLLM itself, on the training's GPUs",
    ),
    Field("vllm.memory", {"vllm.gpu_memory_utilization": of_vllm("memory", 0.5)}),
    Field("vllm.gpus", {"vllm.tensor_parallel_size": of_vllm("gpus", 1)}),
    Field(
        "vllm.sleep",
        {
            "vllm.enable_sleep": lambda s: _flag(s.stage.vllm is None or s.stage.vllm.sleep),
            "ds.enable_sleep": lambda s: _flag(s.stage.vllm is None or s.stage.vllm.sleep),
        },
    ),
    Field(
        "vllm.correction",
        {
            "algo.advantage.is_correction_level": _corrected(0),
            "algo.advantage.is_correction_mode": _corrected(1),
        },
        "all but sequence_truncate",
        lambda s: s.stage.vllm is not None and s.stage.vllm.correction == "sequence_truncate",
        "no correction: it only masks whole sequences",
    ),
    Field("vllm.clip_max", {"algo.advantage.is_correction_threshold": _threshold}),
    replays("trains with experts that it chooses again"),
    *BY_NEITHER,
)


def _most(subject: Subject) -> float:
    """What a row gets whose rewards all give 1."""
    return sum(max(spec.weight, 0.0) for spec in subject.recipe.rewards.values())


_REWARDS = '''"""The rewards of the recipe {name!r} for OpenRLHF, as they score in rl-reasoner.

OpenRLHF calls `reward_func` for each completion (--reward.remote_url rewards.py). Each reward runs
in a process of its own, under its limits, which lives as long as the worker of OpenRLHF; programs
run in the sandbox. OpenRLHF knows one outcome, a number. So of the three outcomes of a reward

- a score is the recipe's weighted sum;
- an abstention and a fault are UNJUDGED, and the logs `unjudged` and `fault` count them. In
  rl-reasoner such a row leaves its group; here it stays in it, and weighs on its mean: look at
  these logs, and stop where they are not near 0.

A query is prompt and completion with special tokens in it: the completion is what follows the
prompt, without them.
"""

from functools import cache
from pathlib import Path

import torch
from transformers import AutoTokenizer

from rl_reasoner import RecipeRewards

POLICY = {policy!r}
UNJUDGED = 0.0
REWARDS = RecipeRewards(Path(__file__).parent / "recipe.yaml")


@cache
def special_tokens():
    return sorted(AutoTokenizer.from_pretrained(POLICY).all_special_tokens, key=len, reverse=True)


def completion_of(query, prompt):
    if not query.startswith(prompt):
        raise ValueError(f"the query does not begin with its prompt: {{query[:80]!r}}")
    text = query[len(prompt) :]
    for token in special_tokens():
        text = text.replace(token, "")
    return text


def reward_func(queries, prompts, labels):
    made = [
        REWARDS.score_task(completion_of(query, prompt), label)
        for query, prompt, label in zip(queries, prompts, labels, strict=True)
    ]
    values = torch.tensor([UNJUDGED if one.value is None else one.value for one in made])
    return {{
        "rewards": values,
        "scores": values,
        "extra_logs": {{
            "unjudged": torch.tensor([float(one.value is None) for one in made]),
            "fault": torch.tensor([float(one.outcome == "fault") for one in made]),
        }},
    }}
'''


def _quoted(value: str) -> str:
    return f'"{value}"' if value.startswith(_HERE) else shlex.quote(value)


def _flags(given: dict[str, Any]) -> str:
    """The settings as flags of a shell command, a line each."""
    lines = []
    for name, value in given.items():
        values = value if isinstance(value, list) else [] if value is True else [value]
        lines.append(" ".join([f"--{name}", *(_quoted(str(one)) for one in values)]))
    return " \\\n  ".join(lines)


def _files(subject: Subject, folder: str) -> Written:
    begun = [
        f"{subject.bos or ''}{t.prompt}" if isinstance(t.prompt, str) else t.prompt
        for t in subject.tasks
    ]
    lines = [
        json.dumps({"prompt": prompt, "task": task.text}, ensure_ascii=False)
        for prompt, task in zip(begun, subject.tasks, strict=True)
    ]
    script = (
        f"#!/bin/sh\n# {subject.slug} for OpenRLHF; one's own flags come last\n"
        'cd "$(dirname "$0")" || exit 1\n'
        f"exec python -m openrlhf.cli.train_ppo_ray \\\n  {_flags(settings(_FIELDS, subject))} "
        '\\\n  "$@"\n'
    )
    return {
        "train.jsonl": "\n".join(lines) + "\n",
        "train.sh": script,
        "rewards.py": _REWARDS.format(name=subject.slug, policy=policy_path(subject)),
    }


OPENRLHF = Engine(
    name="openrlhf",
    title="OpenRLHF",
    version="0.11.2",
    fields=_FIELDS,
    files=_files,
    start=("pip install 'openrlhf[vllm]' rl-reasoner", "sh {folder}/train.sh"),
    outcomes="abstentions and faults are 0.0, counted by the logs `unjudged` and `fault`",
)
