"""Training on completions of a vLLM server: weights by files, faults, and what is refused."""

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.generation.vllm_generation import VLLMGeneration

from rl_reasoner import GRPOTrainer, open_policy, train
from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.vllm_server.connection import Connection
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from rl_reasoner.rollout.vllm_server.worker.rl_reasoner_weights import PolicyWeights
from support.processes import build
from support.tiny import grpo, recipe, same
from support.tiny import rows as rows_of
from support.vllm_stand_in import StandIn, serving

DENSE, MIXTURE = "scratch:dense-tiny", "scratch:moe-tiny"
CHECKED = 8  # completions that a server is asked for before it is used


def trained(folder: Path, url: str, **changes: Any) -> GRPOTrainer:
    """A trainer after three steps whose completions came from `url`."""
    trainer = build(DENSE, folder / "out", max_steps=3, **changes)
    trainer.vllm_rollouts = VllmRollouts(url, folder / "weights", 120.0)
    trainer.train()
    return trainer


def flat(trainer: GRPOTrainer) -> torch.Tensor:
    """All weights in one."""
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.fixture(scope="module")
def faultless(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.Tensor, list[Any], Any]:
    """The weights after a training without faults, what the server was asked and has loaded."""
    with serving(DENSE) as server:
        trainer = trained(tmp_path_factory.mktemp("faultless"), server.url)
    return flat(trainer), server.bodies, (server.loaded, trainer)


def test_the_server_has_each_steps_weights(faultless: Any) -> None:
    _, bodies, (loaded, trainer) = faultless
    assert len(loaded) == len(set(loaded)) == 3, "those of step 0 are the ones it was tried with"
    for body in bodies:
        assert body["ignore_eos"] and body["logprobs"] == 0 and body["return_token_ids"]
    drawn = bodies[CHECKED:]
    assert len({body["seed"] for body in drawn}) == len(drawn) == 3 * 8
    folder: Path = trainer.vllm_rollouts.folder
    assert not folder.exists(), "weights are not left behind"


def test_the_servers_log_probs_are_corrected_for(faultless: Any) -> None:
    _, _, (_, trainer) = faultless
    for row in trainer.state.log_history[:-1]:
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("corrected", "replays"), [(True, [True] * 4), (False, [False, True] * 2)])
def test_experts_that_a_server_does_not_tell_are_those_of_the_first_pass(
    corrected: bool, replays: list[bool], tmp_path: Path
) -> None:
    """That of the correction's log-probs, else the first of the two that train on a batch."""
    changes: dict[str, Any] = {"router_replay": True, "num_iterations": 2}
    changes |= {"router_aux_loss_coef": 0.0, "vllm_importance_sampling_correction": corrected}
    with serving(MIXTURE) as server:
        trainer = build(MIXTURE, tmp_path / "out", max_steps=4, logging_steps=1, **changes)
        trainer.vllm_rollouts = VllmRollouts(server.url, tmp_path / "weights", 120.0)
        trainer.train()
    flips = ["router_replay/flips" in row for row in trainer.state.log_history[:4]]
    assert flips == replays


@pytest.mark.parametrize("fault", ["503", "refused", "restart"])
def test_a_fault_that_passes_leaves_no_trace(fault: str, faultless: Any, tmp_path: Path) -> None:
    """Not even a restart, after which the server has the weights of the start."""
    with serving(DENSE, {CHECKED + 3: fault, CHECKED + 14: fault}) as server:
        trainer = trained(tmp_path, server.url)
    assert server.met[fault] == 2
    assert torch.equal(flat(trainer), faultless[0])


def test_a_server_that_stays_away_or_silent_ends_in_one_message(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServerFailed) as failed:
            VllmRollouts(url, tmp_path, 0.3).model()
    for said in ("no reply to /v1/models within 0.3 s", "vllm.timeout_s: 0.3", "can be resumed"):
        assert said in str(failed.value)
    with pytest.raises(ServerFailed, match=r"no connection: .*tried for"):
        VllmRollouts(url, tmp_path, 0.3).model()


