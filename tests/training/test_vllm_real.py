"""A real vLLM server, where $RL_REASONER_VLLM names the Python of an environment that has vLLM.

Its start takes a minute and more on a CPU, so one serves all tests. The policy is a dense one with
heads as wide as vLLM's CPU kernels take; faults that a stand-in can play are in
test_vllm_rollouts.py.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import GenerationConfig

from rl_reasoner import open_policy, train
from rl_reasoner.errors import RunStopped
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.vllm_server.connection import WORKER
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from support.places import free_port
from support.scripted_turns import Script, Threads
from support.tiny import grpo, recipe, rows

VLLM = os.environ.get("RL_REASONER_VLLM")
pytestmark = [
    pytest.mark.skipif(not VLLM, reason="RL_REASONER_VLLM names no Python with vLLM"),
    pytest.mark.timeout(3600),
]
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "benchmarks" / "vllm_rollouts.py"
STEPS, ROWS = 6, 8


class Server:
    """vLLM on a policy; it can be killed and started again at the same address."""

    def __init__(self, policy: Path, *words: str, **own: str) -> None:
        self.policy, self.words, self.own = policy, words, own
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = ["--model", str(self.policy), "--port", str(self.port), "--host", "127.0.0.1"]
        words += ["--max-model-len", "256", "--dtype", "float32", "--enforce-eager"]
        words += ["--logprobs-mode", "processed_logprobs"]
        words += ["--worker-extension-cls", "rl_reasoner_weights.PolicyWeights", *self.words]
        own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
        own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
        own |= {"PYTHONPATH": str(WORKER), **self.own}
        command = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", *words]
        with (self.policy.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **own},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while True:
            assert self.process.poll() is None, (self.policy.parent / "server.log").read_text()
            try:
                httpx.get(f"{self.url}/health", timeout=5)
                return
            except httpx.TransportError:
                time.sleep(1)

    def kill(self) -> None:
        """As a machine that goes away: all its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    policy = tmp_path_factory.mktemp("served") / "policy"
    made = [sys.executable, str(PROGRAM), str(policy), "--make", "dense-tiny"]
    subprocess.run(made, check=True, cwd=ROOT)
    return policy


@pytest.fixture(scope="module")
def server(policy: Path) -> Iterator[Server]:
    server = Server(policy)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def lora_server(policy: Path) -> Iterator[Server]:
    """One that takes adapters of rank 16."""
    words = ("--enable-lora", "--max-lora-rank", "16")
    server = Server(policy, *words, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1")
    yield server
    server.kill()


def syncs(server: Server, count: int, *words: str) -> list[str]:
    """The lines of the program that compares after each sync; 50 completions are equal in each."""
    told = subprocess.run(
        [
            sys.executable,
            str(PROGRAM),
            str(server.policy),
            server.url,
            "--syncs",
            str(count),
            *words,
        ],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    print(told)
    lines = [line for line in told.splitlines() if line.startswith("sync ")]
    assert len(lines) == count
    assert all(": 50 of 50 completions" in line for line in lines)
    # the first prompt of a sync reads nothing of earlier weights, the others its first block
    assert all(line.endswith(f"{49 * 128} tokens of prompts from the cache") for line in lines)
    return lines


def test_turns_in_the_middle_are_those_of_the_engine(server: Server, tmp_path: Path) -> None:
    """Greedy rows stop for answers at the same tokens, go on behind them, and end alike."""
    torch.set_num_threads(1)
    opened: Any = open_policy(str(server.policy), device="cpu")
    greedy = SamplingParams(48, ends=(7, 58), config=GenerationConfig(do_sample=False))
    prompts, keys = [[11, 12, 13 + row] for row in range(32)], [(row,) for row in range(32)]
    script = Script((2, 3, 0, 1, -1), stops=tuple(range(0, 300, 3)))
    own = generate(opened.model, prompts, keys, greedy, turns=Threads(script))
    assert {"done", "length"} <= {completion.ended for completion in own}
    marks = tuple({opened.tokenizer.decode(done.ids[1:2]) for done in own[:8]} - {""})
    rollouts = VllmRollouts(server.url, tmp_path / "weights", 600.0)
    with rollouts.own():
        rollouts.load(opened.model, 0)
        for given in ((), marks):
            found = rollouts.generate(prompts, keys, greedy, None, Threads(script), given)
            told = [(done.ids, done.tool_mask, done.ended) for done in found]
            assert told == [(done.ids, done.tool_mask, done.ended) for done in own]


def written(line: str) -> int:
    [found] = re.findall(r"([\d,]+) bytes written", line)
    return int(found.replace(",", ""))


def test_greedy_tokens_are_the_engines_after_every_sync(server: Server) -> None:
    syncs(server, 3)


def test_an_adapter_by_itself_samples_as_the_engine_does(lora_server: Server) -> None:
    """So does one that is merged, since its rank is too high: with all bytes at each sync."""
    alone, merged = syncs(lora_server, 4, "--lora", "8"), syncs(lora_server, 2, "--lora", "32")
    assert max(map(written, alone)) * 4 < min(map(written, merged))


def killed_after(run: Path, steps: int, server: Server) -> threading.Thread:
    """Kills the server when that many steps of the run have their rollouts."""

    def watch() -> None:
        while sum(len(rows(file)) for file in run.glob("stages/*/rollouts.jsonl")) < steps * ROWS:
            time.sleep(0.2)
        server.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_server_killed_in_mid_run_is_one_message_and_the_run_goes_on(
    server: Server, tmp_path: Path
) -> None:
    vllm: dict[str, Any] = {"mode": "server", "url": server.url, "timeout_s": 60.0}
    stage = grpo(steps=STEPS, save_every=1, vllm=vllm)
    made = recipe(tmp_path, stage, policy=str(server.policy))
    run = tmp_path / "run"
    watcher = killed_after(run, 2, server)
    with pytest.raises(RunStopped, match=r"vllm.timeout_s: 60.*The run can be resumed") as stopped:
        train(made, quiet=True)
    watcher.join()
    print(stopped.value)
    server.start()
    done = train(made, resume=run, quiet=True)
    [file] = run.glob("stages/*/rollouts.jsonl")
    assert [row["step"] for row in rows(file)] == [n + 1 for n in range(STEPS) for _ in range(ROWS)]
    assert open_policy(str(done.folder / "policy"), device="cpu")


def test_a_server_that_is_started_again_in_mid_run_gets_base_and_adapter_again(
    lora_server: Server, tmp_path: Path
) -> None:
    vllm: dict[str, Any] = {"mode": "server", "url": lora_server.url, "timeout_s": 900.0}
    stage = grpo(steps=STEPS, vllm=vllm)
    lora = {"source": str(lora_server.policy), "lora": {"rank": 8}}
    made, run = recipe(tmp_path, stage, policy=lora), tmp_path / "run"
    watcher = killed_after(run, 2, lora_server)
    again = threading.Thread(target=lambda: (watcher.join(), lora_server.start()), daemon=True)
    again.start()
    done = train(made, quiet=True)
    again.join()
    [file] = run.glob("stages/*/rollouts.jsonl")
    assert [row["step"] for row in rows(file)] == [n + 1 for n in range(STEPS) for _ in range(ROWS)]
    [metrics] = run.glob("stages/*/metrics.jsonl")
    gaps = [row["sampling/sampling_logp_difference/max"] for row in rows(metrics)]
    print(gaps)
    assert max(gaps) < 1e-3
    assert open_policy(str(done.folder / "policy"), device="cpu")
