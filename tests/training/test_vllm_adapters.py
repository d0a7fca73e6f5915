"""An adapter at a vLLM server: by itself or merged, faults, other runs, and exact resume."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from rl_reasoner import GRPOTrainer, open_policy, train
from rl_reasoner.errors import RunStopped
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.preflight import inspect
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.recipe.adapter import Lora
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.vllm_server.adapters import stir, why_merged
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from support.processes import build
from support.tiny import grpo, recipe, same
from support.tiny import rows as rows_of
from support.vllm_stand_in import StandIn, serving

DENSE = "scratch:dense-tiny"
CHECKED = 8  # completions that a server is asked for before it is used
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
GREEDY = SamplingParams(6, (1,), temperature=0.0)
PROMPTS, KEYS = [[5, 6, 7], [8, 9]], [(0,), (1,)]


def trained(folder: Path, url: str) -> GRPOTrainer:
    """A trainer of an adapter after two steps whose completions came from `url`."""
    trainer = build(DENSE, folder / "out", max_steps=2, peft_config=LORA)
    trainer.vllm_rollouts = VllmRollouts(url, folder / "weights", 120.0)
    trainer.train()
    return trainer


def adapted(rank: int = 4) -> Any:
    """A policy with a new adapter."""
    policy = open_policy(DENSE, device="cpu")
    add_lora(policy, Lora(rank=rank, alpha=2 * rank), 0)
    return policy.model


def flat(trainer: GRPOTrainer) -> torch.Tensor:
    """All weights in one."""
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, StandIn, Any]:
    """The weights after a training without faults, and the server that sampled for it."""
    with serving(DENSE, rank=8) as server:
        trainer = trained(tmp_path_factory.mktemp("faultless"), server.url)
    return flat(trainer), server, trainer


def test_the_base_goes_once_and_an_adapter_each_step(faultless: Any) -> None:
    _, server, trainer = faultless
    base, *adapters = server.loaded
    assert base.startswith("policy-") and len(adapters) == len(set(adapters)) == 3, "one is stirred"
    assert all(name.startswith("adapter-") for name in adapters)
    asked = [body["model"] for body in server.bodies]
    assert asked == [name for name in adapters for _ in range(CHECKED)], "each step has its own"
    assert server.adapters == {} and not trainer.vllm_rollouts.folder.exists()
    for row in trainer.state.log_history[:-1]:
        assert row["sampling/sampling_logp_difference/max"] < 1e-4


@pytest.mark.parametrize("fault", ["503", "refused", "restart", "forgotten"])
def test_a_fault_that_passes_leaves_no_trace(fault: str, faultless: Any, tmp_path: Path) -> None:
    """Not even a restart, after which the server has other weights and no adapters."""
    with serving(DENSE, {CHECKED + 3: fault, CHECKED + 14: fault}, rank=8) as server:
        trainer = trained(tmp_path, server.url)
    assert server.met[fault] == 2
    assert torch.equal(flat(trainer), faultless[0])
    bases = [name for name in server.loaded if name.startswith("policy-")]
    assert len(set(bases)) == 1 and len(bases) == (3 if fault == "restart" else 1)


@pytest.mark.parametrize("loaded", [True, False])
def test_a_connection_that_breaks_while_an_adapter_loads_leaves_no_trace(
    loaded: bool, faultless: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the load, or before it."""
    load, breaks = StandIn.load_adapter, iter([False, True])

    def broken(server: StandIn, name: str, path: str) -> tuple[int, Any]:
        fails = next(breaks, False)
        if fails and not loaded:
            raise ConnectionResetError
        done = load(server, name, path)
        if fails:
            raise ConnectionResetError
        return done

    monkeypatch.setattr(StandIn, "load_adapter", broken)
    with serving(DENSE, rank=8) as server:
        trainer = trained(tmp_path, server.url)
    assert next(breaks, None) is None, "it was broken"
    assert torch.equal(flat(trainer), faultless[0])


