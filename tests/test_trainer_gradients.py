"""Gradients of the training pass: equal to stock trl's on the same completions, step by step."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from tiny import QUIET
from transformers import AutoModelForCausalLM, TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy

OFF = {"share_prompts": False, "skip_zero_advantage": False, "regroup_rows": False}
PROMPTS = ["1+1=", "Is it?", "7", "a longer prompt, of thirty chars", "22*3=", "x"]
Gradients = list[dict[str, torch.Tensor]]
POISON = 100  # a token of some of the completions
TOLERANCE = 1e-5  # relative, of every parameter's gradient in fp32


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


def half_flat(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
    """Rewards between 0 and 1; every other prompt's group has the same reward throughout."""
    return [
        0.5 if PROMPTS.index(p) % 2 else len(set(c)) / 16
        for c, p in zip(completions, prompts, strict=True)
    ]


def never_flat(completions: list[str], **columns: Any) -> list[float]:
    return [len(set(c)) / 16 + c.count("e") for c in completions]


def always_flat(completions: list[str], **columns: Any) -> list[float]:
    return [0.25 for c in completions]


def replay(kind: type[trl.GRPOTrainer]) -> type[trl.GRPOTrainer]:
    """The trainer with completions from a table instead of sampled ones, some of them truncated."""

    class Replay(kind):  # type: ignore[misc,valid-type]
        def _generate_single_turn(self, prompt_ids: Any, *others: Any) -> Any:
            random = np.random.default_rng(self._step)
            found = []
            for index, _ in enumerate(prompt_ids):
                length = int(random.integers(1, self.max_completion_length))
                ids = random.integers(6, 200, length).tolist()
                found.append([*ids, self.eos_token_ids[0]] if index % 4 else [*ids, 77])
            return found, None

    Replay.__name__ = "GRPOTrainer"
    return Replay


