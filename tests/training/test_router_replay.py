"""Router replay: the same numbers where nothing flips, the sampled experts where something does."""

import gc
import logging
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from rl_reasoner import GRPOTrainer
from rl_reasoner.moe.experts import routers
from rl_reasoner.moe.routing import NoReplay, Routes, Routing, SampledRoutes
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from support.mixtures import FAMILIES, model_of
from support.processes import Kill, build, same, together, weights

IDS = torch.arange(24).reshape(2, 12)


def chosen_of(model: Any, ids: Tensor) -> Tensor:
    """The choices (B, S, layers, k) of a plain pass, read off without `Routing`."""
    seen: list[Tensor] = []
    handles = [
        router.register_forward_hook(lambda m, i, output: seen.append(output[2]))
        for _, router in routers(model)
    ]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return torch.stack(seen, 1).unflatten(0, tuple(ids.shape))  # type: ignore[no-untyped-call, no-any-return]


# -------------------------------------------------------------------------------- the routers


@pytest.mark.parametrize("family", FAMILIES)
def test_replaying_a_models_own_choices_changes_no_bit(family: str) -> None:
    model = model_of(family).eval()
    plain = model(input_ids=IDS).logits
    routing = Routing(model)
    with routing.record() as passes:
        assert torch.equal(model(input_ids=IDS).logits, plain)
    assert torch.equal(passes[0].long(), chosen_of(model, IDS).flatten(0, 1))
    with routing.replay(passes[0]):
        assert torch.equal(model(input_ids=IDS).logits, plain)
    assert routing.take_flips() == 0.0
    assert routing.take_flips() is None, "counting starts anew"


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_experts_are_taken_and_their_gates_have_gradients(family: str) -> None:
    """Against a router whose choices are made by force: a large bias on its own logits."""
    model = model_of(family).eval()
    routing = Routing(model)
    plain = model(input_ids=IDS).logits
    count = sum(1 for _ in routers(model))
    choices = torch.tensor([1, 4], dtype=routing.dtype).expand(24, count, 2)
    with routing.replay(choices):
        logits = model(input_ids=IDS).logits
        logits.logsumexp(-1).sum().backward()
        assert torch.equal(chosen_of(model, IDS).long().flatten(0, 1), choices.long())
    assert not torch.allclose(logits, plain)
    assert routing.take_flips() > 0.5  # type: ignore[operator]
    for name, router in routers(model):
        assert router.weight.grad.abs().max() > 0, name  # type: ignore[union-attr, operator]
    assert torch.equal(model(input_ids=IDS).logits, plain)


def test_counting_what_replay_changes_takes_no_more_room_with_every_pass() -> None:
    """Where nothing is logged, nobody takes the counts."""
    model = model_of("Qwen3Moe").eval()
    routing = Routing(model)
    choices = torch.tensor([1, 4], dtype=routing.dtype).expand(24, 2, 2)

    def tensors_after(passes: int) -> int:
        with routing.replay(choices), torch.no_grad():
            for _ in range(passes):
                model(input_ids=IDS)
        return sum(isinstance(found, Tensor) for found in gc.get_objects())

    first = tensors_after(3)
    assert tensors_after(30) == first


def test_unknown_choices_are_the_routers() -> None:
    model = model_of("Qwen3Moe").eval()
    routing = Routing(model)
    own = chosen_of(model, IDS).flatten(0, 1)
    choices = torch.full_like(own, routing.unknown)
    choices[3] = torch.tensor([0, 5])
    with routing.replay(choices.to(routing.dtype)):
        found = chosen_of(model, IDS).flatten(0, 1)
    assert found[3].tolist() == [[0, 5], [0, 5]]
    assert torch.equal(found[:3], own[:3]), "tokens before it are untouched"


def test_more_than_255_experts_fit() -> None:
    model = model_of("Qwen3Moe", num_experts=300)
    routing = Routing(model)
    with routing.record() as passes:
        plain = model(input_ids=IDS).logits
    assert passes[0].dtype == torch.int16 and passes[0].max() > 255
    with routing.replay(passes[0]):
        assert torch.equal(model(input_ids=IDS).logits, plain)


