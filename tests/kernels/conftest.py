"""The compiled operations of a step of sampling, for each kind of vectors that they know."""

import ctypes
import platform
from pathlib import Path

import pytest

from rl_reasoner.kernels import native, panel_weight

# this machine's, and of processors that others have: AVX2, AVX-512 without bf16, neither
_KINDS = {"x86_64": ["native", "x86-64-v3", "skylake-avx512", "x86-64"]}
_NEEDED = {"x86-64-v3": "avx2", "skylake-avx512": "avx512bw"}
_made: dict[str, ctypes.CDLL] = {}


@pytest.fixture(params=_KINDS.get(platform.machine(), ["native"]))
def step_library(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> ctypes.CDLL:
    """Compiled for one kind of processor, and in the place of this one's library."""
    kind = str(request.param)
    if (compiler := native._compiler()) is None:
        pytest.skip("no compiler here")
    if _NEEDED.get(kind, "") not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip(f"this processor does not run what is compiled for {kind}")
    if kind not in _made:
        file = tmp_path_factory.mktemp("native") / f"{kind}.so"
        flags = [flag if "march" not in flag else f"-march={kind}" for flag in native._FLAGS]
        monkeypatch.setattr(native, "_FLAGS", flags)
        step = [source for source in native._CODE if source.name.startswith("step_")]
        monkeypatch.setattr(native, "_CODE", step)
        native._compile(compiler, file)
        _made[kind] = ctypes.CDLL(str(file))
    monkeypatch.setattr(native, "library", lambda: _made[kind])
    monkeypatch.setattr(panel_weight, "_product", panel_weight._product.__wrapped__)
    return _made[kind]