def other_weights(server: StandIn) -> None:
    """It says that it has loaded them."""
    server.load = lambda path: {"loaded": path}  # type: ignore[method-assign]


def other_sizes(server: StandIn) -> None:
    server.load = lambda path: {"error": "vocab_size 7"}  # type: ignore[method-assign]


def not_extended(server: StandIn) -> None:
    """A server without our file: it has no such method."""
    del server.loaded


def raw_log_probs(server: StandIn) -> None:
    whole = server.complete

    def raw(body: dict[str, Any]) -> dict[str, Any]:
        reply = whole(body)
        reply["choices"][0]["logprobs"]["token_logprobs"][0] -= 1.0
        return reply

    server.complete = raw  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weights, "which is not this policy"),
        (other_sizes, "cannot load .*vocab_size 7.*same kind and sizes"),
        (not_extended, "Start it again, with .*--worker-extension-cls"),
        (raw_log_probs, "--logprobs-mode processed_logprobs"),
    ],
    ids=["other weights", "other sizes", "not extended", "raw log-probs"],
)
def test_another_server_is_told_before_the_first_step(
    change: Callable[[StandIn], None], said: str, tmp_path: Path
) -> None:
    with serving("scratch:dense-tiny") as server:
        # a policy that differs from the server's, so that what it loads matters
        trainer = build(DENSE, tmp_path / "out", max_steps=1)
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight.mul_(-3.0)
        change(server)
        trainer.vllm_rollouts = VllmRollouts(server.url, tmp_path / "weights", 120.0)
        with pytest.raises(ServerFailed, match=said):
            trainer.train()
    assert not (tmp_path / "weights").exists()


def test_what_a_server_is_not_combined_with(tmp_path: Path) -> None:
    with serving(DENSE, room=9) as server:
        with pytest.raises(ServerFailed, match="--max-model-len 9; prompts and completions come"):
            trained(tmp_path, server.url)
        with pytest.raises(UserError, match="no_repeat_ngram_size"):
            trained(tmp_path, server.url, generation_kwargs={"no_repeat_ngram_size": 2})
        for given in ({"num_beams": 2}, {"encoder_repetition_penalty": 2.0}):
            with pytest.raises(UserError, match=f"does not sample with .*{next(iter(given))}"):
                trained(tmp_path, server.url, generation_kwargs=given)