def test_gates_of_an_unknown_kind_are_refused() -> None:
    class Squared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts = 4
            self.weight = torch.nn.Parameter(torch.zeros(4, 8))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = x @ self.weight.T
            values, chosen = logits.square().topk(2)
            return logits, values, chosen

    model = torch.nn.Sequential(Squared())
    with pytest.raises(NoReplay, match="Squared"):
        Routing(model)
    with pytest.raises(NoReplay, match="without experts"):
        Routing(torch.nn.Linear(2, 2))


# ------------------------------------------------------------------------------- the sampling


def test_the_engine_keeps_what_a_plain_pass_chooses_and_prompts_once() -> None:
    model = model_of("Qwen3Moe", eos_token_id=1, pad_token_id=0, bos_token_id=2).eval()
    prompts = [prompt for prompt in ([5, 6, 7, 8], [9, 10], [3]) for _ in range(3)]
    routing = Routing(model)
    sampling = SamplingParams(max_tokens=7, ends=(*range(12),))
    with routing.record() as passes:
        routes = SampledRoutes(passes)
        found = generate(model, prompts, [[i] for i in range(9)], sampling, routes)
    assert len({len(completion.ids) for completion in found}) > 2, "rows end at different times"
    kept = routes.routes()
    for prompt, completion, before, own in zip(
        prompts, found, kept.prompts, kept.completions, strict=True
    ):
        expected = chosen_of(model, torch.tensor([prompt + completion.ids[:-1]]))[0]
        both = torch.cat((before, own)).long()
        assert torch.equal(both.sort(-1).values, expected.sort(-1).values)
    assert len({t.data_ptr() for t in kept.prompts if len(t)}) == 2, "one a group"
    tokens = sum(len(c.ids) for c in found) + 3 + 1
    assert kept.size == tokens * 2 * 2  # layers, choices: a byte each


# -------------------------------------------------------------------------------- the trainer