Policies = Callable[[str], Path]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """A saved policy by its kind."""
    folder = tmp_path_factory.mktemp("policies")

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
    kind: type[trl.GRPOTrainer], policy: Path, output: Path, reward: Any, **changes: Any
) -> tuple[Gradients, list[dict[str, Any]], Any]:
    """The gradients of every step, what was logged, and the trainer."""
    opened = open_policy(str(policy), device="cpu")
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
    if kind is trl.GRPOTrainer:
        arguments = {key: value for key, value in arguments.items() if key not in OFF}
    config = (trl.GRPOConfig if kind is trl.GRPOTrainer else GRPOConfig)(**arguments)
    trainer = replay(kind)(
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
    return kept.steps, kept.logs, trainer


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


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_stock_trl(name: str, policies: Policies, tmp_path: Path) -> None:
    changes = CASES[name]
    stock, theirs, _ = gradients(trl.GRPOTrainer, policies("dense"), tmp_path, half_flat, **changes)
    ours, logs, trainer = gradients(GRPOTrainer, policies("dense"), tmp_path, half_flat, **changes)
    assert trainer._packs
    assert worst(stock, ours) <= TOLERANCE
    for a, b in zip(theirs, logs, strict=True):
        assert a.keys() <= b.keys()


APART: dict[str, Any] = {"gradient_accumulation_steps": 1, "steps_per_generation": 3}


@pytest.mark.parametrize(
    ("changes", "reward", "rows"),
    [
        # a generation of 12 rows in 3 micro-batches
        ({"num_iterations": 2, "max_steps": 2}, half_flat, 0),  # the policy has not moved yet
        ({**APART, "skip_zero_advantage": False}, always_flat, 8),
        (APART, always_flat, 0),
        ({**APART, "beta": 0.1}, always_flat, 8),
    ],
    ids=["iterations", "no skipping", "flat", "beta"],
)
def test_old_log_probs_are_computed_for_no_row_that_has_them(
    changes: dict[str, Any], reward: Any, rows: int, policies: Policies, tmp_path: Path
) -> None:
    passed: list[int] = []

    class Counted(GRPOTrainer):
        def _packed_pass(self, model: Any, ids: Any, *others: Any) -> Any:
            if not torch.is_grad_enabled() and model is self.model:
                passed.append(len(ids))
            return super()._packed_pass(model, ids, *others)

    gradients(Counted, policies("dense"), tmp_path, reward, **changes)
    assert sum(passed) == rows


@pytest.mark.parametrize("aux", [0.0, 0.01])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_gradients_of_a_mixture_of_experts(
    aux: float, beta: float, policies: Policies, tmp_path: Path
) -> None:
    changes = {"router_aux_loss_coef": aux, "beta": beta, "mask_truncated_completions": True}
    stock, theirs, _ = gradients(trl.GRPOTrainer, policies("moe"), tmp_path, half_flat, **changes)
    ours, logs, _ = gradients(GRPOTrainer, policies("moe"), tmp_path, half_flat, **changes)
    assert worst(stock, ours) <= TOLERANCE
    if aux:
        assert [x.get("aux_loss") for x in theirs] == pytest.approx(
            [x.get("aux_loss") for x in logs]
        )


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_gradients_of_other_families(kind: str, policies: Policies, tmp_path: Path) -> None:
    stock, _, _ = gradients(trl.GRPOTrainer, policies(kind), tmp_path, half_flat, beta=0.04)
    ours, _, trainer = gradients(GRPOTrainer, policies(kind), tmp_path, half_flat, beta=0.04)
    assert trainer._packs and worst(stock, ours) <= TOLERANCE


@pytest.mark.parametrize("on", [(), *OFF, tuple(OFF)], ids=str)
@pytest.mark.parametrize("reward", [half_flat, never_flat])
def test_each_speed_up_alone_and_all_together(
    on: str | tuple[str, ...], reward: Any, policies: Policies, tmp_path: Path
) -> None:
    wanted = {*on} if isinstance(on, tuple) else {on, "share_prompts"}
    changes = {name: name in wanted for name in OFF}
    stock, _, _ = gradients(trl.GRPOTrainer, policies("dense"), tmp_path, reward)
    ours, _, _ = gradients(GRPOTrainer, policies("dense"), tmp_path, reward, **changes)
    assert worst(stock, ours) <= (TOLERANCE if wanted else 0.0)


def test_a_step_without_any_advantage_gives_zero_gradients(
    policies: Policies, tmp_path: Path
) -> None:
    """Zero, not none: the optimizer's momentum and weight decay go on as in trl."""
    stock, theirs, _ = gradients(trl.GRPOTrainer, policies("dense"), tmp_path, always_flat)
    ours, logs, _ = gradients(GRPOTrainer, policies("dense"), tmp_path, always_flat)
    for a, b in zip(stock, ours, strict=True):
        assert a.keys() == b.keys() and not any(g.any() for g in b.values())
    assert all(a.keys() <= b.keys() for a, b in zip(theirs, logs, strict=True))


def test_learned_positions_are_those_of_the_row_alone(policies: Policies, tmp_path: Path) -> None:
    """trl passes no positions: left padding shifts them. Ours are equal to rows without padding."""
    opened = open_policy(str(policies("gpt2")), device="cpu")
    trainer = GRPOTrainer(
        opened.model,
        reward_funcs=never_flat,
        args=GRPOConfig(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=4,
            temperature=1.0,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=opened.tokenizer,
    )
    assert trainer._packs
    rows = [[9, 10, 11, 12, 13], [20, 21]]
    ends = [[30, 31, 32], [40, 41]]
    ids, mask = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long)
    for i, (prompt, end) in enumerate(zip(rows, ends, strict=True)):
        ids[i, 5 - len(prompt) : 5], ids[i, 5 : 5 + len(end)] = map(torch.tensor, (prompt, end))
        mask[i, 5 - len(prompt) : 5 + len(end)] = 1
    found, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 3)
    for i, (prompt, end) in enumerate(zip(rows, ends, strict=True)):
        logits = trainer.model(torch.tensor([prompt + end])).logits[0, len(prompt) - 1 : -1]
        alone = logits.log_softmax(-1).gather(1, torch.tensor(end)[:, None]).squeeze(1)
        assert torch.allclose(found[i, : len(end)], alone, atol=1e-5)
        assert not found[i, len(end) :].any()


