"""Trainers beside stock trl's on the same completions: their gradients, step by step."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from rl_reasoner.policy.policy import Policy
from rl_reasoner.rollout import drawing, engine
from support.plain_rewards import PROMPTS as PROMPTS
from support.plain_rewards import always_flat as always_flat
from support.plain_rewards import half_flat as half_flat
from support.plain_rewards import never_flat as never_flat
from support.tiny import QUIET

OFF = {"share_prompts": False, "skip_zero_advantage": False, "regroup_rows": False}
Gradients = list[dict[str, torch.Tensor]]
TOLERANCE = 1e-5  # relative, of every parameter's gradient in fp32
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    **{
        f"{loss}-beta{beta}": {"loss_type": loss, "beta": beta}
        for loss in ("grpo", "bnpo", "dr_grpo", "dapo")
        for beta in (0.0, 0.04)
    },
    **{loss: {"loss_type": loss} for loss in ("cispo", "sapo", "vespo", "luspo")},
    "sequence": {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2},
    "entropy": {"entropy_coef": 0.01},
    "adaptive": {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef": 0.01},
    "quantile": {"top_entropy_quantile": 0.4},
    "iterations": {"num_iterations": 2, "max_steps": 4},
    "iterations-beta": {"num_iterations": 2, "max_steps": 4, "beta": 0.04},
    "batch": {"scale_rewards": "batch"},
    "none": {"scale_rewards": "none"},
    "steps": {"gradient_accumulation_steps": 1, "steps_per_generation": 3, "max_steps": 4},
    "windows": {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "max_steps": 4},
    "off-policy": {"off_policy_mask_threshold": 0.01, "num_iterations": 2},
    "delta": {"delta": 2.0, "epsilon_high": 0.28, "num_iterations": 2},
    "temperature": {"temperature": 0.7},
    "truncated": {"mask_truncated_completions": True},
    "checkpointing": {"gradient_checkpointing": True},
    "textbook-kl": {"beta": 0.04, "use_bias_correction_kl": False},
    "lora": {"lora": 0.0},
    "lora-beta": {"lora": 0.0, "beta": 0.04},
}


class Gradient(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradients that every optimizer step is taken with."""

    def __init__(self) -> None:
        self.steps: Gradients = []
        self.logs: list[dict[str, Any]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def replay(kind: type[trl.GRPOTrainer]) -> type[trl.GRPOTrainer]:
    """The trainer with completions from a table, some of them truncated.

    Ours passes over them with its engine, which is made to draw them: it keeps what it keeps of
    completions that it samples.
    """

    class Replay(kind):  # type: ignore[misc,valid-type]
        def _generate_single_turn(self, prompt_ids: Any, *others: Any) -> Any:
            random = np.random.default_rng(self._step)
            self.table = []
            for index, _ in enumerate(prompt_ids):
                length = int(random.integers(1, self.max_completion_length))
                ids = random.integers(6, 200, length).tolist()
                self.table.append([*ids, self.eos_token_ids[0]] if index % 4 else [*ids, 77])
            if not issubclass(kind, GRPOTrainer) or self.engine_sampling.sampling() is None:
                return self.table, None
            lengths = [len(ids) for ids in self.table]
            self.engine_sampling.budgets = lambda batch, count: lengths
            with drawn(self.table):
                found = super()._generate_single_turn(prompt_ids, *others)
            assert found[0] == self.table
            return found

    Replay.__name__ = kind.__name__
    return Replay


Samples = list[list[list[int]]]  # of each call for completions: a row's tokens


def sampled(kind: type[trl.GRPOTrainer], samples: Samples) -> type[trl.GRPOTrainer]:
    """Our trainer keeps what it samples in `samples`; trl's takes its completions from there."""

    class Sampled(kind):  # type: ignore[misc,valid-type]
        def _generate_single_turn(self, *given: Any) -> Any:
            if not issubclass(kind, GRPOTrainer):
                return samples.pop(0), None
            found = super()._generate_single_turn(*given)
            samples.append(found[0])
            return found

    Sampled.__name__ = kind.__name__
    return Sampled


@contextmanager
def drawn(table: list[list[int]], size: int = 0) -> Iterator[None]:
    """Inside, the engine's row i draws `table[i]`, whatever the probabilities.

    Rows that come back to the batch are known by their keys, in groups of `size`.
    """
    width = max(map(len, table))
    flat = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in table]).flatten()

    def places(keys: Any, count: int) -> torch.Tensor:
        whole = size and all(len(key) > 1 for key in keys)  # not where a model is tried
        rows = [key[-2] * size + key[-1] for key in keys] if whole else [*range(len(keys))]
        return (torch.tensor(rows)[:, None] * width + torch.arange(count)).float()

    def draw(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        return flat[uniform.long() % len(flat)]

    with (
        mock.patch.object(engine, "uniforms", places),
        mock.patch.object(drawing, "draw", draw),
        mock.patch.object(drawing, "operations", lambda: None),  # they draw by themselves
    ):
        yield


Policies = Callable[[str], Path]


def saved_policies(folder: Path) -> Policies:
    """What gives a saved policy by its kind; they lie in `folder`."""

    def policy(kind: str) -> Path:
        path = folder / kind
        if not path.exists():
            scratch = "scratch:moe-tiny" if kind == "moe" else "scratch:dense-tiny"
            opened = open_policy(scratch, seed=3, device="cpu")
            if kind not in ("moe", "dense"):
                opened.model = other_model(kind, len(opened.tokenizer))
            opened.save(path)
        return path

    return policy


def other_model(kind: str, vocabulary: int) -> Any:
    """Tiny models of other families: grouped queries, sliding windows, learned positions."""
    import transformers

    common = {"vocab_size": vocabulary, "num_hidden_layers": 2, "hidden_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    config = {
        "llama": lambda: transformers.LlamaConfig(**common, **heads),
        "mixtral": lambda: transformers.MixtralConfig(
            **common, **heads, num_local_experts=4, num_experts_per_tok=2
        ),
        "mistral": lambda: transformers.MistralConfig(**common, **heads, sliding_window=6),
        "gemma2": lambda: transformers.Gemma2Config(**common, **heads, head_dim=16),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=vocabulary,
            n_layer=2,
            n_embd=64,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
    }[kind]()
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config)


