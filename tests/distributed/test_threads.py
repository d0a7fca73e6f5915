"""Threads: a tiny policy gets one, others what is measured; threads that wait sleep; a user's own
word goes first, and a resumed run keeps its number."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen3Config

from rl_reasoner import evaluate, open_policy
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.machine import VARIABLE, choices
from support.commands import stock

_SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def outside(folder: Path, *argv: str, **said: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that is told of threads what `said` tells and nothing else."""
    rest = {name: value for name, value in os.environ.items() if name not in _SAID}
    return subprocess.run(
        [sys.executable, *argv], cwd=folder, capture_output=True, text=True, env={**rest, **said}
    )


@pytest.mark.parametrize("said", [None, "2"])
def test_a_tiny_policy_is_trained_by_one_thread_or_as_told(
    tmp_path: Path, said: str | None
) -> None:
    stock(tmp_path)
    told = {"OMP_NUM_THREADS": said} if said else {}
    done = outside(
        tmp_path, "-m", "rl_reasoner.cli", "train", "tiny.yaml", "--until", "sft", **told
    )
    assert done.returncode == 0, done.stderr
    count = int(said or 1)
    why = "set by the environment" if said else "a tiny policy; OMP_NUM_THREADS changes it"
    assert f"fp32, {count} thread{'s' * (count > 1)} ({why})" in done.stderr
    assert json.loads((tmp_path / "run" / "lock.json").read_text())["threads"] == count
    page = re.sub(r"</?span[^>]*>", "", (tmp_path / "run" / "report.html").read_text())
    assert f"OMP_NUM_THREADS={count} rl-reasoner train tiny.yaml" in page


@pytest.mark.parametrize("said", [None, "ACTIVE"])
def test_threads_that_wait_sleep_or_as_told(tmp_path: Path, said: str | None) -> None:
    told = {"OMP_WAIT_POLICY": said} if said else {}
    code = "import rl_reasoner, torch"
    done = outside(tmp_path, "-c", code, OMP_DISPLAY_ENV="verbose", **told)
    assert done.returncode == 0, done.stderr
    assert ("GOMP_SPINCOUNT = '10000'" in done.stderr) == (said is None)


def test_threads_of_the_caller_are_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _SAID:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        policy = open_policy("scratch:dense-tiny", device="cpu")
        found = evaluate(policy, ["modular_test"], limit=2, max_tokens=4)
        assert found.manifest["policy"]["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def not_tiny(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model whose threads are measured, where nobody says how many."""
    for name in (*_SAID, VARIABLE):
        monkeypatch.delenv(name, raising=False)
    sizes = {"hidden_size": 128, "intermediate_size": 2048, "num_hidden_layers": 2}
    config = Qwen3Config(**sizes, vocab_size=300, num_attention_heads=4, num_key_value_heads=2)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def test_threads_are_measured_and_nothing_else_changes(not_tiny: nn.Module) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    not_tiny.train()
    not_tiny.get_submodule("model.norm").eval()
    state = torch.get_rng_state()
    try:
        with Threads() as threads:
            said = threads.suit(not_tiny)
            assert said in {
                f"{n} (the fastest of 1 to 2; OMP_NUM_THREADS changes it)"
                for n in ("1 thread", "2 threads")
            }
            assert threads.suit(not_tiny) == said, "measured once"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(state, torch.get_rng_state())
    assert [name for name, m in not_tiny.named_modules() if not m.training] == ["model.norm"]
    assert all(p.grad is None for p in not_tiny.parameters())


@pytest.mark.parametrize("count", [1, 2])
def test_a_resumed_run_keeps_its_number_of_threads(not_tiny: nn.Module, count: int) -> None:
    size = sum(p.numel() for p in not_tiny.parameters())
    before = torch.get_num_threads()
    with choices.during({f"threads for {size} parameters": count}), Threads() as threads:
        threads.suit(not_tiny)
        assert torch.get_num_threads() == count
    assert torch.get_num_threads() == before
