"""The compiled library's file: damaged, not to be made, or without a folder."""

import ctypes
import hashlib
import os
import shutil
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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the library in it, and a compiler that has made it before."""
    if not _compiles():
        pytest.skip("no compiler here")
    cache = tmp_path_factory.mktemp("cache")
    compiler, kept = cache / "c++", cache / "kept"
    compiler.write_text(
        f'#!/bin/sh\nfor out; do :; done\n[ -f {kept} ] || {{ c++ "$@" && mv "$out" {kept}; }}\n'
        f'cp {kept} "$out"\n'
    )
    compiler.chmod(0o755)
    assert _asked(RL_REASONER_CACHE=str(cache), CXX=str(compiler)) == "True"
    return cache


def _other(file: Path) -> bytes:
    """Make `file` a library with its digest, and without functions; its bytes."""
    source = file.with_name("other.cpp")
    source.write_text("int nothing() { return 0; }")
    subprocess.run(["c++", "-shared", "-fPIC", str(source), "-o", str(file)], check=True)
    whole = file.read_bytes()
    file.write_bytes(whole + hashlib.sha256(whole).digest())
    return file.read_bytes()


@pytest.mark.parametrize("how", ["owner", "mode", "folder", "link"])
def test_a_library_that_others_could_have_written_is_made_again(
    how: str, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "machine", tmp_path / "machine")
    [library] = (tmp_path / "machine").glob("native-*.so")
    if how == "link":
        library = library.rename(tmp_path / library.name)
        (tmp_path / "machine" / library.name).symlink_to(library)
    planted = _other(library)
    if how == "owner":
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(library, 65534, 65534)
    library.chmod(0o666 if how == "mode" else 0o644)
    library.parent.chmod(0o777 if how == "folder" else 0o755)
    assert _asked(RL_REASONER_CACHE=str(tmp_path), CXX=str(made / "c++")) == "True"
    again = tmp_path / "machine" / library.name
    assert again.read_bytes() != planted and not again.is_symlink()
    assert not (again.stat().st_mode | again.parent.stat().st_mode) & 0o022


def test_in_a_folder_of_somebody_elses_no_library_is_used(made: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives folders away")
    shutil.copytree(made / "machine", tmp_path / "machine")
    os.chown(tmp_path / "machine", 65534, 65534)
    assert _asked(RL_REASONER_CACHE=str(tmp_path), CXX=str(made / "c++")) == "False"


def test_a_library_that_lacks_a_function_is_not_used(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "machine", tmp_path / "machine")
    [library] = (tmp_path / "machine").glob("native-*.so")
    library.unlink()
    _other(library)
    library.chmod(0o644)
    assert _asked(RL_REASONER_CACHE=str(tmp_path), CXX=str(made / "c++")) == "False"


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


def test_a_library_whose_gradients_are_wrong_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a compiler with a fault would make it; what it computes forwards is right."""
    if (compiler := native._compiler()) is None:
        pytest.skip("no compiler here")
    attention = next(file for file in native._CODE if file.name == "attention.cpp")
    right = "row[j] * (change[j] - dot) * scale"
    assert right in attention.read_text()
    for file in native._SOURCES:
        text = file.read_text().replace(right, "row[j] * change[j] * scale")
        (tmp_path / file.name).write_text(text)
    monkeypatch.setattr(native, "_CODE", [tmp_path / file.name for file in native._CODE])
    monkeypatch.setattr(native, "_FLAGS", ["-O0" if f == "-O3" else f for f in native._FLAGS])
    native._compile(compiler, tmp_path / "wrong.so")
    assert not native._is_right(ctypes.CDLL(str(tmp_path / "wrong.so")))
    monkeypatch.undo()
    library = native._library()
    with torch.inference_mode(), torch.autocast("cpu"):  # it may be loaded anywhere
        assert native._is_right(library)