CASES: dict[str, dict[str, Any]] = {
    "packed": {},
    "padded": {"share_prompts": False},
    "transformers' generate": {"share_prompts": False, "fast_rollouts": False},
    "checkpointing": {"gradient_checkpointing": True},
    "dynamic sampling": {"dynamic_sampling": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_changes_where_nothing_flips(name: str, tmp_path: Path) -> None:
    """fp32: the weights of a run with replay are those of a run without, bit by bit."""
    runs = []
    for replay in (True, False):
        changes: dict[str, Any] = {
            "max_steps": 3,
            "save_strategy": "no",
            "logging_steps": 1,
            **CASES[name],
        }
        trainer = build("scratch:moe-tiny", tmp_path, router_replay=replay, **changes)
        trainer.train()
        runs.append(trainer)
    assert same(weights(runs[0]), weights(runs[1]))
    flips, none = (
        [row.get("router_replay/flips") for row in run.state.log_history[:3]] for run in runs
    )
    assert flips == [0.0] * 3 and none == [None] * 3
    assert runs[0].state.log_history[0]["router_replay/megabytes"] > 0


PAIR = (3, 5)


def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on completions are said to have been sampled with one pair of experts."""

    def routes(sampled: SampledRoutes) -> Routes:
        found = honest(sampled)
        for tensor in (*found.prompts, *found.completions):
            tensor[:] = torch.tensor(PAIR, dtype=torch.uint8)
        return found

    honest = SampledRoutes.routes
    monkeypatch.setattr(SampledRoutes, "routes", routes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"share_prompts": False},
        {"gradient_checkpointing": True},
        {"num_iterations": 2, "steps_per_generation": 4},
        {"router_aux_loss_coef": 0.0, "skip_zero_advantage": True},
        {"dynamic_sampling": 2},
    ],
    ids=str,
)
def test_training_takes_the_sampled_experts(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes with gradients and those without, with prompts shared or not, and computed anew."""
    forced(monkeypatch)
    trainer = build(
        "scratch:moe-tiny",
        tmp_path,
        router_replay=True,
        max_steps=2,
        save_strategy="no",
        logging_steps=1,
        **changes,
    )
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    for row in trainer.state.log_history[:2]:
        assert row["router_replay/flips"] > 0.5
    for name, new in after.items():
        rows = (new - before[name]).flatten(1).abs().amax(1) if new.dim() > 1 else new
        if "experts.gate_up_proj" in name:
            assert rows[list(PAIR)].min() > 1e-5, "their experts learn"
            # the last token of a row, which predicts nothing, is routed as the router wants
            others = [i for i in range(8) if i not in PAIR]
            assert changes.get("router_aux_loss_coef") is None or rows[others].max() == 0
        if "gate.weight" in name:
            assert rows[list(PAIR)].min() > 1e-5, "so does the router"


def test_replay_reaches_adapters_and_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA with a KL term: the reference is the policy without its adapter, on the same experts."""
    forced(monkeypatch)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build(
        "scratch:moe-tiny",
        tmp_path,
        router_replay=True,
        max_steps=1,
        save_strategy="no",
        beta=0.04,
        logging_steps=1,
        peft_config=adapter,
    )
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["router_replay/flips"] > 0.5
    assert row["kl"] == pytest.approx(0.0, abs=1e-7), "the adapter starts at zero"


def roll(prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
    """Completions that nobody tells the experts of."""
    ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
    drawn = [[20 + i, 30 + i, 1] for i in range(len(prompts))]
    logps = [[-1.0] * 3 for _ in prompts]
    return {"prompt_ids": ids, "completion_ids": drawn, "logprobs": logps}


TOLD: Any = partial(GRPOTrainer, rollout_func=roll)
UNKNOWN: dict[str, Any] = {"router_replay": True, "save_strategy": "no", "logging_steps": 1}


def halves(completions: list[str], **columns: Any) -> list[float]:
    """Every other row of a group is right; the second half of the groups is flat."""
    return [float(i % 2 and i < len(completions) // 2) for i in range(len(completions))]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_iterations": 2},
        {"steps_per_generation": 4},
        {"steps_per_generation": 4, "router_aux_loss_coef": 0.0, "regroup_rows": False},
    ],
    ids=str,
)
def test_choices_that_sampling_does_not_tell_come_from_the_first_pass(
    changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That of the loss, or for old log-probs before the policy moves."""
    changes = {**UNKNOWN, **changes, "max_steps": 4, "reward": halves}
    with caplog.at_level(logging.WARNING):
        trainer = build("scratch:moe-tiny", tmp_path, kind=TOLD, **changes)
    assert "router_replay: no choices come from sampling, for tools" in caplog.text
    trainer.train()
    flips = ["router_replay/flips" in row for row in trainer.state.log_history[:4]]
    assert flips == [False, True, False, True], "the second step replays what the first pass chose"


def test_choices_are_not_those_of_the_reference_without_the_adapter(tmp_path: Path) -> None:
    """Its pass is the first one, and the policy is far from it; nothing is replayed then."""
    adapter = LoraConfig(
        r=8,
        lora_alpha=64,
        target_modules=["q_proj", "v_proj", "o_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    changes = {**UNKNOWN, "max_steps": 1, "beta": 0.1}
    trainer = build("scratch:moe-tiny", tmp_path, kind=TOLD, peft_config=adapter, **changes)
    trainer.train()
    row = trainer.state.log_history[0]
    assert "router_replay/flips" not in row and row["kl"] > 0.01


def test_a_killed_run_keeps_the_experts_of_its_completions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two steps of one generation, with experts that a router would not choose."""
    torch.set_num_threads(1)
    forced(monkeypatch)
    changes: dict[str, Any] = {
        "router_replay": True,
        "steps_per_generation": 8,
        "max_steps": 4,
        "save_steps": 1,
    }
    whole = build("scratch:moe-tiny", tmp_path / "whole", **changes)
    whole.train()

    def job(rank: int) -> None:
        trainer = build("scratch:moe-tiny", tmp_path / "killed", **changes)
        trainer.add_callback(Kill(3))
        trainer.train()

    assert together(1, job) == [signal.SIGKILL]
    resumed = build("scratch:moe-tiny", tmp_path / "killed", **changes)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))


def test_dense_policies_have_nothing_to_replay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = build(
            "scratch:dense-tiny", tmp_path, router_replay=True, max_steps=1, save_strategy="no"
        )
    trainer.train()
    assert "router_replay" not in caplog.text
    assert not any("router_replay" in key for row in trainer.state.log_history for key in row)