def test_a_load_that_breaks_off_leaves_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that goes on from the weights of before would else find their name, and others."""
    policy, other = open_policy(DENSE, device="cpu"), open_policy(DENSE, device="cpu")
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(1.5)

    def ended(connection: Connection, path: str, body: Any = None) -> Any:
        if path == "/reset_prefix_cache":
            raise KeyboardInterrupt
        return ask(connection, path, body)

    ask = Connection.ask
    with serving(DENSE) as server:
        VllmRollouts(server.url, tmp_path, 9.0).load(policy.model, 0)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Connection, "ask", ended)
            VllmRollouts(server.url, tmp_path, 9.0).load(other.model, 0)
        VllmRollouts(server.url, tmp_path, 9.0).load(policy.model, 0)
        has = server.policy.model.get_input_embeddings().weight
    assert torch.equal(has, policy.model.get_input_embeddings().weight)


def test_weights_that_changed_by_hand_or_met_a_busy_server_arrive(tmp_path: Path) -> None:
    policy = open_policy(DENSE, device="cpu")
    weight = policy.model.get_input_embeddings().weight
    with serving(DENSE) as server:
        rollouts = VllmRollouts(server.url, tmp_path, 9.0)
        server.busy = 2
        for count, of in enumerate((0, 0, 1), 1):
            with torch.no_grad():
                weight.mul_(1.5)  # at the same step, too: the best policy at the end of a training
            rollouts.load(policy.model, of)
            rollouts.load(policy.model, of)
            assert rollouts.loads == count
            assert torch.equal(server.policy.model.get_input_embeddings().weight, weight)
    assert server.busy == 0


def test_a_recipes_run_ends_with_a_message_and_goes_on(tmp_path: Path) -> None:
    """A server that refuses; then one at the same address, and the run is as without the fault."""

    def made(folder: str, url: str) -> Any:
        (tmp_path / folder).mkdir()
        vllm = {"mode": "server", "url": url, "timeout_s": 120.0}
        stage = grpo(steps=4, save_every=1, vllm=vllm)
        evals = {"sets": [], "stages": False}
        return recipe(tmp_path / folder, stage, policy=DENSE, evals=evals)

    with serving(DENSE) as server:
        whole = train(made("whole", server.url), quiet=True)
        port = server.server_address[1]
    with pytest.raises(UserError, match=r"no connection.*--logprobs-mode processed_logprobs"):
        train(made("none", f"http://127.0.0.1:{port}"), quiet=True)
    assert not (tmp_path / "none" / "run").exists(), "nothing was begun"
    with serving(DENSE, {2 * CHECKED + 20: "400"}, port=port) as server:  # in the third step
        broken = made("broken", server.url)
        with pytest.raises(RunStopped, match=r"refuses /v1/completions .400.: injected") as stopped:
            train(broken, quiet=True)
    assert stopped.value.folder is not None
    with serving(DENSE, port=port):
        resumed = train(broken, resume=Path(stopped.value.folder), quiet=True)
    assert same(whole.folder / "policy", resumed.folder / "policy")
    one, other = (next(r.folder.glob("stages/*/rollouts.jsonl")) for r in (whole, resumed))
    assert rows_of(one) == rows_of(other)


def test_the_file_of_a_server_tells_what_does_not_fit_before_it_loads(tmp_path: Path) -> None:
    class Worker(PolicyWeights):
        """What vLLM mixes the class into, with a model of its own."""

        def __init__(self, vocabulary: int) -> None:
            served = SimpleNamespace(hf_text_config=SimpleNamespace(vocab_size=vocabulary))
            config = SimpleNamespace(model_config=served)
            self.model_runner = SimpleNamespace(vllm_config=config, get_model=torch.nn.Module)
            self.reloaded: list[str] = []

        def reload_weights(self, weights_path: str) -> None:
            self.reloaded.append(weights_path)

    worker, folder = Worker(7), str(tmp_path)
    assert "cannot read" in worker.load_policy(folder)["error"]
    (tmp_path / "config.json").write_text('{"vocab_size": 8}', encoding="utf-8")
    assert worker.load_policy(folder) == {
        "error": "it serves a model with vocab_size 7, the policy has 8"
    }
    assert worker.reloaded == []
    fits = Worker(8)
    assert fits.load_policy(folder) == {"loaded": folder} and fits.reloaded == [folder]


class Beside:
    """What trl makes of vLLM in the trainer's process: a worker of one process, and its caches."""

    def __init__(self) -> None:
        self.loaded: list[dict[str, torch.Tensor]] = []
        self.caches = 0
        worker = SimpleNamespace(reload_weights=self.reload_weights, model_runner=self)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=worker))

    def reload_weights(self, weights_iterator: Any) -> None:
        self.loaded.append({name: weight.clone() for name, weight in weights_iterator})

    def get_model(self) -> torch.nn.Module:
        return torch.nn.Module()

    def reset_prefix_cache(self) -> None:
        self.caches += 1


def test_on_a_cpu_a_colocated_vllm_loads_all_weights_by_its_own_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By trl's way it would not: layers are packed, and take no single parameter."""
    trainer, beside = build(DENSE, tmp_path), Beside()
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", lambda self: setattr(self, "llm", beside))
    trainer.vllm_generation = VLLMGeneration(
        trainer.model, trainer.accelerator, trainer.processing_class
    )
    trainer.internals.reload_colocated()
    trainer.vllm_generation.sync_weights()
    [loaded] = beside.loaded
    weights = dict(trainer.model.named_parameters())
    assert loaded.keys() == weights.keys() and beside.caches == 1
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
