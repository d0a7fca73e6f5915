"""A real vLLM in the trainer's own process, where the environment of the tests has one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl_reasoner.files import read_jsonl

pytest.importorskip("vllm", reason="vLLM is not installed")
pytestmark = pytest.mark.timeout(1800)
ROOT = Path(__file__).resolve().parents[2]
# what vLLM is told on a CPU; the trainer's process is its worker
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def ran(*words: str) -> None:
    """A command of Python in the project's root."""
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, env={**os.environ, **SETTINGS})


def test_its_log_probs_are_the_policys_after_every_step(tmp_path: Path) -> None:
    """The rate is high: an engine that had kept its first weights would be far off by step 5."""
    policy, run = tmp_path / "policy", tmp_path / "run"
    ran("benchmarks/vllm_rollouts.py", str(policy), "--make", "dense-tiny")
    flags = ["--until", "grpo", "--chains.steps", "1", "--habit.steps", "1", "--grpo.steps", "5"]
    flags += ["--grpo.optim.lr", "1e-2", "--evals.limit", "2", "--evals.samples", "1"]
    flags += ["--vllm.mode", "colocate", "--vllm.memory", "0.1", "--vllm.sleep", "false"]
    train = ["-m", "rl_reasoner.cli", "train", "quickstart", "--policy", str(policy)]
    ran(*train, "--run.folder", str(run), *flags)
    [file] = run.glob("stages/*-grpo/metrics.jsonl")
    gaps = [row["sampling/sampling_logp_difference/mean"] for row in read_jsonl(file)]
    print(gaps)
    assert len(gaps) == 5 and max(gaps) < 0.02, "bf16 against fp32: 0.003"
