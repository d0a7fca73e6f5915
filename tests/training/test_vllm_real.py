"""A real vLLM server, where $RL_REASONER_VLLM names the Python of an environment that has vLLM.

Its start takes a minute and more on a CPU, so one serves all tests. The policy is a dense one with
heads as wide as vLLM's CPU kernels take; faults that a stand-in can play are in
test_vllm_rollouts.py.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_reasoner import open_policy, train
from rl_reasoner.errors import RunStopped
from rl_reasoner.rollout.vllm_server.connection import WORKER
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

    def __init__(self, policy: Path) -> None:
        self.policy = policy
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = ["--model", str(self.policy), "--port", str(self.port), "--host", "127.0.0.1"]
        words += ["--max-model-len", "256", "--dtype", "float32", "--enforce-eager"]
        words += ["--logprobs-mode", "processed_logprobs"]
        words += ["--worker-extension-cls", "rl_reasoner_weights.PolicyWeights"]
        own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
        own |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
        own["PYTHONPATH"] = str(WORKER)
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
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    policy = tmp_path_factory.mktemp("served") / "policy"
    made = [sys.executable, str(PROGRAM), str(policy), "--make", "dense-tiny"]
    subprocess.run(made, check=True, cwd=ROOT)
    server = Server(policy)
    yield server
    server.kill()


def test_greedy_tokens_are_the_engines_after_every_sync(server: Server) -> None:
    told = subprocess.run(
        [sys.executable, str(PROGRAM), str(server.policy), server.url, "--syncs", "3"],
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    print(told)
    syncs = [line for line in told.splitlines() if line.startswith("sync ")]
    assert len(syncs) == 3
    assert all(f": {50} of 50 completions" in line for line in syncs)


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