def test_without_enable_lora_it_is_merged_as_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, faultless: Any
) -> None:
    caplog.set_level("INFO", "rl_reasoner")
    with serving(DENSE) as server:
        trainer = trained(tmp_path, server.url)
    assert len(server.loaded) == 2 and all(name.startswith("policy-") for name in server.loaded)
    assert not any("model" in body for body in server.bodies)
    said = [text for text in caplog.messages if "gets whole weights" in text]
    assert len(said) == 1 and "merged: the server was started without --enable-lora" in said[0]
    assert torch.allclose(flat(trainer), faultless[0], atol=2e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"use_dora": True}, "vLLM takes no adapter with use_dora"),
        ({"modules_to_save": ["lm_head"]}, "vLLM takes no adapter with modules_to_save"),
        ({"target_parameters": ["down_proj"]}, "vLLM takes no adapter with target_parameters"),
        ({"bias": "all"}, "vLLM takes no adapter with bias"),
        ({"init_lora_weights": "pissa"}, "vLLM takes no adapter with init_lora_weights='pissa'"),
        (
            {"rank_pattern": {"q_proj": 5}},
            "its rank is 5, the server was started with --max-lora-r",
        ),
    ],
    ids=str,
)
def test_which_adapters_go_merged_and_why(
    change: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    model = adapted()
    model.peft_config["default"] = dataclasses.replace(model.peft_config["default"], **change)
    with serving(DENSE, rank=4) as server:
        why = why_merged(VllmRollouts(server.url, tmp_path, 9.0).connection, model)
    assert (why or "").startswith(said or "") and (why is None) == (said is None)


def test_an_adapter_beside_which_other_weights_are_trained_goes_merged(tmp_path: Path) -> None:
    model = adapted()
    model.get_input_embeddings().weight.requires_grad_(True)
    with serving(DENSE, rank=4) as server:
        rollouts = VllmRollouts(server.url, tmp_path, 9.0)
        rollouts.load(model, 0)
    assert not rollouts.by_adapter and rollouts.form.endswith("embed_tokens.weight is trained, too")
    assert [name.startswith("policy-") for name in server.loaded] == [True]


def test_two_runs_have_their_adapters_at_one_server(tmp_path: Path) -> None:
    """Equal ones, too: what one of them lets go of is not the other's."""
    model = adapted()
    stir(model, 1)
    own = [done.ids for done in generate(model, PROMPTS, KEYS, GREEDY)]
    with serving(DENSE, rank=4) as server:
        one, other = (VllmRollouts(server.url, tmp_path / name, 9.0) for name in ("one", "other"))
        with other.own():
            other.load(model, 0)
            with one.own():
                one.load(model, 0)
                assert len(server.adapters) == 2
                assert [done.ids for done in one.generate(PROMPTS, KEYS, GREEDY)] == own
                stir(model, 2)
                one.load(model, 1)
                assert len(server.adapters) == 2 and len(list((tmp_path / "one").iterdir())) == 3
            assert [done.ids for done in other.generate(PROMPTS, KEYS, GREEDY)] == own
        assert server.adapters == {} and other.loads == 1
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_changed_is_given_again_and_a_busy_server_waited_for(tmp_path: Path) -> None:
    model = adapted()
    with serving(DENSE, rank=4) as server:
        rollouts = VllmRollouts(server.url, tmp_path, 9.0)
        rollouts.load(model, 0)
        stir(model, 1)
        server.busy = 1
        rollouts.load(model, 0)
        assert server.busy == 0
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(1.5)
        rollouts.load(model, 0)
        kinds = [name.split("-")[0] for name in server.loaded]
        assert kinds == ["policy", "adapter", "adapter", "policy"], "the same adapter, another base"
        assert [done.ids for done in rollouts.generate(PROMPTS, KEYS, GREEDY)] == [
            done.ids for done in generate(model, PROMPTS, KEYS, GREEDY)
        ]


def ignoring(server: StandIn) -> None:
    """It takes adapters, and computes without them."""
    server.model_of = lambda name: server.policy.model  # type: ignore[method-assign]


def refusing(server: StandIn) -> None:
    said = {"error": {"message": "received ['x'] as a target module"}}
    server.load_adapter = lambda name, path: (500, said)  # type: ignore[method-assign]


def blind(server: StandIn) -> None:
    said = {"error": {"message": "No adapter found"}}
    server.load_adapter = lambda name, path: (404, said)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (ignoring, "takes the policy's adapter, and answers as without it"),
        (refusing, "does not take the adapter .*received .'x'. as a target.*it is merged"),
        (blind, "cannot load .*No adapter found.*vllm.folder.*--enable-lora"),
    ],
    ids=["ignoring", "refusing", "blind"],
)
def test_a_server_that_does_not_do_is_told_before_the_first_step(
    change: Callable[[StandIn], None], said: str, tmp_path: Path
) -> None:
    with serving(DENSE, rank=4) as server:
        change(server)
        trainer = build(DENSE, tmp_path / "out", max_steps=1, peft_config=LORA)
        before = flat(trainer).clone()
        trainer.vllm_rollouts = VllmRollouts(server.url, tmp_path / "weights", 120.0)
        with pytest.raises(ServerFailed, match=said):
            trainer.train()
    assert torch.equal(flat(trainer), before), "what was stirred is as before"
    assert not (tmp_path / "weights").exists() and server.adapters == {}


