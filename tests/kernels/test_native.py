"""The compiled library's file: damaged, not to be made, or without a folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rl_reasoner.kernels import native
from rl_reasoner.kernels.expert_products import experts
from rl_reasoner.kernels.training_operations import rms_norm

_ASK = "from rl_reasoner.kernels import native; print(native.available())"


def _compiles() -> bool:
    return native.library() is not None  # also where the tests' choices go without


def _asked(**environment: str) -> str:
    told = {k: v for k, v in os.environ.items() if k != "RL_REASONER_CHOICES"} | environment
    done = subprocess.run([sys.executable, "-c", _ASK], env=told, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_a_failed_compiler_or_half_a_library_is_mended_by_the_next_process(tmp_path: Path) -> None:
    if not _compiles():
        pytest.skip("no compiler here")
    bad = tmp_path / "c++"
    bad.write_text("#!/bin/sh\nexit 1\n")
    bad.chmod(0o755)
    cache = str(tmp_path / "cache")
    assert _asked(RL_REASONER_CACHE=cache, CXX=str(bad)) == "False"
    assert _asked(RL_REASONER_CACHE=cache) == "True"
    [library] = (tmp_path / "cache" / "machine").glob("native-*.so")
    library.write_bytes(library.read_bytes()[:20_000])  # which would end the process
    assert _asked(RL_REASONER_CACHE=cache) == "True"


def test_a_user_without_a_home_folder_has_choices() -> None:
    assert _asked(RL_REASONER_CACHE="~nobody-of-that-name/cache") == "False"


def test_second_gradients_are_refused_not_wrong() -> None:
    if not _compiles():
        pytest.skip("no compiler here")
    x = torch.randn(4, 8, requires_grad=True)
    out = rms_norm(x, torch.ones(8), 1e-6)
    [grad] = torch.autograd.grad(out.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad.pow(2).sum() + x.sum()).backward()


def test_frozen_experts_get_no_gradient() -> None:
    if not _compiles():
        pytest.skip("no compiler here")
    states, gates = torch.randn(6, 8, requires_grad=True), torch.rand(6, 2)
    down = torch.randn(4, 8, 5, requires_grad=True)
    out = experts(states, torch.randn(4, 10, 8), down, torch.randint(0, 4, (6, 2)), gates)
    out.sum().backward()
    assert states.grad is not None and down.grad is not None