@pytest.mark.parametrize("changes", [{}, {"beta": 0.04}, {"num_iterations": 2}], ids=str)
def test_a_row_that_is_not_finite_is_left_out_and_the_weights_stay_finite(
    changes: dict[str, Any], policies: Policies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of some completions is made to give NaN."""
    forward = torch.nn.Embedding.forward

    def poisoned(self: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        return forward(self, ids).masked_fill((ids == POISON)[..., None], torch.nan)

    monkeypatch.setattr(torch.nn.Embedding, "forward", poisoned)
    stock, _, _ = gradients(trl.GRPOTrainer, policies("dense"), tmp_path, never_flat, **changes)
    ours, logs, _ = gradients(GRPOTrainer, policies("dense"), tmp_path, never_flat, **changes)
    assert any(g.isnan().any() for g in stock[0].values()), "trl's gradients are gone"
    assert all(g.isfinite().all() for step in ours for g in step.values())
    assert any(g.any() for g in ours[0].values()), "the other rows still teach"
    assert sum(row.get("rows/not_finite") or 0 for row in logs) > 0


def poisoned(when: Callable[[Any], bool]) -> type[GRPOTrainer]:
    """Our trainer; the token POISON gives NaN in a model's embedding where `when(trainer)`."""

    class Poisoned(GRPOTrainer):
        def _packed_pass(self, model: Any, *others: Any) -> Any:
            def hook(embedding: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                bad = (inputs[0] == POISON)[..., None] & when(self)
                return output.masked_fill(bad, torch.nan)

            self.now = "reference" if model is self.ref_model else "policy"
            handle = model.get_input_embeddings().register_forward_hook(hook)
            try:
                return super()._packed_pass(model, *others)
            finally:
                handle.remove()

    return Poisoned


def test_a_row_without_reference_is_taken_out(policies: Policies, tmp_path: Path) -> None:
    kind = poisoned(lambda trainer: trainer.now == "reference")
    ours, logs, _ = gradients(kind, policies("dense"), tmp_path, never_flat, beta=0.04)
    assert sum(row.get("rows/not_finite") or 0 for row in logs) > 0
    assert all(g.isfinite().all() for step in ours for g in step.values())
    assert max(row["kl"] for row in logs if "kl" in row) < 0.1, "no made-up distance"


@pytest.mark.parametrize("changes", [{"num_iterations": 2}, {**APART, "max_steps": 3}], ids=str)
def test_a_row_that_had_no_log_prob_stays_out(
    changes: dict[str, Any], policies: Policies, tmp_path: Path
) -> None:
    """Its old log-prob is not known: it does not come back when it has numbers again."""
    always, _, _ = gradients(
        poisoned(lambda trainer: True), policies("dense"), tmp_path, never_flat, **changes
    )
    first, logs, _ = gradients(
        poisoned(lambda trainer: trainer.state.global_step == 0),
        policies("dense"),
        tmp_path,
        never_flat,
        **changes,
    )
    assert sum(row.get("rows/not_finite") or 0 for row in logs) > 0
    assert worst(always, first) <= TOLERANCE
    assert all(g.isfinite().all() for step in first for g in step.values())


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [("gemma2", {}, "softcap"), ("dense", {"lora": 0.1}, "dropout")],
)
def test_what_cannot_be_packed_goes_trls_way_and_says_so_once(
    kind: str,
    changes: dict[str, Any],
    reason: str,
    policies: Policies,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "rl_reasoner.training_pass"):
        ours, _, trainer = gradients(
            GRPOTrainer, policies(kind), tmp_path, half_flat, max_steps=1, **changes
        )
    stock, _, _ = gradients(
        trl.GRPOTrainer, policies(kind), tmp_path, half_flat, max_steps=1, **changes
    )
    assert not trainer._packs and worst(stock, ours) == 0.0
    said = [r.getMessage() for r in caplog.records if r.name == "rl_reasoner.training_pass"]
    assert len(said) == 1 and reason in said[0]