def test_check_gives_the_server_the_adapter_of_the_recipe(tmp_path: Path) -> None:
    with serving(DENSE, rank=4) as server:
        for rank, status, said in (
            (4, "passed", "gets the adapter by itself"),
            (5, "warned", "merged: its rank is 5"),
        ):
            vllm = {"mode": "server", "url": server.url, "timeout_s": 120.0}
            lora = {"source": DENSE, "lora": {"rank": rank, "alpha": 8}}
            made = recipe(tmp_path, grpo(vllm=vllm), policy=lora)
            placement, policy = choose_placement(made), open_policy(DENSE, device="cpu")
            before = [(id(p), p.requires_grad, p.clone()) for p in policy.model.parameters()]
            found = inspect(made, placement, prepare(made, placement), policy, tmp_path)
            [notice] = [notice for notice in found if notice.check == "vllm"]
            assert notice.status == status and said in notice.message
            assert "100.0% of" in notice.message
            after = [(id(p), p.requires_grad, p) for p in policy.model.parameters()]
            assert [b[:2] for b in before] == [a[:2] for a in after]
            assert all(torch.equal(b[2], a[2]) for b, a in zip(before, after, strict=True))
    assert [name.split("-")[0] for name in server.loaded] == ["policy", "adapter"], (
        "a new adapter that is merged is the base"
    )


def test_a_recipes_run_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    """A server that refuses in mid-run; then another one at the same address."""

    def made(folder: str, url: str) -> Any:
        (tmp_path / folder).mkdir()
        vllm = {"mode": "server", "url": url, "timeout_s": 120.0}
        stage = grpo(steps=2, save_every=1, vllm=vllm)
        policy = {"source": DENSE, "lora": {"rank": 4, "alpha": 8}}
        evals = {"sets": [], "stages": False}
        return recipe(tmp_path / folder, stage, policy=policy, evals=evals)

    with serving(DENSE, rank=4) as server:
        whole = train(made("whole", server.url), quiet=True)
        port = server.server_address[1]
    with serving(DENSE, {2 * CHECKED + 12: "400"}, port=port, rank=4) as server:  # the second step
        broken = made("broken", server.url)
        with pytest.raises(RunStopped, match=r"refuses /v1/completions .400.: inj") as stopped:
            train(broken, quiet=True)
        assert server.adapters == {}
    assert stopped.value.folder is not None
    with serving(DENSE, port=port, rank=4) as server:
        resumed = train(broken, resume=Path(stopped.value.folder), quiet=True)
    assert [name.split("-")[0] for name in server.loaded] == ["policy", *["adapter"] * 3]
    assert same(whole.folder / "policy", resumed.folder / "policy")
    one, other = (next(r.folder.glob("stages/*/rollouts.jsonl")) for r in (whole, resumed))
    assert rows_of(one) == rows_of(other)
