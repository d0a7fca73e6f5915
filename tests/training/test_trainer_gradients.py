"""Gradients of the training pass: equal to stock trl's on the same completions, step by step."""

import logging
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from support.stock import (
    CASES,
    OFF,
    PROMPTS,
    TOLERANCE,
    Policies,
    Samples,
    always_flat,
    gradients,
    half_flat,
    never_flat,
    saved_policies,
    worst,
)
from support.ways import multiplied

POISON = 100  # a token of some of the completions


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """A saved policy by its kind."""
    return saved_policies(tmp_path_factory.mktemp("policies"))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_stock_trl(name: str, policies: Policies, tmp_path: Path) -> None:
    changes = CASES[name]
    stock, theirs, _ = gradients(trl.GRPOTrainer, policies("dense"), tmp_path, half_flat, **changes)
    ours, logs, trainer = gradients(GRPOTrainer, policies("dense"), tmp_path, half_flat, **changes)
    assert trainer.packed_forward.packs
    assert worst(stock, ours) <= TOLERANCE
    for a, b in zip(theirs, logs, strict=True):
        assert a.keys() <= b.keys()
    with multiplied("integers") as able:
        if able:
            kind = policies("dense")
            ours, _, trainer = gradients(GRPOTrainer, kind, tmp_path, half_flat, **changes)
            assert trainer.packed_forward.fuses and worst(stock, ours) <= TOLERANCE