def gradients(
    kind: type[trl.GRPOTrainer], policy: Path | Policy, output: Path, reward: Any, **changes: Any
) -> tuple[Gradients, list[dict[str, Any]], Any]:
    """The gradients of every step, what was logged, and the trainer.

    Completions are those of `replay`, or of `sampled` where `samples` are given.
    """
    samples = changes.pop("samples", None)
    opened = policy if isinstance(policy, Policy) else open_policy(str(policy), device="cpu")
    ours = issubclass(kind, GRPOTrainer)
    dropout = changes.pop("lora", None)
    arguments = {
        "output_dir": str(output),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "num_generations": 4,
        "max_completion_length": 12,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        **QUIET,
        **changes,
    }
    if not ours:
        arguments = {key: value for key, value in arguments.items() if key not in OFF}
    config = (GRPOConfig if ours else trl.GRPOConfig)(**arguments)
    trainer = (replay(kind) if samples is None else sampled(kind, samples))(
        opened.model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=opened.tokenizer,
        peft_config=None if dropout is None else lora(dropout),
    )
    kept = Gradient()
    trainer.add_callback(kept)
    torch.manual_seed(11)  # LoRA's start has drawn from the generator that shuffles the rows
    trainer.train()
    if file := os.environ.get("GRADIENT_DIGESTS"):
        write_digest(Path(file), kind.__name__, kept.steps)
    return kept.steps, kept.logs, trainer


def write_digest(file: Path, trainer: str, steps: Gradients) -> None:
    """Add a line to `file`: this test, its trainer, and a hash over all bits of its gradients.

    Two files of the same tests, run in the same order on the same machine, are equal where a
    change of the code left every gradient as it was, to the last bit.
    """
    digest = hashlib.sha256()
    for step in steps:
        for name, gradient in sorted(step.items()):
            digest.update(name.encode() + gradient.contiguous().numpy().tobytes())
    test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].removesuffix(" (call)")
    line = {"test": test, "trainer": trainer, "steps": len(steps), "sha256": digest.hexdigest()}
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def lora(dropout: float) -> LoraConfig:
    """An adapter on every linear layer that does not start at zero."""
    return LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=dropout
    )


def worst(one: Gradients, other: Gradients) -> float:
    """The largest relative difference of a parameter's gradient in a step."""
    assert len(one) == len(other) > 0
    found = 0.0
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        scale = torch.cat([g.flatten() for g in a.values()]).norm()
        for name in a:
            size = a[name].norm() + 1e-6 * scale + 1e-30
            found = max(found, float((a[name] - b[name]).norm() / size))
    return found