@pytest.mark.parametrize(
    "cut", [{"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.2}, {"repetition_penalty": 1.5}], ids=str
)
def test_the_rows_masked_as_off_policy_are_trls_whatever_sampling_cuts(
    cut: dict[str, Any], policies: Policies, tmp_path: Path
) -> None:
    """Sampling draws from another distribution than the policy's: that is no distance."""
    samples: Samples = []
    changes = {"off_policy_mask_threshold": 0.01, "num_iterations": 2, "samples": samples, **cut}
    ours, _, trainer = gradients(GRPOTrainer, policies("dense"), tmp_path, never_flat, **changes)
    stock, _, _ = gradients(trl.GRPOTrainer, policies("dense"), tmp_path, never_flat, **changes)
    assert trainer.engine_sampling.on and not samples and worst(stock, ours) <= TOLERANCE


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
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            packed = self.packed_forward.packed

            def counted(model: Any, ids: Any, *others: Any) -> Any:
                if not torch.is_grad_enabled() and model is self.model:
                    passed.append(len(ids))
                return packed(model, ids, *others)

            self.packed_forward.packed = counted  # type: ignore[method-assign]

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


@pytest.mark.parametrize("reward", [never_flat, always_flat])
def test_a_step_of_truncated_completions_has_zeros(
    reward: Any, policies: Policies, tmp_path: Path
) -> None:
    """Every parameter has a gradient as in trl, so that its weight decay and moments go on."""
    samples: Samples = []
    changes = {"mask_truncated_completions": True, "max_completion_length": 2, "max_steps": 2}
    given = (policies("dense"), tmp_path, reward)
    ours, logs, _ = gradients(GRPOTrainer, *given, samples=samples, **changes)
    assert [log["completions/clipped_ratio"] for log in logs[:2]] == [1.0, 1.0]
    stock, _, _ = gradients(trl.GRPOTrainer, *given, samples=samples, **changes)
    assert worst(stock, ours) == 0.0
    assert not any(gradient.any() for step in ours for gradient in step.values())


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_gradients_of_other_families(kind: str, policies: Policies, tmp_path: Path) -> None:
    stock, _, _ = gradients(trl.GRPOTrainer, policies(kind), tmp_path, half_flat, beta=0.04)
    ours, _, trainer = gradients(GRPOTrainer, policies(kind), tmp_path, half_flat, beta=0.04)
    assert trainer.packed_forward.packs and worst(stock, ours) <= TOLERANCE


@pytest.fixture(scope="module")
def stock_of(policies: Policies, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The gradients of stock trl's trainer on the dense policy, by the reward."""
    folder = tmp_path_factory.mktemp("stock")
    return cache(lambda reward: gradients(trl.GRPOTrainer, policies("dense"), folder, reward)[0])


@pytest.mark.parametrize("on", [(), *OFF, tuple(OFF)], ids=str)
@pytest.mark.parametrize("reward", [half_flat, never_flat])
def test_each_speed_up_alone_and_all_together(
    on: str | tuple[str, ...], reward: Any, policies: Policies, stock_of: Any, tmp_path: Path
) -> None:
    wanted = {*on} if isinstance(on, tuple) else {on, "share_prompts"}
    changes = {name: name in wanted for name in OFF}
    stock = stock_of(reward)
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


def test_steps_without_any_advantage_log_what_trl_logs_of_the_ratio(
    policies: Policies, tmp_path: Path
) -> None:
    """Also where the policy has moved since the batch: one row is computed, whose ratio is 1."""
    name = "vespo/phi_seq_mean"
    changes = {"loss_type": "vespo", "gradient_accumulation_steps": 1, "steps_per_generation": 3}
    figures = []
    for kind in (trl.GRPOTrainer, GRPOTrainer):
        _, logs, _ = gradients(kind, policies("dense"), tmp_path, always_flat, **changes)
        figures.append([row[name] for row in logs if name in row])
    assert len(figures[0]) == 3 and figures[1] == pytest.approx(figures[0])


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
    assert trainer.packed_forward.packs
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
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            packed = self.packed_forward.packed
            self.packed_forward.packed = partial(self.poisoned, packed)  # type: ignore[method-assign]

        def poisoned(self, packed: Any, model: Any, *others: Any) -> Any:
            def hook(embedding: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                bad = (inputs[0] == POISON)[..., None] & when(self)
                return output.masked_fill(bad, torch.nan)

            self.now = "reference" if model is self.ref_model else "policy"
            handle = model.get_input_embeddings().register_forward_hook(hook)
            try:
                return packed(model, *others)
            finally:
                handle.remove()

    return Poisoned


def test_where_a_row_is_left_out_those_without_advantage_keep_their_kl(
    policies: Policies, tmp_path: Path
) -> None:
    """Also where the policy has moved: the KL is that of now, not of the old log-probs."""

    class Without(trl.GRPOTrainer):  # type: ignore[misc]
        def _get_per_token_logps_and_entropies(
            self, model: Any, ids: Any, *a: Any, **k: Any
        ) -> Any:
            logps, *others = super()._get_per_token_logps_and_entropies(model, ids, *a, **k)
            return torch.where((ids == POISON).any(1, True), logps.detach(), logps), *others

    changes = {"beta": 0.04, "num_iterations": 2, "max_steps": 4}
    stock, _, _ = gradients(Without, policies("dense"), tmp_path, half_flat, **changes)
    kind = poisoned(lambda trainer: torch.is_grad_enabled() and trainer.now == "policy")
    changes["reuse_log_probs"] = False
    ours, logs, _ = gradients(kind, policies("dense"), tmp_path, half_flat, **changes)
    assert sum(row.get("rows/not_finite") or 0 for row in logs) > 0
    assert worst(stock, ours) <= TOLERANCE


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
    with caplog.at_level(logging.WARNING, "rl_reasoner.training.packed_forward"):
        ours, _, trainer = gradients(
            GRPOTrainer, policies(kind), tmp_path, half_flat, max_steps=1, **changes
        )
    stock, _, _ = gradients(
        trl.GRPOTrainer, policies(kind), tmp_path, half_flat, max_steps=1, **changes
    )
    assert not trainer.packed_forward.packs and worst(stock, ours) == 0.0
    assert trainer.engine_sampling.on == (reason == "dropout"), (
        "which is off while completions are sampled"
    )
    said = [
        r.getMessage() for r in caplog.records if r.name == "rl_reasoner.training.packed_forward"
    ]
    assert len(said) == 1 and reason in said[0]
    assert ("lora_dropout=0" in said[0]) == (reason == "dropout"), "what it takes to pack"
